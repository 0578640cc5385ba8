import multiprocessing
import os
import stat
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from replicas import NOTES, Replica, write_migrations

from leasemesh.node.database.connection import STATEMENTS_KEPT_MAX, connect, disconnect, refuse_misread_keys
from leasemesh.node.database.file import Database, DatabaseError
from leasemesh.node.database.migrate import own_migrations, upgrade
from leasemesh.node.stores import EventStore, NewEvent


def open_database(path: Path) -> Database:
    return Database.open(path, clock_ms=lambda: 0)


@pytest.fixture
def replica(tmp_path):
    replica = Replica(tmp_path / "node.db", seed=1)
    yield replica
    replica.close()


@pytest.fixture
def database(replica):
    return replica.database


def count(database: Database) -> int:
    return database.query("SELECT count(*) FROM notes")[0][0]


def add(transaction, title="a"):
    transaction.execute("INSERT INTO notes (id, title) VALUES (?, ?)", (os.urandom(16), title))


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readonly", [False, True])
def test_every_connection_has_every_setting(database, readonly):
    connection = connect(database.path, readonly=readonly)
    settings = {
        "journal_mode": "wal", "synchronous": 1, "foreign_keys": 0, "recursive_triggers": 0, "trusted_schema": 0,
        "cache_size": -32 * 1024, "temp_store": 2, "query_only": int(readonly),
    }  # fmt: skip
    assert {name: connection.pragma(name) for name in settings} == settings
    assert connection.cache_stats()["size"] == STATEMENTS_KEPT_MAX
    with pytest.raises(apsw.SQLError, match="not authorized|disabled"):
        connection.execute("SELECT load_extension('/tmp/x')").fetchall()
    disconnect(connection)


def test_a_readonly_connection_refuses_to_write(database):
    connection = connect(database.path, readonly=True)
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM node")
    disconnect(connection)


def test_an_extension_that_misreads_keys_is_refused():
    connection = apsw.Connection(":memory:")
    connection.execute(
        "CREATE TABLE crsql_unpack_columns (cell, package); INSERT INTO crsql_unpack_columns VALUES (-56, 7)"
    )
    connection.create_scalar_function("crsql_pack_columns", lambda _: 7)
    with pytest.raises(DatabaseError, match="misreads keys; build it anew"):
        refuse_misread_keys(connection)
    connection.close()


# --- Transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_is_kept_as_a_whole(database):
    with database.transaction() as transaction:
        add(transaction)
        add(transaction)
    assert count(database) == 2


def test_an_error_undoes_the_whole_transaction(database):
    with pytest.raises(ZeroDivisionError), database.transaction() as transaction:
        add(transaction)
        1 / 0  # noqa: B018
    assert count(database) == 0
    assert not database._writer.in_transaction


def test_an_error_in_a_nested_transaction_undoes_that_part_alone(database):
    with database.transaction() as outer:
        add(outer, "kept")
        with pytest.raises(ZeroDivisionError), database.transaction() as inner:
            add(inner, "undone")
            with database.transaction() as innermost:
                add(innermost, "undone too")
            1 / 0  # noqa: B018
        with database.transaction() as second:
            add(second, "kept too")
    assert database.query("SELECT title FROM notes ORDER BY title") == [("kept",), ("kept too",)]


class WatchedDisk(apsw.VFS):
    """SQLite's own way to the disk, but it notes which kinds of files the disk was awaited for, and counts the
    temporary files."""

    def __init__(self):
        self.awaited = []
        self.temporary = 0
        self.ordinary = apsw.vfs_names()[0]
        super().__init__("watched", base=self.ordinary, makedefault=True)

    def xOpen(self, name, flags):
        awaited, ordinary = self.awaited, self.ordinary
        self.temporary += name is None

        class WatchedFile(apsw.VFSFile):
            def __init__(self):
                super().__init__(ordinary, name, flags)
                self.is_log = bool(flags[0] & apsw.SQLITE_OPEN_WAL)

            def xSync(self, how):
                awaited.append("log" if self.is_log else "other")
                super().xSync(how)

        return WatchedFile()


@pytest.fixture
def disk(tmp_path):
    disk = WatchedDisk()
    yield disk
    disk.unregister()


@pytest.fixture
def watched(disk, tmp_path):
    replica = Replica(tmp_path / "watched.db", seed=1)
    disk.awaited.clear()
    yield replica.database, disk.awaited
    replica.close()


def test_the_disk_is_awaited_for_a_durable_transaction_and_for_no_other(watched):
    database, awaited = watched
    with database.transaction() as transaction:
        add(transaction)
    assert awaited == []
    with database.transaction(durable=True) as transaction:
        add(transaction)
        assert awaited == []
    assert awaited == ["log"]
    with database.transaction() as transaction:
        add(transaction)
    assert awaited == ["log"]


def test_a_durable_transaction_that_fails_leaves_the_next_one_an_ordinary_one(watched):
    database, awaited = watched
    with pytest.raises(ZeroDivisionError), database.transaction(durable=True) as transaction:
        add(transaction)
        _ = 1 / 0
    with database.transaction() as transaction:
        add(transaction)
    assert (count(database), awaited) == (1, [])


def test_undoing_a_statement_needs_no_file(disk, watched):
    database, _ = watched
    store = EventStore(database)
    store.publish_many("mail", "inbox", [NewEvent(str(number)) for number in range(100)])
    with database.transaction():
        assert len(store.reserve_next("00" * 16, "mail", "inbox")) == 100
        assert disk.temporary == 0


def test_temporary_tables_are_in_a_file_only_where_there_is_much_in_them(disk, watched):
    database, _ = watched

    def fill_temporary_table() -> int:
        with database.transaction(replicated=False) as transaction:
            transaction.execute("CREATE TEMP TABLE much AS SELECT zeroblob(10000000) AS data")
            transaction.execute("DROP TABLE much")
        return disk.temporary

    assert fill_temporary_table() == 0
    with database.much_temporary():
        in_file = fill_temporary_table()
    assert in_file > 0
    assert fill_temporary_table() == in_file
    with database.transaction(), pytest.raises(DatabaseError, match="Cannot move the temporary tables"):
        with database.much_temporary():
            raise AssertionError("the block does not begin")


def test_a_part_is_as_durable_as_the_whole_or_refused(watched):
    database, awaited = watched
    with database.transaction() as outer:
        add(outer)
        with pytest.raises(DatabaseError, match="begin the outer one with durable=True"):
            with database.transaction(durable=True):
                raise AssertionError("the block does not begin")
    assert awaited == []
    with database.transaction(durable=True), database.transaction(durable=True) as inner:
        add(inner)
    assert (count(database), awaited) == (2, ["log"])


def test_a_transaction_cannot_be_used_after_its_block(database):
    with database.transaction() as transaction:
        with database.transaction() as inner:
            add(inner)
        with pytest.raises(DatabaseError, match="has ended"):
            add(inner)
    with pytest.raises(DatabaseError, match="has ended"):
        add(transaction)


def test_nothing_more_is_written_after_sqlite_has_rolled_back_by_itself(database):
    with pytest.raises(DatabaseError, match="rolled the transaction back"), database.transaction() as transaction:
        add(transaction)
        with pytest.raises(apsw.SQLError):
            transaction.execute("INSERT OR ROLLBACK INTO notes (id, nonsense) VALUES (1, 2)")
        transaction._connection.execute("ROLLBACK")
        with pytest.raises(DatabaseError, match="rolled this transaction back"):
            add(transaction)
    assert count(database) == 0


def test_queries_outside_see_only_what_is_committed_and_do_not_wait(database):
    with ThreadPoolExecutor(1) as other, database.transaction() as transaction:
        add(transaction)
        assert count(database) == 1
        assert other.submit(count, database).result(timeout=10) == 0


def test_a_query_cannot_write(database):
    with pytest.raises(DatabaseError, match="only reads; write inside"):
        database.query("DELETE FROM node")


def test_a_damaged_file_is_named(replica):
    for _ in range(50):
        replica.note("x" * 500)
    replica.close()
    with replica.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (replica.path.stat().st_size - 4096))
    with pytest.raises(DatabaseError, match=r"node\.db is damaged; restore it from a backup"):
        open_database(replica.path)


def test_a_snapshot_shows_one_moment(database):
    with database.snapshot():
        assert count(database) == 0
        with ThreadPoolExecutor(1) as other:
            other.submit(lambda: Replica.write(FakeReplica(database), "INSERT INTO notes (id) VALUES (x'01')")).result()
        assert count(database) == 0
    assert count(database) == 1


def test_a_transaction_inside_a_snapshot_sees_the_present(database):
    with database.snapshot():
        assert count(database) == 0
        with database.transaction() as transaction:
            add(transaction)
            assert count(database) == 1
        assert count(database) == 0
    assert count(database) == 1


class FakeReplica:
    def __init__(self, database):
        self.database = database


def test_another_thread_waits_for_the_transaction_to_end(database):
    inside, order = threading.Event(), []

    def write():
        inside.wait()
        with database.transaction() as transaction:
            order.append("second")
            add(transaction)

    thread = threading.Thread(target=write)
    thread.start()
    with database.transaction() as transaction:
        inside.set()
        thread.join(0.05)
        order.append("first")
        add(transaction)
    thread.join()
    assert order == ["first", "second"]


def test_threads_that_write_at_once_lose_nothing(database):
    def write(_):
        for _ in range(50):
            with database.transaction() as transaction:
                before = transaction.execute("SELECT count(*) FROM notes")
                add(transaction)
                assert transaction.execute("SELECT count(*) - 1 FROM notes") == before

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert count(database) == 200


def write_in_process(path: Path, transactions: int) -> bytes:
    database = open_database(path)
    upgrade(database, [own_migrations(), ("app", path.parent / "app")])
    for number in range(transactions):
        with database.transaction() as transaction:
            add(transaction, f"{os.getpid()} {number}")
            add(transaction, f"{os.getpid()} {number}")
    incarnation = database.incarnation
    database.close()
    return incarnation


def test_processes_that_create_and_write_one_file_at_once_lose_nothing(tmp_path, opened):
    write_migrations(tmp_path / "app", NOTES)
    path = tmp_path / "new.db"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        incarnations = {*processes.map(write_in_process, [path] * 4, [60] * 4)}
    database = opened(open_database(path))
    assert len(incarnations) == 4
    assert count(database) == 4 * 60 * 2
    # Each transaction has a version of its own, and two rows: no transaction was torn or given a number twice.
    pairs = database.query("SELECT count(*) FROM notes__crsql_clock WHERE col_name = 'title' GROUP BY db_version")
    assert pairs == [(2,)] * 240
    eras = database.query("SELECT era FROM eras ORDER BY first_version")
    assert {era for (era,) in eras} == incarnations
    assert database.query("PRAGMA integrity_check") == [("ok",)]


# --- Eras and versions -----------------------------------------------------------------------------------------------


def test_a_process_begins_its_era_with_its_first_write(replica):
    replica.note("a")
    first = replica.database.incarnation
    replica.restart()
    assert replica.database.incarnation != first
    assert replica.database.query("SELECT * FROM eras") == [(1, first)]
    replica.note("b")
    replica.note("c")
    assert replica.database.query("SELECT * FROM eras") == [(1, first), (2, replica.database.incarnation)]


def test_an_era_without_a_write_is_replaced(replica):
    replica.note("a")
    for _ in range(3):
        replica.restart()
        with replica.database.transaction():
            pass
    assert [version for version, _ in replica.database.query("SELECT * FROM eras")] == [1, 2]


def test_an_era_begins_again_when_another_process_has_written_in_between(replica, opened):
    replica.note("a")
    other = opened(open_database(replica.path))
    with other.transaction() as transaction:
        add(transaction)
    replica.note("b")
    mine, theirs = replica.database.incarnation, other.incarnation
    assert replica.database.query("SELECT * FROM eras") == [(1, mine), (2, theirs), (3, mine)]


def test_local_transactions_begin_no_era(replica):
    before = replica.database.query("SELECT * FROM eras")
    replica.restart()
    with replica.database.transaction(replicated=False) as transaction:
        transaction.execute("INSERT INTO node VALUES ('name', 'laptop')")
    assert replica.database.query("SELECT * FROM eras") == before


def test_the_version_is_what_is_stored_even_after_a_statement_that_changed_nothing(database):
    with database.transaction() as transaction:
        add(transaction)
    with database.transaction() as transaction:
        transaction.execute("UPDATE notes SET title = title")
    in_memory = database._writer.execute("SELECT crsql_db_version()").fetchall()
    assert (in_memory, database.version()) == ([(2,)], 1)
    with database.transaction() as transaction:
        add(transaction)
    assert database.version() >= 2


def test_each_transaction_has_its_version_so_the_commit_hook_is_untouched(database):
    for _ in range(3):
        with database.transaction() as transaction:
            add(transaction)
    versions = database.query("SELECT DISTINCT db_version FROM notes__crsql_clock ORDER BY 1")
    assert versions == [(1,), (2,), (3,)]


def test_a_version_survives_that_the_rows_with_it_are_compacted_away(replica):
    replica.note("a")
    replica.write("UPDATE notes SET stars = 5")
    assert replica.database.version() == 2
    drop = (
        "SELECT crsql_begin_alter('main', 'notes'); ALTER TABLE notes DROP COLUMN stars;"
        "SELECT crsql_commit_alter('main', 'notes');"
    )
    replica.write(drop)
    assert replica.database.query("SELECT max(db_version) FROM notes__crsql_clock") == [(1,)]
    assert replica.database.version() == 2


def test_reading_the_version_looks_up_one_index_entry_for_each_table(database):
    statements = database._versions._current(database.query)
    plan = [row[3] for row in database.query(f"EXPLAIN QUERY PLAN {statements.version_sql}")]
    for table in statements.tables:
        assert any(line.startswith(f"SEARCH {table}__crsql_clock USING COVERING INDEX") for line in plan)
    changed = [row[3] for row in database.query(f"EXPLAIN QUERY PLAN {statements.changed_sql}", (1,))]
    assert sum("__crsql_clock_dbv_idx (db_version>?)" in line for line in changed) == len(statements.tables)


def test_tables_that_changed_are_named(replica):
    assert replica.database.tables_changed_since(0) == frozenset()
    replica.note("a")
    assert replica.database.tables_changed_since(0) == {"notes"}
    assert replica.database.tables_changed_since(1) == frozenset()


# --- Notices ---------------------------------------------------------------------------------------------------------


def test_listeners_hear_of_each_commit_that_wrote_something(database):
    heartbeats = []
    stop = database.on_commit(heartbeats.append)
    with database.transaction():
        pass
    heartbeats.clear()  # The era began.
    with database.transaction():
        pass
    assert heartbeats == []
    with database.transaction() as transaction:
        add(transaction)
    with database.transaction(source="peer") as transaction:
        add(transaction)
    with pytest.raises(ZeroDivisionError), database.transaction() as transaction:
        add(transaction)
        1 / 0  # noqa: B018
    assert heartbeats == ["local", "peer"]
    stop()
    with database.transaction() as transaction:
        add(transaction)
    assert heartbeats == ["local", "peer"]


def test_a_listener_may_write(database):
    stop = database.on_commit(lambda source: source == "local" and write_for_listener(database))
    with database.transaction() as transaction:
        add(transaction)
    stop()
    assert count(database) == 2


def write_for_listener(database):
    with database.transaction(source="peer") as transaction:
        add(transaction)


def test_the_data_version_moves_with_the_commits_of_others_only(database, opened):
    other = opened(open_database(database.path))
    before = database.data_version()
    with database.transaction() as transaction:
        add(transaction)
    assert database.data_version() == before
    with other.transaction() as transaction:
        add(transaction)
    after = database.data_version()
    assert after != before
    with ThreadPoolExecutor(1) as thread, database.transaction():
        assert thread.submit(database.data_version).result(timeout=10) == after


# --- Closing, and files that cannot be used --------------------------------------------------------------------------


def test_closing_twice_is_fine_and_a_closed_database_says_so(database):
    database.close()
    database.close()
    assert database.closed
    with pytest.raises(DatabaseError, match="was closed; open it again"):
        database.query("SELECT 1")
    with pytest.raises(DatabaseError, match="was closed"), database.transaction():
        pass


@pytest.mark.parametrize("action", ["close", "reopen"])
def test_neither_closing_nor_reopening_is_possible_inside_a_transaction(database, action):
    with database.transaction(), pytest.raises(DatabaseError, match=f"Cannot {action} .* inside a transaction"):
        getattr(database, action)()
    with database.snapshot(), pytest.raises(DatabaseError, match=f"Cannot {action} .* inside a transaction"):
        getattr(database, action)()


def test_reopening_keeps_the_incarnation(database):
    incarnation = database.incarnation
    database.reopen()
    with database.transaction() as transaction:
        add(transaction)
    assert database.incarnation == incarnation
    assert database.query("SELECT era FROM eras") == [(incarnation,)]


def test_the_log_is_folded_into_the_file_at_the_end(replica):
    replica.note("a")
    replica.close()
    assert not Path(f"{replica.path}-wal").exists()


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 1000)
    with pytest.raises(DatabaseError, match=r"letter\.txt is not a SQLite database"):
        open_database(path)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DatabaseError, match=r"absent/node\.db cannot be opened; check that its folder exists"):
        open_database(tmp_path / "absent" / "node.db")


def test_a_database_in_memory_is_refused():
    with pytest.raises(DatabaseError, match="needs a file"):
        open_database(":memory:")


def test_a_file_that_cannot_be_written_is_named(replica, monkeypatch):
    replica.close()
    replica.path.chmod(stat.S_IRUSR)
    if os.geteuid() == 0:
        # Root writes anywhere, so the answer that SQLite would give another user is given for it.
        monkeypatch.setattr(apsw, "Connection", ReadOnlyConnection)
    with pytest.raises(DatabaseError, match=r"node\.db is not writable"):
        open_database(replica.path)


class ReadOnlyConnection(apsw.Connection):
    def readonly(self, name):
        return True


def test_a_lock_held_too_long_is_named(database, monkeypatch):
    database._writer.set_busy_timeout(10)
    holder = connect(database.path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="was locked by another process for more than"), database.transaction():
        pass
    holder.execute("ROLLBACK")
    disconnect(holder)
    with database.transaction() as transaction:
        add(transaction)
    assert count(database) == 1


def test_a_full_disk_is_named_and_writes_nothing(database):
    database._writer.pragma("max_page_count", database._writer.pragma("page_count"))
    with pytest.raises(DatabaseError, match="disk is full; nothing was written"), database.transaction() as transaction:
        for _ in range(100):
            transaction.execute("INSERT INTO notes (id, title) VALUES (?, ?)", (os.urandom(16), "x" * 4000))
    assert count(database) == 0


def test_a_new_file_takes_its_site_id_from_the_randomness_that_was_lent(tmp_path, opened):
    one = opened(Replica(tmp_path / "one.db", seed=7))
    other = opened(Replica(tmp_path / "other.db", seed=7))
    assert one.site == other.site


def test_a_transaction_without_parts_fails_whole_when_a_block_inside_has_failed(database):
    with database.transaction() as transaction:
        transaction.execute("CREATE TABLE things (name TEXT)")
    with pytest.raises(DatabaseError, match="it has no parts, so nothing was kept"):
        with database.transaction(parts=False) as whole:
            whole.execute("INSERT INTO things VALUES ('first')")
            with suppress(ZeroDivisionError), database.transaction() as inside:
                inside.execute("INSERT INTO things VALUES ('second')")
                _ = 1 / 0
    assert database.query("SELECT * FROM things") == []
    with database.transaction() as transaction:  # and it was that transaction alone
        with suppress(ZeroDivisionError), database.transaction() as inside:
            inside.execute("INSERT INTO things VALUES ('third')")
            _ = 1 / 0
        transaction.execute("INSERT INTO things VALUES ('fourth')")
    assert database.query("SELECT * FROM things") == [("fourth",)]


def test_a_block_that_fails_before_it_has_written_leaves_a_transaction_without_parts_as_it_was(database):
    with database.transaction() as transaction:
        transaction.execute("CREATE TABLE things (name TEXT)")
    with database.transaction(parts=False) as whole:
        whole.execute("INSERT INTO things VALUES ('first')")
        with suppress(ZeroDivisionError), database.transaction():
            _ = 1 / 0
    assert database.query("SELECT * FROM things") == [("first",)]
