"""Watching other nodes' claims, to know when a silent holder's work may be taken over.

A device may claim the next epoch of an event only after it has itself seen the holder's claim unchanged, and has
heard nothing of the holder, for the whole time to live. All times here are this machine's monotonic clock. It means
nothing after a restart of the machine, so watches carry the boot they were made in and begin anew after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leasemesh.node.database.file import Database
from leasemesh.node.machine.environment import boot_id, monotonic_ms
from leasemesh.node.model.errors import IllegalState, NotFound
from leasemesh.node.model.ids import RunId, short, short_run
from leasemesh.node.model.leases import StalenessRule, take_over_wait_ms
from leasemesh.node.stores.base import blob_of
from leasemesh.node.stores.events import EventStore


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds an event, and how much longer before others may take it over.

    Attributes:
        run: the holding run.
        node: its device, as text.
        wait_ms: 0 when it may be taken over now.
    """

    run: RunId
    node: str
    wait_ms: int


class StalenessWatch:
    """Keeps the watches of one database. `observe` must be called now and then by whoever runs (a daemon, or a
    waiting command)."""

    def __init__(
        self,
        database: Database,
        *,
        rule: StalenessRule | None = None,
        now_ms: Callable[[], int] = monotonic_ms,
        boot: str | None = None,
    ) -> None:
        """Args: `rule` and the clock. The defaults are the real ones, tests and simulations lend others."""
        self._database = database
        self._events = EventStore(database)
        self._rule = rule or StalenessRule()
        self._now_ms = now_ms
        self._boot = boot if boot is not None else boot_id()

    def observe(self) -> None:
        """Begin to watch claims of other nodes that are new here, and forget those that ended. Writes only when that
        changes."""
        watched = self._database.query("SELECT 1 FROM claim_watches WHERE boot <> ? LIMIT 1", (self._boot,))
        missing = self._database.query(
            "SELECT 1 FROM holding_runs AS r WHERE r.node <> ? "
            "AND NOT EXISTS (SELECT 1 FROM claim_watches AS w WHERE w.run = r.id) LIMIT 1",
            (self._database.site_id,),
        )
        ended = self._database.query(
            "SELECT 1 FROM claim_watches AS w WHERE NOT EXISTS "
            "(SELECT 1 FROM holding_runs AS r WHERE r.id = w.run) LIMIT 1"
        )
        if not (watched or missing or ended):
            return
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute(
                "DELETE FROM claim_watches WHERE boot <> ? OR NOT EXISTS "
                "(SELECT 1 FROM holding_runs AS r WHERE r.id = run)",
                (self._boot,),
            )
            transaction.execute(
                "INSERT INTO claim_watches SELECT r.id, ?, ? FROM holding_runs AS r WHERE r.node <> ? "
                "ON CONFLICT DO NOTHING",
                (self._boot, self._now_ms(), self._database.site_id),
            )

    def holder(self, event: str) -> Holder:
        """Return who holds an event and for how long it must still be left alone.

        Raises:
            NotFound: there is no such event.
            IllegalState: nobody holds it.
        """
        self.observe()
        rows = self._database.query(
            "SELECT lower(hex(r.id)), lower(hex(r.node)), w.since_ms, "
            "(SELECT h.monotonic_ms FROM heartbeats AS h WHERE h.site = r.node AND h.boot = w.boot) "
            "FROM event_index AS e JOIN run_index AS r ON r.n = e.run LEFT JOIN claim_watches AS w ON w.run = r.id "
            "WHERE e.id = ? AND e.status = 1",
            (blob_of(event),),
        )
        if not rows:
            found = self._events.get(event)
            if found is None:
                raise NotFound("event", [event])
            raise IllegalState(f"event {short(event)}", found.status, "only a reserved event can be taken over")
        run, node, since_ms, heartbeat_at_ms = rows[0]
        if since_ms is None:
            wanted = f"end run {short_run(run)} instead"
            raise IllegalState(f"event {short(event)}", "reserved by this node", wanted)
        return Holder(RunId(run), node, self._wait_ms(since_ms, heartbeat_at_ms))

    def is_silent(self, run: str) -> bool:
        """Tell whether a run of another node has been silent for long enough, whether it owns its events or not."""
        self.observe()
        rows = self._database.query(
            "SELECT w.since_ms, (SELECT h.monotonic_ms FROM heartbeats AS h WHERE h.site = r.node AND h.boot = w.boot) "
            "FROM run_index AS r CROSS JOIN claim_watches AS w WHERE r.id = ? AND w.run = r.id",
            (blob_of(run),),
        )
        return bool(rows) and self._wait_ms(*rows[0]) == 0

    def _wait_ms(self, since_ms: int, heartbeat_at_ms: int | None) -> int:
        return take_over_wait_ms(
            rule=self._rule, watched_since_ms=since_ms, heartbeat_at_ms=heartbeat_at_ms, now_ms=self._now_ms()
        )

    def longest_wait_ms(self, events: Sequence[str]) -> int:
        """Return how long to wait until all these events may be taken over. Raises as `holder`."""
        return max((self.holder(event).wait_ms for event in events), default=0)
