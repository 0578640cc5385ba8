"""What tests with several syncing nodes share."""

import asyncio
from contextlib import asynccontextmanager

from leasemesh import NewEvent

LOOPBACK = ("127.0.0.1", 0)


def publish(node, *message_ids, topic="mail", payload=None):
    node.publish_many(
        "inbox", topic, [NewEvent(message_id, f"about {message_id}", payload) for message_id in message_ids]
    )


def message_ids(node, topic="mail", status="pending"):
    """Sorted, because nodes that publish at one moment have no common order before they meet."""
    return sorted(event.message_id for event in node.peek("inbox", topic, limit=10_000, status=status))


def digests(*nodes):
    return [node.digest().tables for node in nodes]


async def equal(*nodes):
    """Wait until the nodes have equal digests, looking again after each change of any of them."""
    subscriptions = [node.changes() for node in nodes]
    try:
        while any(digest != first for first, *others in [digests(*nodes)] for digest in others):
            waits = [asyncio.ensure_future(anext(subscription)) for subscription in subscriptions]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
    finally:
        for subscription in subscriptions:
            subscription.close()


async def told(sync, kind, containing=""):
    """Wait for a notification of this kind from now on."""
    observer = sync.loop.observe()
    try:
        async for tell in observer:
            if tell.kind == kind and containing in tell.text:
                return tell
    finally:
        observer.close()
    raise AssertionError(f"sync ended without telling {kind} {containing}")


@asynccontextmanager
async def listening_to(sync, kind, containing=""):
    """Wait at the end of the block for something that was told since its beginning."""
    waiting = asyncio.ensure_future(told(sync, kind, containing))
    await asyncio.sleep(0)  # it observes from here on
    yield
    await waiting


class Proxy:
    """Forwards TCP connections to a port, and can stop doing so in one direction or cut them.

    `bytes_max`: it stops by itself after so many bytes from the target.
    """

    def __init__(self, port, *, bytes_max=2**62):
        self._target = port
        self._bytes_left = bytes_max
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers = []
        self._tasks = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**16)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def pause(self):
        """Let nothing more come from the target."""
        self._flowing.clear()

    def resume(self):
        self._bytes_left = 2**62
        self._flowing.set()

    def cut(self):
        """Break all connections off, without any goodbye."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader, writer):
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=2**16)
        self._writers += [writer, target_writer]
        self._tasks += [
            asyncio.ensure_future(self._forward(reader, target_writer, pausable=False)),
            asyncio.ensure_future(self._forward(target_reader, writer, pausable=True)),
        ]

    async def _forward(self, reader, writer, *, pausable):
        try:
            while True:
                if pausable:
                    await self._flowing.wait()
                data = await reader.read(2**16)
                if not data:
                    break
                if pausable:
                    await self._flowing.wait()  # it may have been stopped while this waited for data
                    self._bytes_left -= len(data)
                    if self._bytes_left < 0:
                        self._flowing.clear()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # that is what a cut looks like from here
        finally:
            writer.close()
