"""Changes that came from a peer and cannot be merged yet: kept, counted, passed on to other nodes, and tried again
later.

A change is quarantined when its table or column is unknown here (the peer runs a newer schema), or when it fails alone
because some constraint or trigger of this file refuses it. Nothing is dropped, and no row keeps a peer's other rows
from coming. They are tried again when the schema has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgpack

from leasemesh.node.database.versions import Query
from leasemesh.sync.errors import StorageLimit
from leasemesh.sync.ports import Change
from leasemesh.sync.version_vector import SiteId

QUARANTINED_ROWS_MAX = 200_000
"""Quarantined changes. About what a team's older device gathers in months while a newer one fills a new table."""

QUARANTINED_BYTES_MAX = 256 * 2**20
"""Their content. A peer must not be able to fill this device's disk with what nobody here can read."""

_ROWS_AT_ONCE = 4096

_COLUMNS = "table_name, pk, cid, val, col_version, db_version, site_id, cl, seq"


@dataclass(frozen=True, slots=True)
class QuarantineCount:
    """How many changes are quarantined for one reason, for status displays."""

    reason: str
    rows: int


def quarantine(
    query: Query, rows: Iterable[tuple[Change, str]], *, sender: SiteId, at_ms: int, schema_version: int
) -> int:
    """Store changes with their reasons and return how many are new. One that a row already there outranks is dropped.

    Raises:
        StorageLimit: more would be quarantined than this node may hold.
    """
    new = 0
    for row, reason in rows:
        new += _quarantine_one(query, row, reason, sender, at_ms, schema_version)
    if new:
        ((count, size),) = query("SELECT count(*), coalesce(sum(bytes), 0) FROM quarantined")
        if count > QUARANTINED_ROWS_MAX or size > QUARANTINED_BYTES_MAX:
            raise StorageLimit(
                f"{count:,} changes ({size:,} bytes) that this node cannot apply would be quarantined",
                hint="upgrade leasemesh or the app on this node to the version that its peers run",
            )
    return new


def _quarantine_one(query: Query, row: Change, reason: str, sender: SiteId, at_ms: int, schema_version: int) -> int:
    table, pk, cid, value, col_version, _, site, cl, _ = row
    cell = (table, pk, cid)
    rank = (cl, col_version)
    of_cell = "quarantined WHERE table_name = ? AND pk = ? AND cid = ? AND (cl, col_version)"
    if query(f"SELECT 1 FROM {of_cell} > (?, ?) LIMIT 1", (*cell, *rank)):
        return 0
    query(f"DELETE FROM {of_cell} < (?, ?)", (*cell, *rank))
    content = msgpack.packb((table, pk, cid, value, col_version, site, cl))
    inserted = query(
        "INSERT OR IGNORE INTO quarantined (fingerprint, reason, sender, at, bytes, schema_version, "
        f"{_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        (hashlib.blake2b(content, digest_size=16).digest(), reason, sender, at_ms, len(content), schema_version, *row),
    )
    return len(inserted)


def count_quarantined_after(query: Query, number: int) -> tuple[int, int]:
    """Return how many quarantined changes have a number above `number`, and the greatest of their numbers (0: none)."""
    ((count, greatest),) = query(
        "SELECT count(*), coalesce(max(number), 0) FROM quarantined WHERE number > ?", (number,)
    )
    return count, greatest


def read_quarantined(query: Query, after: int, upto: int) -> Iterator[tuple[int, Change]]:
    """Yield the quarantined changes with numbers above `after` and up to `upto`, in order, with their numbers.

    Some at a time, so that they never are in memory all together.
    """
    sql = (
        f"SELECT number, {_COLUMNS} FROM quarantined WHERE number > ? AND number <= ? "
        f"ORDER BY number LIMIT {_ROWS_AT_ONCE}"
    )
    while rows := query(sql, (after, upto)):
        yield from ((row[0], row[1:]) for row in rows)
        after = rows[-1][0]


def read_retries(query: Query, schema_version: int) -> list[tuple[int, Change]]:
    """Return some of the quarantined changes that were not tried with this state of the schema yet, in order."""
    sql = f"SELECT number, {_COLUMNS} FROM quarantined WHERE schema_version <> ? ORDER BY number LIMIT {_ROWS_AT_ONCE}"
    return [(row[0], row[1:]) for row in query(sql, (schema_version,))]


def finish_retries(query: Query, numbers: Iterable[int], failed: dict[int, str], schema_version: int) -> None:
    """Delete what was tried and merged. Note the new reason of what failed again (number -> reason)."""
    for number in numbers:
        if number in failed:
            reason = failed[number]
            query(
                "UPDATE quarantined SET schema_version = ?, reason = ? WHERE number = ?",
                (schema_version, reason, number),
            )
        else:
            query("DELETE FROM quarantined WHERE number = ?", (number,))


def count_quarantined(query: Query) -> list[QuarantineCount]:
    """Return the number of quarantined changes by reason, most first."""
    sql = "SELECT reason, count(*) FROM quarantined GROUP BY reason ORDER BY count(*) DESC, reason"
    return [QuarantineCount(reason, rows) for reason, rows in query(sql)]
