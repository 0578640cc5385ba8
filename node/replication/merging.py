"""Merging what a peer sent: into rows, or into quarantine.

Rules 2, 4 and 5 of `node.replication.storage` are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

import apsw

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.database.versions import Query, replicated_tables
from leasemesh.node.replication.changes import CAUSAL_LENGTH, COLUMNS, VERSION
from leasemesh.node.replication.checks import holds_broken_text
from leasemesh.node.replication.packed_keys import find_malformed
from leasemesh.node.replication.quarantine import finish_retries, quarantine, read_retries
from leasemesh.node.replication.version_vectors import (
    StateReader,
    append_absorbed,
    delete_resume,
    raise_vector,
    write_resume,
)
from leasemesh.sync import limits
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.ports import Applied, Change, Incoming
from leasemesh.sync.version_vector import Absorbed, Resume

_INSERT = f"INSERT INTO crsql_changes ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

# Errors that say nothing about the row, but about the disk, the file or a lock. Any other is the row's own.
_NOT_THE_ROWS_FAULT = (
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.FullError,
    apsw.InterruptError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
)


class _Poisoned(Exception):
    """Some row of the piece fails. The transaction is rolled back, to be repeated with care."""


class Merger:
    """Merges pieces of transfers into one database. One call at a time."""

    def __init__(self, database: Database, states: StateReader) -> None:
        self._database = database
        self._states = states
        self._schema_version = -1
        # What a change may name here: (table, column or "-1", number of key columns).
        self._known: frozenset[tuple[str, str, int]] = frozenset()

    def merge(self, incoming: Incoming, chunks: Callable[[], Iterable[list[Change]]]) -> Applied:
        """Merge a piece that ends at a version's border, with what was staged of it.

        Args:
            incoming: the piece, which `refuse_malformed` has let pass.
            chunks: gives its rows in order. It is asked twice when some row fails.
        """
        try:
            return self._merge(incoming, chunks(), careful=False)
        except _Poisoned:
            return self._merge(incoming, chunks(), careful=True)

    def retry_quarantined(self) -> frozenset[str]:
        """Merge the quarantined changes that the schema knows now. Call it after a migration. Costs nothing otherwise.

        Returns:
            The tables that changed.
        """
        ((schema_version,),) = self._database.query("PRAGMA schema_version")
        if schema_version == self._schema_version:
            return frozenset()
        with self._database.transaction(source="peer") as transaction:
            before = self._states.version(transaction.execute)
            self._refresh_schema(transaction)
            # A transaction of its own: these changes are no part of what the next piece's sender knows.
            while rows := read_retries(transaction.execute, self._schema_version):
                failed = self._insert_known(transaction, [row for _, row in rows], careful=True)
                finish_retries(
                    transaction.execute,
                    [number for number, _ in rows],
                    {rows[index][0]: reason for index, reason in failed},
                    self._schema_version,
                )
            return self._states.tables_changed_since(transaction.execute, before)

    def _merge(self, incoming: Incoming, chunks: Iterable[list[Change]], *, careful: bool) -> Applied:
        with self._database.transaction(source="peer") as transaction:
            query = transaction.execute
            before = self._states.version(query)
            self._refresh_schema(transaction)
            rows = quarantined = 0
            revives = False
            for chunk in chunks:
                revives = revives or any(row[CAUSAL_LENGTH] > 1 for row in chunk)
                failed = self._insert_known(transaction, chunk, careful)
                rows += len(chunk)
                quarantined += quarantine(
                    query,
                    ((chunk[index], reason) for index, reason in failed),
                    sender=incoming.site,
                    at_ms=self._database.clock_ms(),
                    schema_version=self._schema_version,
                )
            after = self._states.version(query)
            tables = self._states.tables_changed_since(query, before)
            if after > before and not (revives and _made_changes(query, tables, before)):
                append_absorbed(query, Absorbed(before + 1, after, incoming.header.vector))
            self._advance(query, incoming)
            state = self._states.read(query)
        return Applied(state, rows, quarantined, tables)

    def _advance(self, query: Query, incoming: Incoming) -> None:
        if incoming.last:
            ((own_site,),) = query("SELECT site_id FROM crsql_site_id WHERE ordinal = 0")
            raise_vector(query, incoming.header.vector, own_site)
            delete_resume(query, incoming.site)
        else:
            write_resume(query, incoming.site, Resume(incoming.upto.version, incoming.header.entry))

    def _insert_known(self, transaction: Transaction, rows: list[Change], careful: bool) -> list[tuple[int, str]]:
        """Merge rows. Return the index of each that was not merged, with the reason."""
        failed = self._refusals(rows)
        if failed:
            refused = {index for index, _ in failed}
            indices = [index for index in range(len(rows)) if index not in refused]
        else:
            indices = list(range(len(rows)))
        if careful:
            return failed + _insert_carefully(transaction, rows, indices)
        try:
            transaction.execute_many(_INSERT, (rows[index] for index in indices) if failed else rows)
        except apsw.Error as error:
            if isinstance(error, _NOT_THE_ROWS_FAULT):
                raise
            raise _Poisoned from error
        return failed

    def _refusals(self, rows: list[Change]) -> list[tuple[int, str]]:
        """Find what the schema here does not know, and what no query could return. In nearly every piece that is
        nothing, and one set tells so."""
        if {(row[0], row[2], row[1][0]) for row in rows} <= self._known and not any(map(holds_broken_text, rows)):
            return []
        tables = {table for table, _, _ in self._known}
        columns = {(table, cid) for table, cid, _ in self._known}
        refused = []
        for index, row in enumerate(rows):
            table, pk, cid, *_ = row
            if table not in tables:
                refused.append((index, f"unknown table {table}"))
            elif (table, cid) not in columns:
                refused.append((index, f"unknown column {table}.{cid}"))
            elif (table, cid, pk[0]) not in self._known:
                refused.append((index, f"table {table} has another primary key here"))
            elif holds_broken_text(row):
                refused.append((index, f"refused by table {table}: text that is no Unicode"))
        return refused

    def _refresh_schema(self, transaction: Transaction) -> None:
        ((schema_version,),) = transaction.execute("PRAGMA schema_version")
        if schema_version == self._schema_version:
            return
        known: set[tuple[str, str, int]] = set()
        for table in replicated_tables(transaction.execute):
            # Generated columns are not in table_info, and are no columns for replication either.
            columns = transaction.execute("SELECT name, pk FROM pragma_table_info(?)", (table,))
            keys = sum(1 for _, pk in columns if pk)
            known.update((table, name, keys) for name, pk in columns if not pk)
            known.add((table, "-1", keys))
        self._known = frozenset(known)
        self._schema_version = schema_version


def _insert_carefully(transaction: Transaction, rows: list[Change], indices: Sequence[int]) -> list[tuple[int, str]]:
    """Merge rows by halves, and halves of what fails, down to the rows that fail alone."""
    try:
        with transaction.part():
            transaction.execute_many(_INSERT, (rows[index] for index in indices))
        return []
    except apsw.Error as error:
        if isinstance(error, _NOT_THE_ROWS_FAULT):
            raise
        if len(indices) == 1:
            return [(indices[0], f"refused by table {rows[indices[0]][0]}: {error}")]
    middle = len(indices) // 2
    first = _insert_carefully(transaction, rows, indices[:middle])
    return first + _insert_carefully(transaction, rows, indices[middle:])


def _made_changes(query: Query, tables: Iterable[str], version: int) -> bool:
    """Tell whether the merge since `version` made changes of its own, which the sender knows nothing of.

    When a row that is alive here comes back from a deletion that passed this node by, cr-sqlite sets all its cells to
    col_version 0, also those of columns that the reviving node, with an older schema, did not have and does not send.
    """
    sql = 'SELECT 1 FROM "{}__crsql_clock" WHERE db_version > ? AND col_version = 0 LIMIT 1'
    return any(query(sql.format(table), (version,)) for table in sorted(tables))


def refuse_malformed(incoming: Incoming, own_version: int) -> None:
    """Check what would harm the database, or the process: cr-sqlite aborts on some malformed keys."""
    version = incoming.header.entry.version
    if version > min(limits.VERSION_MAX, own_version + limits.VERSION_JUMP_MAX):
        raise RemoteProtocolError(f"a peer claims version {version}, which no honest history has reached")
    if incoming.rows and max(map(itemgetter(VERSION), incoming.rows)) > version:
        raise RemoteProtocolError(f"a peer sends a change above its own version {version}")
    if find_malformed(row[1] for row in incoming.rows) is not None:
        raise RemoteProtocolError("a peer sends a malformed primary key")
    if not all(map(_is_consistent, incoming.rows)):
        raise RemoteProtocolError("a peer sends a change whose causal length contradicts it")


def _is_consistent(row: Change) -> bool:
    """Tell whether cr-sqlite could have made the change. It merges others as well, and then holds rows that no peer
    accepts, or that differ on two nodes by the order in which they came: this node would be cut off for ever."""
    _, _, cid, _, col_version, _, _, cl, _ = row
    return col_version == cl if cid == "-1" else cl % 2 == 1
