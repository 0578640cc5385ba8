"""Reading a few changes straight from the clock tables of the tables that have them.

`crsql_changes` prepares a union over the clock tables of *all* replicated tables for each query: half a millisecond
with fifteen of them, whatever it returns. A live transfer is a handful of cells of one or two tables. This is the
same query, as cr-sqlite 0.16.3 composes it (rs/core/src/changes_vtab_read.rs), for one table. A test compares both
on random histories.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import apsw

from leasemesh.node.database.versions import Query
from leasemesh.node.replication.changes import SEQUENCE, VERSION, change_bytes
from leasemesh.sync import limits
from leasemesh.sync.ports import Change

ROWS_MAX = 64
"""More changes than this are read through `crsql_changes`, which streams. These are held in memory."""

BYTES_MAX = limits.ROWS_BYTES_MAX
"""So are changes that hold more than this together: one value may have 16 MiB."""

Execute = Callable[..., apsw.Cursor]
"""Runs SQL with its parameters on some connection."""


class ClockTables:
    """Composes the statements once for each state of the schema. The connection must have cr-sqlite loaded."""

    def __init__(self) -> None:
        self._schema_version = -1
        self._statements: dict[str, str] = {}

    def read(
        self,
        execute: Execute,
        tables: frozenset[str],
        start: int,
        end: int,
        *,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> list[Change] | None:
        """Return the changes with start < db_version <= end in the order of (db_version, seq), None when they are many.

        Args:
            execute: reads in the caller's snapshot.
            tables: those that have a change in the range, or more.
            start, end: versions.
            rows_max, bytes_max: more than either are many.
        """

        def query(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
            return execute(sql, *parameters).fetchall()

        ((schema_version,),) = query("PRAGMA schema_version")
        if schema_version != self._schema_version:
            self._schema_version, self._statements = schema_version, {}
        rows: list[Change] = []
        size = 0
        for table in sorted(tables):
            if table not in self._statements:
                self._statements[table] = _compose(query, table)
            with closing(execute(self._statements[table], (start, end))) as cursor:
                for row in cursor:
                    rows.append(row)
                    size += change_bytes(row)
                    if len(rows) > rows_max or size > bytes_max:
                        return None
        return sorted(rows, key=lambda row: (row[VERSION], row[SEQUENCE]))


def _compose(query: Query, table: str) -> str:
    columns = query("SELECT name, pk FROM pragma_table_info(?) ORDER BY pk", (table,))
    keys = [_quoted(name) for name, position in columns if position]
    values = "".join(f" WHEN '{name}' THEN b.{_quoted(name)}" for name, position in columns if not position)
    value = f"CASE c.col_name{values} END" if values else "NULL"
    clock, packed = _quoted(f"{table}__crsql_clock"), ", ".join(f"k.{key}" for key in keys)
    same_row = " AND ".join(f"b.{key} = k.{key}" for key in keys)
    return (
        f"SELECT '{table}', crsql_pack_columns({packed}), c.col_name, {value}, c.col_version, "
        f"c.db_version, s.site_id, coalesce(d.col_version, 1), c.seq FROM {clock} AS c "
        f"CROSS JOIN {_quoted(f'{table}__crsql_pks')} AS k ON k.__crsql_key = c.key "
        "LEFT JOIN crsql_site_id AS s ON s.ordinal = c.site_id "
        f"LEFT JOIN {clock} AS d ON d.key = c.key AND d.col_name = '-1' "
        f"LEFT JOIN {_quoted(table)} AS b ON {same_row} "
        "WHERE c.db_version > ? AND c.db_version <= ?"
    )


def _quoted(name: str) -> str:
    return f'"{name}"'  # The lint lets only letters, digits and underscores into the names of what replicates.
