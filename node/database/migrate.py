"""Numbered SQL files that make and change the schema, each applied once, together with the record that it was.

Rules:

1. A folder holds `NNNN_name.sql`, numbered without gaps from 0000 or 0001. Each folder is a *component* with a name
   and a numbering of its own: ours is "leasemesh", an app brings its own.
2. One file is one transaction, the record in `schema_migrations` included. Files therefore contain no BEGIN or COMMIT.
3. An applied file never changes: its SHA-256 is recorded and compared (line ends do not count).
4. Before a file touches the database it passes `node.database.lint`, in a scratch database.
5. Every replicated table gets a trigger that refuses to change a primary key, because peers would lose the row's
   values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

import apsw

from leasemesh.node.database.file import Database, DatabaseError, Transaction
from leasemesh.node.database.lint import lint
from leasemesh.node.database.versions import replicated_tables

OWN_COMPONENT = "leasemesh"

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql")

_RECORDS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    component TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (component, number)
) STRICT, WITHOUT ROWID
"""


class MigrationError(DatabaseError):
    """The migration files do not fit the database or each other. Nothing was changed by the file that is named."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file.

    Attributes:
        component: whose file it is.
        number, name: from the file's name.
        sql: its text, with "\\n" as line end.
    """

    component: str
    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The checksum that is recorded."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.component} migration {self.number:04d}_{self.name}.sql"


def own_migrations() -> tuple[str, Traversable]:
    """Return leasemesh's own component and folder, as a source for `upgrade`."""
    return OWN_COMPONENT, resources.files("leasemesh.migrations")


def read_migrations(component: str, folder: Traversable) -> list[Migration]:
    """Read a folder's files in order.

    Raises:
        MigrationError: a .sql file is misnamed, or the numbers have a gap.
    """
    if not folder.is_dir():
        raise MigrationError(f"{folder} is not a folder; give the folder that holds the {component} migrations.")
    found = []
    for file in folder.iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{file.name} is not named like 0001_what_it_does.sql; rename it.")
        text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
        found.append(Migration(component, int(match["number"]), match["name"], text))
    found.sort(key=lambda migration: migration.number)
    start = min(found[0].number, 1) if found else 0
    for expected, migration in enumerate(found, start):
        if migration.number != expected:
            raise MigrationError(
                f"The {component} migrations go from {expected - 1:04d} to {migration.label}: "
                f"each number must be used once and none left out."
            )
    return found


def upgrade(database: Database, sources: Sequence[tuple[str, Traversable]]) -> dict[str, int]:
    """Apply what is not applied yet, component by component in the order given.

    Several processes may do this at once: each file is applied by one of them.

    Args:
        database: the database, outside of any transaction.
        sources: (component, folder) pairs; ours first.

    Returns:
        The number of the last applied migration of each component that the database has.

    Raises:
        MigrationError: see above. Also when the database is newer than these files.
    """
    earlier: list[str] = []
    for component, folder in sources:
        migrations = read_migrations(component, folder)
        applied = applied_migrations(database).get(component, {})
        _compare(migrations, applied, component)
        for migration in migrations:
            if migration.number not in applied:
                # Ours are linted by the tests; each new file would pay for it again.
                if component != OWN_COMPONENT:
                    refuse_findings(migration, earlier)
                _apply(database, migration)
            earlier.append(migration.sql)
    return schema_numbers(database)


def refuse_findings(migration: Migration, earlier: Sequence[str]) -> None:
    """Lint a migration in a scratch database.

    Args:
        migration: what is to be applied.
        earlier: the texts of all migrations before it.

    Raises:
        MigrationError: it holds what cannot be replicated. The text has a line for each finding.
    """
    findings = lint(migration.sql, earlier=earlier)
    if findings:
        lines = "\n".join(f"- {finding.text}" for finding in findings)
        raise MigrationError(f"{migration.label} was not applied:\n{lines}")


def applied_migrations(database: Database) -> dict[str, dict[int, str]]:
    """Return component -> number -> SHA-256 of what was applied to the database."""
    if not database.query("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'"):
        return {}
    applied: dict[str, dict[int, str]] = {}
    for component, number, sha256 in database.query(
        "SELECT component, number, sha256 FROM schema_migrations ORDER BY component, number"
    ):
        assert isinstance(number, int)
        applied.setdefault(str(component), {})[number] = str(sha256)
    return applied


def schema_numbers(database: Database) -> dict[str, int]:
    """Return the number of the last applied migration of each component."""
    return {component: max(numbers) for component, numbers in applied_migrations(database).items()}


def _compare(migrations: Sequence[Migration], applied: dict[int, str], component: str) -> None:
    """Refuse files that changed after they were applied, and a database that is newer than the files."""
    if applied and (not migrations or max(applied) > migrations[-1].number):
        known = f"{migrations[-1].number:04d}" if migrations else "none"
        raise MigrationError(
            f"The database has {component} migration {max(applied):04d}, this program knows them up to {known}; "
            f"use the newer program that wrote it."
        )
    for migration in migrations:
        if migration.number in applied and applied[migration.number] != migration.sha256:
            raise MigrationError(
                f"{migration.label} has changed since it was applied to this database; "
                f"restore the file and put the change into a new migration."
            )


def _apply(database: Database, migration: Migration) -> None:
    with database.transaction() as transaction:
        transaction.execute(_RECORDS)
        place = (migration.component, migration.number)
        if transaction.execute("SELECT 1 FROM schema_migrations WHERE (component, number) = (?, ?)", place):
            return  # Another process was faster.
        try:
            transaction.execute(migration.sql)
        except (apsw.ConstraintError, apsw.SQLError) as error:
            raise MigrationError(f"{migration.label} failed and was not applied: {error}.") from error
        for table in replicated_tables(transaction.execute):
            guard_primary_key(transaction, table)
        transaction.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, ?, ?)",
            (*place, migration.name, migration.sha256, database.clock_ms()),
        )


def guard_primary_key(transaction: Transaction, table: str) -> None:
    """Create the trigger that refuses to change a primary key of `table`, unless it exists.

    Merges never change a key, so they are not disturbed.
    """
    columns = [
        str(name)
        for (name,) in transaction.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,))
    ]
    changed = " OR ".join(f'NEW."{column}" IS NOT OLD."{column}"' for column in columns)
    transaction.execute(
        f'CREATE TRIGGER IF NOT EXISTS "{table}__pk_guard" BEFORE UPDATE ON "{table}" WHEN {changed} BEGIN '
        f"SELECT RAISE(ABORT, 'a primary key of {table} cannot change: insert a new row and delete the old'); END"
    )
