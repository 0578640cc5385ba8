"""What all stores share: one database, explicit transactions, rows with a JSON body and one writer."""

from __future__ import annotations

import json
from typing import Any

from node.database import Database
from node.errors import InvalidInput, NotOwner
from node.ids import NodeId, to_blob


class Store:
    """A store of one or a few tables. All stores of a node share its database.

    Every method may be called inside `database.transaction()` or alone; alone, it is a transaction of its own. Reads
    of something absent give None or an empty list.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def _node(self) -> NodeId:
        return NodeId(self._database.site_id.hex())

    def _body(self, table: str, identifier: str) -> dict[str, Any] | None:
        """Return the body of a fact row, None when absent. `table` is a constant of the calling store."""
        rows = self._database.query(f"SELECT body FROM {table} WHERE id = ?", (blob_of(identifier),))
        return json.loads(rows[0][0]) if rows else None

    def _refuse_other_writer(self, run: str, node: str) -> None:
        if node != self._node:
            raise NotOwner(run, node)


def blob_of(identifier: str) -> bytes:
    """Return an id as the database stores it.

    Raises:
        InvalidInput: when it is not an id.
    """
    try:
        return to_blob(identifier)
    except (ValueError, TypeError) as error:
        raise InvalidInput("id", f"{identifier!r} is not an id of 32 hexadecimal characters") from error
