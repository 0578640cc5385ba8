"""Blocks: which handlers must not run, on one device or on all, why, and who said so.

A device blocks a handler for itself when its runs failed too often in a row. A person may block one everywhere, and
lets any of them run again. The row stays then, and names the run after which failures are counted anew.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

from leasemesh.node.model import ids
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.ids import NodeId, RunId
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX, check_text, check_whole, encode
from leasemesh.node.stores.base import LIST_MAX, Store, blob_of

EVERYWHERE = NodeId("")
"""In place of a device: all of them."""


@dataclass(frozen=True, slots=True)
class HandlerBlock:
    """What was last said about a handler on one device, or on all.

    Attributes:
        workflow, handler: which.
        node: the device that it is about. "" for all.
        blocked: whether it must not run. False: it was let run again.
        reason: one sentence for people, "" when nobody gave one.
        by: the person or device that said so.
        run: the run that brought it about, None when none did. Kept when the handler is let run again: only the
            failures of later runs count.
        at: Unix milliseconds.
    """

    workflow: str
    handler: str
    node: NodeId
    blocked: bool
    reason: str
    by: str
    run: RunId | None
    at: int


class HandlerBlockStore(Store):
    """Blocks by handler and device."""

    def get(self, workflow: str, handler: str) -> HandlerBlock | None:
        """Return what keeps a handler from running on this device, None when nothing does. A block everywhere comes
        first."""
        said = (self.last(workflow, handler, node=node) for node in (EVERYWHERE, self._node))
        return next((one for one in said if one is not None and one.blocked), None)

    def last(self, workflow: str, handler: str, *, node: str = EVERYWHERE) -> HandlerBlock | None:
        """Return what was last said about a handler on a device (on all of them, when none is named): that it must not
        run, or that it may again. None when nothing was."""
        rows = self._bodies("handler_blocks", "id = ?", (_key(workflow, handler, node),))
        return _block(rows[0][1]) if rows else None

    def list(self, workflow: str | None = None, *, limit: int = 1_000) -> builtins.list[HandlerBlock]:
        """Return all handlers that must not run somewhere, by name. Of one workflow or of all."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        order = "AND body ->> '$.blocked' ORDER BY workflow, handler, id LIMIT ?"
        rows = (
            self._bodies("handler_blocks", f"workflow IS NOT NULL {order}", (limit,))
            if workflow is None
            else self._bodies("handler_blocks", f"workflow = ? {order}", (workflow, limit))
        )
        return [_block(body) for _, body in rows]

    def block(
        self,
        workflow: str,
        handler: str,
        *,
        reason: str,
        by: str = "",
        node: str = EVERYWHERE,
        run: str | None = None,
    ) -> HandlerBlock:
        """Keep a handler from running, on a device or (when none is named) on all of them.

        Args:
            workflow, handler: which.
            reason: for people, one sentence.
            by: who says so. By default this device.
            node: the device that it is about.
            run: the run that brings it about.

        Raises:
            InvalidInput: a name or an id cannot be accepted.
        """
        return self._write(workflow, handler, node, blocked=True, reason=reason, by=by, run=run)

    def unblock(
        self, workflow: str, handler: str, *, reason: str = "", by: str = "", node: str = EVERYWHERE
    ) -> HandlerBlock | None:
        """Let a handler run again where it was blocked. Returns what is said now. Writes nothing when it was not.

        A block of one device and one everywhere are two: each is taken back by itself.

        Raises:
            InvalidInput: a name or an id cannot be accepted.
        """
        with self._database.transaction():
            before = self.last(workflow, handler, node=node)
            if before is None or not before.blocked:
                return before
            return self._write(workflow, handler, node, blocked=False, reason=reason, by=by, run=before.run)

    def _write(
        self, workflow: str, handler: str, node: str, *, blocked: bool, reason: str, by: str, run: str | None
    ) -> HandlerBlock:
        key = _key(workflow, handler, node)
        if run is not None:
            blob_of(run)
        body = {
            "workflow": workflow,
            "handler": handler,
            "node": node,
            "blocked": blocked,
            "reason": check_text("reason", reason, characters_max=TITLE_CHARACTERS_MAX, empty=True),
            "by": check_text("by", by, empty=True) or self._node,
            "run": run,
            "at": self._database.clock_ms(),
        }
        with self._database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO handler_blocks (id, body) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET body = ?2",
                (key, encode("block", body)),
            )
        return _block(body)


def _key(workflow: str, handler: str, node: str) -> bytes:
    if not isinstance(node, str):
        raise InvalidInput("node", f"must be text, not {type(node).__name__}")
    if node != EVERYWHERE:
        blob_of(node)
    return blob_of(ids.block_id(check_text("workflow", workflow), check_text("handler", handler), NodeId(node)))


def _block(body: dict[str, Any]) -> HandlerBlock:
    run = body["run"]
    return HandlerBlock(
        workflow=body["workflow"],
        handler=body["handler"],
        node=NodeId(body["node"].lower()),
        blocked=body["blocked"],
        reason=body["reason"],
        by=body["by"],
        run=None if run is None else RunId(run.lower()),
        at=body["at"],
    )
