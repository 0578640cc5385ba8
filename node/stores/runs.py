"""Handler runs: one row for each attempt of one handler on one node, written by that node only.

A row has three cells. `body` never changes, `progress` changes as the run goes on, and `ended` is written once.
`migrations/0001_facts.sql` says why, and what becomes of copies of one file that went on apart. Which phases and
statuses there are stands in `node.stores.phases`.

A run goes on only in the process that began it, and this store refuses all else. A later start of the node may end what
it finds, pause it, or move it to mutated when the outcome of its effect became known.

A run of a producer that finds nothing has no row. It is a *poll*: a row of a local table while it is under way.
"""

from __future__ import annotations

import builtins
import heapq
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from leasemesh.node.database.file import Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, NotFound
from leasemesh.node.model.ids import NodeId, RunId
from leasemesh.node.model.jsonvalue import (
    BODY_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Json,
    check_text,
    check_whole,
    decode_object,
    encode,
)
from leasemesh.node.stores.base import LIST_MAX, Store, WorkOutcome, blob_of, said_in, work_outcome
from leasemesh.node.stores.phases import (
    BEGINNINGS,
    ENDED,
    ENDINGS,
    INCOMPLETE,
    PHASES,
    STATUSES,
    Phase,
    RunKind,
    RunStatus,
)

RETRY_CHAIN_MAX = 100
DETAILS_BYTES_MAX = PAYLOAD_BYTES_MAX
"""All details of a run together, as JSON."""


@dataclass(frozen=True, slots=True)
class HandlerRun:
    """One attempt.

    Attributes:
        id: the run.
        node, incarnation: the device and its process that run it.
        workflow, handler, kind: what is run.
        phase, status: see `node.stores.phases`.
        session: the `script_runs` row it belongs to.
        retry_of: the run that this one tries again, or goes on with.
        started_at, ended_at: Unix milliseconds. `ended_at` is None while it may still move.
        details: prepare result, states, error, cost, logs: whatever the runtime keeps, JSON.
    """

    id: RunId
    node: NodeId
    incarnation: str
    workflow: str
    handler: str
    kind: RunKind
    phase: Phase
    status: RunStatus
    session: str | None
    retry_of: RunId | None
    started_at: int
    ended_at: int | None
    details: dict[str, Json]


class HandlerRunStore(Store):
    """Runs by id, by session, by workflow, by handler, and along their retries."""

    def new_id(self) -> RunId:
        """Return a fresh run id. Ids of one node sort by time."""
        return RunId(ids.ordered_id(self._database.clock_ms(), self._database.random_bytes))

    def create(
        self,
        workflow: str,
        handler: str,
        kind: RunKind,
        *,
        run: str | None = None,
        session: str | None = None,
        retry_of: str | None = None,
        phase: Phase = "pending",
        status: RunStatus = "active",
        details: dict[str, Json] | None = None,
    ) -> HandlerRun:
        """Begin a run.

        Args:
            workflow, handler, kind: what is run.
            run: a fresh id from `new_id`. By default a new one.
            session: the `script_runs` row that it belongs to.
            retry_of: the run that it tries again or, at emitting, goes on with.
            phase: where it begins: pending, or a phase before the effect that is reached in the same transaction, or
                emitting, for a run that goes on beyond the effect of `retry_of`, with its prepare result and its
                effect's result.
            status: active, or why it does not move yet.
            details: JSON.

        Raises:
            InvalidInput: a name is empty, the kind is unknown, no run begins in that phase or with that status, or the
                details are not JSON.
            NotFound: `retry_of` is not a run that this device knows.
            IllegalState: the id is taken. Or, at emitting, `retry_of` did not get beyond its effect.
        """
        if kind not in PHASES:
            raise InvalidInput("kind", f"{kind!r} is not one of {', '.join(PHASES)}")
        if phase not in BEGINNINGS[kind] and not (phase == "emitting" and kind == "consumer" and retry_of is not None):
            raise InvalidInput("phase", f"a {kind} run that is new does not begin in {phase!r}")
        if status not in INCOMPLETE:
            raise InvalidInput("status", f"{status!r} is not one of {', '.join(INCOMPLETE)}")
        body = self._body(workflow, handler, kind, session, retry_of)
        progress = {"phase": phase, "status": status, "details": _check_details(details or {})}
        key = blob_of(self.new_id() if run is None else run)
        with self._database.transaction() as transaction:
            if run is not None:
                self._refuse_run_of_other_writer(run)
                if self._has_row(key):
                    raise IllegalState(f"run {run}", "used", "a run begins once; take a new run id")
            if retry_of is not None:
                before = self.get(retry_of)
                if before is None:
                    raise NotFound("run", [retry_of])
                if phase == "emitting":
                    self._refuse_before_effect(before)
            _insert(transaction, key, body, progress)
        return _run(key, body, phase, status, progress, {})

    def get(self, run: str) -> HandlerRun | None:
        """Return a run."""
        found = self._select("id = ?", (blob_of(run),))
        return found[0] if found else None

    def find(self, prefix: str) -> HandlerRun | None:
        """Return the run whose id begins with `prefix` (at least 4 hexadecimal characters), as tables show it.

        Raises:
            Ambiguous: more than one does.
            InvalidInput: not hexadecimal, or too short.
        """
        found = self._by_prefix("handler_runs", "run", prefix)
        return self.get(found) if found else None

    def advance(
        self,
        run: str,
        *phases: Phase,
        status: RunStatus | None = None,
        details: dict[str, Json] | None = None,
    ) -> HandlerRun:
        """Move a run through one phase or several that follow each other, in one write.

        Args:
            run: a run of this node.
            phases: the next phase, and those after it. Reaching committed ends the run with that status.
            status: by default active: what moves is not paused. One that ends the run ends it in the last of `phases`.
            details: what to add to the details.

        Raises:
            NotFound, NotOwner: no such run, or another node's.
            IllegalState: a transition is not in `PHASES`. The run has ended, or it was begun by another process of
                this node and something else is asked for than mutated.
            InvalidInput: there is no such status, or the details are not JSON.
        """
        if not phases:
            raise InvalidInput("phases", "name at least one; `set_status` changes the status alone")
        after = status or ("committed" if phases[-1] == "committed" else "active")
        if after not in STATUSES:
            raise InvalidInput("status", f"{after!r} is not one of {', '.join(STATUSES)}")
        if (after == "committed") != (phases[-1] == "committed"):
            raise InvalidInput("status", f"a run in phase {phases[-1]} is not {after}")
        with self._database.transaction():
            found = self._own(run)
            if found.status in ENDED:
                raise IllegalState(f"run {run}", found.status, "it has ended; a retry is a new run")
            at = found.phase
            for phase in phases:
                following = PHASES[found.kind].get(at, ())
                if phase not in following:
                    allowed = " or ".join(following) or "nothing"
                    raise IllegalState(f"{found.kind} run {run}", at, f"next comes {allowed}, not {phase}")
                at = phase
            if found.incarnation != self._database.incarnation.hex() and phases != ("mutated",):
                raise IllegalState(
                    f"run {run}", "of an earlier start of this node", "end it; what is left to do is a new run's"
                )
            return self._write(found, at, after, details)

    def set_status(self, run: str, status: RunStatus, *, details: dict[str, Json] | None = None) -> HandlerRun:
        """Say why a run is not moving, adding `details`. An ended run stays as it is.

        Raises:
            NotFound, NotOwner: no such run, or another node's.
            IllegalState: the run has ended, or committed is asked for (only the phase brings that).
            InvalidInput: there is no such status.
        """
        if status not in STATUSES:
            raise InvalidInput("status", f"{status!r} is not one of {', '.join(STATUSES)}")
        with self._database.transaction():
            found = self._own(run)
            if found.status in ENDED or status == "committed":
                raise IllegalState(f"run {run}", found.status, f"its status cannot become {status}")
            return self._write(found, found.phase, status, details)

    # --- Polls --------------------------------------------------------------------------------------------------------

    def begin_poll(self, workflow: str, handler: str, *, run: str, session: str) -> None:
        """Begin a run of a producer that nobody is told of, unless `record_poll` does: most polls find nothing.

        Args:
            workflow, handler: what is run.
            run: a fresh id from `new_id`.
            session: the session that it belongs to, if it is recorded.

        Raises:
            InvalidInput: a name is empty.
        """
        body = self._body(workflow, handler, "producer", session, None)
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute("INSERT INTO polls VALUES (?, ?)", (blob_of(run), _encode(body)))

    def record_poll(self, run: str) -> HandlerRun | None:
        """Make a poll of this device a run like any other, executing.

        None when there is no such poll, or the run is there: another copy of this file may have gone on with it.
        """
        key = blob_of(run)
        with self._database.transaction() as transaction:
            rows = self._database.query("SELECT body FROM polls WHERE run = ?", (key,))
            if not rows:
                return None
            self.forget_poll(run)
            if self._has_row(key):
                return None
            body = decode_object(rows[0][0]) | {"node": self._node}  # it may have got a new identity since
            progress = {"phase": "executing", "status": "active", "details": {}}
            _insert(transaction, key, body, progress)
        return _run(key, body, "executing", "active", progress, {})

    def forget_poll(self, run: str) -> None:
        """End a poll that found nothing: there was no such run."""
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute("DELETE FROM polls WHERE run = ?", (blob_of(run),))

    def polls(self) -> dict[RunId, NodeId]:
        """Return the polls that have not ended, by run, and who this device was when it began them."""
        rows = self._database.query("SELECT lower(hex(run)), body ->> '$.node' FROM polls ORDER BY run")
        return {RunId(run): NodeId(node) for run, node in rows}

    # --- Lists --------------------------------------------------------------------------------------------------------

    def own_incomplete(self) -> builtins.list[HandlerRun]:
        """Return all runs of this node that have not ended, whichever of its processes began them. The oldest first."""
        return self._select("node = ? AND ended = '' ORDER BY started_at, id", (self._database.site_id,))

    def recent(
        self, workflow: str, handler: str, *, node: str | None = None, limit: int = 20
    ) -> builtins.list[HandlerRun]:
        """Return the newest runs of a handler, the newest first. Those of all nodes, or of one."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        condition, parameters = ("", ()) if node is None else (" AND node = ?", (blob_of(node),))
        return self._select(
            f"workflow = ? AND handler = ?{condition} ORDER BY started_at DESC, id DESC LIMIT ?",
            (workflow, handler, *parameters, limit),
        )

    def list(
        self,
        workflow: str | None = None,
        handler: str | None = None,
        status: RunStatus | None = None,
        *,
        limit: int = 100,
    ) -> builtins.list[HandlerRun]:
        """Return the newest runs that fit, the newest first, of all nodes. None fits every one."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        if workflow is None and handler is None and status is None:
            return self._select("body <> '{}' ORDER BY id DESC LIMIT ?", (limit,))
        wanted = {"handler": handler, "status": status}
        given = {column: value for column, value in wanted.items() if value is not None}
        condition = "".join(f" AND {column} = ?" for column in given)
        with self._database.snapshot():
            found = [
                self._select(
                    f"workflow = ?{condition} ORDER BY started_at DESC, id DESC LIMIT ?",
                    (one, *given.values(), limit),
                )
                for one in (self._workflows() if workflow is None else (workflow,))
            ]
        newest_first = heapq.merge(*found, key=lambda run: (run.started_at, run.id), reverse=True)
        return list(islice(newest_first, limit))

    def by_session(self, session: str, *, limit: int = 1000) -> builtins.list[HandlerRun]:
        """Return the runs of a session, the oldest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select("session = ? ORDER BY started_at, id LIMIT ?", (session, limit))

    def retry_chain(self, run: str) -> builtins.list[HandlerRun]:
        """Return a run with all the runs that it retries and that retry it, the first attempt first (at most 100)."""
        chain: builtins.list[HandlerRun] = []
        with self._database.snapshot():
            current = self.get(run)
            while current is not None and len(chain) < RETRY_CHAIN_MAX and current not in chain:
                chain.insert(0, current)
                current = self.get(current.retry_of) if current.retry_of else None
            while chain and len(chain) < RETRY_CHAIN_MAX:
                later = self._select("retry_of = ? ORDER BY started_at, id LIMIT 1", (chain[-1].id,))
                if not later or later[0] in chain:
                    break
                chain += later
        return chain

    # --- Below --------------------------------------------------------------------------------------------------------

    def _body(
        self, workflow: str, handler: str, kind: RunKind, session: str | None, retry_of: str | None
    ) -> dict[str, Json]:
        return {
            "node": self._node,
            "incarnation": self._database.incarnation.hex(),
            "workflow": check_text("workflow", workflow),
            "handler": check_text("handler", handler),
            "kind": kind,
            "session": None if session is None else check_text("session", session),
            "retry_of": retry_of,
            "started_at": self._database.clock_ms(),
        }

    def _has_row(self, key: bytes) -> bool:
        return bool(self._database.query("SELECT 1 FROM handler_runs WHERE id = ?", (key,)))

    def _own(self, run: str) -> HandlerRun:
        found = self.get(run)
        if found is None:
            raise NotFound("run", [run])
        self._refuse_other_writer(run, found.node)
        return found

    def _refuse_before_effect(self, run: HandlerRun) -> None:
        """Only what happened, or needed no effect, goes forward."""
        rows = self._database.query("SELECT lower(hex(work)) FROM mutations WHERE id = ?", (blob_of(run.id),))
        outcome = work_outcome(self._database, rows[0][0]) if rows else self._said_of_permit(run)
        if run.phase == "committed" or outcome != "applied" and (rows or run.phase not in ("mutated", "emitting")):
            state = f"{run.phase}, its effect {outcome}" if rows else run.phase
            raise IllegalState(f"run {run.id}", state, "a run that goes on with it must begin from the beginning")

    def _said_of_permit(self, run: HandlerRun) -> WorkOutcome:
        """The outcome that people know of an effect whose entry has not arrived, only the permit for it."""
        rows = self._database.query(
            "SELECT lower(hex(work)) FROM standing_permits WHERE run = ? AND work IS NOT NULL", (blob_of(run.id),)
        )
        return "applied" if any(work_outcome(self._database, work) == "applied" for (work,) in rows) else "none"

    def _write(self, run: HandlerRun, phase: Phase, status: RunStatus, details: dict[str, Json] | None) -> HandlerRun:
        """Write what moved. The end is one cell, with the details that came with it."""
        added = _check_details(details or {})
        together = _check_details(run.details | added) if added else run.details
        ended_at = self._database.clock_ms() if status in ENDINGS else None
        cells: dict[str, str] = {}
        if status not in ENDINGS:
            cells["progress"] = _encode({"phase": phase, "status": status, "details": together})
        else:
            cells["ended"] = f"{ENDINGS[status]} {status} {_encode({'at': ended_at, 'details': added})}"
            if phase not in ("committed", run.phase):
                cells["progress"] = _encode({"phase": phase, "status": "active", "details": run.details})
        with self._database.transaction() as transaction:
            transaction.execute(
                f"UPDATE handler_runs SET {', '.join(f'{name} = ?' for name in cells)} WHERE id = ?",
                (*cells.values(), blob_of(run.id)),
            )
        return replace(run, phase=phase, status=status, ended_at=ended_at, details=together)

    def _workflows(self) -> builtins.list[str]:
        """Return the workflows that have runs: one look-up in an index for each."""
        rows = self._database.query(
            "WITH RECURSIVE w (name) AS (SELECT min(workflow) FROM handler_runs UNION ALL "
            "SELECT (SELECT min(r.workflow) FROM handler_runs AS r WHERE r.workflow > w.name) FROM w "
            "WHERE w.name IS NOT NULL) SELECT name FROM w WHERE name IS NOT NULL"
        )
        return [name for (name,) in rows]

    def _select(self, condition: str, parameters: tuple[Any, ...]) -> builtins.list[HandlerRun]:
        rows = self._database.query(
            f"SELECT id, body, phase, status, progress, ended FROM handler_runs WHERE {condition}", parameters
        )
        found = ((row, decode_object(row[1])) for row in rows)
        return [
            _run(identifier, body, phase, status, decode_object(progress), said_in(ended))
            for (identifier, _, phase, status, progress, ended), body in found
            if body
        ]


def _check_details(details: dict[str, Json]) -> dict[str, Json]:
    if not isinstance(details, dict):
        raise InvalidInput("details", f"must be a dict, not {type(details).__name__}")
    encode("details", details, DETAILS_BYTES_MAX)
    return details


def _insert(transaction: Transaction, key: bytes, body: dict[str, Json], progress: dict[str, Json]) -> None:
    transaction.execute(
        "INSERT INTO handler_runs (id, body, progress) VALUES (?, ?, ?)", (key, _encode(body), _encode(progress))
    )


def _encode(cell: Json) -> str:
    # The details were checked by themselves, so that a run can always move on with what was accepted before.
    return encode("run", cell, BODY_BYTES_MAX)


def _run(
    identifier: bytes,
    body: dict[str, Any],
    phase: Phase,
    status: RunStatus,
    progress: dict[str, Any],
    ended: dict[str, Any],
) -> HandlerRun:
    return HandlerRun(
        id=RunId(identifier.hex()),
        node=NodeId(body["node"]),
        incarnation=body["incarnation"],
        workflow=body["workflow"],
        handler=body["handler"],
        kind=body["kind"],
        phase=phase,
        status=status,
        session=body.get("session"),
        retry_of=body.get("retry_of"),
        started_at=body["started_at"],
        ended_at=ended.get("at"),
        details=progress.get("details", {}) | ended.get("details", {}),
    )
