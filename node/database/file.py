"""One SQLite file with cr-sqlite: opening, transactions, and the eras by which copies of a file are found out.

Rules:

1. A `Database` holds two connections: the *writer*, on which every write of this process happens, and the *reader*,
   which answers `query` outside of transactions. A reader sees committed data only and never waits for a writer (that
   is what the write-ahead log gives), so a long merge does not freeze the app's screen.
2. Writers of one process queue at a lock in memory. Writers of different processes wait for SQLite's lock. Every
   transaction begins IMMEDIATE, so it cannot fail half-way because somebody else wrote first.
3. Nothing writes outside `transaction`: it is where the process's era begins (see `sync.version_vector.Lineage`). The
   versions that a process writes are then marked as its own, and a copy of the file that goes on by itself gives
   itself away.
4. Statements are read to their end at once. An open cursor would hold a snapshot, keep the log from being reset, and
   stop `close`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import apsw

from leasemesh.node.database.connection import (
    BUSY_SECONDS_MAX,
    DatabaseError,
    check_pages,
    connect,
    disconnect,
    end_reading,
    explain,
    keep_temporary_in_file,
    keep_temporary_in_memory,
    sync_at_checkpoints,
)
from leasemesh.node.database.versions import StoredVersions
from leasemesh.sync.version_vector import Era, SiteId

Value = int | float | str | bytes | None
Row = tuple[Any, ...]
Parameters = Sequence[Any] | Mapping[str, Any]
CommitSource = Literal["local", "peer"]
"""Where a committed change came from: this process's app, or a transfer that this process merged."""

INCARNATION_BYTES = 8
"""Length of the random token that names a process's era: chance collisions need billions of restarts of one file."""


class Transaction:
    """Statements inside one transaction. Made by `Database.transaction`, dead when its block ends."""

    __slots__ = ("_connection", "_open")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._open = True

    def execute(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run SQL and return all its rows."""
        return self._alive().execute(sql, parameters).fetchall()

    def execute_many(self, sql: str, parameters: Iterable[Parameters]) -> None:
        """Run one statement for each set of parameters."""
        self._alive().executemany(sql, parameters).fetchall()

    @contextmanager
    def part(self) -> Iterator[None]:
        """Run a block as a part: an error undoes the part alone, and whoever catches it may go on."""
        connection = self._alive()
        # Parts may have equal names: a name means the innermost.
        connection.execute("SAVEPOINT part")
        try:
            yield
            self._alive()
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO part")
            _unmark(connection)
            raise
        finally:
            if connection.in_transaction:
                connection.execute("RELEASE part")

    @property
    def changes(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE changed, triggers not counted."""
        return self._connection.changes()

    def _alive(self) -> apsw.Connection:
        if not self._open:
            raise DatabaseError("This transaction has ended; use the one of the `with` block that is open now.")
        if not self._connection.in_transaction:
            # SQLite rolls back by itself when the disk is full or fails; going on would commit statement by statement.
            raise DatabaseError("SQLite has rolled this transaction back after an error; leave its `with` block.")
        return self._connection

    def _end(self) -> None:
        self._open = False


class Database:
    """A node's SQLite file. Every method may be called from any thread.

    Attributes:
        path: the file.
        incarnation: the random token of this opening. It names the era of what is written through it.
        clock_ms: the wall clock that was lent, in Unix milliseconds.
        random_bytes: the source of randomness that was lent.
    """

    def __init__(self, path: Path, *, clock_ms: Callable[[], int], random_bytes: Callable[[int], bytes]) -> None:
        """Use `Database.open`."""
        self.path = path
        self.clock_ms = clock_ms
        self.random_bytes = random_bytes
        self.incarnation = Era(random_bytes(INCARNATION_BYTES))
        self._listeners: list[Callable[[CommitSource], None]] = []
        # Who holds both takes the reading lock first; inside a transaction nobody takes it at all.
        self._writing = threading.RLock()
        self._reading = threading.RLock()
        self._owner: int | None = None
        self._durable = False
        self._parts = True
        self._failed = False
        self._site: SiteId | None = None
        self._snapshot_owner: int | None = None
        self._versions = StoredVersions()
        self._data_version = 0
        self._closed = False
        self._writer, self._reader = self._connect()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Database:
        """Open a database, or create it (its folder must exist). Migrations are `node.database.migrate.upgrade`'s job.

        Args:
            path: the file. Not ":memory:", because two connections share it.
            clock_ms: the wall clock, in Unix milliseconds.
            random_bytes: where tokens and a new site id come from.

        Raises:
            DatabaseError: the file is not a database, cannot be written, or was locked for too long.
        """
        if os.fspath(path) in (":memory:", ""):
            raise DatabaseError("A node needs a file, because several connections share it; give a path.")
        return cls(Path(path).absolute(), clock_ms=clock_ms, random_bytes=random_bytes)

    def close(self) -> None:
        """Close both connections. A second call does nothing."""
        self._forbid_inside("close")
        with self._reading, self._writing:
            if self._closed:
                return
            self._closed = True
            disconnect(self._reader)
            disconnect(self._writer)

    def reopen(self, change: Callable[[], None] | None = None) -> None:
        """Close both connections, run `change` while this process has none, and open them again.

        Raises:
            DatabaseError: called inside a transaction, or the file cannot be opened any more (the database is closed
            then).
        """
        self._forbid_inside("reopen")
        with self._reading, self._writing:
            self._check_open()
            disconnect(self._reader)
            disconnect(self._writer)
            self._closed = True
            try:
                if change is not None:
                    change()
            finally:
                self._writer, self._reader = self._connect()
                self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def site_id(self) -> SiteId:
        """The id under which cr-sqlite records this file's changes. Changes only when the file is re-identified.

        Read from the file, because another process may have re-identified it. Once in a transaction, because nobody
        does that meanwhile.
        """
        inside = self._owner == threading.get_ident()
        if inside and self._site is not None:
            return self._site
        ((site,),) = self.query("SELECT site_id FROM crsql_site_id WHERE ordinal = 0")
        assert isinstance(site, bytes)
        if inside:
            self._site = SiteId(site)
        return SiteId(site)

    @contextmanager
    def transaction(
        self, *, source: CommitSource = "local", replicated: bool = True, durable: bool = False, parts: bool = True
    ) -> Iterator[Transaction]:
        """Run a block as one write transaction: all of it is committed at its end, or nothing.

        Inside an open transaction of the same thread the block becomes a part of that one: an error undoes the part
        alone, and whoever catches it may go on. Another thread waits until the transaction is over.

        Args:
            source: what listeners are told.
            replicated: False promises that only local tables are written. Then no era begins, and listeners are told
                nothing, because nobody else can have an interest in it.
            durable: wait until the disk has it, and all that was committed before: a power cut takes nothing of it
                back. For what must be known after the program has acted outside. Costs a disk access.
            parts: False: blocks inside this one are no parts of their own, which saves a sixth of the time of a few
                small writes. Should one fail after it has written something, all of the transaction fails.

        Raises:
            DatabaseError: locked by another process for too long, disk full, file damaged. Nothing is written then.
                Or `durable` was asked for inside a transaction that is not. Or a block inside one without parts had
                failed, and somebody caught its error.
        """
        if self._owner == threading.get_ident():
            if durable and not self._durable:
                raise DatabaseError(
                    "A transaction that is not durable has no durable part; begin the outer one with durable=True."
                )
            transaction = Transaction(self._writer)
            try:
                with transaction.part() if self._parts else self._undivided():
                    yield transaction
            finally:
                transaction._end()
            return
        with self._writing:
            self._check_open()
            changes_before = self._writer.total_changes()
            self._parts, self._failed = parts, False
            with self._awaiting_disk(durable), self._whole(replicated) as whole:
                yield whole
            changed = self._writer.total_changes() != changes_before
        if changed and replicated:
            self.notify(source)

    @contextmanager
    def much_temporary(self) -> Iterator[None]:
        """Keep temporary tables of transactions in the block in a file instead of in memory.

        Raises:
            DatabaseError: called inside a transaction.
        """
        self._forbid_inside("move the temporary tables of")
        with self._writing:
            self._check_open()
            keep_temporary_in_file(self._writer)
            try:
                yield
            finally:
                keep_temporary_in_memory(self._writer)

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a SELECT.

        Inside a transaction of this thread it sees what the transaction has written so far, otherwise what is
        committed.
        """
        try:
            if self._owner == threading.get_ident():
                return self._writer.execute(sql, parameters).fetchall()
            with self._reading:
                self._check_open()
                return self._reader.execute(sql, parameters).fetchall()
        except apsw.ReadOnlyError as error:
            raise DatabaseError("A query only reads; write inside `with database.transaction()`.") from error
        except apsw.Error as error:
            raise (explain(error, self.path) or error) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries of this thread in the block see one moment. Inside a transaction they do anyway."""
        if threading.get_ident() in (self._owner, self._snapshot_owner):
            yield
            return
        with self._reading:
            self._check_open()
            self._reader.execute("BEGIN")
            self._snapshot_owner = threading.get_ident()
            try:
                yield
            finally:
                self._snapshot_owner = None
                end_reading(self._reader)

    def version(self) -> int:
        """Return the greatest version stored in the file, 0 before the first replicated write.

        Not `crsql_db_version()`: a statement that changes nothing advances that in memory, and the number is given
        again later. A peer that had been told it would miss what comes under it then.
        """
        with self.snapshot():
            return self._versions.version(self.query)

    def check(self) -> None:
        """Check the whole file, on a connection of its own. See `node.database.connection.check_pages`.

        Raises:
            DatabaseDamaged: its pages do not fit together.
        """
        check_pages(self.path)

    def replicated_tables(self) -> tuple[str, ...]:
        """Return the names of the tables that replicate, sorted."""
        with self.snapshot():
            return self._versions.tables(self.query)

    def tables_changed_since(self, version: int) -> frozenset[str]:
        """Return the replicated tables that have a change above `version`, from whomever."""
        with self.snapshot():
            return self._versions.tables_changed_since(self.query, version)

    def data_version(self) -> int:
        """Return a number that differs from the last one when another process has committed in between.

        While a writer of this process is busy the last known number is returned: ask again later.
        """
        if self._writing.acquire(blocking=False):
            try:
                self._check_open()
                self._data_version = self._writer.pragma("data_version")
            finally:
                self._writing.release()
        return self._data_version

    def on_commit(self, callback: Callable[[CommitSource], None]) -> Callable[[], None]:
        """Call `callback` after each transaction that wrote something that may replicate, in the thread that committed,
        with no lock held.

        Returns:
            A function that ends this.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def notify(self, source: CommitSource) -> None:
        """Tell the listeners of `on_commit` that something was committed."""
        for listener in tuple(self._listeners):
            listener(source)

    @contextmanager
    def _awaiting_disk(self, durable: bool) -> Iterator[None]:
        """Let the commit in the block end when the disk has it. SQLite takes this setting between transactions only."""
        if not durable:
            yield
            return
        self._writer.pragma("synchronous", "full")
        self._durable = True
        try:
            yield
        finally:
            self._durable = False
            sync_at_checkpoints(self._writer)

    @contextmanager
    def _undivided(self) -> Iterator[None]:
        """A block inside a transaction without parts. One that fails before it has written leaves nothing to undo."""
        changes_before = self._writer.total_changes()
        try:
            yield
        except BaseException:
            self._failed |= self._writer.total_changes() != changes_before
            raise

    @contextmanager
    def _whole(self, replicated: bool) -> Iterator[Transaction]:
        connection = self._writer
        transaction = Transaction(connection)
        committed = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._site = None
            self._owner = threading.get_ident()
            if replicated:
                self._begin_era()
            yield transaction
            if not connection.in_transaction:
                raise DatabaseError("SQLite has rolled the transaction back after an error; nothing of it was kept.")
            if self._failed:
                raise DatabaseError("A block inside this transaction had failed; it has no parts, so nothing was kept.")
            connection.execute("COMMIT")
            committed = True
        except apsw.Error as error:
            raise (explain(error, self.path) or error) from error
        finally:
            transaction._end()
            self._owner = None
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not committed:
                _unmark(connection)

    def _begin_era(self) -> None:
        """Record that from the next version on this process writes, unless it is so already.

        An era in which nothing was written is replaced: nobody can have heard of it.
        """
        try:
            last = self._writer.execute("SELECT era FROM eras ORDER BY first_version DESC LIMIT 1").fetchall()
        except apsw.SQLError:
            if self._writer.table_exists("main", "eras"):
                raise
            return  # The first migration is creating the tables.
        if last != [(self.incarnation,)]:
            first_version = self.version() + 1
            self._writer.execute("INSERT OR REPLACE INTO eras VALUES (?, ?)", (first_version, self.incarnation))

    def _connect(self) -> tuple[apsw.Connection, apsw.Connection]:
        writer = connect(self.path, random_bytes=self.random_bytes)
        try:
            return writer, connect(self.path, readonly=True)
        except BaseException:
            disconnect(writer)
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseError(f"{self.path} was closed; open it again to use it.")

    def _forbid_inside(self, action: str) -> None:
        if threading.get_ident() in (self._owner, self._snapshot_owner):
            raise DatabaseError(f"Cannot {action} {self.path} inside a transaction; end the transaction first.")


def _unmark(connection: apsw.Connection) -> None:
    """Tell cr-sqlite that no row is being merged.

    It marks its connection while it merges one, and leaves the mark when the row fails (a constraint, a full disk).
    Whatever is written under the mark is taken for merged and replicates to nobody.
    """
    connection.execute("SELECT crsql_internal_sync_bit(0)").fetchall()


__all__ = [
    "BUSY_SECONDS_MAX",
    "CommitSource",
    "Database",
    "DatabaseError",
    "Parameters",
    "Row",
    "Transaction",
    "Value",
]
