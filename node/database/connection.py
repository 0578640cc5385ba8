"""Opening one APSW connection: one function per setting, each with its reason, then cr-sqlite."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw
from leasemesh_crsqlite import ENTRY_POINT, extension_path

from leasemesh.node.model.errors import LeasemeshError
from leasemesh.sync.errors import StorageDamaged

BUSY_SECONDS_MAX = 30
"""How long a writer waits for writers of other processes. A merge holds the lock for well under a second. Thirty
seconds outlast a migration of a big table, and are short enough for a person to still be there for the error."""

CACHE_KIBIBYTES_MAX = 32 * 1024
"""Page cache of a connection. The inner pages of all indexes of a million events fit. A node has a handful of
connections and should stay well under 150 MB in all."""

LOG_PAGES_MAX = 4096
"""Pages of 4 KiB in the write-ahead log before a commit folds it into the file. More measured a little faster, but
the log is read at the next open and takes disk space."""

LOG_BYTES_MAX = 64 * 2**20
"""What is left of the write-ahead log's file after one very large transaction."""


STATEMENTS_KEPT_MAX = 400
"""Prepared statements that a connection keeps. A statement with triggers takes half a millisecond to prepare and a
twentieth of that to run. A run of a handler with an effect needs over 60 different ones, and when its process syncs as
well APSW's 100 are too few: they are dropped in the order of use, and so each is gone when its turn comes."""


class DatabaseError(LeasemeshError):
    """The database file cannot be used as asked. The text says why and what to do."""


class DatabaseDamaged(DatabaseError, StorageDamaged):
    """SQLite found the file damaged. The text says what to do. Sync of the file ends with it."""


class DatabaseBusy(DatabaseError):
    """Another process held the write lock for longer than BUSY_SECONDS_MAX."""


class _Patience:
    """Waits for a lock in short sleeps of random length.

    SQLite's own waiting doubles its sleeps up to 100 ms: of four processes that write all the time the unlucky ones
    then waited for 600 ms. Short sleeps made that 60 ms, and all together wrote twice as much.
    """

    def __init__(self) -> None:
        self._deadline = 0.0

    def __call__(self, calls: int) -> bool:
        now = time.monotonic()
        if calls == 0:
            self._deadline = now + BUSY_SECONDS_MAX
        time.sleep(random.uniform(0.0005, 0.003) if calls < 500 else 0.02)
        return now < self._deadline


_READ_WHEN_LOADED = ("crsql_master", "crsql_site_id")


def wait_when_locked(connection: apsw.Connection) -> None:
    """Wait for other processes instead of failing at once. First of all, because the other settings may meet a lock."""
    connection.set_busy_handler(_Patience())


def log_ahead(connection: apsw.Connection) -> None:
    """Write-ahead log: readers and the writer do not wait for each other, and a commit is one append.

    Changing a new file over needs it for itself, and SQLite does not wait for that, so the waiting is done here.
    """
    deadline = time.monotonic() + BUSY_SECONDS_MAX
    while True:
        try:
            mode = connection.pragma("journal_mode", "wal")
            break
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    if mode != "wal":
        raise DatabaseError(
            f"{connection.filename} is on a file system without shared memory for SQLite; move it to a local disk."
        )


def bound_log(connection: apsw.Connection) -> None:
    """Give the disk space of an unusually long log back."""
    connection.pragma("journal_size_limit", LOG_BYTES_MAX)


def fold_log_seldom(connection: apsw.Connection) -> None:
    """Fold the log into the file at 16 MiB instead of SQLite's 4: ids are hashes, so each commit touches pages all over
    their index, and most of those are touched again soon. Publishing in batches of 100 measured 20 to 30 % faster."""
    connection.pragma("wal_autocheckpoint", LOG_PAGES_MAX)


def sync_at_checkpoints(connection: apsw.Connection) -> None:
    """NORMAL: the disk is awaited when the log is folded in, not at each commit.

    A crash of the process loses nothing. A power cut may lose the last commits but never damages the file. The file is
    then an older copy of itself, which the protocol detects and mends like any restored backup. FULL costs about 100
    times more per commit.
    """
    connection.pragma("synchronous", "normal")


def leave_foreign_keys_off(connection: apsw.Connection) -> None:
    """Replicated tables cannot have checked foreign keys: cells arrive one by one, in an order that breaks them.

    Stated, because some builds of SQLite turn them on, and a local table's reference to a replicated one would then
    make merges fail.
    """
    connection.pragma("foreign_keys", False)


def leave_recursive_triggers_off(connection: apsw.Connection) -> None:
    """With them on, INSERT OR REPLACE is a delete and a new row in the replicated history, and peers lose cells."""
    connection.pragma("recursive_triggers", False)


def distrust_schema(connection: apsw.Connection) -> None:
    """Triggers and views that a file brings along may call harmless functions only. cr-sqlite's own are marked so."""
    connection.pragma("trusted_schema", False)


def defend_schema(connection: apsw.Connection) -> None:
    """SQL cannot damage the file (writable_schema, journal_mode off and the like)."""
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)


def bound_cache(connection: apsw.Connection) -> None:
    """Bound the memory of the page cache. SQLite's 2 MiB would evict the indexes in every large merge."""
    connection.pragma("cache_size", -CACHE_KIBIBYTES_MAX)


def keep_temporary_in_memory(connection: apsw.Connection) -> None:
    """Keep what undoes a single statement in memory. SQLite goes over to a file at 15 pages, and a reservation with its
    triggers touches more: each made a file of its own, and settling one event took 50 % longer.

    Temporary tables and large sorts are in memory then, too. What needs much of that asks for a file.
    """
    connection.pragma("temp_store", "memory")


def keep_temporary_in_file(connection: apsw.Connection) -> None:
    """The opposite, for a while. SQLite takes it between transactions only."""
    connection.pragma("temp_store", "file")


# mmap_size is left at 0: it measured no faster here, and turns an I/O error into a crash of the process.
SETTINGS: tuple[Callable[[apsw.Connection], None], ...] = (
    wait_when_locked,
    log_ahead,
    bound_log,
    fold_log_seldom,
    sync_at_checkpoints,
    leave_foreign_keys_off,
    leave_recursive_triggers_off,
    distrust_schema,
    defend_schema,
    bound_cache,
    keep_temporary_in_memory,
)


def connect(
    path: Path,
    *,
    readonly: bool = False,
    crsqlite: bool | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> apsw.Connection:
    """Open a connection with every setting made and cr-sqlite loaded.

    Args:
        path: the file. Created when absent, its folder must exist.
        readonly: refuse every write. The file must exist.
        crsqlite: load the extension; without a value, when writing is wanted (reading tables and views needs none).
        random_bytes: where a new file's site id comes from.

    Raises:
        DatabaseError: not a database, not writable, or locked for too long.
        CrsqliteMissing: the extension is not on this machine.
    """
    # A read-only *file handle* could not recover the log after a crash; so a reader opens normally and is told not to
    # write.
    flags = apsw.SQLITE_OPEN_READWRITE | (0 if readonly else apsw.SQLITE_OPEN_CREATE)
    try:
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=STATEMENTS_KEPT_MAX)
    except apsw.Error as error:
        raise (explain(error, path) or error) from error
    if connection.readonly("main"):
        # Any statement, even that of `disconnect`, would make the files of the log, and make them read-only as well:
        # they would stand in the way when the file itself has been made writable.
        connection.close()
        raise DatabaseError(f"{path} is not writable by this user; change its permissions or its owner.")
    try:
        for setting in SETTINGS:
            setting(connection)
        if crsqlite if crsqlite is not None else not readonly:
            load_crsqlite(connection, random_bytes)
        if readonly:
            connection.pragma("query_only", True)
    except apsw.Error as error:
        disconnect(connection)
        raise (explain(error, path) or error) from error
    except BaseException:
        disconnect(connection)
        raise
    return connection


def load_crsqlite(connection: apsw.Connection, random_bytes: Callable[[int], bytes]) -> None:
    """Load the extension and forbid loading any other.

    When cr-sqlite cannot read its own tables, closing the connection ends the process with a segmentation fault. So
    they are checked before. They have a few rows.

    The first load writes tables. cr-sqlite looks first and creates then, without a lock in between, so that processes
    which open a new file at one moment would trip over each other. One transaction around it all keeps them in line.
    """
    is_new = not connection.table_exists("main", "crsql_master") or not connection.table_exists("main", "crsql_site_id")
    connection.enable_load_extension(True)
    if is_new:
        connection.execute("BEGIN IMMEDIATE")
        _create_site_id(connection, random_bytes)
    else:
        for table in _READ_WHEN_LOADED:
            _check(connection, table)
    connection.load_extension(str(extension_path()), ENTRY_POINT)
    if is_new:
        connection.execute("COMMIT")
    connection.enable_load_extension(False)
    refuse_misread_keys(connection)


def refuse_misread_keys(connection: apsw.Connection) -> None:
    """Refuse a build of cr-sqlite that reads packed keys with a sign, as it does with the `bytes` crate from 1.7.2 on.

    It would merge the row 200 as the row -56, without a word.
    """
    sql = "SELECT cell FROM crsql_unpack_columns WHERE package = crsql_pack_columns(200)"
    if connection.execute(sql).fetchall() != [(200,)]:
        raise DatabaseError(
            f"The cr-sqlite at {extension_path()} was built with a newer version of a library and misreads keys; "
            f"build it anew with `python -m leasemesh_crsqlite build`."
        )


def _create_site_id(connection: apsw.Connection, random_bytes: Callable[[int], bytes]) -> None:
    """Create cr-sqlite's table of site ids as it would itself, but with randomness that was lent."""
    # Asked of the file: `table_exists` answers from what this connection has read before it got the lock.
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'crsql_site_id'").fetchall():
        return  # Another process was faster.
    for _ in connection.execute(
        "CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);"
        "CREATE UNIQUE INDEX crsql_site_id_site_id ON crsql_site_id (site_id)"
    ):
        pass
    connection.execute("INSERT INTO crsql_site_id (site_id, ordinal) VALUES (?, 0)", (random_bytes(16),))


def disconnect(connection: apsw.Connection) -> None:
    """Close a connection. cr-sqlite's prepared statements go first, or SQLite refuses to close."""
    try:
        connection.execute("SELECT crsql_finalize()").fetchall()
    except apsw.Error:
        pass  # The extension is not loaded in this connection, or the file is not even a database.
    connection.close()


def check_pages(path: Path) -> None:
    """Read a whole file and check that its pages fit together. Takes about a second for a gigabyte that is in memory.

    What the pages hold has no checksum: a byte that changed within a value is not found here.

    Raises:
        DatabaseDamaged: they do not. The text has SQLite's first complaint.
    """
    connection = apsw.Connection(str(path))
    try:
        wait_when_locked(connection)
        _check(connection, "1")
    except apsw.Error as error:
        raise (explain(error, path) or error) from error
    finally:
        connection.close()


def _check(connection: apsw.Connection, what: str) -> None:
    """Check a table, or up to a number of complaints the whole file."""
    said = str(connection.execute(f"PRAGMA quick_check({what})").fetchall()[0][0])
    if said != "ok":
        complaint = said.strip().splitlines()[-1]  # The lines before say where to look for it.
        raise DatabaseDamaged(
            f"{connection.filename} is damaged ({complaint}); restore it from a backup, or start with a new file and "
            "let the peers fill it."
        )


def end_reading(connection: apsw.Connection) -> None:
    """End a read transaction. In a damaged file even that fails, and must not hide what was found before."""
    if connection.in_transaction:
        with suppress(apsw.CorruptError):
            connection.execute("COMMIT")
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def explain(error: apsw.Error, path: Path) -> DatabaseError | None:
    """Return the error in terms of the file and what to do about it, or None when it is about a statement."""
    text = _EXPLANATIONS.get(type(error))
    if text is None:
        return None
    return _KINDS.get(type(error), DatabaseError)(f"{path} {text}")


_KINDS: dict[type[apsw.Error], type[DatabaseError]] = {
    apsw.BusyError: DatabaseBusy,
    apsw.CorruptError: DatabaseDamaged,
}


_EXPLANATIONS: dict[type[apsw.Error], str] = {
    apsw.BusyError: (
        f"was locked by another process for more than {BUSY_SECONDS_MAX} seconds; see what holds it, then try again."
    ),
    apsw.NotADBError: "is not a SQLite database; give the path of a leasemesh file or of a new one.",
    apsw.CantOpenError: "cannot be opened; check that its folder exists and that this user may read and write there.",
    apsw.ReadOnlyError: "is not writable by this user; change the permissions of the file and of its folder.",
    apsw.FullError: "could not grow because the disk is full; nothing was written. Free some space, then try again.",
    apsw.IOError: "could not be read or written by the operating system; check the disk.",
    apsw.CorruptError: "is damaged; restore it from a backup, or start with a new file and let the peers fill it.",
}
