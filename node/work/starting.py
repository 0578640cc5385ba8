"""Beginning work on reserved events once everybody within reach has received the claim (soft mode).

    async with node.start("inbox", "mail", limit=10) as work:
        for event in work:
            ...
        work.consume()

`Node.reserve` returns what this node owns in its own file. Two nodes that reserve at the same moment both own, until
their claims meet. `Node.start` lets the claims meet first: it reserves, waits for the barrier (sync/barrier.py), and
looks again. What another node's claim has won meanwhile is given back before anything was done with it.

**Promised:** nodes that stay connected, directly or through others, never work on one event at the same time, when
all of them begin with `start`. A node that is alone or offline begins at once. **Not promised:** anything between nodes
that cannot reach each other: both may begin, and the duplicate is reported when they meet. What must not happen twice
even then needs a permit (`Node.permit`).
"""

from __future__ import annotations

from collections.abc import Sequence

from leasemesh.node.database.file import Database
from leasemesh.node.model.errors import LeaseLost
from leasemesh.node.model.ids import RunId
from leasemesh.node.stores import Event, EventStore


def keep_owned(
    database: Database, store: EventStore, run: RunId, claimed: Sequence[Event], *, spare_run: RunId, handler: str
) -> tuple[RunId, list[Event]]:
    """Give back what `run` claimed and lost, and return the run that holds the rest, with that rest.

    A run's claims are one row and end together. So when some are lost, the others are taken over by `spare_run`, at the
    next epoch and in one transaction with the end of `run`: no node ever sees them free.
    """
    with database.transaction():
        owned = store.reserved_by(run)
        if len(owned) == len(claimed):
            return run, list(claimed)
        kept = store.take_over(spare_run, [event.id for event in owned], handler=handler) if owned else []
        store.release(run)
        return spare_run, kept


def require_owned(database: Database, store: EventStore, run: RunId, claimed: Sequence[Event]) -> None:
    """Check that `run` still owns all that it claimed.

    Raises:
        LeaseLost: naming what it does not.
    """
    with database.snapshot():
        owned = {event.id for event in store.reserved_by(run)}
        lost = [event for event in claimed if event.id not in owned]
        if not lost:
            return
        now = {event.id: store.get(event.id) for event in lost}
    raise LeaseLost(run, {identifier: (found.run or "") if found else "" for identifier, found in now.items()})
