"""What an app holds in its hand after `Node.reserve`: the events of one run, and how they are settled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from leasemesh.node.model.errors import IllegalState
from leasemesh.node.model.ids import RunId
from leasemesh.node.stores import Event, EventStore


class Reservation:
    """Events that one run of this node holds. As a context manager it releases what is not settled at the end, unless
    the effect of the work happened, or may have: that raises `IllegalState`, and the events stay reserved.

    Attributes:
        run: the run's id.
        events: what was reserved. May be empty, then there is nothing to settle.
        lost: what `Node.start` gave back before the work began, because another node's claim had won it.
    """

    def __init__(self, store: EventStore, run: RunId, events: Sequence[Event]) -> None:
        self.run = run
        self.events = tuple(events)
        self.lost: tuple[Event, ...] = ()
        self._store = store
        self._settled = not events

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def consume(self) -> int:
        """Settle all events as done and return how many. Raises LeaseLost when another run owns one of them now."""
        return self._settle(self._store.consume)

    def skip(self) -> int:
        """Settle all events as never to be done, and return how many. Raises as `consume`."""
        return self._settle(self._store.skip)

    def release(self) -> int:
        """Give all events back, and return how many."""
        return self._settle(self._store.release)

    def narrow_to(self, run: RunId, events: Sequence[Event]) -> None:
        """Stand from now on for `events`, what is left of them, which `run` holds. The rest is `lost`."""
        kept = {event.id for event in events}
        self.lost = tuple(event for event in self.events if event.id not in kept)
        self.run = run
        self.events = tuple(events)
        self._settled = not events

    def _settle(self, settle: Callable[[str], int]) -> int:
        if not self.events:
            return 0
        count = settle(self.run)
        self._settled = True
        return count

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._settled:
            return
        try:
            self.release()
        except IllegalState:
            if error is None:  # Otherwise what the block raised is what its caller must hear of.
                raise
