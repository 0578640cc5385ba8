"""Permits: the one-shot right of a run to perform its effect, decided by the authority event by event.

A permit has no time to live. It stands until its run has given it up (one cell of the run's own request says so, hence
it arrives whole or not at all), or until a person's verdict says that the effect did not happen. While it stands, no
other permit is granted for any of its events: that is checked in the transaction that grants, on the only node that may
grant (`node.stores.authorities`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leasemesh.node.database.file import Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, LeaseLost, NotFound, PermitRefused
from leasemesh.node.model.ids import EventId, NodeId, RunId, WorkId
from leasemesh.node.model.jsonvalue import check_whole, decode_object, encode
from leasemesh.node.stores.authorities import AuthorityStore, str_ids
from leasemesh.node.stores.base import CLAIMS_MAX, LIST_MAX, blob_of
from leasemesh.node.stores.works import WorkReader

PermitState = Literal["waiting", "granted", "refused", "void"]
DECISIONS_MAX = 200
"""Requests that are looked at in one transaction: a few tens of milliseconds in which others wait for the file."""


@dataclass(frozen=True, slots=True)
class Permit:
    """A run's request and what became of it.

    Attributes:
        run, node: who asked.
        work: the work. The idempotency key of the effect.
        workflow, handler: what for.
        events: what the effect is about.
        asked_at: Unix milliseconds.
        generation: that of the authority that is asked.
        state: waiting, granted, refused, or void (given up, or a person said that it did not happen).
        authority: who decided. None while waiting.
        decided_at: Unix milliseconds. 0 while waiting.
        reason: why it was refused, otherwise "".
    """

    run: RunId
    node: NodeId
    work: WorkId
    workflow: str
    handler: str
    events: tuple[EventId, ...]
    asked_at: int
    generation: int
    state: PermitState
    authority: NodeId | None
    decided_at: int
    reason: str


class PermitStore(WorkReader):
    """Requests by their runs' nodes, decisions by the authority."""

    def request(self, run: str, *, work: str | None = None) -> Permit:
        """Ask for a permit for all events that a run of this node holds. A second call returns the first request.

        Args:
            run: a run of this node with a held reservation.
            work: the work id. By default that of `work_for`.

        Raises:
            NotFound, NotOwner, IllegalState: no such reservation, another node's, or ended.
            LeaseLost: the run does not own all its events any more.
        """
        with self._database.transaction() as transaction:
            found = self.get(run)
            if found is not None:
                self._refuse_other_writer(run, found.node)
                return found
            reservation, events = self._held(run)
            chosen = self.work_for(run) if work is None else self._refuse_ended(work)
            body = {
                "node": self._node,
                "workflow": reservation["workflow"],
                "handler": reservation["handler"],
                "work": chosen,
                "events": events,
                "generation": AuthorityStore(self._database).asking(),
                "withdrawn": False,
                "asked_at": self._database.clock_ms(),
            }
            transaction.execute(
                "INSERT INTO permit_requests (id, body) VALUES (?, ?)", (blob_of(run), encode("request", body))
            )
            asked = self.get(run)
        assert asked is not None, "a request can be read after it was made"
        return asked

    def get(self, run: str) -> Permit | None:
        """Return what became of a run's request, None when it has made none."""
        with self._database.snapshot():
            found = self._permits("id = ?", (blob_of(run),))
        return found[0] if found else None

    def waiting(self, *, limit: int = 100) -> list[Permit]:
        """Return the requests of all nodes that nobody has decided, the earliest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        with self._database.snapshot():
            return self._permits("id IN (SELECT run FROM waiting_permits ORDER BY run LIMIT ?) ORDER BY id", (limit,))

    def anyone_waits(self) -> bool:
        """Tell whether there is a request that nobody has decided."""
        return bool(self._database.query("SELECT 1 FROM waiting_permits WHERE generation >= 0 LIMIT 1"))

    def holders(self, event: str) -> list[RunId]:
        """Return the runs with a permit that stands for an event: one, or none."""
        rows = self._database.query(
            "SELECT lower(hex(p.run)) FROM permitted_events AS e CROSS JOIN permits AS p ON p.id = e.permit "
            "WHERE e.event = ? ORDER BY p.run",
            (blob_of(event),),
        )
        return [RunId(run) for (run,) in rows]

    def require(self, run: str) -> Permit:
        """Return the permit of a run. Call it in the transaction that records the intent to use it.

        Raises:
            PermitRefused: the run has none, or not any more.
        """
        found = self.get(run)
        if found is None:
            raise PermitRefused(run, "it has not asked for one")
        if found.state != "granted":
            raise PermitRefused(run, found.reason or f"its request is {found.state}")
        return found

    def ask_again(self) -> int:
        """Ask the present authority for what this node asked of an earlier one in vain. Returns how many requests."""
        generation = AuthorityStore(self._database).asking()
        if not self._database.query(
            "SELECT 1 FROM waiting_permits WHERE node = ? AND generation < ? LIMIT 1",
            (self._database.site_id, generation),
        ):
            return 0
        with self._database.transaction() as transaction:
            transaction.execute(
                "UPDATE permit_requests SET body = json_set(body, '$.generation', ?1) WHERE id IN "
                "(SELECT run FROM waiting_permits WHERE node = ?2 AND generation < ?1)",
                (generation, self._database.site_id),
            )
            ((count,),) = transaction.execute("SELECT changes()")
        return int(count)

    def decide_pending(self) -> int:
        """As the authority, decide on the requests that wait, at most 200 in a transaction. Returns how many.

        A node that is not the authority decides nothing. A request whose claims have not arrived yet goes on waiting.
        """
        generation = AuthorityStore(self._database).granting()
        if not generation or not self._database.query(
            "SELECT 1 FROM waiting_permits WHERE generation = ? LIMIT 1", (generation,)
        ):
            return 0
        decided, last = 0, b""
        while True:
            # A power cut must not take a grant back that somebody has acted on: the next one would be a second.
            with self._database.transaction(durable=True) as transaction:
                generation = AuthorityStore(self._database).granting()
                rows = self._database.query(
                    "SELECT run FROM waiting_permits WHERE generation = ? AND run > ? ORDER BY run LIMIT ?",
                    (generation, last, DECISIONS_MAX),
                )
                if not generation or not rows:
                    return decided
                decided += sum(self._decide(transaction, RunId(run.hex()), generation) for (run,) in rows)
            if len(rows) < DECISIONS_MAX:
                return decided
            # On from here, and not from the beginning: what cannot be decided yet still stands there.
            ((last,),) = rows[-1:]

    # --- Deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, transaction: Transaction, run: RunId, generation: int) -> bool:
        requests = self._bodies("permit_requests", "id = ?", (blob_of(run),))
        if not requests:  # A peer's, which Python cannot read; the others are not to wait for it.
            return False
        request = requests[0][1]
        if not _names_events(request["events"]):
            self._answer(transaction, run, request, [], generation, "its request names no events, or what is none")
            return True
        events = list(dict.fromkeys(request["events"]))
        found = self._database.query(
            "SELECT lower(hex(e.id)), e.status, (SELECT o.id FROM run_index AS o WHERE o.n = e.run), "
            "(SELECT p.run FROM permitted_events AS s CROSS JOIN permits AS p ON p.id = s.permit "
            "WHERE s.event = e.id AND p.run <> r.id LIMIT 1) "
            "FROM run_index AS r CROSS JOIN json_each(?) AS j CROSS JOIN event_index AS e ON e.id = unhex(j.value) "
            "CROSS JOIN claims AS c ON c.event = e.n AND c.run = r.n WHERE r.id = ?",
            (json.dumps(events), blob_of(run)),
        )
        if len(found) < len(events):
            return False
        self._answer(transaction, run, request, events, generation, _refusal(run, found))
        return True

    def _answer(
        self,
        transaction: Transaction,
        run: RunId,
        request: dict[str, Any],
        events: list[str],
        generation: int,
        refused: str | None,
    ) -> None:
        body = {
            "node": self._node,
            "run": run,
            "work": request["work"],
            "events": events,
            "generation": generation,
            "refused": refused,
            "at": self._database.clock_ms(),
        }
        # Nobody else may write that row; should a peer have done so, its word does not stand in the way of this one.
        transaction.execute(
            "INSERT INTO permits (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
            (blob_of(ids.permit_id(self._node, run, generation)), encode("permit", body)),
        )

    # --- Reading ------------------------------------------------------------------------------------------------------

    def _permits(self, condition: str, parameters: tuple[Any, ...]) -> list[Permit]:
        return [self._permit(RunId(run), body) for run, body in self._bodies("permit_requests", condition, parameters)]

    def _permit(self, run: RunId, request: dict[str, Any]) -> Permit:
        rows = self._bodies("permits", "run = ? AND generation = ? ORDER BY id", (blob_of(run), request["generation"]))
        decision = rows[0][1] if rows else None
        state: PermitState
        if request["withdrawn"]:
            state = "void"
        elif decision is None:
            state = "waiting"
        elif decision["refused"] is not None:
            state = "refused"
        else:
            standing = self._database.query("SELECT 1 FROM standing_permits WHERE id = ?", (blob_of(rows[0][0]),))
            state = "granted" if standing else "void"
        return Permit(
            run=run,
            node=NodeId(request["node"]),
            work=WorkId(request["work"]),
            workflow=request["workflow"],
            handler=request["handler"],
            events=tuple(EventId(event) for event in str_ids(request["events"])),
            asked_at=request["asked_at"],
            generation=request["generation"],
            state=state,
            authority=NodeId(decision["node"]) if decision else None,
            decided_at=decision["at"] if decision else 0,
            reason=(decision["refused"] or "") if decision else "",
        )

    # --- Asking -------------------------------------------------------------------------------------------------------

    def _held(self, run: str) -> tuple[dict[str, Any], list[EventId]]:
        rows = self._database.query("SELECT body, state FROM reservations WHERE id = ?", (blob_of(run),))
        body = decode_object(rows[0][0]) if rows else {}
        if not body:
            raise NotFound("reservation of run", [run])
        self._refuse_other_writer(run, body["node"])
        if rows[0][1] != "held":
            raise IllegalState(f"the reservation of run {run}", rows[0][1], "only a held one gets a permit")
        claims = self._database.query(
            "SELECT lower(hex(e.id)), e.run = c.run AND e.status IN (1, 2), "
            "(SELECT lower(hex(o.id)) FROM run_index AS o WHERE o.n = e.run) FROM run_index AS r "
            "CROSS JOIN claims AS c ON c.run = r.n CROSS JOIN event_index AS e ON e.n = c.event "
            "WHERE r.id = ? ORDER BY e.id",
            (blob_of(run),),
        )
        lost = {event: owner or "" for event, owned, owner in claims if not owned}
        if lost:
            raise LeaseLost(run, lost)
        return body, [EventId(event) for event, *_ in claims]

    def _refuse_ended(self, work: str) -> WorkId:
        if self._did_not_happen(WorkId(work)):
            raise IllegalState(f"work {work}", "ended by a verdict", "ask with its next generation")
        return WorkId(work)


def _names_events(events: Sequence[object]) -> bool:
    """Whether a list that may be a peer's holds ids, and as many of them as a run can claim at most."""
    return 0 < len(events) <= CLAIMS_MAX and all(map(ids.is_id, events))


def _refusal(run: str, found: list[tuple[Any, ...]]) -> str | None:
    """Return why a run gets no permit, None when it does: rows of (event, status, owner, holder of a permit)."""
    for event, _, _, holder in found:
        if holder is not None:
            return f"event {ids.short(event)} stands in the permit of run {holder.hex()}"
    for event, status, owner, _ in found:
        if status >= 3:
            return f"event {ids.short(event)} is settled" + (f" by run {owner.hex()}" if owner else "")
        if owner is None or owner.hex() != run:
            return f"event {ids.short(event)} belongs to " + (f"run {owner.hex()}" if owner else "nobody")
    return None
