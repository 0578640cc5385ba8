"""Examines a database: is the file whole, does the schema fit, is every fact from its own writer, is what is derived
right?

Nothing is repaired but the derived tables, and those only on request: they are made anew from the facts, which are
never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from leasemesh.node.database.connection import DatabaseDamaged
from leasemesh.node.database.derived import Rebuilt, rebuild
from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import own_migrations, read_migrations, schema_numbers
from leasemesh.node.database.tables import ONE_WRITER_TABLES
from leasemesh.node.replication.quarantine import count_quarantined
from leasemesh.sync.ports import DatabaseDigest

PROBLEMS_SHOWN_MAX = 10

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one examination.

    Attributes:
        name: what was examined.
        healthy: whether it is as it should be.
        text: what was found, one sentence.
    """

    name: str
    healthy: bool
    text: str


def examine(database: Database, *, progress: Progress | None = None) -> list[Finding]:
    """Examine a database. Changes nothing.

    Args:
        database: the database. Its writers wait while the derived tables are compared.
        progress: called now and then with (table, facts done, facts in all).
    """
    file = _file(database)
    if not file.healthy:
        return [file]  # What the others would find in a damaged file says nothing.
    return [
        file,
        _schema(database),
        _writers(database),
        _derived(database, progress),
        _quarantined(database),
    ]


def combined(digest: DatabaseDigest) -> str:
    """Return one digest of all tables, 32 hexadecimal characters. Equal on nodes that have converged."""
    together = hashlib.blake2b(digest_size=16)
    for name, table in sorted(digest.tables.items()):
        if table.cells:
            together.update(f"{name} {table.cells} {table.digest.hex()}\n".encode())
    return together.hexdigest()


def _file(database: Database) -> Finding:
    try:
        said = [str(row[0]) for row in database.query(f"PRAGMA integrity_check({PROBLEMS_SHOWN_MAX})")]
    except DatabaseDamaged as error:  # so badly that SQLite cannot even tell where
        return Finding("file", False, str(error))
    if said == ["ok"]:
        return Finding("file", True, "SQLite finds no damage")
    return Finding("file", False, f"damaged: {'; '.join(said)}. Restore a backup, or begin a new file and let it sync")


def _schema(database: Database) -> Finding:
    numbers = schema_numbers(database)
    component, folder = own_migrations()
    newest = read_migrations(component, folder)[-1].number
    shown = ", ".join(f"{name} {number}" for name, number in sorted(numbers.items()))
    if numbers.get(component) == newest:
        return Finding("schema", True, f"up to date ({shown})")
    return Finding("schema", False, f"{shown}; this program knows {component} {newest}")


def _writers(database: Database) -> Finding:
    foreign: dict[str, int] = {}
    for table in ONE_WRITER_TABLES:
        ((count,),) = database.query(
            f'SELECT count(DISTINCT t.id) FROM "{table}" AS t JOIN "{table}__crsql_pks" AS k ON k.id = t.id '
            f'JOIN "{table}__crsql_clock" AS c ON c.key = k.__crsql_key '
            "JOIN crsql_site_id AS s ON s.ordinal = c.site_id "
            "WHERE c.col_name <> '-1' AND t.body <> '{}' AND lower(hex(s.site_id)) IS NOT t.body ->> '$.node'"
        )
        if count:
            foreign[table] = count
    if not foreign:
        return Finding("writers", True, "every row was written by the device that it names as its writer")
    shown = ", ".join(f"{count:,} in {table}" for table, count in foreign.items())
    return Finding("writers", False, f"rows that another device wrote: {shown}; find out which program does that")


def _derived(database: Database, progress: Progress | None) -> Finding:
    rebuilt = _rebuild_and_undo(database, progress)
    if not rebuilt.corrected:
        return Finding("derived", True, f"status and claims follow from the facts ({rebuilt.facts:,})")
    shown = ", ".join(f"{count:,} rows of {table}" for table, count in rebuilt.corrected.items())
    return Finding("derived", False, f"wrong: {shown}; leasemesh doctor --rebuild makes them anew")


class _Undo(Exception):
    """Ends a transaction without keeping it."""


def _rebuild_and_undo(database: Database, progress: Progress | None) -> Rebuilt:
    results: list[Rebuilt] = []
    with suppress(_Undo), database.much_temporary(), database.transaction(replicated=False):
        results.append(rebuild(database, progress))
        raise _Undo
    return results[0]


def _quarantined(database: Database) -> Finding:
    counts = count_quarantined(database.query)
    if not counts:
        return Finding("quarantined", True, "every change that came could be merged")
    shown = "; ".join(f"{one.rows:,} because {one.reason}" for one in counts)
    return Finding("quarantined", True, f"{shown}. They wait for an upgrade, and are passed on meanwhile")
