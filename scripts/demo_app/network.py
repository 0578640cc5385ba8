"""The network between a device and the hub, which the demo can cut: TCP connections, passed on byte by byte."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from types import TracebackType

CHUNK_BYTES = 64 * 1024

log = logging.getLogger("leasemesh.demo")


class Link:
    """One device's way to the hub; an async context manager that listens while it is entered.

    While it is cut, what was connected is broken off without a goodbye, and who dials gets no answer: somebody has
    pulled the cable. Whoever is still dialling when it is mended gets through.

    Attributes:
        url: what the device dials instead of the hub's own address.
    """

    def __init__(self, hub_url: str) -> None:
        self.url = ""
        self._hub = urllib.parse.urlsplit(hub_url)
        self._closed = False
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._dialling: set[asyncio.StreamWriter] = set()
        self._accepted: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._hub._replace(netloc=f"127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        self._closed = True
        self._whole.set()
        await asyncio.gather(*self._accepted)
        await self._server.wait_closed()

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return not self._whole.is_set()

    def cut(self) -> int:
        """Break all connections off, let no further one through, and return how many were broken off."""
        self._whole.clear()
        broken = len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        return broken

    def forget_diallers(self) -> int:
        """Break off who has dialled while this is cut, because nobody waits for an answer; returns how many."""
        for writer in self._dialling:
            writer.transport.abort()
        return len(self._dialling)

    def mend(self) -> None:
        """Let connections through again."""
        self._whole.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio makes a task of each connection"
        self._accepted.add(task)
        try:
            self._dialling.add(writer)
            await self._whole.wait()
            self._dialling.discard(writer)
            if self._closed or writer.transport.is_closing():
                return
            hub_reader, hub_writer = await asyncio.open_connection(self._hub.hostname, self._hub.port)
            self._writers |= {writer, hub_writer}
            try:
                await asyncio.gather(_pass(reader, hub_writer), _pass(hub_reader, writer))
            finally:
                self._writers -= {writer, hub_writer}
                hub_writer.transport.abort()
        except OSError as error:
            log.debug("a connection to the hub ended: %s", error)  # a cut, or a death at one of its ends
        finally:
            self._accepted.discard(task)
            writer.transport.abort()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        target.write(data)
        await target.drain()
    target.close()
