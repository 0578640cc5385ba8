import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import apsw
import pytest
from replicas import NOTES, Replica, converge, exchange, send, write_migrations

from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import MigrationError, applied_migrations, own_migrations, read_migrations, upgrade

COLOUR = (
    "SELECT crsql_begin_alter('main', 'notes'); ALTER TABLE notes ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';"
    "SELECT crsql_commit_alter('main', 'notes');"
)


@pytest.fixture
def database(tmp_path):
    database = Database.open(tmp_path / "node.db", clock_ms=lambda: 1234)
    yield database
    database.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "migrations"


def schema(database):
    return database.query("SELECT name, sql FROM sqlite_schema ORDER BY name")


def test_files_are_applied_in_order_and_recorded(database, folder):
    write_migrations(folder, "CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y")
    assert upgrade(database, [own_migrations(), ("app", folder)])["app"] == 2
    assert database.query("SELECT * FROM a") == []
    records = database.query("SELECT number, name, applied_at FROM schema_migrations WHERE component = 'app'")
    assert records == [(1, "change", 1234), (2, "change", 1234)]


def test_a_second_upgrade_does_nothing(database, folder):
    write_migrations(folder, "CREATE TABLE a (x)")
    upgrade(database, [own_migrations(), ("app", folder)])
    before = database.data_version(), database.query("SELECT count(*) FROM eras"), schema(database)
    heartbeats = []
    database.on_commit(heartbeats.append)
    assert upgrade(database, [own_migrations(), ("app", folder)])["app"] == 1
    assert (database.data_version(), database.query("SELECT count(*) FROM eras"), schema(database)) == before
    assert heartbeats == []


def test_a_later_file_is_applied_to_an_older_database(database, folder):
    upgrade(database, [own_migrations(), ("app", write_migrations(folder, NOTES))])
    assert upgrade(database, [own_migrations(), ("app", write_migrations(folder, NOTES, COLOUR))])["app"] == 2
    assert database.query("SELECT colour FROM notes") == []


def test_a_component_that_is_not_given_is_left_alone(database, folder):
    upgrade(database, [own_migrations(), ("app", write_migrations(folder, NOTES))])
    assert upgrade(database, [own_migrations()])["app"] == 1


def test_an_applied_file_that_changed_is_refused(database, folder):
    upgrade(database, [("app", write_migrations(folder, "CREATE TABLE a (x)"))])
    write_migrations(folder, "CREATE TABLE a (x, y)", "CREATE TABLE b (x)")
    with pytest.raises(MigrationError, match=r"app migration 0001_change.sql has changed since it was applied"):
        upgrade(database, [("app", folder)])
    assert not database.query("SELECT 1 FROM sqlite_schema WHERE name = 'b'")


def test_other_line_ends_are_no_change(database, folder):
    upgrade(database, [("app", write_migrations(folder, "CREATE TABLE a (\nx)"))])
    (folder / "0001_change.sql").write_bytes(b"CREATE TABLE a (\r\nx)")
    assert upgrade(database, [("app", folder)]) == {"app": 1}


def test_a_database_that_is_newer_than_the_program_is_refused(database, folder):
    upgrade(database, [("app", write_migrations(folder, "CREATE TABLE a (x)", "CREATE TABLE b (x)"))])
    (folder / "0002_change.sql").unlink()
    with pytest.raises(
        MigrationError, match=r"has app migration 0002, this program knows them up to 0001; use the newer"
    ):
        upgrade(database, [("app", folder)])
    (folder / "0001_change.sql").unlink()
    with pytest.raises(MigrationError, match=r"has app migration 0002, this program knows them up to none"):
        upgrade(database, [("app", folder)])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0001_a.sql", "0003_c.sql"], r"go from 0001 to app migration 0003_c\.sql"),
        (["0002_b.sql"], r"go from 0000 to app migration 0002_b\.sql|each number must be used once"),
        (["0001_a.sql", "0001_b.sql"], "each number must be used once and none left out"),
        (["1_a.sql"], r"1_a\.sql is not named like 0001_what_it_does\.sql"),
        (["0001-a.sql"], r"0001-a\.sql is not named like"),
    ],
)
def test_wrong_names_and_gaps_are_refused(folder, names, message):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match=message):
        read_migrations("app", folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MigrationError, match="absent is not a folder; give the folder that holds the app migrations"):
        read_migrations("app", tmp_path / "absent")


def test_numbers_may_start_at_zero_and_other_files_are_ignored(folder):
    folder.mkdir()
    for name in ("0000_a.sql", "0001_b.sql", "README.md"):
        (folder / name).write_text("SELECT 1")
    assert [migration.number for migration in read_migrations("app", folder)] == [0, 1]


def test_what_cannot_replicate_is_refused_before_the_database_is_touched(database, folder):
    upgrade(database, [own_migrations()])
    before = schema(database)
    write_migrations(folder, "CREATE TABLE x (id PRIMARY KEY, a UNIQUE); SELECT crsql_as_crr('main', 'x');")
    with pytest.raises(MigrationError) as caught:
        upgrade(database, [own_migrations(), ("app", folder)])
    assert str(caught.value).splitlines() == [
        "app migration 0001_change.sql was not applied:",
        "- x.id is a primary key that may be NULL: write NOT NULL with it.",
        "- x has a UNIQUE constraint besides its primary key: make what must be unique the primary key.",
    ]
    assert schema(database) == before


def test_a_file_that_fails_half_way_leaves_nothing_behind(database, folder):
    upgrade(database, [("app", write_migrations(folder, NOTES))])
    with database.transaction() as transaction:
        transaction.execute("INSERT INTO notes (id) VALUES (x'01')")
    before = schema(database)
    # The scratch database has no rows, so only the real one refuses.
    failing = COLOUR + "CREATE TABLE b (x NOT NULL); INSERT INTO b SELECT NULL FROM notes;"
    write_migrations(folder, NOTES, failing)
    with pytest.raises(MigrationError, match=r"0002_change.sql failed and was not applied: NOT NULL"):
        upgrade(database, [("app", folder)])
    assert schema(database) == before
    assert applied_migrations(database)["app"].keys() == {1}
    with database.transaction() as transaction:
        transaction.execute("INSERT INTO notes (id, title) VALUES (x'02', 'still replicates')")
    assert database.tables_changed_since(1) == {"notes"}


def test_all_cr_sqlite_does_for_a_table_is_in_the_one_transaction(database, folder):
    write_migrations(folder, NOTES + "CREATE TABLE b (x NOT NULL); INSERT INTO b SELECT NULL FROM node;")
    upgrade(database, [own_migrations()])
    with database.transaction() as transaction:
        transaction.execute("INSERT INTO node VALUES ('name', 'laptop')")
    before = schema(database)
    with pytest.raises(MigrationError, match="NOT NULL constraint failed"):
        upgrade(database, [own_migrations(), ("app", folder)])
    assert schema(database) == before


def upgrade_in_process(path: Path) -> dict[str, int]:
    database = Database.open(path, clock_ms=lambda: 0)
    try:
        return upgrade(database, [own_migrations(), ("app", path.parent / "migrations")])
    finally:
        database.close()


def test_processes_that_upgrade_one_new_file_at_once_apply_each_file_once(tmp_path, folder):
    write_migrations(folder, NOTES, COLOUR)
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        results = list(processes.map(upgrade_in_process, [tmp_path / "new.db"] * 4))
    assert results == [results[0]] * 4
    assert results[0]["app"] == 2


# --- Primary keys ----------------------------------------------------------------------------------------------------

KEYS = [
    ("id BLOB PRIMARY KEY NOT NULL, a", "id = x'02'"),
    ("id INTEGER PRIMARY KEY NOT NULL, a", "rowid = 2"),
    ("id TEXT NOT NULL, other INT NOT NULL, a, PRIMARY KEY (id, other)", "other = 2"),
]


@pytest.mark.parametrize(("columns", "change"), KEYS)
def test_a_primary_key_cannot_be_changed(database, folder, columns, change):
    keys = columns.count("NOT NULL")
    write_migrations(folder, f"CREATE TABLE t ({columns}); SELECT crsql_as_crr('main', 't');")
    upgrade(database, [("app", folder)])
    with database.transaction() as transaction:
        transaction.execute(f"INSERT INTO t VALUES ({'1, ' * keys} 'a')")
        transaction.execute("UPDATE t SET a = 'b', id = id")
        with pytest.raises(apsw.ConstraintError, match="a primary key of t cannot change: insert a new row and delete"):
            transaction.execute(f"UPDATE t SET {change}")
    assert database.query("SELECT a FROM t") == [("b",)]


def test_the_guard_of_the_primary_key_does_not_disturb_merges(tmp_path, opened):
    one, other = (opened(Replica(tmp_path / f"{name}.db", seed=number)) for number, name in enumerate("ab"))
    notes = [one.note(f"note {number}") for number in range(3)]
    exchange(one, other)
    one.write("UPDATE notes SET stars = 1 WHERE id = ?", (notes[0],))
    other.write("UPDATE notes SET title = 'new' WHERE id = ?", (notes[0],))
    other.write("DELETE FROM notes WHERE id = ?", (notes[1],))
    converge(one, other)
    assert one.quarantined() == other.quarantined() == 0
    assert other.database.query("SELECT title, stars FROM notes WHERE id = ?", (notes[0],)) == [("new", 1)]


# --- Databases in use ------------------------------------------------------------------------------------------------


def test_a_populated_synced_database_is_upgraded_while_its_peer_is_not(tmp_path, opened):
    one, other = (opened(Replica(tmp_path / f"{name}.db", seed=number)) for number, name in enumerate("ab"))
    notes = [one.note(f"note {number}") for number in range(20)]
    exchange(one, other)
    version = one.database.version()
    one.upgrade(NOTES, COLOUR)
    assert one.database.version() == version
    assert exchange(one, other) == 0
    one.write("UPDATE notes SET colour = 'red' WHERE id = ?", (notes[0],))
    other.write("UPDATE notes SET title = 'edited on the old one' WHERE id = ?", (notes[1],))
    exchange(one, other)
    assert one.database.query("SELECT title FROM notes WHERE id = ?", (notes[1],)) == [("edited on the old one",)]
    assert other.quarantined() == 1
    other.upgrade(NOTES, COLOUR)
    other.storage.retry_quarantined()
    exchange(one, other)
    assert one.tables() == other.tables()
    assert other.database.query("SELECT colour FROM notes WHERE id = ?", (notes[0],)) == [("red",)]


def test_a_table_with_rows_becomes_replicated_with_them(tmp_path, opened):
    plain = "CREATE TABLE p (id INTEGER PRIMARY KEY NOT NULL, a TEXT)"
    one, other = (opened(Replica(tmp_path / f"{name}.db", plain, seed=number)) for number, name in enumerate("ab"))
    one.write("INSERT INTO p VALUES (1, 'here before')")
    for replica in (one, other):
        replica.upgrade(plain, "SELECT crsql_as_crr('main', 'p')")
    send(one, other)
    assert other.database.query("SELECT * FROM p") == [(1, "here before")]


LATER = """
SELECT crsql_begin_alter('main', 'workflows');
ALTER TABLE workflows ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';
SELECT crsql_commit_alter('main', 'workflows');
"""


def test_our_own_schema_is_upgraded_populated_and_synced_while_its_peer_stays_behind(tmp_path, opened):
    component, folder = own_migrations()
    later = tmp_path / "later"
    later.mkdir()
    for file in folder.iterdir():
        if file.name.endswith(".sql"):
            (later / file.name).write_text(file.read_text())
    number = len(read_migrations(component, folder)) + 1
    (later / f"{number:04d}_later.sql").write_text(LATER)
    one, other = (opened(Replica(tmp_path / f"{name}.db", seed=number)) for number, name in enumerate("ab"))
    for number in range(20):
        one.write("INSERT INTO workflows (id, title) VALUES (?, 'old')", (f"w{number}",))
    one.write("INSERT INTO script_runs (id, workflow_id) VALUES ('s', 'w1')")
    exchange(one, other)
    upgrade(one.database, [(component, later)])
    one.write("UPDATE workflows SET colour = 'red' WHERE id = 'w0'")
    other.write("UPDATE workflows SET title = 'edited on the old one' WHERE id = 'w1'")
    exchange(one, other)
    assert one.database.query("SELECT title, colour FROM workflows WHERE id = 'w1'") == [
        ("edited on the old one", "white")
    ]
    assert other.quarantined() == 1
    upgrade(other.database, [(component, later)])
    other.storage.retry_quarantined()
    exchange(one, other)
    assert other.quarantined() == 0
    assert other.database.query("SELECT colour FROM workflows WHERE id = 'w0'") == [("red",)]
    assert one.storage.digest().tables == other.storage.digest().tables
    assert len(one.database.query("SELECT 1 FROM workflows")) == 20
