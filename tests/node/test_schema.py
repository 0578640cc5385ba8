"""The schema as a whole: what all migrations make, and that `node/database/tables.py` says what each table is.

After a change of the migrations write the snapshot anew, and look at the difference: `python tests/node/test_schema.py`
"""

import re
import tempfile
from pathlib import Path

import pytest

from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import own_migrations, upgrade
from leasemesh.node.database.tables import JSON_COLUMNS, TABLES, tables_that_wake

SNAPSHOT = Path(__file__).with_name("schema.sql")
REPLICATED_MARK = "__crsql_clock"
MADE_BY_US = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*' AND name NOT GLOB '*crsql_*'"


def made_by_all_migrations(folder: Path) -> Database:
    database = Database.open(folder / "new.db", clock_ms=lambda: 0)
    upgrade(database, [own_migrations()])
    return database


def dump(database: Database) -> str:
    """All that the migrations make, sorted, without what cr-sqlite adds to it."""
    rows = database.query(f"{MADE_BY_US} AND sql IS NOT NULL ORDER BY tbl_name, type <> 'table', type, name")
    return "".join(f"{sql};\n\n" for _, _, sql in rows)


@pytest.fixture
def database(tmp_path, opened):
    return opened(made_by_all_migrations(tmp_path))


def tables_of(database):
    return {name for kind, name, _ in database.query(MADE_BY_US) if kind == "table"}


def test_replaying_all_migrations_gives_the_committed_schema(database):
    assert dump(database) == SNAPSHOT.read_text()


def test_the_list_of_tables_names_each_table_once(database):
    names = [table.name for table in TABLES]
    assert sorted(names) == sorted(set(names))
    assert set(names) == tables_of(database)


def test_the_list_says_which_tables_replicate(database):
    marks = database.query("SELECT name FROM sqlite_schema WHERE name GLOB ?", (f"*{REPLICATED_MARK}",))
    assert {table.name for table in TABLES if table.replicated} == {
        name.removesuffix(REPLICATED_MARK) for (name,) in marks
    }


def test_the_list_says_which_columns_hold_json(database):
    found = {}
    for name in tables_of(database):
        ((sql,),) = database.query("SELECT sql FROM sqlite_schema WHERE name = ? AND type = 'table'", (name,))
        columns = re.split(r"\n    (?=\w)", sql)  # a column begins at the first indentation
        found[name] = frozenset(column.split()[0] for column in columns if "json_valid(" in column)
    assert {name: columns for name, columns in found.items() if columns} == JSON_COLUMNS


def test_what_triggers_write_is_what_a_rebuild_makes_anew(database):
    sql = "\n".join(text for kind, _, text in database.query(MADE_BY_US) if kind == "trigger")
    written = set(re.findall(r"\b(?:INSERT INTO|DELETE FROM|UPDATE) (\w+)", sql)) & tables_of(database)
    derived = {table.name for table in TABLES if table.content}
    assert derived == {table.name for table in TABLES if table.writer == "triggers"}
    assert written == derived | {"seen_times"}, "the greatest time seen must not sink when a fact goes"


def test_each_fact_that_something_is_derived_from_can_be_derived_anew(database):
    views = {name for kind, name, _ in database.query(MADE_BY_US) if kind == "view" and name.startswith("absorb_")}
    used = {match for table in TABLES for match in re.findall(r"INTO (absorb_\w+)", table.derive)}
    assert used <= views
    with_triggers = {
        table
        for kind, _, sql in database.query(MADE_BY_US)
        if kind == "trigger"
        for table in re.findall(r"AFTER INSERT ON (\w+)", sql)
    }
    # What a verdict says is derived with the entries, the claims and the permits of its work.
    assert {table.name for table in TABLES if table.derive} == with_triggers - {"verdicts"}


def test_who_waits_for_changes_waits_for_replicated_tables():
    replicated = {table.name for table in TABLES if table.replicated}
    for who in ("handlers", "gates", "recovery", "authority", "authority when asked"):
        assert tables_that_wake(who) and tables_that_wake(who) <= replicated


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        opened_database = made_by_all_migrations(Path(scratch))
        SNAPSHOT.write_text(dump(opened_database))
        opened_database.close()
