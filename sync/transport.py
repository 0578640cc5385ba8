"""What carries messages between two nodes, as the loop sees it. `sync.drivers.websocket` is one such thing, the
simulated network of `node.testing` another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TransportEnd:
    """How a connection ended.

    Attributes:
        code: the websocket close code that the peer or the transport gave. None when the connection just broke off.
        reason: one sentence.
    """

    code: int | None
    reason: str


class DialFailed(Exception):
    """No connection. The text is one sentence that says why."""


class Transport(Protocol):
    """One open connection, as the loop uses it."""

    remote: str
    """Who is at the other end, for people."""

    is_local: bool
    """Both ends are on one machine, so that bytes cost less than compressing them."""

    def send(self, data: bytes) -> None:
        """Send one message, after those before it. Never waits, never raises."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close. Messages that still arrive are dropped. The first call wins."""

    def has_received(self) -> bool:
        """Tell whether anything has come since this was last asked, be it a part of a message."""

    async def pump(self, received: Callable[[bytes], None]) -> TransportEnd:
        """Hand over each message until the connection has ended. Return how it ended. Ends it when cancelled."""
