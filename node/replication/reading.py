"""Reading what a peer lacks: transfers in pieces, each transfer in one snapshot, and the digest.

Rules 1 and 3 of `node.replication.storage` are kept here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import apsw
import msgpack

from leasemesh.node.database.connection import DatabaseError, connect, disconnect, end_reading, explain
from leasemesh.node.database.file import Database
from leasemesh.node.database.versions import replicated_tables
from leasemesh.node.replication.changes import COLUMNS, ROW_BYTES, VERSION, change_bytes
from leasemesh.node.replication.clock_tables import BYTES_MAX, ROWS_MAX, ClockTables
from leasemesh.node.replication.quarantine import count_quarantined_after, read_quarantined
from leasemesh.node.replication.version_vectors import StateReader, read_absorbed
from leasemesh.sync import limits
from leasemesh.sync.ports import (
    Change,
    DatabaseDigest,
    LocalState,
    ReadRequest,
    ReadResult,
    TableDigest,
    TransferHeader,
)
from leasemesh.sync.version_vector import VersionVector, ranges_to_send

ESTIMATE_ROWS_MAX = 100_000
"""A table's changes are counted up to here for the progress display (some 3 ms). Beyond that "many" is good enough."""

ESTIMATE_RANGES_MAX = 64
"""Ranges of versions that are counted for it. What lies beyond is taken to be like them."""

# All columns by name, and one direction of order only: the virtual table applies the last one to all.
_SELECT = f"SELECT {COLUMNS} FROM crsql_changes WHERE db_version > ? AND db_version <= ? ORDER BY db_version, seq"
_SELECT_BYTES = (
    'SELECT "table", pk, cid, CAST(val AS BLOB) FROM crsql_changes '
    "WHERE db_version > ? AND db_version <= ? AND typeof(val) = 'text' ORDER BY db_version, seq"
)

_SHORT_RANGES_MAX = 4  # With more, one query over all tables costs less.


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
        """Read a live transfer's rows by a short way. None when they are more than a few."""
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
        upto = header.entry if last else state.lineage.entry(rows[-1][VERSION])
        quarantined_upto = self._quarantined_span[1 if last else 0]
        if last:
            self.end()
        return ReadResult(header, first, rows, upto, whole, last, quarantined_upto)

    def _next_piece(self, rows_bytes_max: int) -> tuple[list[Change], bool]:
        """Take rows up to the size. End at a border if there was one since the piece began."""
        rows, self._carried = self._carried, []
        size = sum(map(change_bytes, rows))
        version = rows[-1][VERSION] if rows else 0
        border = 0
        for stream, is_quarantined in ((self._changes, False), (self._quarantined, True)):
            for row in stream:
                if row[VERSION] != version or is_quarantined:
                    border = len(rows)
                    version = row[VERSION]
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
