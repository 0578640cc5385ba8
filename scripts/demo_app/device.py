"""One device of the demo: a process with a database, driven by one-line JSON commands on standard input.

    {"do": "resolve", "work": "...", "verdict": "happened"}    ->    {"answer": {}}

Answers go to standard output in the order of the commands, between them notices of what sync and the handlers tell. A
command that fails is answered with {"error": sentence}. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from mail_effects import Services
from mail_handlers import WORKFLOW, automation
from mail_source import Source

from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.node import Node
from leasemesh.node.stores.mutations import Verdict
from leasemesh.sync.drivers.notifications import Notifications

COMMAND_BYTES_MAX = 16 * 1024 * 1024
"""A command may name thousands of events."""

WAIT_SECONDS_MAX = 60
"""Without anything new; what is waited for takes seconds at most on one machine."""

NOTIFIED_KINDS = frozenset({"connected", "disconnected", "refused", "identity", "quarantined"})

Answer = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What a device's process is started with.

    Attributes:
        name: its name.
        path: its database.
        workspace: the workspace's id.
        source: what is published.
        services: where its effects go.
    """

    name: str
    path: str
    workspace: str
    source: Source
    services: Services

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DeviceSettings:
        """Return what `to_json` wrote down."""
        values = json.loads(text)
        return cls(**values | {"source": Source(**values["source"]), "services": Services(**values["services"])})


class Device:
    """Carries out the commands: each public method is one."""

    def __init__(self, node: Node, settings: DeviceSettings) -> None:
        self._node = node
        self._settings = settings
        self._running = AsyncExitStack()
        self._screen: asyncio.Task[None] | None = None

    async def online(self, *, listen: bool = False, peer: str | None = None) -> Answer:
        """Begin to sync, on a free port of this machine or with a peer."""
        sync = await self._node.start_sync(
            listen=("127.0.0.1", 0) if listen else None, peers=[peer] if peer is not None else []
        )
        self._screen = asyncio.create_task(_tell(sync.loop.observe()))
        return {"url": sync.url}

    async def offline(self) -> Answer:
        """Stop syncing."""
        await self._node.stop_sync()
        if self._screen is not None:
            await self._screen
        return {}

    async def start(self, *, reading: bool, working: bool) -> Answer:
        """Run handlers: those that read the source, and those that do the work."""
        workflow = automation(self._settings.source, self._settings.services, reading=reading, working=working)
        await self._running.enter_async_context(self._node.running([workflow]))
        return {}

    async def stop(self) -> Answer:
        """Let the handlers finish what they are at, and stop them."""
        await self._running.aclose()
        return {}

    async def appoint(self) -> Answer:
        """Make this device the authority that grants permits."""
        self._node.authorities.appoint(self._node.site_id, by="demo")
        return {}

    async def await_authority(self) -> Answer:
        """Wait until this device knows who grants permits."""
        await self._until(lambda: self._node.authorities.info().authority, "an authority")
        return {}

    async def await_events(self, *, topic: str, message_ids: list[str]) -> Answer:
        """Wait until these events are here."""

        def arrived() -> bool:
            return len(self._node.events.get_many(WORKFLOW, topic, message_ids)) == len(message_ids)

        await self._until(arrived, f"{len(message_ids):,} events in {topic}")
        return {}

    async def await_settled(self, *, totals: dict[str, int]) -> Answer:
        """Wait until these topics hold so many events at least, and all of them are settled."""

        def settled() -> bool:
            counts = {topic.topic: topic.by_status for topic in self._node.events.counts(WORKFLOW)}
            return all(
                sum(counts.get(topic, {}).values()) >= total and set(counts.get(topic, {})) <= {"consumed"}
                for topic, total in totals.items()
            )

        await self._until(settled, f"everything in {', '.join(totals)} to be done")
        return {}

    async def await_waiting(self) -> Answer:
        """Wait until a run of this device waits for a permit, and tell for which event."""
        own = self._node.site_id

        def waiting() -> list[str]:
            return [event for one in self._node.permits.waiting() if one.node == own for event in one.events]

        (event,) = await self._until(waiting, "a run that waits for a permit")
        return {"event": event, "title": self._title(event)}

    async def await_unknown(self) -> Answer:
        """Wait until there is an effect of which only a person can tell whether it happened, and tell of it."""

        def unknown() -> list[Answer]:
            found = [one for one in self._node.mutations.unresolved() if one.status == "indeterminate"]
            return [{"run": one.run, "work": one.work, "tool": one.tool, "params": one.params} for one in found]

        return (await self._until(unknown, "an effect of unknown outcome"))[0]

    async def resolve(self, *, work: str, verdict: str, by: str) -> Answer:
        """Give a person's verdict."""
        self._node.mutations.resolve(work, cast(Verdict, verdict), by=by)
        return {}

    async def consumed(self, *, topics: list[str]) -> Answer:
        """Name the events that are done, by topic."""
        return {
            topic: [event.id for event in self._node.peek(WORKFLOW, topic, limit=10_000, status="consumed")]
            for topic in topics
        }

    async def title(self, *, event: str) -> Answer:
        """Tell an event's title."""
        return {"title": self._title(event)}

    async def flush(self) -> Answer:
        """Wait until all devices have what this one has, and this one what they had before."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._node.barrier()
        except TimeoutError as error:
            raise LeasemeshError(f"waited {WAIT_SECONDS_MAX} s in vain for all devices to be level") from error
        return {}

    def _title(self, event: str) -> str:
        found = self._node.events.get(event)
        return found.title if found is not None else event

    async def _until(self, condition: Callable[[], Found], what: str) -> Found:
        """Wait for a condition on the database, and return what it found."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX) as timeout, self._node.changes() as changes:
                if found := condition():
                    return found
                async for _ in changes:
                    if found := condition():
                        return found
                    timeout.reschedule(asyncio.get_running_loop().time() + WAIT_SECONDS_MAX)
        except TimeoutError as error:
            raise LeasemeshError(f"waited {WAIT_SECONDS_MAX} s in vain for {what}") from error
        raise LeasemeshError(f"the database was closed while waiting for {what}")


COMMANDS: dict[str, Callable[..., Awaitable[Answer]]] = {
    command.__name__: command
    for command in (
        Device.online, Device.offline, Device.start, Device.stop, Device.appoint, Device.await_authority,
        Device.await_events, Device.await_settled, Device.await_waiting, Device.await_unknown, Device.resolve,
        Device.consumed, Device.title, Device.flush,
    )
}  # fmt: skip


async def _tell(observer: Notifications) -> None:
    async for tell in observer:
        if tell.kind in NOTIFIED_KINDS:
            _say({"notification": tell.text, "kind": tell.kind})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _serve(device: Device) -> None:
    reader = asyncio.StreamReader(limit=COMMAND_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    while line := await reader.readline():
        command = json.loads(line)
        try:
            _say({"answer": await COMMANDS[command.pop("do")](device, **command)})
        except LeasemeshError as error:
            _say({"error": str(error)})
    await device.stop()
    await device.offline()


def main(settings: DeviceSettings) -> None:
    """Run a device until its standard input ends."""
    logging.getLogger("leasemesh").addHandler(logging.NullHandler())  # what matters of it is told
    path, name, workspace = Path(settings.path), settings.name, settings.workspace
    with Node.open(path, name=name, workspace=workspace) as node:
        asyncio.run(_serve(Device(node, settings)))


if __name__ == "__main__":
    main(DeviceSettings.from_json(sys.argv[1]))
