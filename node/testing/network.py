"""The virtual network: ordered links that lose nothing but their tail, and directions that can be blocked.

A link is what TCP gives: messages of one direction arrive in order, or not at all once the link is cut. A blocked
direction holds what is sent until it is free again, as TCP does by sending anew. A link that stays blocked for long is
given up by the engines themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from leasemesh.node.testing.virtual_loop import VirtualLoop
from leasemesh.sync import wire
from leasemesh.sync.messages import Changes
from leasemesh.sync.transport import DialFailed, Transport, TransportEnd

if TYPE_CHECKING:
    from leasemesh.sync.drivers.loop import SyncLoop

BYTES_PER_MS = 10_000
"""Bandwidth of a link that nobody has made slow."""

SLOW_US = 300_000
"""What waits so long for its turn was slowed down."""

FIRST_PORT = 10_000
HOST = "127.0.0.1"


def address(number: int) -> tuple[str, int]:
    """Where a device listens."""
    return HOST, FIRST_PORT + number


def url(number: int) -> str:
    """What is dialled to reach a device."""
    return f"ws://{HOST}:{FIRST_PORT + number}"


class Witness(Protocol):
    """Who is told of what happens on the network."""

    def sending(self, number: int, data: bytes) -> None:
        """A device is about to send a message."""

    def sent(self, number: int) -> None:
        """It has."""

    def closed(self, number: int, code: int) -> None:
        """A device has closed a link."""

    def hit(self, fault: str) -> None:
        """A fault has made a difference."""


@dataclass(frozen=True, slots=True)
class _Farewell:
    """The last thing that comes out of a direction: the other end is gone."""

    code: int | None
    reason: str


@dataclass(slots=True)
class _Pipe:
    """One direction of a link."""

    latency_us: int
    bytes_per_ms: int = BYTES_PER_MS
    free_at_us: int = 0
    cut: bool = False
    in_flight: deque[tuple[bytes | _Farewell, int]] = field(default_factory=deque)
    """What was sent and has not arrived, with when it does. Only the first one's arrival is scheduled."""


class VirtualTransport:
    """One end of a link (`sync.transport.Transport`)."""

    is_local = False

    def __init__(self, network: VirtualNetwork, loop: VirtualLoop, source: int, target: int, latency_us: int) -> None:
        self.remote = f"{HOST}:{FIRST_PORT + target}"
        self.loop = loop
        self.source = source
        self.target = target
        self.outgoing = _Pipe(latency_us)
        self.peer: VirtualTransport
        self.is_open = True
        self._network = network
        self._received: Callable[[bytes], None] | None = None
        self._early: list[bytes] = []
        self._end: TransportEnd | None = None
        self._ended: asyncio.Future[None] = loop.create_future()
        self._has_received = False

    def send(self, data: bytes) -> None:
        """See `Transport.send`."""
        if self.is_open:
            self._network.send(self, data)

    def close(self, code: int, reason: str) -> None:
        """See `Transport.close`."""
        if self.is_open:
            self._network.close(self, code, reason)
            self._network.witness.closed(self.source, code)
            self.end(TransportEnd(code, reason))

    def has_received(self) -> bool:
        """See `Transport.has_received`."""
        has_received, self._has_received = self._has_received, False
        return has_received

    async def pump(self, received: Callable[[bytes], None]) -> TransportEnd:
        """See `Transport.pump`."""
        self._received = received
        early, self._early = self._early, []
        for data in early:
            self.arrive(data)
        try:
            await self._ended
        finally:
            self.close(1001, "nobody listens any more")
        assert self._end is not None, "it has ended"
        return self._end

    def arrive(self, data: bytes) -> None:
        """Something has come."""
        if not self.is_open:
            return
        self._has_received = True
        if self._received is None:
            self._early.append(data)
        else:
            self._received(data)

    def end(self, end: TransportEnd) -> None:
        """It is over. The first call wins."""
        if self.is_open:
            self.is_open = False
            self._end = end
            if not self._ended.done():
                self._ended.set_result(None)


class VirtualNetwork:
    """All links of a world, and which directions are blocked."""

    def __init__(self, random: Random, witness: Witness, *, latency_us_max: int) -> None:
        """Args: `latency_us_max`: each link draws its own latency up to this. `witness` is told what happens."""
        self._random = random
        self.witness = witness
        self._latency_us_max = latency_us_max
        self._blocked: dict[tuple[int, int], str] = {}
        self._waiting: list[VirtualTransport] = []  # whose outgoing direction is blocked with something in it
        self._listening: dict[int, VirtualListener] = {}
        self.ends: list[VirtualTransport] = []

    # --- Faults -------------------------------------------------------------------------------------------------------

    def is_blocked(self, source: int, target: int) -> bool:
        """Tell whether nothing comes through from one device to another."""
        return (source, target) in self._blocked

    @property
    def is_blocked_anywhere(self) -> bool:
        """Whether any direction is blocked."""
        return bool(self._blocked)

    def block(self, source: int, target: int, fault: str = "partition") -> None:
        """Let nothing through from one device to another."""
        self._blocked[source, target] = fault

    def unblock(self, source: int, target: int) -> None:
        """Let through what waits, and what comes."""
        self._blocked.pop((source, target), None)
        waiting, self._waiting = self._waiting, []
        for end in waiting:
            self._schedule(end)

    def unblock_all(self) -> None:
        """Let everything through."""
        for pair in list(self._blocked):
            self.unblock(*pair)

    def set_bandwidth(self, bytes_per_ms: int, device: int | None = None) -> None:
        """Make the links that a device has now, or all of them, slower or faster, both ways."""
        for end in self.ends:
            if device is None or device in (end.source, end.target):
                end.outgoing.bytes_per_ms = bytes_per_ms

    def cut(self, end: VirtualTransport) -> bool:
        """Break a link with its tails lost. Both ends notice, unless that is blocked too.

        Returns:
            Whether rows were under way.
        """
        rows = False
        for one in (end, end.peer):
            pipe = one.outgoing
            rows = rows or any(
                isinstance(message, bytes) and isinstance(wire.decode(message), Changes)
                for message, _ in pipe.in_flight
            )
            arrival_scheduled = bool(pipe.in_flight)
            pipe.in_flight.clear()
            pipe.cut = True
            at_us = one.loop.scheduler.now_us + pipe.latency_us
            pipe.in_flight.append((_Farewell(None, "the connection broke off"), at_us))
            if not arrival_scheduled:
                self._schedule(one)
        return rows

    def drop_process(self, loop: VirtualLoop) -> None:
        """A process is gone: nobody listens there, and its links break."""
        for number, listener in list(self._listening.items()):
            if listener.loop is loop:
                del self._listening[number]
        for end in list(self.ends):
            if end.loop is loop:
                end.is_open = False
                self.cut(end)

    # --- For processes ------------------------------------------------------------------------------------------------

    def listen(self, number: int, listener: VirtualListener) -> None:
        """From now on a device can be dialled."""
        self._listening[number] = listener

    def stop_listening(self, number: int, listener: VirtualListener) -> None:
        """It cannot be dialled any more."""
        if self._listening.get(number) is listener:
            del self._listening[number]

    async def connect(self, loop: VirtualLoop, source: int, target: int) -> VirtualTransport:
        """Make a link.

        Raises:
            DialFailed: there is no way, or nobody listens.
        """
        latency_us = self._random.randint(1_000, max(1_000, self._latency_us_max))
        await _sleep(loop, latency_us)
        for pair in ((source, target), (target, source)):
            if self.is_blocked(*pair):
                self.witness.hit(self._blocked[pair])
                raise DialFailed("cannot be reached: no route to host")
        listener = self._listening.get(target)
        if listener is None:
            raise DialFailed("cannot be reached: connection refused")
        one = VirtualTransport(self, loop, source, target, latency_us)
        other = VirtualTransport(self, listener.loop, target, source, latency_us)
        one.peer, other.peer = other, one
        self.ends += (one, other)
        listener.accept(other)
        await _sleep(loop, latency_us)
        return one

    def send(self, end: VirtualTransport, message: bytes | _Farewell) -> None:
        """Send something. It arrives when all that was sent before has."""
        pipe = end.outgoing
        if isinstance(message, bytes):
            self.witness.sending(end.source, message)
        if not pipe.cut:
            self._put(end, pipe, message)
        if isinstance(message, bytes):
            self.witness.sent(end.source)

    def _put(self, end: VirtualTransport, pipe: _Pipe, message: bytes | _Farewell) -> None:
        now_us = end.loop.scheduler.now_us
        size = len(message) if isinstance(message, bytes) else 0
        pipe.free_at_us = max(pipe.free_at_us, now_us) + size * 1000 // pipe.bytes_per_ms
        pipe.in_flight.append((message, pipe.free_at_us + pipe.latency_us))
        if pipe.free_at_us - now_us > SLOW_US:
            self.witness.hit("slow link")
        if len(pipe.in_flight) == 1:
            self._schedule(end)

    def close(self, end: VirtualTransport, code: int, reason: str) -> None:
        """One end closes: what it has sent still arrives, what is under way to it does not matter any more."""
        self.send(end, _Farewell(code, reason))
        end.outgoing.cut = True
        end.peer.outgoing.cut = True

    def _schedule(self, end: VirtualTransport) -> None:
        if end.outgoing.in_flight:
            scheduler = end.loop.scheduler
            loop = end.peer.loop
            at_us = max(end.outgoing.in_flight[0][1], scheduler.now_us)
            if loop.alive:
                loop.after_us(at_us - scheduler.now_us, self._arrive, end)
            else:
                self._forget(end)

    def _arrive(self, end: VirtualTransport) -> None:
        pipe = end.outgoing
        if not pipe.in_flight:
            return
        if self.is_blocked(end.source, end.target):
            self.witness.hit(self._blocked[end.source, end.target])
            self._waiting.append(end)
            return
        message, _ = pipe.in_flight.popleft()
        self._schedule(end)
        if isinstance(message, bytes):
            end.peer.arrive(message)
        else:
            self._forget(end)
            reason = message.reason if message.code is None else f"closed by the peer: {message.reason}"
            end.peer.end(TransportEnd(message.code, reason))

    def _forget(self, end: VirtualTransport) -> None:
        for one in (end, end.peer):
            if one in self.ends:
                self.ends.remove(one)


class VirtualListener:
    """Accepts links for one process (`node.machine.environment.Listening`)."""

    def __init__(self, network: VirtualNetwork, loop: VirtualLoop, sync_loop: SyncLoop, number: int) -> None:
        self.loop = loop
        self._network = network
        self._sync_loop = sync_loop
        self._number = number
        self._carrying: set[asyncio.Task[object]] = set()

    @property
    def url(self) -> str:
        """What a peer dials."""
        return url(self._number)

    async def start(self) -> None:
        """Let it be dialled."""
        self._network.listen(self._number, self)

    async def stop(self) -> None:
        """Let it be dialled no more."""
        self._network.stop_listening(self._number, self)
        if self._carrying:
            await asyncio.wait(self._carrying)

    def accept(self, end: VirtualTransport) -> None:
        """Serve a link."""
        if self.loop.alive:
            task = self.loop.create_task(self._sync_loop.carry(end, dialed=False), name=f"accepted from {end.source}")
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)


class ProcessNetwork:
    """The network as one process sees it (`node.machine.environment.Network`)."""

    def __init__(self, network: VirtualNetwork, loop: VirtualLoop, number: int) -> None:
        self._network = network
        self._loop = loop
        self._number = number

    def listener(self, sync_loop: SyncLoop, host: str, port: int) -> VirtualListener:
        """See `node.machine.environment.Network.listener`."""
        return VirtualListener(self._network, self._loop, sync_loop, port - FIRST_PORT)

    async def dial(self, url: str) -> Transport:
        """See `node.machine.environment.Network.dial`."""
        port = urlsplit(url).port or 0
        return await self._network.connect(self._loop, self._number, port - FIRST_PORT)


async def _sleep(loop: VirtualLoop, delay_us: int) -> None:
    """Let a time of the world pass."""
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.after_us(delay_us, wake)
    await waiter
