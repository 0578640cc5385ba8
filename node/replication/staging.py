"""Pieces of transactions that are larger than a piece, kept until their end has come.

Each sender's are in a temporary database of their own: SQLite keeps it in memory while it is small and then in a file
without a name, which goes with it. Not in temporary tables of the database's writer: those are in memory, and setting
where they are deletes them. So staging needs no lock of the database's file either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apsw

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.replication.changes import change_bytes
from leasemesh.sync import limits
from leasemesh.sync.errors import StagingLost, StorageLimit
from leasemesh.sync.ports import Change, Incoming
from leasemesh.sync.version_vector import SiteId

STAGED_BYTES_MAX = 512 * limits.MIB
"""What may wait in temporary files for the end of its transaction, of all peers together. Nobody writes half a gigabyte
in one transaction by hand."""

STAGED_SENDERS_MAX = limits.PEERS_MAX
"""Senders whose transactions may wait. Each takes a file and its cache. More cannot be connected at once."""

_CACHE_KIBIBYTES_MAX = 512  # Rows are written once and read once, in one order.

_ROWS_AT_ONCE = 4096
_TABLE = """
CREATE TABLE staged (
    number INTEGER PRIMARY KEY, table_name TEXT, pk BLOB, cid TEXT, val ANY, col_version INTEGER, db_version INTEGER,
    site_id BLOB, cl INTEGER, seq INTEGER
) STRICT
"""


class _Pieces:
    """What one sender has sent of a transaction."""

    def __init__(self) -> None:
        self.size = 0
        self._connection = apsw.Connection("")
        self._connection.pragma("cache_size", -_CACHE_KIBIBYTES_MAX)
        self._connection.execute(_TABLE)

    def add(self, rows: list[Change], size: int) -> None:
        with self._connection:
            self._connection.executemany("INSERT INTO staged VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.size += size

    def read(self) -> Iterator[list[Change]]:
        sql = f"SELECT * FROM staged WHERE number > ? ORDER BY number LIMIT {_ROWS_AT_ONCE}"
        number = 0
        rows: list[tuple[Any, ...]]
        while rows := self._connection.execute(sql, (number,)).fetchall():
            number = rows[-1][0]
            yield [row[1:] for row in rows]

    def close(self) -> None:
        self._connection.close()


class Staging:
    """The pieces of all senders. One call at a time."""

    def __init__(self) -> None:
        self._senders: dict[SiteId, _Pieces] = {}  # the longest waiting first
        # Senders whose beginning of a transaction was given up, until they begin anew.
        self._given_up: set[SiteId] = set()

    def check(self, incoming: Incoming) -> None:
        """Make sure that what comes before a piece is here, or that it begins a transfer.

        Raises:
            StagingLost: it was given up.
        """
        if incoming.first:
            self._given_up.discard(incoming.site)
        elif incoming.site in self._given_up:
            raise StagingLost("the beginning of the transaction had to make room for another peer's; send it again")

    def add(self, incoming: Incoming) -> None:
        """Keep a piece that ends inside a version. What others began may have to make room for it.

        Raises:
            StorageLimit: the transaction is larger than this node may hold.
            DatabaseError: temporary files cannot be written.
        """
        if incoming.first:
            self.drop(incoming.site)
        kept = self._senders.get(incoming.site)
        added = sum(map(change_bytes, incoming.rows))
        needed = added + (kept.size if kept is not None else 0)
        if needed > STAGED_BYTES_MAX:
            raise StorageLimit(
                f"a peer sends a transaction of more than {STAGED_BYTES_MAX:,} bytes",
                hint="write the data in several transactions",
            )
        self._make_room(incoming.site, needed)
        try:
            if kept is None:
                kept = self._senders[incoming.site] = _Pieces()
            kept.add(incoming.rows, added)
        except apsw.Error as error:
            raise self._failed(incoming.site, error) from error

    def read(self, sender: SiteId) -> Iterator[list[Change]]:
        """Yield what is here of a sender's transaction, in order. Raises DatabaseError as `add`."""
        kept = self._senders.get(sender)
        try:
            yield from kept.read() if kept is not None else ()
        except apsw.Error as error:
            raise self._failed(sender, error) from error

    def drop(self, sender: SiteId) -> None:
        """Forget what is here of a sender's transaction: it has been merged, or begins anew."""
        kept = self._senders.pop(sender, None)
        if kept is not None:
            kept.close()

    def clear(self) -> None:
        """Give up everything."""
        for sender in list(self._senders):
            self._give_up(sender)

    def _make_room(self, sender: SiteId, needed: int) -> None:
        """Give up what others began, the longest waiting first: a peer that is gone must not keep the room for ever."""
        others = {site: kept.size for site, kept in self._senders.items() if site != sender}
        for other in list(others):
            if sum(others.values()) + needed <= STAGED_BYTES_MAX and len(others) < STAGED_SENDERS_MAX:
                return
            del others[other]
            self._give_up(other)

    def _failed(self, sender: SiteId, error: apsw.Error) -> DatabaseError:
        self._give_up(sender)
        return DatabaseError(
            f"A large transaction of a peer cannot be kept in a temporary file ({error}); "
            "free some space in the folder for temporary files."
        )

    def _give_up(self, sender: SiteId) -> None:
        self.drop(sender)
        self._given_up.add(sender)
