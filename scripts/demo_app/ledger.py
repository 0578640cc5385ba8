"""A real HTTP service on this machine: a ledger that makes one entry for each idempotency key.

| request | answer |
|---|---|
| POST /entries, header Idempotency-Key, a JSON object | 201 and the entry; 200 when the key was there already |
| the same key with other content | 422 |
| GET /entries/KEY | 200 and the entry, or 404 |

The standard library's server is enough for two routes on one machine; a framework would bring ten packages along.
Every call that is carried out is a line of a file, in the order of the calls; that is what the service counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from mail_effects import ENTRIES_PATH, KEY_HEADER

from demo_app.withheld import Withheld
from leasemesh.node.model.errors import LeasemeshError

CALLS_FILE = "ledger.jsonl"
BODY_BYTES_MAX = 64 * 1024
REQUEST_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True)
class Call:
    """A request for an entry that was carried out.

    Attributes:
        key: its idempotency key.
        event: the id of the event that it is about.
        device: who sent it.
        repeated: the key was there, so nothing was entered.
    """

    key: str
    event: str
    device: str
    repeated: bool


def read_calls(folder: Path) -> Iterator[Call]:
    """Read what a ledger in this folder has carried out.

    Raises:
        LeasemeshError: there was none in this folder.
    """
    try:
        with (folder / CALLS_FILE).open() as file:
            for line in file:
                yield Call(**json.loads(line))
    except OSError as error:
        raise LeasemeshError(f"{folder} does not hold what a ledger has carried out") from error


class Ledger:
    """The service; an async context manager.

    Attributes:
        port: where it listens on this machine.
        withheld: makes it keep an answer to itself.
    """

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self.withheld = Withheld()
        self._path = folder / CALLS_FILE
        self._lock = threading.Lock()
        self._entries: dict[str, Any] = {}
        self._repeated = 0
        self._called = asyncio.Event()

    @property
    def entered(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    @property
    def repeated(self) -> int:
        """How many calls were answered with an entry that was there."""
        return self._repeated

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, looking whenever there was a call."""
        while not condition():
            self._called.clear()
            await self._called.wait()

    async def __aenter__(self) -> Ledger:
        self._loop = asyncio.get_running_loop()
        self._calls = self._path.open("a")
        self._server = _Server(self)
        self.port = self._server.server_port
        self._serving = asyncio.create_task(asyncio.to_thread(self._server.serve_forever, poll_interval=0.05))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.withheld.let_go()
        await asyncio.to_thread(self._server.shutdown)
        await self._serving
        # It waits for its threads; one of them may still need this loop for its answer.
        await asyncio.to_thread(self._server.server_close)
        self._calls.close()

    def get(self, key: str) -> Any:
        """Return the entry with a key, None when there is none. Any thread."""
        return self._entries.get(key)

    def enter(self, key: str, entry: dict[str, Any], device: str) -> HTTPStatus:
        """Make an entry, unless its key is there. Any thread."""
        with self._lock:
            found = self._entries.setdefault(key, entry)
            if found != entry:
                return HTTPStatus.UNPROCESSABLE_ENTITY
            repeated = found is not entry
            self._repeated += repeated
            self._calls.write(json.dumps(asdict(Call(key, str(entry.get("event")), device, repeated))) + "\n")
            self._calls.flush()
        return HTTPStatus.OK if repeated else HTTPStatus.CREATED

    def pass_answer(self, device: str, event: str) -> None:
        """Return when a device may have its answer. For the service's own threads."""
        asyncio.run_coroutine_threadsafe(self._pass_answer(device, event), self._loop).result()

    async def _pass_answer(self, device: str, event: str) -> None:
        self._called.set()
        await self.withheld.pass_answer(device, event)


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A caller that was killed before it had its answer is what this service is here for.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS_MAX

    def do_GET(self) -> None:
        found = self.server.ledger.get(self.path.removeprefix(f"{ENTRIES_PATH}/"))
        if found is None:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is no such entry"})
        else:
            self._answer(HTTPStatus.OK, found)

    def do_POST(self) -> None:
        key, length = self.headers.get(KEY_HEADER), int(self.headers.get("Content-Length") or 0)
        if self.path != ENTRIES_PATH or not key or not 0 < length <= BODY_BYTES_MAX:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f"POST a JSON object to {ENTRIES_PATH} with a {KEY_HEADER}"})
            return
        entry = _object(self.rfile.read(length))
        if entry is None:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "the body is not a JSON object"})
            return
        device = self.headers.get("User-Agent", "")
        status = self.server.ledger.enter(key, entry, device)
        if status is HTTPStatus.UNPROCESSABLE_ENTITY:
            self._answer(status, {"error": f"the {KEY_HEADER} stands for something else"})
            return
        self.server.ledger.pass_answer(device, str(entry.get("event")))
        self._answer(status, entry)

    def _answer(self, status: HTTPStatus, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Every call is in the file; the screen is for the story."""


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
