"""Reserving events and settling them: every operation is one transaction that ends with exactly what it returned, or
with nothing.

A reservation is one replicated row for a run, however many events it claims; the node of the run is its only writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from leasemesh.node.database.file import Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.clock import credible_until, next_hybrid_time
from leasemesh.node.model.errors import IllegalState, InvalidInput, LeaseLost, NotAvailable, NotFound
from leasemesh.node.model.ids import EventId, NodeId, RunId, WorkId
from leasemesh.node.model.jsonvalue import check_text, check_whole, decode_object
from leasemesh.node.model.leases import EPOCH_MAX
from leasemesh.node.stores.base import CLAIMS_MAX, blob_of, events_of, give_up_permit, topic_of, work_outcome
from leasemesh.node.stores.modes import Mode, ModeStore, mode_of
from leasemesh.node.stores.mutations import MutationStore, WorkOutcome
from leasemesh.node.stores.reading import EVENT_COLUMNS, NOT_PERMITTED, Event, EventReader

Outcome = Literal["consumed", "skipped", "dead"]
_STORED_OUTCOMES: dict[str, str] = {
    "dead": "settled 1 dead",
    "skipped": "settled 2 skipped",
    "consumed": "settled 3 consumed",
}
"""What the column `state` says of an outcome: greater than "held", "lost" and "released", because in a merge the
greater of two equally old words wins. A restored backup may release a run that its lost future had settled."""

SUCCESSIONS_MAX = 1_000
"""How far the way is followed from a run that took work over to the run that began it."""


@dataclass(frozen=True, slots=True)
class EffectBehind:
    """The effect that stands behind a run's claims.

    Attributes:
        run: whose ledger entry or permit it is; if neither is here, the run that went on with it.
        work: the work, with which `MutationStore` tells more.
        outcome: what all entries and verdicts on that work come to.
    """

    run: RunId
    work: WorkId
    outcome: WorkOutcome


@dataclass(frozen=True, slots=True)
class ReservationInfo:
    """A reservation as its row says; and held, when that says otherwise of one that owns events by its effect.

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


class Leasing(EventReader):
    """The part of the event store that hands out work."""

    def reserve(
        self,
        run: str,
        workflow: str,
        wanted: Sequence[tuple[str, Sequence[str]]],
        *,
        partial: bool = False,
        handler: str = "manual",
        default_mode: Mode = "soft",
    ) -> list[Event]:
        """Claim the named events for `run`, all or nothing.

        Args:
            run: a new run id; a run reserves once.
            workflow: the events' workflow.
            wanted: (topic, message ids) pairs; at most 1,000 events together. Of an event that was requeued, the
                newest generation that is known here is meant.
            partial: take what is pending and return exactly that, which may be nothing.
            handler: the handler the run belongs to.
            default_mode: how it claims when neither the handler nor a topic has a setting (`node.stores.modes`).

        Raises:
            NotFound: naming the events that do not exist.
            NotAvailable: naming the events that are not pending (not with `partial`), or stand in a permit.
            HomeElsewhere: another node alone claims there.
            IllegalState: the run has reserved before.
            InvalidInput: nothing, or too much, was asked for.
        """
        firsts = {
            identifier: f"{topic}/{message_id}"
            for topic, message_ids in wanted
            for message_id, identifier in zip(
                message_ids, events_of(topic_of(workflow, topic), message_ids), strict=True
            )
        }
        check_whole("number of events to reserve", len(firsts), least=1, most=CLAIMS_MAX)
        with self._database.transaction() as transaction:
            mode = self._mode(workflow, dict.fromkeys(topic for topic, _ in wanted), handler, default_mode)
            names = dict(zip(self._newest(list(firsts)), firsts.values(), strict=True))
            found = self._existing(list(names))
            missing = [name for identifier, name in names.items() if identifier not in found]
            if missing:
                raise NotFound("event", missing, f"workflow {workflow} has no such message ids; nothing was reserved")
            free = [event for event in found.values() if event.status == "pending"]
            if len(free) < len(found) and not partial:
                raise NotAvailable({names[one.id]: _holder(one) for one in found.values() if one.status != "pending"})
            self._refuse_permitted(free, mode)
            return self._claim(transaction, run, workflow, handler, free, mode)

    def reserve_next(
        self,
        run: str,
        workflow: str,
        topic: str,
        *,
        limit: int = 100,
        handler: str = "manual",
        default_mode: Mode = "soft",
    ) -> list[Event]:
        """Claim the oldest pending events of a topic for `run`; returns them, an empty list when there are none. What
        stands in somebody's permit is left alone. `default_mode` is as in `reserve`.

        Raises:
            InvalidInput: `limit` is not within 1..1,000.
            IllegalState: the run has reserved before.
        """
        check_whole("limit", limit, least=1, most=CLAIMS_MAX)
        with self._database.transaction() as transaction:
            mode = self._mode(workflow, (topic,), handler, default_mode)
            free = self._events(
                f"SELECT {EVENT_COLUMNS} FROM event_index AS e "
                f"WHERE e.topic = ? AND e.status = 0 {NOT_PERMITTED} ORDER BY e.at, e.id LIMIT ?",
                (blob_of(topic_of(workflow, topic)), limit),
            )
            return self._claim(transaction, run, workflow, handler, free, mode)

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
        """Return the id of the run with a reservation whose id begins with `prefix`; raises as `find` does."""
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
            ended = self._own_state(run) != "held"
            lost = self._not_owned(run)
            if ended and not lost:
                reservation = self.reservation(run)
                lost = dict.fromkeys(reservation.claims if reservation else (), "")
        if ended or lost:
            raise LeaseLost(run, lost)

    def consume(self, run: str, *, effect_happened: bool = False) -> int:
        """Settle all events of `run` as consumed and return how many; 0 when they were before.

        Args:
            run: a run of this node.
            effect_happened: record the outcome even if the lease was lost. Use it only when something irrevocable was
                done for these events: what happened must be known everywhere, and shows as a duplicate when another run
                did it too.

        Raises:
            LeaseLost: naming the events that the run no longer owns; nothing is settled.
            NotFound, NotOwner, IllegalState: no such reservation, another node's, or already ended otherwise.
        """
        return self._settle(run, "consumed", effect_happened)

    def skip(self, run: str) -> int:
        """Settle all events of `run` as skipped: never to be done. Returns and raises as `consume` does."""
        return self._settle(run, "skipped", False)

    def dead_letter(self, run: str) -> int:
        """Settle all events of `run` as dead: given up after too many failures. Returns and raises as `consume`."""
        return self._settle(run, "dead", False)

    def release(self, run: str) -> int:
        """Give the events of `run` back: they become pending with the next attempt number.

        Returns how many events it gave up, 0 when the reservation had ended by release before.

        Raises:
            NotFound, NotOwner, IllegalState: no such reservation, another node's, or settled; or the effect of its work
                happened, or nobody knows whether it did, or a person decided to skip it: then these events are not free
                to be done again.
        """
        with self._database.transaction() as transaction:
            state = self._own_state(run)
            if state in ("released", "lost"):
                return 0
            if state != "held":
                raise IllegalState(f"the reservation of run {run}", state, "what is settled cannot be released")
            claimed, owned = self._claimed_and_owned(run)
            self._refuse_to_forget(run, claimed, owned)
            _set_state(transaction, run, "lost" if owned < claimed else "released")
            give_up_permit(transaction, run)
            return owned

    def effect_behind(self, run: str) -> EffectBehind | None:
        """Return the effect that stands behind a run's claims: its own, or that of a run whose work it goes on with, or
        what was known of that work when it was taken over.

        None when none of them has entered one, and no person has decided about one that a permit was given for: its
        entry may never arrive. Of several, one that happened comes before one of unknown outcome, and both before the
        rest.
        """
        rows = self._database.query(
            f"{_CHAIN} SELECT lower(hex(w.run)), lower(hex(w.work)), w.outcome FROM chain "
            "CROSS JOIN work_outcomes AS w WHERE w.run = chain.run ORDER BY chain.steps",
            (blob_of(run),),
        )
        found = [EffectBehind(RunId(one), WorkId(work), outcome) for one, work, outcome in rows]
        found += [*self._decided_about_permits(run), *self._named(run)]
        return min(found, key=lambda effect: _WEIGHT.get(effect.outcome, len(_WEIGHT)), default=None)

    def _named(self, run: str) -> list[EffectBehind]:
        """What has become of the works that were decided when they were taken over: without an entry they may be known
        by a verdict alone, whose permit is void by now."""
        rows = self._database.query(
            f"{_CHAIN} SELECT lower(hex(v.id)), lower(hex(v.work)) FROM chain "
            "CROSS JOIN reservations AS v WHERE v.id = chain.run AND v.work IS NOT NULL ORDER BY chain.steps",
            (blob_of(run),),
        )
        return [EffectBehind(RunId(one), WorkId(work), work_outcome(self._database, work)) for one, work in rows]

    def _decided_about_permits(self, run: str) -> list[EffectBehind]:
        """What became of the works that permits stand for. Who was refused asked for the same work as who was not."""
        rows = self._database.query(
            f"{_CHAIN} SELECT DISTINCT lower(hex(p.run)), lower(hex(p.work)) FROM chain "
            "CROSS JOIN standing_permits AS p WHERE p.run = chain.run AND p.work IS NOT NULL ORDER BY 1, 2",
            (blob_of(run),),
        )
        found = [EffectBehind(RunId(one), WorkId(work), work_outcome(self._database, work)) for one, work in rows]
        return [effect for effect in found if effect.outcome in ("applied", "skipped")]

    def is_continued(self, run: str) -> bool:
        """Whether all that a run claimed went to runs that go on with its work, or have done the rest of it: then
        nothing is left for it to record, and it may be released even if its effect happened."""
        owners = self._database.query(
            "SELECT DISTINCT o.id FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n "
            "CROSS JOIN event_index AS e ON e.n = c.event "
            "LEFT JOIN run_index AS o ON o.n = e.run AND o.state IN (0, 3) WHERE r.id = ?",
            (blob_of(run),),
        )
        return bool(owners) and all(
            owner is not None
            and owner.hex() != run
            and self._database.query(f"{_CHAIN} SELECT 1 FROM chain WHERE run = ?", (owner, blob_of(run)))
            for (owner,) in owners
        )

    def _mode(self, workflow: str, topics: Iterable[str], handler: str, default: Mode) -> Mode:
        return ModeStore(self._database).claiming(workflow, topics, check_text("handler", handler), default=default)

    def _refuse_to_forget(self, run: str, claimed: int, owned: int) -> None:
        """What happened, or may have, must go forward: refuse to give back what `run` owns, or has done.

        Without an effect of its own it may leave what it does not own any more; with one, only to those who go on with
        it. Otherwise nothing would tell that the same was done twice. What is to be skipped is skipped, as long as all
        of it can be: given back, it would still be kept.
        """
        effect = self.effect_behind(run)
        keeps = self._database.query("SELECT 1 FROM run_index WHERE id = ? AND effect = 2", (blob_of(run),))
        if effect is not None and keeps and owned == claimed:
            raise IllegalState(f"the effect of run {effect.run}", "to be skipped", f"skip the events of run {run}")
        if effect is None or effect.outcome not in ("applied", "unknown"):
            return
        if not owned:
            entry = MutationStore(self._database).get(run)
            if entry is None or entry.status in ("pending", "failed") or self.is_continued(run):
                return
        wanted = "settle its events (consume)" if effect.outcome == "applied" else "its events wait until it is known"
        raise IllegalState(f"the effect of run {effect.run}", effect.outcome, f"run {run} cannot be released, {wanted}")

    def _refuse_permitted(self, events: Sequence[Event], mode: Mode) -> None:
        """What somebody may still do with a permit is not free for those who ask nobody."""
        if mode == "confirmed" or not events:
            return
        rows = self._database.query(
            "SELECT lower(hex(e.event)), lower(hex(p.run)) FROM json_each(?) AS j "
            "CROSS JOIN permitted_events AS e ON e.event = unhex(j.value) CROSS JOIN permits AS p ON p.id = e.permit",
            (json.dumps([event.id for event in events]),),
        )
        if rows:
            raise NotAvailable({event: f"in the permit of run {ids.short_run(run)}" for event, run in rows})

    def _claim(
        self,
        transaction: Transaction,
        run: str,
        workflow: str,
        handler: str,
        events: Sequence[Event],
        mode: Mode,
        *,
        of: str | None = None,
    ) -> list[Event]:
        if not events:
            return []
        if max(event.epoch for event in events) >= EPOCH_MAX:
            raise InvalidInput("event", f"was claimed {EPOCH_MAX:,} times; that is a fault and not work")
        blob = blob_of(run)
        self._refuse_run_of_other_writer(run)
        if self._database.query("SELECT 1 FROM reservations WHERE id = ?", (blob,)):
            raise IllegalState(f"run {run}", "used", "a run reserves once; take a new run id")
        body = {
            "node": self._node,
            "incarnation": self._database.incarnation.hex(),
            "workflow": workflow,
            "handler": handler,
            "at": self._issue_time(transaction, 1),
            "events": [f"{event.id}@{event.epoch + 1}" for event in events],
        }
        if mode != "soft":
            body["mode"] = mode
        if of is not None:
            body |= {"of": of, "root": self._root(of)}
            effect = self.effect_behind(of)
            if effect is not None and effect.outcome in ("applied", "skipped"):
                body["work"] = effect.work  # what is known of it keeps these claims, too
        transaction.execute("INSERT INTO reservations (id, body) VALUES (?, ?)", (blob, json.dumps(body)))
        if self._claimed_and_owned(run) != (len(events), len(events)):
            raise NotAvailable(dict.fromkeys(self._not_owned(run), "kept by another run, whose effect is decided"))
        return [Event(*event[:-3], "reserved", event.epoch + 1, RunId(run)) for event in events]

    def _root(self, run: str) -> str:
        """Return the run that began the work that a run goes on with."""
        rows = self._database.query("SELECT lower(hex(root)) FROM run_roots WHERE id = ?", (blob_of(run),))
        return str(rows[0][0])

    def _claimed_and_owned(self, run: str) -> tuple[int, int]:
        """Return how many events `run` has claimed, and how many of them it owns."""
        ((claimed, owned),) = self._database.query(
            "SELECT count(*), count(*) FILTER (WHERE e.status IN (1, 2) AND e.run = c.run) FROM run_index AS r "
            "CROSS JOIN claims AS c ON c.run = r.n CROSS JOIN event_index AS e ON e.n = c.event WHERE r.id = ?",
            (blob_of(run),),
        )
        return claimed, owned

    def _issue_time(self, transaction: Transaction, count: int) -> int:
        """Return the first of `count` consecutive hybrid times, later than all seen."""
        now_ms = self._database.clock_ms()
        believed = credible_until(now_ms)
        ((issued, seen),) = transaction.execute(
            "SELECT latest, (SELECT s.latest FROM seen_times AS s WHERE s.period <= ?1 >> 43 AND s.latest <= ?1 "
            "ORDER BY s.period DESC LIMIT 1) FROM hybrid_clock WHERE id = 1",
            (believed,),
        )
        first = next_hybrid_time(now_ms, max(issued, seen or 0))
        transaction.execute("UPDATE hybrid_clock SET latest = ? WHERE id = 1", (first + count - 1,))
        return first

    def _existing(self, identifiers: Sequence[EventId]) -> dict[EventId, Event]:
        found = self._events(
            f"SELECT {EVENT_COLUMNS} FROM json_each(?) AS j CROSS JOIN event_index AS e "
            "WHERE e.id = unhex(j.value) AND e.publication IS NOT NULL ORDER BY e.at, e.id",
            (json.dumps(identifiers),),
        )
        return {event.id: event for event in found}

    def _own_state(self, run: str) -> str:
        rows = self._database.query(
            f"SELECT body ->> '$.node', {_STATE} FROM reservations AS v WHERE id = ? AND body <> '{{}}'",
            (blob_of(run),),
        )
        if not rows:
            raise NotFound("reservation of run", [run], "`leasemesh status` lists the held ones")
        self._refuse_other_writer(run, rows[0][0])
        return _state_of(rows[0][1])

    def _not_owned(self, run: str) -> dict[str, str]:
        """Return event id -> owner for each event that `run` claimed and does not own."""
        rows = self._database.query(
            "SELECT lower(hex(e.id)), (SELECT lower(hex(o.id)) FROM run_index AS o WHERE o.n = e.run) "
            "FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n CROSS JOIN event_index AS e ON e.n = c.event "
            "WHERE r.id = ? AND NOT (e.status IN (1, 2) AND e.run = c.run) ORDER BY e.at, e.id",
            (blob_of(run),),
        )
        return {event: owner or "" for event, owner in rows}

    def _settle(self, run: str, outcome: Outcome, effect_happened: bool) -> int:
        with self._database.transaction() as transaction:
            state = self._own_state(run)
            if state == outcome:
                return 0
            if state != "held" and not (effect_happened and state in ("released", "lost")):
                raise IllegalState(f"the reservation of run {run}", state, f"it cannot become {outcome}")
            claimed, owned = self._claimed_and_owned(run)
            if owned < claimed and not effect_happened:
                raise LeaseLost(run, self._not_owned(run))
            _set_state(transaction, run, outcome)
            return claimed


_STATE = (
    "CASE WHEN v.state IN ('released', 'lost') AND EXISTS (SELECT 1 FROM holding_runs AS h WHERE h.id = v.id) "
    "THEN 'held' ELSE v.state END"
)
"""How a reservation stands: its row's word, unless an effect that is decided keeps what the row says was given back."""

_CHAIN = (
    "WITH RECURSIVE chain (run, steps) AS (VALUES (?, 0) UNION ALL "
    "SELECT unhex(v.body ->> '$.of'), chain.steps + 1 FROM chain CROSS JOIN reservations AS v "
    f"WHERE v.id = chain.run AND v.body ->> '$.of' IS NOT NULL AND chain.steps < {SUCCESSIONS_MAX})"
)
"""A run, the run whose work it goes on with, the one whose work that one went on with, ..."""

_WEIGHT: dict[WorkOutcome, int] = {"applied": 0, "unknown": 1, "skipped": 2, "failed": 3}


def _set_state(transaction: Transaction, run: str, state: str) -> None:
    stored = _STORED_OUTCOMES.get(state, state)
    transaction.execute("UPDATE reservations SET state = ? WHERE id = ?", (stored, blob_of(run)))


def _state_of(stored: str) -> str:
    """Return the word for people: the last one of what is stored."""
    return stored.rpartition(" ")[2]


def _holder(event: Event) -> str:
    return event.status + (f" by run {ids.short_run(event.run)}" if event.run else "")
