"""The ledger of external effects: one entry for a run, and what is known of the work that several runs may have tried.

An entry in flight, or of unknown outcome, keeps its events reserved; the view `work_outcomes` of migration 2 is the
one place that folds entries and verdicts into an outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from node import ids
from node.errors import IllegalState, InvalidInput, NotFound
from node.ids import NodeId, RunId, WorkId
from node.jsonvalue import BODY_BYTES_MAX, TIME_MS_MAX, Json, check_text, check_whole, encode
from node.stores.base import Store, blob_of, give_up_permit
from node.stores.permits import PermitStore
from node.stores.reading import LIST_MAX

MutationStatus = Literal["pending", "in_flight", "applied", "failed", "needs_reconcile", "indeterminate"]
WorkOutcome = Literal["none", "applied", "failed", "skipped", "unknown"]
Verdict = Literal["happened", "skip", "not_happened"]

MUTATION_TRANSITIONS: dict[MutationStatus, tuple[MutationStatus, ...]] = {
    "pending": ("in_flight", "failed"),
    "in_flight": ("applied", "failed", "needs_reconcile", "indeterminate"),
    "needs_reconcile": ("applied", "failed", "needs_reconcile", "indeterminate"),
    "indeterminate": ("applied", "failed"),
    "applied": (),
    "failed": (),
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """A ledger entry.

    Attributes:
        run: the run whose effect it is.
        node: the device that performs it.
        work: the work; also the idempotency key offered to the outside service.
        tool, params: what is called with what.
        status: pending, in_flight (the call may have left), applied, failed (it certainly did not happen),
            needs_reconcile, indeterminate (waits for a person).
        result: what the effect returned, or the error.
        reconcile_attempts: how often reconciliation was tried.
        next_reconcile_at: Unix milliseconds, None when none is due.
        created_at, updated_at: Unix milliseconds.
    """

    run: RunId
    node: NodeId
    work: WorkId
    tool: str
    params: Json
    status: MutationStatus
    result: Json
    reconcile_attempts: int
    next_reconcile_at: int | None
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class VerdictInfo:
    """What a person decided about a work's unknown outcome, on which device and when."""

    work: WorkId
    node: NodeId
    verdict: Verdict
    by: str
    result: Json
    at: int


class MutationStore(Store):
    """Ledger entries by run, and outcomes by work."""

    def create(self, run: str, work: str, *, tool: str, params: Json = None) -> Mutation:
        """Enter the intended effect of a run. A second call for the same run returns the first entry.

        Raises:
            InvalidInput: an id or the params cannot be accepted.
            NotOwner: the run is another node's.
        """
        blob_of(work)
        encode("params", params)
        now = self._database.clock_ms()
        body = {
            "node": self._node,
            "work": work,
            "tool": check_text("tool", tool),
            "params": params,
            "status": "pending",
            "result": None,
            "reconcile_attempts": 0,
            "next_reconcile_at": None,
            "created_at": now,
            "updated_at": now,
        }
        with self._database.transaction() as transaction:
            self._refuse_run_of_other_writer(run)
            found = self.get(run)
            if found is not None:
                self._refuse_other_writer(run, found.node)
                return found
            transaction.execute("INSERT INTO mutations (id, body) VALUES (?, ?)", (blob_of(run), _encode(body)))
        return _mutation(run, body)

    def get(self, run: str) -> Mutation | None:
        """Return the entry of a run."""
        found = self._select("id = ?", (blob_of(run),))
        return found[0] if found else None

    def mark_in_flight(self, run: str) -> Mutation:
        """Record, before the call leaves, that it may happen from now on. Raises as the other marks do.

        Raises:
            NotFound, NotOwner: no such entry, or another node's.
            IllegalState: the entry is not pending.
            PermitRefused: the run claimed in mode confirmed, or has asked for a permit, and has none that stands.
        """
        return self._mark(run, "in_flight")

    def mark_applied(self, run: str, result: Json = None) -> Mutation:
        """Record that the effect happened. Raises as `mark_in_flight`."""
        return self._mark(run, "applied", result=result, next_reconcile_at=None)

    def mark_failed(self, run: str, error: Json = None) -> Mutation:
        """Record that the effect certainly did not happen. Raises as `mark_in_flight`."""
        return self._mark(run, "failed", result=error, next_reconcile_at=None)

    def mark_needs_reconcile(self, run: str, *, at: int, error: Json = None) -> Mutation:
        """Record that nobody knows whether the effect happened; ask again at `at` (Unix ms). Raises as
        `mark_in_flight`."""
        return self._mark(run, "needs_reconcile", result=error, next_reconcile_at=_check_time(at))

    def mark_indeterminate(self, run: str, error: Json = None) -> Mutation:
        """Record that only a person can tell what happened. Raises as `mark_in_flight`."""
        return self._mark(run, "indeterminate", result=error, next_reconcile_at=None)

    def schedule_reconcile(self, run: str, *, at: int) -> Mutation:
        """Count one failed attempt at reconciliation and set the time (Unix ms) of the next. Raises as
        `mark_in_flight`."""
        with self._database.transaction():
            found = self._own(run)
            return self._mark(
                run,
                "needs_reconcile",
                next_reconcile_at=_check_time(at),
                reconcile_attempts=found.reconcile_attempts + 1,
            )

    def due(self, now: int, *, limit: int = 100) -> list[Mutation]:
        """Return this node's entries whose reconciliation is due at `now`, the longest waiting first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select(
            "status = 'needs_reconcile' AND next_reconcile_at <= ? AND body ->> '$.node' = ? "
            "ORDER BY next_reconcile_at LIMIT ?",
            (now, self._node, limit),
        )

    def unresolved(self, *, limit: int = 100) -> list[Mutation]:
        """Return the entries of every node whose outcome is unknown and on which no verdict has been given."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select(
            "status IN ('in_flight', 'needs_reconcile', 'indeterminate') AND 'unknown' = "
            "(SELECT w.outcome FROM work_outcomes AS w WHERE w.run = mutations.id) ORDER BY id LIMIT ?",
            (limit,),
        )

    def outcome(self, work: str) -> WorkOutcome:
        """Return the one answer that all runs of this work and all verdicts on it come to; none when nothing was
        tried."""
        rows = self._database.query(
            "SELECT w.outcome FROM work_outcomes AS w WHERE w.work = ? LIMIT 1", (blob_of(work),)
        )
        outcome: WorkOutcome = rows[0][0] if rows else "none"
        return outcome

    def resolve(self, work: str, verdict: Verdict, *, by: str, result: Json = None) -> VerdictInfo:
        """Record a person's verdict on work of unknown outcome. A later verdict on this device replaces its earlier
        one.

        Verdicts of several devices meet by precedence: happened, then skip, then not_happened. not_happened does not
        count while a run still has the effect in flight.

        Raises:
            NotFound: no run ever tried that work, or got a permit for it.
            InvalidInput: the verdict is none of the three.
        """
        if verdict not in get_args(Verdict):
            raise InvalidInput("verdict", f"{verdict!r} is not one of {', '.join(get_args(Verdict))}")
        at = self._database.clock_ms()
        body = {
            "work": work,
            "node": self._node,
            "verdict": verdict,
            "by": check_text("by", by),
            "result": result,
            "at": at,
        }
        encode("result", result)
        with self._database.transaction() as transaction:
            if not self._database.query(
                "SELECT 1 FROM mutations WHERE work = ?1 UNION ALL SELECT 1 FROM permits WHERE work = ?1 LIMIT 1",
                (blob_of(work),),
            ):
                raise NotFound("work", [work])
            # A verdict may arrive before the entries that it was given on: whether they had stopped goes along.
            body["stopped"] = not self._database.query(
                "SELECT 1 FROM mutations WHERE work = ? AND status = 'in_flight' LIMIT 1", (blob_of(work),)
            )
            transaction.execute(
                "INSERT INTO verdicts (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
                (blob_of(ids.verdict_id(WorkId(work), self._node)), _encode(body)),
            )
        return VerdictInfo(WorkId(work), self._node, verdict, by, result, at)

    def verdicts(self, work: str) -> list[VerdictInfo]:
        """Return all verdicts on a work, the earliest first."""
        found = [
            VerdictInfo(
                WorkId(body["work"]),
                NodeId(body["node"]),
                cast(Verdict, body["verdict"]),
                body["by"],
                body.get("result"),
                body["at"],
            )
            for _, body in self._bodies("verdicts", "work = ?", (blob_of(work),))
        ]
        return sorted(found, key=lambda verdict: (verdict.at, verdict.node))

    def _own(self, run: str) -> Mutation:
        found = self.get(run)
        if found is None:
            raise NotFound("effect of run", [run])
        self._refuse_other_writer(run, found.node)
        return found

    def _mark(self, run: str, status: MutationStatus, **changes: Json) -> Mutation:
        with self._database.transaction() as transaction:
            found = self._own(run)
            if status not in MUTATION_TRANSITIONS.get(found.status, ()):
                raise IllegalState(f"the effect of run {run}", found.status, f"it cannot become {status}")
            encode("result", changes.get("result"))
            ((_, body),) = self._bodies("mutations", "id = ?", (blob_of(run),))
            body |= changes | {"status": status, "updated_at": self._database.clock_ms()}
            if status == "in_flight":
                self._refuse_without_permit(run)
            transaction.execute("UPDATE mutations SET body = ? WHERE id = ?", (_encode(body), blob_of(run)))
            if status == "failed":
                give_up_permit(transaction, run)
        return _mutation(run, body)

    def _refuse_without_permit(self, run: str) -> None:
        """A run that claimed in mode confirmed, or has asked for a permit, begins its effect with it or not at all."""
        permits = PermitStore(self._database)
        confirmed = self._database.query(
            "SELECT 1 FROM reservations WHERE id = ? AND body ->> '$.mode' = 'confirmed'", (blob_of(run),)
        )
        if confirmed or permits.get(run) is not None:
            permits.require(run)

    def _select(self, condition: str, parameters: tuple[Any, ...]) -> list[Mutation]:
        return [_mutation(run, body) for run, body in self._bodies("mutations", condition, parameters)]


def _encode(body: Json) -> str:
    # What callers give was checked by itself, so that an outcome is never refused for what was accepted before it.
    return encode("body", body, BODY_BYTES_MAX)


def _check_time(at: int) -> int:
    return check_whole("at", at, least=0, most=TIME_MS_MAX)


def _mutation(run: str, body: dict[str, Any]) -> Mutation:
    return Mutation(
        run=RunId(run),
        node=NodeId(body["node"]),
        work=WorkId(body["work"]),
        tool=body["tool"],
        params=body.get("params"),
        status=body["status"],
        result=body.get("result"),
        reconcile_attempts=body["reconcile_attempts"],
        next_reconcile_at=body["next_reconcile_at"],
        created_at=body["created_at"],
        updated_at=body["updated_at"],
    )
