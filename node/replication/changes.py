"""A change as the tuple that passes from SQLite to the wire and back: its columns, and how much it takes. Pieces of
transfers, and what is kept of them in memory and on disk, are bounded by that."""

from __future__ import annotations

from typing import Final

from leasemesh.sync.ports import Change

COLUMNS: Final = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'
"""The columns of cr-sqlite's table of changes, by name and in the order of `sync.ports.Change`."""

VERSION: Final = 5
"""The index of db_version in a change."""

CAUSAL_LENGTH: Final = 7
"""The index of cl."""

SEQUENCE: Final = 8
"""The index of seq."""

ROW_BYTES = 40
"""What a change takes besides its key and its value, about."""


def change_bytes(row: Change) -> int:
    """Return about how many bytes a change takes. Text counts a byte for each character."""
    value = row[3]
    return ROW_BYTES + len(row[1]) + (len(value) if isinstance(value, (str, bytes)) else 0)
