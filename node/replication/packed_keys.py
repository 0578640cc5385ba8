"""Checking packed primary keys that come from peers.

cr-sqlite packs a key's columns into one blob: a count byte, then for each column a byte (type in the low three bits, a
length in the upper five) and the content. It unpacks without checks of its own: an empty blob, or an integer that
claims to have more than eight bytes, aborts the whole process, and text that is not UTF-8 is undefined behaviour in
it. So nothing reaches it that did not pass here.
"""

from __future__ import annotations

from collections.abc import Iterable

_INTEGER, _FLOAT, _TEXT, _BLOB, _NULL = 1, 2, 3, 4, 5

# The whole header of leasemesh's own keys: one column, a BLOB whose length takes one byte, sixteen bytes.
_ID_HEADER = b"\x01\x0c\x10"
_ID_BYTES = len(_ID_HEADER) + 16


def find_malformed(keys: Iterable[bytes]) -> bytes | None:
    """Return a key that is not well-formed, or None."""
    # Nearly all keys are ids: one look at length and header is three times faster than the whole check.
    others = (key for key in keys if len(key) != _ID_BYTES or not key.startswith(_ID_HEADER))
    return next((key for key in others if not is_well_formed(key)), None)


def is_well_formed(key: bytes) -> bool:
    """Tell whether cr-sqlite can unpack `key` safely, with nothing left over."""
    if not key:
        return False
    position = 1
    for _ in range(key[0]):
        end = _end_of_column(key, position)
        if end is None:
            return False
        position = end
    return key[0] > 0 and position == len(key)


def _end_of_column(key: bytes, position: int) -> int | None:
    """Return where the column that starts at `position` ends, None when it is not well-formed."""
    if position >= len(key):
        return None
    kind, length = key[position] & 7, key[position] >> 3
    position += 1
    if kind == _NULL:
        return None  # No part of a replicated table's key can be NULL.
    if kind == _FLOAT:
        return position + 8 if position + 8 <= len(key) else None
    if kind not in (_INTEGER, _TEXT, _BLOB) or length > 8 or position + length > len(key):
        return None
    if kind == _INTEGER:
        return position + length
    size = int.from_bytes(key[position : position + length], "big")
    position += length
    if position + size > len(key):
        return None
    if kind == _TEXT and not _is_text(key[position : position + size]):
        return None
    return position + size


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
