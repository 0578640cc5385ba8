"""What cr-sqlite's clock tables say about a file: the replicated tables, its version, what changed since a version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Query = Callable[..., list[tuple[Any, ...]]]
"""Runs SQL with its parameters on some connection and returns all rows."""


class _Statements(NamedTuple):
    """Composed for one state of the schema. Immutable, because threads share it."""

    schema_version: int
    tables: tuple[str, ...]
    version_sql: str
    changed_sql: str


class StoredVersions:
    """Reads the clock tables of one file. Composes its SQL once for each state of the schema.

    Every method takes the `query` to read with, so that it reads in the caller's snapshot or transaction.
    """

    def __init__(self) -> None:
        self._statements = _Statements(-1, (), "", "")

    def tables(self, query: Query) -> tuple[str, ...]:
        """Return the names of the tables that replicate, sorted."""
        return self._current(query).tables

    def version(self, query: Query) -> int:
        """Return the greatest version stored in the file, 0 before the first replicated write."""
        ((version,),) = query(self._current(query).version_sql)
        return int(version)

    def tables_changed_since(self, query: Query, version: int) -> frozenset[str]:
        """Return the replicated tables that have a change above `version`. Costs an index look-up for each table."""
        return frozenset(table for (table,) in query(self._current(query).changed_sql, (version,)))

    def _current(self, query: Query) -> _Statements:
        ((schema_version,),) = query("PRAGMA schema_version")
        statements = self._statements
        if statements.schema_version != schema_version:
            statements = _compose(int(schema_version), replicated_tables(query))
            self._statements = statements
        return statements


def replicated_tables(query: Query) -> tuple[str, ...]:
    """Return the names of the tables that replicate, sorted, as `query` sees them."""
    sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '*__crsql_clock' ORDER BY name"
    return tuple(str(name).removesuffix("__crsql_clock") for (name,) in query(sql))


def _compose(schema_version: int, tables: tuple[str, ...]) -> _Statements:
    # Compacting after a schema change can remove the rows with the greatest version; cr-sqlite keeps the number then.
    terms = ["SELECT CAST(value AS INTEGER) AS version FROM crsql_master WHERE key = 'pre_compact_dbversion'"]
    terms += [f'SELECT max(db_version) FROM "{table}__crsql_clock"' for table in tables]
    changed = [
        f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM \"{table}__crsql_clock\" WHERE db_version > ?1)"
        for table in tables
    ]
    return _Statements(
        schema_version,
        tables,
        f"SELECT coalesce(max(version), 0) FROM ({' UNION ALL '.join(terms)})",
        " UNION ALL ".join(changed) or "SELECT NULL WHERE ?1 IS NULL",
    )
