"""Handler state: what a handler remembers between runs. Each node writes a row of its own. The current one wins by
version."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

from leasemesh.node.model import ids
from leasemesh.node.model.errors import StaleVersion
from leasemesh.node.model.ids import NodeId
from leasemesh.node.model.jsonvalue import BODY_BYTES_MAX, TIME_MS_MAX, Json, check_text, check_whole, encode
from leasemesh.node.stores.base import Store, blob_of


@dataclass(frozen=True, slots=True)
class HandlerState:
    """The state of a handler.

    Attributes:
        workflow, handler: whose.
        version: 1, 2, 3 and so on; 0 is "never written".
        state: the JSON value.
        run: the run that wrote it.
        node: the device that wrote it.
        at: Unix milliseconds.
    """

    workflow: str
    handler: str
    version: int
    state: Json
    run: str
    node: NodeId
    at: int


class HandlerStateStore(Store):
    """Current states, and this device's wake-up times."""

    def get(self, workflow: str, handler: str) -> HandlerState | None:
        """Return the current state: the highest (version, time, run) of all nodes' rows."""
        return max(self._states("handler_id = ?", (_handler_blob(workflow, handler),)), key=_rank, default=None)

    def set(self, workflow: str, handler: str, state: Json, *, run: str, expected_version: int) -> HandlerState:
        """Write the next version of a handler's state.

        Args:
            workflow, handler: whose.
            state: the JSON value.
            run: the run that returns it.
            expected_version: the version that the run began with, 0 for none.

        Raises:
            StaleVersion: the current version is another one. Nothing is written.
            InvalidInput: the state is not JSON or over 1 MiB.
        """
        handler_id = ids.handler_id(check_text("workflow", workflow), check_text("handler", handler))
        encode("state", state)
        with self._database.transaction() as transaction:
            current = self.get(workflow, handler)
            version = current.version if current else 0
            if version != expected_version:
                raise StaleVersion(f"{workflow}/{handler}", expected_version, version)
            written = HandlerState(
                workflow, handler, version + 1, state, check_text("run", run), self._node, self._database.clock_ms()
            )
            body = {"handler_id": handler_id, **{name: getattr(written, name) for name in written.__slots__}}
            transaction.execute(
                "INSERT INTO handler_state (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
                (blob_of(ids.state_id(handler_id, self._node)), encode("body", body, BODY_BYTES_MAX)),
            )
        return written

    def list(self, workflow: str) -> builtins.list[HandlerState]:
        """Return the current states of a workflow's handlers, by handler."""
        current: dict[str, HandlerState] = {}
        for state in sorted(self._states("workflow = ?", (workflow,)), key=_rank):
            current[state.handler] = state
        return [current[handler] for handler in sorted(current)]

    def looked_in_vain(self, workflow: str) -> builtins.list[HandlerState]:
        """Return the current states that were returned by a run of which no row is kept: their producers looked last
        then, and found nothing. What an app has set by hand names no run, perhaps, and is left out."""
        known = "SELECT 1 FROM handler_runs WHERE id = unhex(?1) UNION SELECT 1 WHERE length(unhex(?1)) IS NOT 16"
        return [state for state in self.list(workflow) if not self._database.query(known, (state.run,))]

    def wake_at(self, workflow: str, handler: str) -> int | None:
        """Return when this device is to run the handler next (Unix ms), None when nothing is planned."""
        rows = self._database.query(
            "SELECT wake_at FROM wake_ups WHERE handler_id = ?", (_handler_blob(workflow, handler),)
        )
        return int(rows[0][0]) if rows else None

    def set_wake_at(self, workflow: str, handler: str, at: int | None) -> None:
        """Plan when this device is to run the handler next (Unix ms); None cancels.

        Local: other devices plan their own.

        Raises:
            InvalidInput: `at` is not a time.
        """
        handler_id = _handler_blob(workflow, handler)
        with self._database.transaction(replicated=False) as transaction:
            if at is None:
                transaction.execute("DELETE FROM wake_ups WHERE handler_id = ?", (handler_id,))
            else:
                transaction.execute(
                    "INSERT INTO wake_ups VALUES (?1, ?2) ON CONFLICT DO UPDATE SET wake_at = ?2",
                    (handler_id, check_whole("at", at, least=0, most=TIME_MS_MAX)),
                )

    def _states(self, condition: str, parameters: tuple[Any, ...]) -> builtins.list[HandlerState]:
        return [_state(body) for _, body in self._bodies("handler_state", condition, parameters)]


def _handler_blob(workflow: str, handler: str) -> bytes:
    return blob_of(ids.handler_id(check_text("workflow", workflow), check_text("handler", handler)))


def _state(body: dict[str, Any]) -> HandlerState:
    return HandlerState(
        workflow=body["workflow"],
        handler=body["handler"],
        version=body["version"],
        state=body.get("state"),
        run=body["run"],
        node=NodeId(body["node"]),
        at=body["at"],
    )


def _rank(state: HandlerState) -> tuple[int, int, str]:
    return state.version, state.at, state.run
