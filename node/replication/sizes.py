"""How much a change takes: what pieces of transfers, and what is kept of them in memory and on disk, are bounded by."""

from __future__ import annotations

from leasemesh.sync.ports import Change

ROW_BYTES = 40
"""What a change takes besides its key and its value, about."""


def change_bytes(row: Change) -> int:
    """Return about how many bytes a change takes. Text counts a byte for each character."""
    value = row[3]
    return ROW_BYTES + len(row[1]) + (len(value) if isinstance(value, (str, bytes)) else 0)
