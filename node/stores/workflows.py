"""Workflows and sessions: registers that people and the runtime edit. The last writer of a column wins, which is
right for them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from leasemesh.node.database.file import Value
from leasemesh.node.model.errors import InvalidInput, NotFound
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX, Json, check_text, check_whole, decode, encode
from leasemesh.node.stores.base import LIST_MAX, Store

Trigger = Literal["schedule", "manual", "event", "retry"]
TRIGGERS: tuple[Trigger, ...] = ("schedule", "manual", "event", "retry")
HANDLER_CONFIG_BYTES_MAX = 64 * 1024
LOGS_CHARACTERS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class WorkflowInfo:
    """A workflow.

    Attributes:
        id: opaque text, chosen by the app. Topics and events are scoped by it.
        title: for people.
        enabled: whether its handlers run at all.
        status: the person's wish, for example "active" or "paused".
        error: the system's word on what is wrong, empty when nothing is.
        handler_config: settings of its handlers by name.
        created_at, updated_at: Unix milliseconds.
    """

    id: str
    title: str
    enabled: bool
    status: str
    error: str
    handler_config: Json
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """A session: a row that groups handler runs for display.

    Attributes:
        id, workflow_id: its own id and its workflow's.
        trigger: what started it: schedule, manual, event or retry.
        started_at, ended_at: Unix milliseconds. `ended_at` is 0 while it runs.
        result, error, logs: text for people.
        cost: in millionths of the app's currency.
        handler_run_count: handler runs in it.
    """

    id: str
    workflow_id: str
    trigger: Trigger
    started_at: int
    ended_at: int
    result: str
    error: str
    logs: str
    cost: int
    handler_run_count: int


_WORKFLOW_COLUMNS = "id, title, enabled, status, error, handler_config, created_at, updated_at"
_SCRIPT_RUN_COLUMNS = ", ".join(field.name for field in fields(ScriptRun))


class WorkflowStore(Store):
    """Workflows by id."""

    def get(self, workflow: str) -> WorkflowInfo | None:
        """Return a workflow."""
        rows = self._database.query(f"SELECT {_WORKFLOW_COLUMNS} FROM workflows WHERE id = ?", (workflow,))
        return _workflow(rows[0]) if rows else None

    def list(self) -> list[WorkflowInfo]:
        """Return all workflows by id."""
        return [
            _workflow(row) for row in self._database.query(f"SELECT {_WORKFLOW_COLUMNS} FROM workflows ORDER BY id")
        ]

    def get_or_create(self, workflow: str, *, title: str = "") -> WorkflowInfo:
        """Return the workflow, creating it when this device does not know it."""
        found = self.get(check_text("workflow", workflow))
        if found is not None:
            return found
        title = check_text("title", title or workflow, characters_max=TITLE_CHARACTERS_MAX)
        now = self._database.clock_ms()
        with self._database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO workflows (id, title, created_at, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (workflow, title, now, now),
            )
        return WorkflowInfo(workflow, title, True, "active", "", {}, now, now)

    def update(
        self,
        workflow: str,
        *,
        title: str | None = None,
        enabled: bool | None = None,
        status: str | None = None,
        error: str | None = None,
        handler_config: Json = None,
    ) -> WorkflowInfo:
        """Change what is given and return the result.

        Raises:
            NotFound: there is no such workflow.
            InvalidInput: a value cannot be accepted.
        """
        values: dict[str, Value] = {}
        if title is not None:
            values["title"] = check_text("title", title, characters_max=TITLE_CHARACTERS_MAX)
        if enabled is not None:
            if not isinstance(enabled, bool):
                raise InvalidInput("enabled", f"must be true or false, not {enabled!r}")
            values["enabled"] = int(enabled)
        if status is not None:
            values["status"] = check_text("status", status)
        if error is not None:
            values["error"] = check_text("error", error, characters_max=HANDLER_CONFIG_BYTES_MAX, empty=True)
        if handler_config is not None:
            values["handler_config"] = encode("handler_config", handler_config, HANDLER_CONFIG_BYTES_MAX)
        with self._database.transaction() as transaction:
            if self.get(workflow) is None:
                raise NotFound("workflow", [workflow])
            if values:
                values["updated_at"] = self._database.clock_ms()
                assignments = ", ".join(f"{column} = ?" for column in values)
                transaction.execute(f"UPDATE workflows SET {assignments} WHERE id = ?", (*values.values(), workflow))
            changed = self.get(workflow)
        assert changed is not None
        return changed


class ScriptRunStore(Store):
    """Sessions by id and by workflow."""

    def create(self, script_run: str, workflow: str, *, trigger: Trigger = "manual") -> ScriptRun:
        """Begin a session. Creating the same id again returns the first.

        Raises:
            InvalidInput: the trigger is none of schedule, manual, event, retry, or a name is empty.
        """
        check_text("session", script_run)
        check_text("workflow", workflow)
        if trigger not in TRIGGERS:
            raise InvalidInput("trigger", f"{trigger!r} is not one of {', '.join(TRIGGERS)}")
        with self._database.transaction() as transaction:
            found = self.get(script_run)
            if found is not None:
                return found
            now = self._database.clock_ms()
            transaction.execute(
                "INSERT INTO script_runs (id, workflow_id, trigger, started_at) VALUES (?, ?, ?, ?)",
                (script_run, workflow, trigger, now),
            )
        return ScriptRun(script_run, workflow, trigger, now, 0, "", "", "", 0, 0)

    def get(self, script_run: str) -> ScriptRun | None:
        """Return a session."""
        rows = self._database.query(f"SELECT {_SCRIPT_RUN_COLUMNS} FROM script_runs WHERE id = ?", (script_run,))
        return ScriptRun(*rows[0]) if rows else None

    def by_workflow(self, workflow: str, *, limit: int = 100) -> list[ScriptRun]:
        """Return a workflow's sessions, the newest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        rows = self._database.query(
            f"SELECT {_SCRIPT_RUN_COLUMNS} FROM script_runs WHERE workflow_id = ? ORDER BY started_at DESC, id LIMIT ?",
            (workflow, limit),
        )
        return [ScriptRun(*row) for row in rows]

    def add_handler_run(self, script_run: str, *, cost: int = 0, logs: str = "") -> None:
        """Count a handler run in its session and add its cost and logs. The oldest logs go beyond a million characters.

        Raises:
            NotFound: there is no such session.
            InvalidInput: `cost` is negative or not whole, or `logs` is not text.
        """
        check_whole("cost", cost, least=0, most=2**53)
        check_text("logs", logs, characters_max=LOGS_CHARACTERS_MAX, empty=True)
        with self._database.transaction() as transaction:
            # One statement, and of the logs nothing when there are none: this is a part of every run.
            added = ", logs = substr(logs || ?, ?)" if logs else ""
            counted = "handler_run_count = handler_run_count + 1, cost = cost + ?"
            transaction.execute(
                f"UPDATE script_runs SET {counted}{added} WHERE id = ?",
                (cost, *((logs, -LOGS_CHARACTERS_MAX) if logs else ()), script_run),
            )
            if transaction.changes == 0:
                raise NotFound("session", [script_run])

    def end(self, script_run: str, *, result: str = "", error: str = "") -> ScriptRun:
        """End a session.

        Raises:
            NotFound: there is no such session.
            InvalidInput: `result` or `error` is not text or longer than a million characters.
        """
        check_text("result", result, characters_max=LOGS_CHARACTERS_MAX, empty=True)
        check_text("error", error, characters_max=LOGS_CHARACTERS_MAX, empty=True)
        with self._database.transaction() as transaction:
            self._existing(script_run)
            transaction.execute(
                "UPDATE script_runs SET ended_at = ?, result = ?, error = ? WHERE id = ?",
                (self._database.clock_ms(), result, error, script_run),
            )
            return self._existing(script_run)

    def _existing(self, script_run: str) -> ScriptRun:
        found = self.get(script_run)
        if found is None:
            raise NotFound("session", [script_run])
        return found


def _workflow(row: tuple[Value, ...]) -> WorkflowInfo:
    identifier, title, enabled, status, error, config, created_at, updated_at = row
    return WorkflowInfo(
        str(identifier),
        str(title),
        bool(enabled),
        str(status),
        str(error),
        _config(config),
        _whole(created_at),
        _whole(updated_at),
    )


# A column of a register holds what its last writer put there, and a peer may put anything.
def _config(value: Value) -> Json:
    try:
        return decode(str(value))
    except (ValueError, RecursionError):
        return {}


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0
