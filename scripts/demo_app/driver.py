"""Starts a process for each device, talks to it, and kills it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from demo_app.device import COMMAND_BYTES_MAX, DeviceSettings
from leasemesh.node.model.errors import LeasemeshError

ANSWER_SECONDS_MAX = 300
"""Longer than anything takes; a device that waits in vain says so itself, and much earlier."""

STOP_SECONDS_MAX = 15


class DeviceFailed(LeasemeshError):
    """A device could not do what it was told, or its process ended; the text says which and why."""


class DeviceProcess:
    """A device's process; an async context manager that starts and ends it.

    Attributes:
        name: the device's name.
    """

    def __init__(self, settings: DeviceSettings, notify: Callable[[str, str, str], None]) -> None:
        """Args: the device's settings, and `notify`, called with (name, kind, text) of what it tells."""
        self.name = settings.name
        self._settings = settings
        self._notify = notify
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()

    async def __aenter__(self) -> DeviceProcess:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, reading = self._process, self._reading
        if process is None or process.stdin is None or reading is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        await reading
        if kind is None and code != 0:
            raise DeviceFailed(f"{self.name}: its process ended with code {code}")

    async def start(self) -> None:
        """Start the process; also again, after it was killed."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo_app.device",
            self._settings.to_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=COMMAND_BYTES_MAX,
            start_new_session=True,  # Ctrl-C in the terminal is for the demo, which then ends its devices in order
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def kill(self) -> None:
        """End the process by SIGKILL: it has no chance to do, write or say anything more."""
        process, reading = self._process, self._reading
        assert process is not None and reading is not None, "it is running"
        process.kill()
        await process.wait()
        await reading
        self._process = None

    async def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have a command carried out (see `demo_app.device.Device`) and return its answer.

        Raises:
            DeviceFailed: it failed, or the process ended.
        """
        process = self._process
        assert process is not None and process.stdin is not None, "it is running"
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await process.stdin.drain()
                return await future
        except (OSError, TimeoutError) as error:
            raise DeviceFailed(f"{self.name}: no answer to {do}") from error

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "started with a pipe"
        while line := await process.stdout.readline():
            message = json.loads(line)
            if "notification" in message:
                self._notify(self.name, message["kind"], message["notification"])
                continue
            future = self._waiting.popleft()
            if future.done():
                continue
            if "answer" in message:
                future.set_result(message["answer"])
            else:
                future.set_exception(DeviceFailed(f"{self.name}: {message['error']}"))
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(DeviceFailed(f"{self.name}: its process ended before it answered"))
