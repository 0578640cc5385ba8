"""Replication's view of a database: reading its changes for a peer, merging a peer's changes, the digest.

The one module that names cr-sqlite's table of changes. It implements `sync.ports`; why nothing is lost is argued in
`sync.version_vector`, and holds here by these rules:

1. A transfer is read in one snapshot: version, version vector, log of absorbed ranges and rows belong to one
   moment.
2. A piece is merged in one transaction with the resume point or the version vector that it brings, and with its
   entry in the    log of absorbed ranges. That entry spans the local versions of exactly this transaction.
3. A piece ends at a version's border. What is larger is staged until its end has come; then it is merged as a whole.
4. What cannot be merged is quarantined (`node.replication.quarantine`), never dropped, and goes along to other peers:
   the version vector that this node tells them includes it.
5. Whatever cr-sqlite could stumble over is checked before: known tables and columns, well-formed keys, bounded
   versions.

Merging uses the database's writer: its page cache is warm, and writers queue for the file anyway. The app's reads have
a connection of their own and do not wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import Final

import apsw
import msgpack

from leasemesh.node.database.connection import DatabaseError, connect, disconnect, end_reading, explain
from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.database.versions import Query, replicated_tables
from leasemesh.node.machine.boot import boot_id
from leasemesh.node.replication.checks import holds_broken_text
from leasemesh.node.replication.clock_tables import BYTES_MAX, ROWS_MAX, ClockTables
from leasemesh.node.replication.identity import reidentify
from leasemesh.node.replication.packed_keys import find_malformed
from leasemesh.node.replication.quarantine import (
    count_quarantined_after,
    finish_retries,
    quarantine,
    read_quarantined,
    read_retries,
)
from leasemesh.node.replication.sizes import ROW_BYTES, change_bytes
from leasemesh.node.replication.staging import Staging
from leasemesh.node.replication.version_vectors import (
    StateReader,
    append_absorbed,
    delete_resume,
    raise_vector,
    read_absorbed,
    read_resume,
    write_heartbeats,
    write_resume,
)
from leasemesh.sync import limits
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.ports import (
    Applied,
    Change,
    DatabaseDigest,
    Incoming,
    LocalState,
    ReadRequest,
    ReadResult,
    TableDigest,
    TransferHeader,
)
from leasemesh.sync.version_vector import Absorbed, Era, Resume, SiteId, VersionVector, ranges_to_send

ESTIMATE_ROWS_MAX = 100_000
"""A table's changes are counted up to here for the progress display (some 3 ms); beyond that "many" is good enough."""

ESTIMATE_RANGES_MAX = 64
"""Ranges of versions that are counted for it; what lies beyond is taken to be like them."""

_COLUMNS = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'
# All columns by name, and one direction of order only: the virtual table applies the last one to all.
_SELECT = f"SELECT {_COLUMNS} FROM crsql_changes WHERE db_version > ? AND db_version <= ? ORDER BY db_version, seq"
_SELECT_BYTES = (
    'SELECT "table", pk, cid, CAST(val AS BLOB) FROM crsql_changes '
    "WHERE db_version > ? AND db_version <= ? AND typeof(val) = 'text' ORDER BY db_version, seq"
)
_INSERT = f"INSERT INTO crsql_changes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

_VERSION: Final = 5  # The index of db_version in a change.
_CAUSAL_LENGTH: Final = 7

_SHORT_RANGES_MAX = 4  # With more, one query over all tables costs less.

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


class ChangeReader:
    """Reads transfers for one peer, on a connection of its own. Used by one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._path = database.path
        self._connection = self._connect()
        self._schema_version: int | None = None
        self._states = StateReader()
        self._clock_tables = ClockTables()
        self._header: TransferHeader | None = None
        self._state: LocalState | None = None
        # The numbers of the quarantined rows to be sent: above the first, up to the second.
        self._quarantined_span = (0, 0)
        self._cursor: apsw.Cursor | None = None
        # What is still to come: rows that were taken too many, all of one version; changes; quarantined rows.
        self._carried: list[Change] = []
        self._changes: Iterator[Change] = iter(())
        self._quarantined: Iterator[Change] = iter(())

    def begin(self, request: ReadRequest, rows_bytes_max: int) -> ReadResult:
        """Drop an unfinished transfer, take a snapshot and return the first piece (about `rows_bytes_max` at most)."""
        self.end()
        try:
            self._open_snapshot()
            self._prepare(request)
        except apsw.Error as error:
            self.end()
            raise (explain(error, self._path) or error) from error
        except BaseException:
            self.end()
            raise
        return self._read(rows_bytes_max, first=True)

    def read(self, rows_bytes_max: int) -> ReadResult:
        """Return the next piece of the transfer begun before."""
        return self._read(rows_bytes_max, first=False)

    def end(self) -> None:
        """Release the snapshot of an unfinished transfer. No effect otherwise."""
        self._carried = []
        self._changes = self._quarantined = iter(())
        self._header = None
        # By hand, because the traceback of an error may still hold it; cr-sqlite would crash on closing the connection.
        if self._cursor is not None:
            self._cursor.close(True)
            self._cursor = None
        end_reading(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self.end()
        disconnect(self._connection)

    def digest(self) -> DatabaseDigest:
        """Compute the digest of every replicated table, in one snapshot."""
        self.end()
        self._open_snapshot()
        try:
            state = self._states.read(self._query)
            with self._errors_named(state.version):
                return DatabaseDigest(state.vector, self._table_digests(state.version))
        finally:
            self.end()

    def _connect(self) -> apsw.Connection:
        return connect(self._path, readonly=True, crsqlite=True)

    def _select(self, sql: str, span: tuple[int, int]) -> apsw.Cursor:
        """Begin to read changes: the versions above the first and up to the second. One cursor is open at a time."""
        if self._cursor is not None:
            self._cursor.close(True)
        self._cursor = self._connection.execute(sql, span)
        return self._cursor

    def _query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        return self._connection.execute(sql, parameters).fetchall()

    def _open_snapshot(self) -> None:
        """Begin a read transaction on a connection that knows all tables.

        A connection that has read changes once does not notice a table that became replicated since then, and leaves
        its rows out without a word. So it is opened anew when the schema has moved.
        """
        self._connection.execute("BEGIN")
        schema_version = self._connection.pragma("schema_version")
        if self._schema_version not in (None, schema_version):
            self._connection.execute("COMMIT")
            disconnect(self._connection)
            self._connection = self._connect()
            self._connection.execute("BEGIN")
            schema_version = self._connection.pragma("schema_version")
        self._schema_version = schema_version

    def _prepare(self, request: ReadRequest) -> None:
        state = self._states.read(self._query)
        self._state = state
        vector = state.vector
        ranges = ranges_to_send(
            after=request.after,
            upto=state.version,
            absorbed=read_absorbed(self._query, request.after),
            peer_vector=request.peer_vector,
        )
        self._quarantined_span = (request.quarantined_after, request.quarantined_after)
        quarantined = 0
        if state.version:
            quarantined, greatest = count_quarantined_after(self._query, request.quarantined_after)
            self._quarantined_span = (request.quarantined_after, max(request.quarantined_after, greatest))
        else:
            # A quarantined row travels under the version of the snapshot, and there is none yet: tell of nothing, then.
            vector = VersionVector({state.site: state.lineage.entry(0)})
        with self._errors_named(state.version):
            few = self._few_changes(ranges)
        rows_estimate = (self._estimate(ranges) if few is None else len(few)) + quarantined
        self._header = TransferHeader(state.lineage.entry(state.version), vector, rows_estimate)
        self._changes = (
            chain.from_iterable(self._select(_SELECT, span) for span in ranges) if few is None else iter(few)
        )
        self._quarantined = self._quarantined_changes(state.version)

    def _few_changes(self, ranges: Sequence[tuple[int, int]]) -> list[Change] | None:
        """Read a live transfer's rows by a short way; None when they are more than a few."""
        if len(ranges) > _SHORT_RANGES_MAX:
            return None
        rows: list[Change] = []
        size = 0
        for start, end in ranges:
            tables = self._states.tables_changed_since(self._query, start)
            found = self._clock_tables.read(
                self._connection.execute, tables, start, end, rows_max=ROWS_MAX - len(rows), bytes_max=BYTES_MAX - size
            )
            if found is None:
                return None
            rows += found
            size += sum(map(change_bytes, found))
        return rows

    def _quarantined_changes(self, version: int) -> Iterator[Change]:
        """Yield the quarantined rows under the version of the snapshot.

        Their own is a number of the node that once sent them, and the receiver needs no more than an order in which
        none comes too early.
        """
        for _, (table, pk, cid, value, col_version, _, site, cl, seq) in read_quarantined(
            self._query, *self._quarantined_span
        ):
            yield (table, pk, cid, value, col_version, version, site, cl, seq)

    def _read(self, rows_bytes_max: int, *, first: bool) -> ReadResult:
        header, state = self._header, self._state
        assert header is not None and state is not None, "begin was not called, or the transfer is over"
        try:
            with self._errors_named(state.version):
                rows, whole = self._next_piece(rows_bytes_max)
        except BaseException:
            self.end()
            raise
        last = not self._carried
        upto = header.entry if last else state.lineage.entry(rows[-1][_VERSION])
        quarantined_upto = self._quarantined_span[1 if last else 0]
        if last:
            self.end()
        return ReadResult(header, first, rows, upto, whole, last, quarantined_upto)

    def _next_piece(self, rows_bytes_max: int) -> tuple[list[Change], bool]:
        """Take rows up to the size; end at a border if there was one since the piece began."""
        rows, self._carried = self._carried, []
        size = sum(map(change_bytes, rows))
        version = rows[-1][_VERSION] if rows else 0
        border = 0
        for stream, is_quarantined in ((self._changes, False), (self._quarantined, True)):
            for row in stream:
                if row[_VERSION] != version or is_quarantined:
                    border = len(rows)
                    version = row[_VERSION]
                if rows and (size >= rows_bytes_max or len(rows) >= limits.ROWS_MAX):
                    self._carried = [*rows[border:], row] if border else [row]
                    return (rows[:border], True) if border else (rows, False)
                rows.append(row)
                value = row[3]
                # Inlined `change_bytes`: a call for each row would cost a tenth of reading it.
                size += ROW_BYTES + len(row[1]) + (len(value) if isinstance(value, (str, bytes)) else 0)
        return rows, True

    @contextmanager
    def _errors_named(self, version: int) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise (explain(error, self._path) or error) from error
        except UnicodeDecodeError as error:
            place = next(self._broken_texts(version))
            raise DatabaseError(
                f"{place} holds text that is not UTF-8; write that value anew, or nothing is sent."
            ) from error

    def _broken_texts(self, version: int) -> Iterator[str]:
        for table, pk, cid, value in self._select(_SELECT_BYTES, (0, version)):
            try:
                value.decode()
            except UnicodeDecodeError:
                yield f"{table}.{cid} of the row with the key {pk.hex()}"

    def _estimate(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Count about how many changes the ranges hold, for little."""
        counted = ranges[:ESTIMATE_RANGES_MAX]
        count = 0
        for table in replicated_tables(self._query):
            sql = (
                f'SELECT count(*) FROM (SELECT 1 FROM "{table}__crsql_clock" '
                f"WHERE db_version > ? AND db_version <= ? LIMIT {ESTIMATE_ROWS_MAX})"
            )
            for start, end in counted:
                count += self._connection.execute(sql, (start, end)).get
        return count * len(ranges) // max(len(counted), 1)

    def _table_digests(self, version: int) -> dict[str, TableDigest]:
        cells = dict.fromkeys(replicated_tables(self._query), 0)
        sums = dict.fromkeys(cells, 0)
        for table, pk, cid, value, col_version, _, _, cl, _ in self._select(_SELECT, (0, version)):
            content = msgpack.packb((table, pk, cid, 0.0 if value == 0.0 else value, col_version, cl))
            cells[table] += 1
            sums[table] += int.from_bytes(hashlib.blake2b(content, digest_size=limits.DIGEST_BYTES).digest())
        modulus = 1 << 8 * limits.DIGEST_BYTES
        return {
            table: TableDigest(cells[table], (sums[table] % modulus).to_bytes(limits.DIGEST_BYTES)) for table in cells
        }


class ChangeStorage:
    """A node's database as the sync loop and the simulator use it (`sync.ports.Storage`). One call at a time.

    Args:
        database: the database.
        boot: names the run of the machine whose monotonic clock is used; the real one, if not lent.
    """

    def __init__(self, database: Database, *, boot: str | None = None) -> None:
        self._database = database
        self._boot = boot if boot is not None else boot_id()
        self._states = StateReader()
        self._schema_version = -1
        # What a change may name here: (table, column or "-1", number of key columns).
        self._known: frozenset[tuple[str, str, int]] = frozenset()
        self._staging = Staging()

    def state(self) -> LocalState:
        """Read the local state."""
        with self._database.snapshot():
            return self._states.read(self._database.query)

    def resume_point(self, site: SiteId) -> Resume:
        """Return how far an unfinished transfer from `site` came (FROM_START when there is none)."""
        return read_resume(self._database.query, site)

    def open_reader(self) -> ChangeReader:
        """Open a reader for one peer."""
        return ChangeReader(self._database)

    def digest(self) -> DatabaseDigest:
        """Compute the digest of every replicated table, in one snapshot."""
        with closing(self.open_reader()) as reader:
            return reader.digest()

    def record_heartbeats(self, heartbeats: dict[SiteId, tuple[Era, int]]) -> None:
        """Remember when each node was last heard of: site -> (incarnation, monotonic milliseconds)."""
        write_heartbeats(self._database, heartbeats, boot=self._boot)

    def close(self) -> None:
        """Let go of what waits for its end."""
        self._staging.clear()

    def reidentify(self) -> LocalState:
        """Give this file a new site id (it is an older copy, or a clone, of another) and return the new state."""
        reidentify(self._database)
        self._staging.clear()
        return self.state()

    def apply(self, incoming: Incoming) -> Applied:
        """Merge a piece, or stage it when it ends inside a version.

        Raises:
            RemoteProtocolError: the piece holds what no honest node sends; nothing of it is kept.
            StorageLimit: this node may not hold as much; nothing of it is kept.
            StagingLost: what came before of this transfer was given up for another peer's.
        """
        _refuse_malformed(incoming, self._database.version())
        self._staging.check(incoming)
        if not incoming.whole:
            self._staging.add(incoming)
            return Applied(self.state(), rows=0, quarantined=0, tables=frozenset())
        retried = self.retry_quarantined()
        try:
            applied = self._merge(incoming, careful=False)
        except _Poisoned:
            applied = self._merge(incoming, careful=True)
        self._staging.drop(incoming.site)
        return replace(applied, tables=applied.tables | retried)

    def retry_quarantined(self) -> frozenset[str]:
        """Merge the quarantined changes that the schema knows now; call it after a migration. Costs nothing otherwise.

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

    def _merge(self, incoming: Incoming, *, careful: bool) -> Applied:
        with self._database.transaction(source="peer") as transaction:
            query = transaction.execute
            before = self._states.version(query)
            self._refresh_schema(transaction)
            rows = quarantined = 0
            revives = False
            for chunk in self._chunks(incoming):
                revives = revives or any(row[_CAUSAL_LENGTH] > 1 for row in chunk)
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

    def _chunks(self, incoming: Incoming) -> Iterator[list[Change]]:
        """Yield what was staged of this transfer, then the piece itself."""
        if not incoming.first:
            yield from self._staging.read(incoming.site)
        yield incoming.rows

    def _insert_known(self, transaction: Transaction, rows: list[Change], careful: bool) -> list[tuple[int, str]]:
        """Merge rows; return the index of each that was not merged, with the reason."""
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


def _refuse_malformed(incoming: Incoming, own_version: int) -> None:
    """Check what would harm the database, or the process: cr-sqlite aborts on some malformed keys."""
    version = incoming.header.entry.version
    if version > min(limits.VERSION_MAX, own_version + limits.VERSION_JUMP_MAX):
        raise RemoteProtocolError(f"a peer claims version {version}, which no honest history has reached")
    if incoming.rows and max(map(itemgetter(_VERSION), incoming.rows)) > version:
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
