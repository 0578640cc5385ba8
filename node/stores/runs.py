"""Handler runs: one row for each attempt of one handler on one node, written by that node only.

*Phase* says how far a run got and only moves forward; *status* says why it is not moving. `PHASES` is the whole of
the legal transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from node import ids
from node.database import Transaction
from node.errors import IllegalState, InvalidInput, NotFound
from node.ids import NodeId, RunId
from node.jsonvalue import BODY_BYTES_MAX, PAYLOAD_BYTES_MAX, Json, check_text, check_whole, encode
from node.stores.base import Store, blob_of
from node.stores.reading import LIST_MAX

RunKind = Literal["producer", "consumer"]
Phase = Literal["pending", "executing", "preparing", "prepared", "mutating", "mutated", "emitting", "committed"]
RunStatus = Literal[
    "active",
    "paused:transient",
    "paused:approval",
    "paused:reconciliation",
    "paused:confirmation",
    "failed:logic",
    "failed:internal",
    "lost",
    "crashed",
    "committed",
]

PHASES: dict[RunKind, dict[Phase, tuple[Phase, ...]]] = {
    "producer": {
        "pending": ("executing",),
        "executing": ("committed",),
        "committed": (),
    },
    "consumer": {
        "pending": ("preparing",),
        "preparing": ("prepared",),
        "prepared": (
            "mutating",
            "emitting",
        ),  # emitting: nothing was reserved, or the effect is known from an earlier run
        "mutating": ("mutated",),
        "mutated": ("emitting",),
        "emitting": ("committed",),
        "committed": (),
    },
}

STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
ENDED: frozenset[RunStatus] = frozenset({"failed:logic", "failed:internal", "lost", "crashed", "committed"})
"""A run in one of these never moves again; a retry is a new run."""

RETRY_CHAIN_MAX = 100
DETAILS_BYTES_MAX = PAYLOAD_BYTES_MAX
"""All details of a run together, as JSON."""

_INCOMPLETE = tuple(status for status in STATUSES if status not in ENDED)


@dataclass(frozen=True, slots=True)
class HandlerRun:
    """One attempt.

    Attributes:
        id: the run.
        node, incarnation: the device and its process that run it.
        workflow, handler, kind: what is run.
        phase, status: see the module.
        session: the `script_runs` row it belongs to.
        retry_of: the run that this one tries again.
        started_at, ended_at: Unix milliseconds; `ended_at` is None while it may still move.
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
    """Runs by id, by session, by workflow, and along their retries."""

    def new_id(self) -> RunId:
        """Return a fresh run id; ids of one node sort by time."""
        return RunId(ids.ordered_id(self._database.clock_ms(), self._database.random_bytes))

    def create(
        self,
        workflow: str,
        handler: str,
        kind: RunKind,
        *,
        session: str | None = None,
        retry_of: str | None = None,
        details: dict[str, Json] | None = None,
    ) -> HandlerRun:
        """Begin a run in phase pending, status active.

        Raises:
            InvalidInput: a name is empty, the kind is unknown, or the details are not JSON.
            NotFound: `retry_of` is not a run that this device knows.
        """
        if kind not in PHASES:
            raise InvalidInput("kind", f"{kind!r} is not one of {', '.join(PHASES)}")
        body = {
            "node": self._node,
            "incarnation": self._database.incarnation.hex(),
            "workflow": check_text("workflow", workflow),
            "handler": check_text("handler", handler),
            "kind": kind,
            "phase": "pending",
            "status": "active",
            "session": None if session is None else check_text("session", session),
            "retry_of": retry_of,
            "started_at": self._database.clock_ms(),
            "ended_at": None,
            "details": _check_details(details or {}),
        }
        run = self.new_id()
        with self._database.transaction() as transaction:
            if retry_of is not None and self.get(retry_of) is None:
                raise NotFound("run", [retry_of])
            transaction.execute("INSERT INTO handler_runs (id, body) VALUES (?, ?)", (blob_of(run), _encode(body)))
        return _run(run, body)

    def get(self, run: str) -> HandlerRun | None:
        """Return a run."""
        found = self._select("id = ?", (blob_of(run),))
        return found[0] if found else None

    def advance(self, run: str, phase: Phase, *, details: dict[str, Json] | None = None) -> HandlerRun:
        """Move a run to its next phase, adding `details`; reaching committed also sets that status.

        Raises:
            NotFound, NotOwner: no such run, or another node's.
            IllegalState: the transition is not in `PHASES`, or the run has ended.
        """
        with self._database.transaction() as transaction:
            found = self._own(run)
            if found.status in ENDED:
                raise IllegalState(f"run {run}", found.status, "it has ended; a retry is a new run")
            following = PHASES[found.kind].get(found.phase, ())
            if phase not in following:
                allowed = " or ".join(following) or "nothing"
                raise IllegalState(f"{found.kind} run {run}", found.phase, f"next comes {allowed}, not {phase}")
            changes: dict[str, Json] = {"phase": phase}
            if phase == "committed":
                changes |= {"status": "committed", "ended_at": self._database.clock_ms()}
            return self._write(transaction, run, changes, details)

    def set_status(self, run: str, status: RunStatus, *, details: dict[str, Json] | None = None) -> HandlerRun:
        """Say why a run is not moving, adding `details`. An ended run stays as it is.

        Raises:
            NotFound, NotOwner: no such run, or another node's.
            IllegalState: the run has ended, or committed is asked for (only the phase brings that).
            InvalidInput: there is no such status.
        """
        if status not in STATUSES:
            raise InvalidInput("status", f"{status!r} is not one of {', '.join(STATUSES)}")
        with self._database.transaction() as transaction:
            found = self._own(run)
            if found.status in ENDED or status == "committed":
                raise IllegalState(f"run {run}", found.status, f"its status cannot become {status}")
            changes: dict[str, Json] = {"status": status}
            if status in ENDED:
                changes["ended_at"] = self._database.clock_ms()
            return self._write(transaction, run, changes, details)

    def incomplete(self, workflow: str, *, limit: int = 1000) -> list[HandlerRun]:
        """Return the runs of a workflow that may still move, the oldest first; every node's."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        places = ", ".join("?" * len(_INCOMPLETE))
        return self._select(
            f"workflow = ? AND status IN ({places}) ORDER BY started_at, id LIMIT ?", (workflow, *_INCOMPLETE, limit)
        )

    def by_session(self, session: str, *, limit: int = 1000) -> list[HandlerRun]:
        """Return the runs of a session, the oldest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select("session = ? ORDER BY started_at, id LIMIT ?", (session, limit))

    def by_workflow(self, workflow: str, *, limit: int = 100) -> list[HandlerRun]:
        """Return a workflow's runs, the newest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._select("workflow = ? ORDER BY started_at DESC, id LIMIT ?", (workflow, limit))

    def retry_chain(self, run: str) -> list[HandlerRun]:
        """Return a run with all the runs that it retries and that retry it, the first attempt first (at most 100)."""
        chain: list[HandlerRun] = []
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

    def _own(self, run: str) -> HandlerRun:
        found = self.get(run)
        if found is None:
            raise NotFound("run", [run])
        self._refuse_other_writer(run, found.node)
        return found

    def _write(
        self, transaction: Transaction, run: str, changes: dict[str, Json], details: dict[str, Json] | None
    ) -> HandlerRun:
        ((_, body),) = self._bodies("handler_runs", "id = ?", (blob_of(run),))
        body |= changes
        if details:
            body["details"] = _check_details(body["details"] | _check_details(details))
        transaction.execute("UPDATE handler_runs SET body = ? WHERE id = ?", (_encode(body), blob_of(run)))
        return _run(run, body)

    def _select(self, condition: str, parameters: tuple[Any, ...]) -> list[HandlerRun]:
        return [_run(run, body) for run, body in self._bodies("handler_runs", condition, parameters)]


def _check_details(details: dict[str, Json]) -> dict[str, Json]:
    if not isinstance(details, dict):
        raise InvalidInput("details", f"must be a dict, not {type(details).__name__}")
    encode("details", details, DETAILS_BYTES_MAX)
    return details


def _encode(body: Json) -> str:
    # The details were checked by themselves, so that a run can always move on with what was accepted before.
    return encode("body", body, BODY_BYTES_MAX)


def _run(run: str, body: dict[str, Any]) -> HandlerRun:
    return HandlerRun(
        id=RunId(run),
        node=NodeId(body["node"]),
        incarnation=body["incarnation"],
        workflow=body["workflow"],
        handler=body["handler"],
        kind=body["kind"],
        phase=body["phase"],
        status=body["status"],
        session=body.get("session"),
        retry_of=body.get("retry_of"),
        started_at=body["started_at"],
        ended_at=body.get("ended_at"),
        details=body["details"],
    )
