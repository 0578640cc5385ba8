"""Reservations as they stand: whose they are, and what of their claims they own still.

A reservation is one replicated row for a run, however many events it claims. The node of the run is its only writer.
"""

from __future__ import annotations

from dataclasses import dataclass

from leasemesh.node.model.errors import LeaseLost, NotFound
from leasemesh.node.model.ids import EventId, NodeId, RunId
from leasemesh.node.model.jsonvalue import decode_object
from leasemesh.node.stores.base import Store, blob_of
from leasemesh.node.stores.modes import Mode, mode_of


@dataclass(frozen=True, slots=True)
class ReservationInfo:
    """A reservation as its row says, and held, when that says otherwise of one that owns events by its effect.

    Attributes:
        run: its run.
        node: the node that made it.
        incarnation: the process of that node that did.
        workflow, handler: what for.
        at: hybrid time.
        state: held, released, lost, consumed, skipped or dead.
        claims: event id -> epoch.
        mode: soft, confirmed or home, as it was claimed.
        of: the run whose work it goes on with, when it was taken over from one (`take_over_run`).
    """

    run: RunId
    node: NodeId
    incarnation: str
    workflow: str
    handler: str
    at: int
    state: str
    claims: dict[EventId, int]
    mode: Mode
    of: RunId | None


class Reservations(Store):
    """Reservations by run."""

    def reservation(self, run: str) -> ReservationInfo | None:
        """Return the reservation of a run."""
        with self._database.snapshot():
            rows = self._database.query(f"SELECT body, {_STATE} FROM reservations AS v WHERE id = ?", (blob_of(run),))
            body = decode_object(rows[0][0]) if rows else {}
            if not body:
                return None
            claims = self._database.query(
                "SELECT lower(hex(e.id)), c.epoch FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n "
                "CROSS JOIN event_index AS e ON e.n = c.event WHERE r.id = ? ORDER BY e.at, e.id",
                (blob_of(run),),
            )
        return ReservationInfo(
            run=RunId(run),
            node=NodeId(body["node"]),
            incarnation=body["incarnation"],
            workflow=body["workflow"],
            handler=body["handler"],
            at=body["at"],
            state=_state_of(rows[0][1]),
            claims={EventId(event): epoch for event, epoch in claims},
            mode=mode_of(body.get("mode", "soft")),
            of=RunId(body["of"].lower()) if body.get("of") else None,
        )

    def find_run(self, prefix: str) -> RunId | None:
        """Return the id of the run with a reservation whose id begins with `prefix`. Raises as `find` does."""
        found = self._by_prefix("run_index", "run", prefix)
        return RunId(found) if found else None

    def held_runs(self, *, own: bool) -> list[RunId]:
        """Return the runs whose reservations are held, oldest first: this node's, or those of all others. With those
        that gave events back which their effects keep."""
        rows = self._database.query(
            f"SELECT id FROM holding_runs WHERE node {'=' if own else '<>'} ? ORDER BY at, id",
            (self._database.site_id,),
        )
        return [RunId(row[0].hex()) for row in rows]

    def require_owned(self, run: str) -> None:
        """Make sure that a run of this node holds its reservation and owns all its events still.

        Raises:
            LeaseLost: naming the events that it does not own, or all of them when it has ended.
            NotFound, NotOwner: no such reservation, or another node's.
        """
        with self._database.snapshot():
            ended = self.own_state(run) != "held"
            lost = self.not_owned(run)
            if ended and not lost:
                reservation = self.reservation(run)
                lost = dict.fromkeys(reservation.claims if reservation else (), "")
        if ended or lost:
            raise LeaseLost(run, lost)

    def own_state(self, run: str) -> str:
        """Return how the reservation of a run of this node stands, as in `ReservationInfo`.

        Raises:
            NotFound, NotOwner: no such reservation, or another node's.
        """
        rows = self._database.query(
            f"SELECT body ->> '$.node', {_STATE} FROM reservations AS v WHERE id = ? AND body <> '{{}}'",
            (blob_of(run),),
        )
        if not rows:
            raise NotFound("reservation of run", [run], "`leasemesh status` lists the held ones")
        self._refuse_other_writer(run, rows[0][0])
        return _state_of(rows[0][1])

    def claimed_and_owned(self, run: str) -> tuple[int, int]:
        """Return how many events `run` has claimed, and how many of them it owns."""
        ((claimed, owned),) = self._database.query(
            "SELECT count(*), count(*) FILTER (WHERE e.status IN (1, 2) AND e.run = c.run) FROM run_index AS r "
            "CROSS JOIN claims AS c ON c.run = r.n CROSS JOIN event_index AS e ON e.n = c.event WHERE r.id = ?",
            (blob_of(run),),
        )
        return claimed, owned

    def not_owned(self, run: str) -> dict[str, str]:
        """Return event id -> owner for each event that `run` claimed and does not own."""
        rows = self._database.query(
            "SELECT lower(hex(e.id)), (SELECT lower(hex(o.id)) FROM run_index AS o WHERE o.n = e.run) "
            "FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n CROSS JOIN event_index AS e ON e.n = c.event "
            "WHERE r.id = ? AND NOT (e.status IN (1, 2) AND e.run = c.run) ORDER BY e.at, e.id",
            (blob_of(run),),
        )
        return {event: owner or "" for event, owner in rows}


_STATE = (
    "CASE WHEN v.state IN ('released', 'lost') AND EXISTS (SELECT 1 FROM holding_runs AS h WHERE h.id = v.id) "
    "THEN 'held' ELSE v.state END"
)
"""How a reservation stands: its row's word, unless an effect that is decided keeps what the row says was given back."""


def _state_of(stored: str) -> str:
    """Return the word for people: the last one of what is stored."""
    return stored.rpartition(" ")[2]
