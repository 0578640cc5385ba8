"""The ledger of external effects: one entry for a run, and what is known of the work that several runs may have tried.

An entry in flight, or of unknown outcome, keeps its events reserved. The view `work_outcomes` is the
one place that folds entries and verdicts into an outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, NotFound, PermitRefused
from leasemesh.node.model.ids import NodeId, RunId, WorkId
from leasemesh.node.model.jsonvalue import (
    BODY_BYTES_MAX,
    TIME_MS_MAX,
    Json,
    check_text,
    check_whole,
    decode_object,
    encode,
)
from leasemesh.node.stores.base import LIST_MAX, blob_of, give_up_permit, said_in, work_outcome
from leasemesh.node.stores.base import WorkOutcome as WorkOutcome
from leasemesh.node.stores.permits import PermitStore
from leasemesh.node.stores.works import WorkReader

MutationStatus = Literal["pending", "in_flight", "applied", "failed", "needs_reconcile", "indeterminate"]
Verdict = Literal["happened", "skip", "not_happened"]

MUTATION_TRANSITIONS: dict[MutationStatus, tuple[MutationStatus, ...]] = {
    "pending": ("in_flight",),  # not failed: that would be an outcome, and a copy of the file may have begun it
    "in_flight": ("applied", "failed", "needs_reconcile", "indeterminate"),
    "needs_reconcile": ("applied", "failed", "needs_reconcile", "indeterminate"),
    "indeterminate": ("applied", "failed"),
    "applied": (),
    "failed": ("applied",),  # a call that was thought to be over: what happened must be known everywhere
}
_OUTCOMES: dict[MutationStatus, int] = {"failed": 0, "applied": 1}
"""The number that precedes the word in the column `outcome`: of two that copies of one file wrote, the truth wins."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A ledger entry.

    Attributes:
        run: the run whose effect it is.
        node: the device that performs it.
        work: the work. Also the idempotency key offered to the outside service.
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


class MutationStore(WorkReader):
    """Ledger entries by run, and outcomes by work."""

    def create(self, run: str, work: str, *, tool: str, params: Json = None) -> Mutation:
        """Enter the intended effect of a run. A second call for the same run returns the first entry.

        Raises:
            InvalidInput: an id or the params cannot be accepted.
            NotOwner: the run is another node's.
            IllegalState: the run was begun by an earlier start of this node.
        """
        with self._database.transaction():
            found = self.get(run)
            if found is not None:
                self._refuse_other_writer(run, found.node)
                return found
            self._refuse_run_of_others(run)
            return self._enter(run, work, tool, params, "pending")

    def intend(self, run: str, work: str, *, tool: str, params: Json = None) -> Mutation:
        """Enter the effect of a run and let it be in flight, in one durable write. The call may leave when this is
        committed.

        Alone it is a durable transaction. Inside another one, that must be durable.

        Raises:
            InvalidInput, NotOwner: as `create`.
            IllegalState: as `mark_in_flight`, or the run has entered another effect.
            PermitRefused: as `mark_in_flight`.
            DatabaseError: the transaction around it is not durable.
        """
        with self._database.transaction(durable=True):
            if self.get(run) is None:
                self._refuse_to_begin(run, work)
                return self._enter(run, work, tool, params, "in_flight")
            entered = self._own(run)
            if (entered.work, entered.tool) != (work, tool):
                raise IllegalState(f"the effect of run {run}", f"{entered.tool} for work {entered.work}", "it has one")
            return self.mark_in_flight(run)

    def get(self, run: str) -> Mutation | None:
        """Return the entry of a run."""
        found = self._select("id = ?", (blob_of(run),))
        return found[0] if found else None

    def mark_in_flight(self, run: str) -> Mutation:
        """Record, before the call leaves, that it may happen from now on. Durable, as `intend` is.

        Raises:
            NotFound, NotOwner: no such entry, or another node's.
            IllegalState: the entry is not pending. An earlier start of this node made it, and only the process that
                begins a run performs its effect, or the work has happened already, is to be skipped, or may be
                happening (`outcome` tells which).
            PermitRefused: the run claimed in mode confirmed, or has asked for a permit, and has none that stands.
            DatabaseError: the transaction around it is not durable.
        """
        with self._database.transaction(durable=True):
            found = self._own(run)
            if found.status == "pending":
                self._refuse_to_begin(run, found.work)
            return self._mark(run, "in_flight")

    def mark_applied(self, run: str, result: Json = None) -> Mutation:
        """Record that the effect happened: an outcome, for ever.

        Raises:
            NotFound, NotOwner: no such entry, or another node's.
            IllegalState: the entry is pending, or applied already.
            InvalidInput: the result is not JSON.
        """
        return self._end(run, "applied", result)

    def mark_failed(self, run: str, error: Json = None) -> Mutation:
        """Record that the effect certainly did not happen: an outcome, which only applied replaces. Raises as
        `mark_applied`."""
        return self._end(run, "failed", error)

    def mark_needs_reconcile(self, run: str, *, at: int, error: Json = None) -> Mutation:
        """Record that nobody knows whether the effect happened; ask again at `at` (Unix ms). Raises as
        `mark_applied`."""
        return self._mark(run, "needs_reconcile", error=error, next_reconcile_at=_check_time(at))

    def mark_indeterminate(self, run: str, error: Json = None) -> Mutation:
        """Record that only a person can tell what happened. Raises as `mark_applied`."""
        return self._mark(run, "indeterminate", error=error, next_reconcile_at=None)

    def schedule_reconcile(self, run: str, *, at: int) -> Mutation:
        """Count one failed attempt at reconciliation and set the time (Unix ms) of the next. Raises as
        `mark_applied`."""
        with self._database.transaction():
            found = self._own(run)
            return self._mark(
                run,
                "needs_reconcile",
                next_reconcile_at=_check_time(at),
                attempts=found.reconcile_attempts + 1,
            )

    def due(self, now: int, *, limit: int = 100) -> list[Mutation]:
        """Return this node's entries whose reconciliation is due at `now`, the longest waiting first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select(
            "status = 'needs_reconcile' AND next_reconcile_at <= ? AND body ->> '$.node' = ? "
            "ORDER BY next_reconcile_at LIMIT ?",
            (now, self._node, limit),
        )

    def next_due_at(self) -> int | None:
        """Return when the next reconciliation of this node is due, in Unix milliseconds. None when there is none."""
        rows = self._database.query(
            "SELECT next_reconcile_at FROM mutations WHERE status = 'needs_reconcile' AND next_reconcile_at >= 0 "
            "AND body ->> '$.node' = ? ORDER BY next_reconcile_at LIMIT 1",
            (self._node,),
        )
        return int(rows[0][0]) if rows else None

    def unresolved(self, *, limit: int = 100) -> list[Mutation]:
        """Return the entries of every node whose outcome is unknown and on which no verdict has been given."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select(
            "status IN ('in_flight', 'needs_reconcile', 'indeterminate') AND 'unknown' = "
            "(SELECT w.outcome FROM work_outcomes AS w WHERE w.run = mutations.id) ORDER BY id LIMIT ?",
            (limit,),
        )

    def own_in_flight(self) -> list[RunId]:
        """Return the runs of this node whose effects are in flight, the oldest first, whichever process began them."""
        rows = self._database.query(
            "SELECT lower(hex(id)) FROM mutations WHERE status = 'in_flight' AND body ->> '$.node' = ? ORDER BY id",
            (self._node,),
        )
        return [RunId(run) for (run,) in rows]

    def outcome(self, work: str) -> WorkOutcome:
        """Return the one answer that all runs of this work and all verdicts on it come to. None when nothing was
        tried."""
        return work_outcome(self._database, work)

    def result_of(self, work: str) -> Json:
        """Return what the effect of a work gave: the result of the run that applied it, or that of a person's verdict
        "happened". None when neither is known, or when that is the result."""
        with self._database.snapshot():
            applied = self._select("work = ? AND status = 'applied' ORDER BY id LIMIT 1", (blob_of(work),))
            if applied:
                return applied[0].result
            happened = (verdict.result for verdict in self.verdicts(work) if verdict.verdict == "happened")
            return next(happened, None)

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
        """Write how the entry stands while its outcome is not known."""
        encode("result", changes.get("error"))
        with self._database.transaction() as transaction:
            found = self._moving(run, status)
            now = self._database.clock_ms()
            progress = _progress(status, now, attempts=found.reconcile_attempts, error=found.result) | changes
            transaction.execute("UPDATE mutations SET progress = ? WHERE id = ?", (_encode(progress), blob_of(run)))
        return replace(
            found,
            status=status,
            result=progress["error"],
            reconcile_attempts=progress["attempts"],
            next_reconcile_at=progress["next_reconcile_at"],
            updated_at=now,
        )

    def _end(self, run: str, status: MutationStatus, result: Json) -> Mutation:
        """Write the outcome, and nothing else: see `migrations/0001_facts.sql`."""
        encode("result", result)
        with self._database.transaction() as transaction:
            found = self._moving(run, status)
            now = self._database.clock_ms()
            outcome = f"{_OUTCOMES[status]} {status} {_encode({'at': now, 'result': result})}"
            transaction.execute("UPDATE mutations SET outcome = ? WHERE id = ?", (outcome, blob_of(run)))
            if status == "failed":
                give_up_permit(transaction, run)
        return replace(found, status=status, result=result, next_reconcile_at=None, updated_at=now)

    def _moving(self, run: str, status: MutationStatus) -> Mutation:
        found = self._own(run)
        if status not in MUTATION_TRANSITIONS.get(found.status, ()):
            raise IllegalState(f"the effect of run {run}", found.status, f"it cannot become {status}")
        return found

    def _enter(self, run: str, work: str, tool: str, params: Json, status: MutationStatus) -> Mutation:
        encode("params", params)
        now = self._database.clock_ms()
        body = {
            "node": self._node,
            "incarnation": self._database.incarnation.hex(),
            "work": blob_of(work).hex(),
            "tool": check_text("tool", tool),
            "params": params,
            "created_at": now,
        }
        progress = _progress(status, now)
        with self._database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO mutations (id, body, progress) VALUES (?, ?, ?)",
                (blob_of(run), _encode(body), _encode(progress)),
            )
        return _mutation(blob_of(run), body, status, progress, {})

    def _refuse_to_begin(self, run: str, work: str) -> None:
        self._refuse_run_of_others(run)
        outcome = work_outcome(self._database, work)
        if outcome in ("applied", "skipped", "unknown"):
            raise IllegalState(f"work {work}", outcome, "its effect is not begun once more")
        self._refuse_without_permit(run, work)

    def _refuse_run_of_others(self, run: str) -> None:
        """Only the process that began a run performs its effect: of copies of one file, at most one does."""
        self._refuse_run_of_other_writer(run)
        rows = self._database.query(
            "SELECT body ->> '$.incarnation' FROM reservations WHERE id = ?1 AND body <> '{}' UNION ALL "
            "SELECT body ->> '$.incarnation' FROM handler_runs WHERE id = ?1 AND body <> '{}' UNION ALL "
            "SELECT body ->> '$.incarnation' FROM mutations WHERE id = ?1 AND body <> '{}'",
            (blob_of(run),),
        )
        if any(incarnation != self._database.incarnation.hex() for (incarnation,) in rows):
            raise IllegalState(
                f"run {run}", "of an earlier start of this node", "release it, and begin a new run for its effect"
            )

    def _refuse_without_permit(self, run: str, work: str) -> None:
        """A run that claimed in mode confirmed, or has asked for a permit, begins its effect with it or not at all."""
        permits = PermitStore(self._database)
        confirmed = self._database.query(
            "SELECT 1 FROM reservations WHERE id = ? AND body ->> '$.mode' = 'confirmed'", (blob_of(run),)
        )
        if confirmed or permits.get(run) is not None:
            permit = permits.require(run)
            if permit.work != work:
                raise PermitRefused(run, f"it is for work {permit.work}, not for {work}")

    def _select(self, condition: str, parameters: tuple[Any, ...]) -> list[Mutation]:
        rows = self._database.query(
            f"SELECT id, body, status, progress, outcome FROM mutations WHERE {condition}", parameters
        )
        found = ((row, decode_object(row[1])) for row in rows)
        return [
            _mutation(identifier, body, status, decode_object(progress), said_in(outcome))
            for (identifier, _, status, progress, outcome), body in found
            if body
        ]


def _progress(status: MutationStatus, at: int, *, attempts: int = 0, error: Json = None) -> dict[str, Json]:
    return {"status": status, "attempts": attempts, "next_reconcile_at": None, "error": error, "updated_at": at}


def _encode(cell: Json) -> str:
    # What callers give was checked by itself, so that an outcome is never refused for what was accepted before it.
    return encode("entry", cell, BODY_BYTES_MAX)


def _check_time(at: int) -> int:
    return check_whole("at", at, least=0, most=TIME_MS_MAX)


def _mutation(
    identifier: bytes, body: dict[str, Any], status: MutationStatus, progress: dict[str, Any], outcome: dict[str, Any]
) -> Mutation:
    return Mutation(
        run=RunId(identifier.hex()),
        node=NodeId(body["node"]),
        work=WorkId(body["work"]),
        tool=body["tool"],
        params=body.get("params"),
        status=status,
        result=outcome.get("result") if outcome else progress.get("error"),
        reconcile_attempts=progress.get("attempts", 0),
        next_reconcile_at=None if outcome else progress.get("next_reconcile_at"),
        created_at=body["created_at"],
        updated_at=outcome.get("at", progress.get("updated_at", body["created_at"])),
    )
