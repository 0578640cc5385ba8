"""The virtual network: ordered links that lose nothing but their tail, and directions that can be blocked.

A link is what TCP gives: messages of one direction arrive in order, or not at all once the link is cut. A blocked
direction holds what is sent until it is free again, as TCP does by sending anew; a link that stays blocked for long is
given up by the engines themselves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sync import wire
from sync.messages import Changes

BYTES_PER_MS = 10_000
"""Bandwidth of a link that nobody has made slow."""

SLOW_MS = 300
"""What waits so long for its turn was slowed down."""


@dataclass
class Farewell:
    """The last thing that comes out of a direction: the other end is gone."""

    code: int | None
    reason: str


@dataclass
class Pipe:
    """One direction of a link."""

    source: int
    target: int
    latency_ms: int
    bytes_per_ms: int
    free_at_ms: int = 0
    in_flight: deque = field(default_factory=deque)
    """What was sent and has not arrived: (message, arrival). Its arrivals are scheduled one by one."""
    cut: bool = False


class End:
    """One end of a link, as a process has it."""

    def __init__(self, process, number: int, dialed: bool) -> None:
        self.process = process
        self.number = number
        self.dialed = dialed
        self.open = True
        self.peer: End
        self.outgoing: Pipe


class Network:
    """All links."""

    def __init__(self, world) -> None:
        self._world = world
        self._blocked: dict[tuple[int, int], bool] = {}
        self._waiting: list[End] = []  # whose outgoing pipe is blocked with something in it
        self.ends: list[End] = []

    def is_blocked(self, source: int, target: int) -> bool:
        return (source, target) in self._blocked

    def block(self, source: int, target: int, *, kind: str) -> None:
        self._blocked[source, target] = kind

    def unblock(self, source: int, target: int) -> None:
        self._blocked.pop((source, target), None)
        waiting, self._waiting = self._waiting, []
        for end in waiting:
            self._schedule(end)

    def unblock_all(self) -> None:
        for pair in list(self._blocked):
            self.unblock(*pair)

    def speed_up(self) -> None:
        """Give every link its normal bandwidth."""
        for end in self.ends:
            end.outgoing.bytes_per_ms = BYTES_PER_MS

    def hit(self, source: int, target: int) -> None:
        """Something met a blocked direction: the fault has fired."""
        self._world.fired[self._blocked[source, target]] += 1

    def connect(self, dialler, listener, *, latency_ms: int) -> tuple[End, End]:
        """Make a link; the caller tells the processes."""
        one = End(dialler, self._world.next_link(), True)
        other = End(listener, self._world.next_link(), False)
        one.peer, other.peer = other, one
        for end in (one, other):
            source, target = end.process.device.number, end.peer.process.device.number
            end.outgoing = Pipe(source, target, latency_ms, BYTES_PER_MS)
            self.ends.append(end)
        return one, other

    def send(self, end: End, message: bytes | Farewell) -> None:
        """Send something; it arrives when all that was sent before has."""
        pipe = end.outgoing
        if pipe.cut:
            return
        size = len(message) if isinstance(message, bytes) else 0
        now_ms = self._world.now_ms
        pipe.free_at_ms = max(pipe.free_at_ms, now_ms) + size // pipe.bytes_per_ms
        pipe.in_flight.append((message, pipe.free_at_ms + pipe.latency_ms))
        if pipe.free_at_ms - now_ms > SLOW_MS:
            self._world.fired["slow link"] += 1
        if len(pipe.in_flight) == 1:
            self._schedule(end)

    def _schedule(self, end: End) -> None:
        pipe = end.outgoing
        if pipe.in_flight:
            at_ms = max(pipe.in_flight[0][1], self._world.now_ms)
            self._world.at(at_ms, lambda: self._arrive(end), device=end.peer.process.device)

    def _arrive(self, end: End) -> None:
        pipe = end.outgoing
        if not pipe.in_flight:
            return
        if self.is_blocked(pipe.source, pipe.target):
            self.hit(pipe.source, pipe.target)
            self._waiting.append(end)
            return
        message, _ = pipe.in_flight.popleft()
        self._schedule(end)
        if isinstance(message, Farewell):
            self.forget(end)
            end.peer.process.link_ended(end.peer, message)
        elif end.peer.open:
            end.peer.process.received(end.peer, message)

    def close(self, end: End, farewell: Farewell) -> None:
        """One end closes: what it has sent still arrives, what is under way to it does not matter any more."""
        self.send(end, farewell)
        end.peer.outgoing.cut = True

    def cut(self, end: End, reason: str) -> bool:
        """Break a link with its tails lost; both ends notice, unless that is blocked too.

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
            pipe.cut = False
            pipe.in_flight.append((Farewell(None, reason), self._world.now_ms + pipe.latency_ms))
            pipe.cut = True
            if not arrival_scheduled:
                self._schedule(one)
        return rows

    def forget(self, end: End) -> None:
        if end in self.ends:
            self.ends.remove(end)
        if end.peer in self.ends:
            self.ends.remove(end.peer)
