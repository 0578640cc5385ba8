"""Finding what cr-sqlite cannot replicate, before a migration touches a database.

cr-sqlite refuses some tables with a short message, accepts others and loses rows in merges later. Here every rule is a
function with its reason. They judge the *result*: the migration runs in a scratch database, and the rules read what it
did and the schema that came out. When they find nothing, the real cr-sqlite tries the same in a second scratch
database.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import apsw

from leasemesh.node.database.connection import disconnect, load_crsqlite
from leasemesh.node.database.scratch import MERGE_GUARD, Scratch, Table, words

REPLICATED_TABLES_MAX = 400
"""cr-sqlite reads the changes of all tables with one compound SELECT, and SQLite allows 500 terms."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a migration.

    Attributes:
        rule: the name of the rule, for tests and machines.
        text: one sentence that names the table or column and says what to do.
    """

    rule: str
    text: str


def lint(sql: str, *, earlier: Sequence[str] = ()) -> list[Finding]:
    """Find what is wrong with a migration.

    Args:
        sql: the migration's text.
        earlier: the texts of the migrations before it, in order. They are taken to be right.
    """
    return list(_lint(sql, tuple(earlier)))


@lru_cache(maxsize=256)
def _lint(sql: str, earlier: tuple[str, ...]) -> tuple[Finding, ...]:
    scratch = Scratch()
    try:
        for text in earlier:
            scratch.run(text)
        scratch.run(sql)
        tables = list(scratch.tables())
        findings = [Finding(rule.__name__, text) for rule in MIGRATION_RULES for text in rule(scratch)]
        findings += [Finding(rule.__name__, text) for table in tables for rule in TABLE_RULES for text in rule(table)]
        findings += [
            Finding(rule.__name__, text) for table in tables for rule in TRIAL_RULES for text in rule(scratch, table)
        ]
    except apsw.Error as error:
        return (Finding("sql", f"SQLite does not accept this migration: {error}."),)
    finally:
        scratch.close()
    return tuple(findings) or tuple(_try_for_real(sql, earlier))


def _try_for_real(sql: str, earlier: tuple[str, ...]) -> Iterator[Finding]:
    connection = apsw.Connection(":memory:")
    try:
        load_crsqlite(connection, os.urandom)
        for text in (*earlier, sql):
            for _ in connection.execute(f"BEGIN; {text}; COMMIT"):
                pass
    except apsw.Error as error:
        yield Finding("crsqlite", f"cr-sqlite does not accept this migration: {error}.")
    finally:
        disconnect(connection)


# --- Rules about what the migration does -----------------------------------------------------------------------------


def calls(scratch: Scratch) -> Iterator[str]:
    """The one-argument forms of cr-sqlite's functions read beyond their memory, and each has its place."""
    yield from scratch.misuse
    known = {table.name for table in scratch.tables()}
    for name in scratch.replicated:
        if name not in known and name not in scratch.before:
            yield f"crsql_as_crr names {name}, which is no table; spell the name as in its CREATE TABLE."


def unfinished_alter(scratch: Scratch) -> Iterator[str]:
    """Between begin and commit a table has no triggers: left so, it silently stops replicating."""
    for table in sorted(scratch.altering):
        yield f"{table} stays open for changes: end with SELECT crsql_commit_alter('main', '{table}') in the same file."


def alter_outside(scratch: Scratch) -> Iterator[str]:
    """A column that is added outside is not known to the table's triggers, and its values do not replicate."""
    for statement in scratch.statements:
        for event in statement.events:
            table = event.detail
            if event.operation != apsw.SQLITE_ALTER_TABLE or table not in scratch.before:
                continue
            if table not in statement.altering:
                yield (
                    f"ALTER TABLE {table} must stand between SELECT crsql_begin_alter('main', '{table}') "
                    f"and SELECT crsql_commit_alter('main', '{table}')."
                )


def removed(scratch: Scratch) -> Iterator[str]:
    """Peers that have not migrated still send the old name, and cannot use what comes under the new one."""
    now = {table.name: table for table in scratch.tables()}
    for name, before in scratch.before.items():
        if name not in now:
            yield f"{name} replicates and must not be dropped or renamed: leave it, and create another table beside it."
            continue
        columns = {column.name for column in now[name].columns}
        for column in before.columns:
            if column.name not in columns and not column.generated:
                yield f"{name}.{column.name} must not be dropped or renamed: leave it, and add another one."
        if [column.name for column in before.keys] != [column.name for column in now[name].keys]:
            yield f"the primary key of {name} must not change: create another table with the new key."


def transactions(scratch: Scratch) -> Iterator[str]:
    """The file and the record that it was applied are one transaction, which nothing inside may end."""
    forbidden = {
        apsw.SQLITE_TRANSACTION: "BEGIN, COMMIT or ROLLBACK",
        apsw.SQLITE_SAVEPOINT: "SAVEPOINT",
        apsw.SQLITE_ATTACH: "ATTACH",
        apsw.SQLITE_DETACH: "DETACH",
    }
    for statement in scratch.statements:
        for operation in {event.operation for event in statement.events} & forbidden.keys():
            yield f"{forbidden[operation]} must not stand in a migration: each file is one transaction already."
        if words(statement.sql)[:1] == ["pragma"]:
            yield f"{statement.sql} must not stand in a migration: settings belong to connections, not to the schema."


def replacing(scratch: Scratch) -> Iterator[str]:
    """REPLACE deletes and inserts behind cr-sqlite's back: values are lost on peers."""
    replicated = {name.lower() for name in scratch.replicated}
    for statement in scratch.statements:
        tokens = words(statement.sql)
        for index, token in enumerate(tokens):
            into = tokens[index + 1 : index + 3]
            if token == "replace" and (into[:1] == ["into"] or tokens[index - 1 : index] == ["or"]):
                target = next((name for name in into if name in replicated), None)
                if target:
                    yield f"REPLACE on {target}, which replicates: write INSERT … ON CONFLICT DO UPDATE instead."


def changed_keys(scratch: Scratch) -> Iterator[str]:
    """After an UPDATE of a primary key, peers have the new row without its values."""
    keys = {(table.name, column.name) for table in scratch.tables() for column in table.keys}
    for statement in scratch.statements:
        for event in statement.events:
            if event.operation == apsw.SQLITE_UPDATE and (event.subject, event.detail) in keys:
                yield f"{event.subject}.{event.detail} is a primary key and must not be updated: insert a new row."


def too_many_tables(scratch: Scratch) -> Iterator[str]:
    """See REPLICATED_TABLES_MAX."""
    if len(scratch.replicated) > REPLICATED_TABLES_MAX:
        yield (
            f"{len(scratch.replicated)} tables replicate, at most {REPLICATED_TABLES_MAX} can: "
            "put things of one kind together."
        )


# --- Rules about each replicated table -------------------------------------------------------------------------------


def names(table: Table) -> Iterator[str]:
    """cr-sqlite does not quote names everywhere."""
    for name in (table.name, *(f"{table.name}.{column.name}" for column in table.columns)):
        last = name.rpartition(".")[2]
        if not _PLAIN_NAME.fullmatch(last) or "__crsql" in last.lower():
            yield f"{name}: use letters, digits and underscores only in the names of what replicates."


def primary_key(table: Table) -> Iterator[str]:
    """A row is known to peers by its primary key, and by nothing else."""
    if not table.keys:
        yield f"{table.name} has no primary key: give it one, for example id BLOB PRIMARY KEY NOT NULL."
    for column in table.keys:
        if not column.not_null:
            yield f"{table.name}.{column.name} is a primary key that may be NULL: write NOT NULL with it."
    for name, collation in table.collations.items():
        yield f"{table.name}.{name} is a primary key with COLLATE {collation}: cr-sqlite compares keys by their bytes."


def autoincrement(table: Table) -> Iterator[str]:
    """Two devices would give one number to two different rows, which then merge into one."""
    if "autoincrement" in table.sql.lower():
        yield f"{table.name} uses (or mentions) AUTOINCREMENT: use ids that are random or derived from the content."


def defaults(table: Table) -> Iterator[str]:
    """Cells arrive one at a time: a row exists here before its second value has come."""
    for column in table.columns:
        if column.not_null and column.default is None and not column.key:
            if column.generated:
                yield f"{table.name}.{column.name} is generated and NOT NULL: leave NOT NULL out."
            else:
                yield f"{table.name}.{column.name} is NOT NULL without a DEFAULT: add one, or allow NULL."


def unique(table: Table) -> Iterator[str]:
    """Two devices may each write a row that is unique to them. The merge would have to drop one of them."""
    for index, origin in table.unique.items():
        what = "a UNIQUE constraint" if origin == "u" else f"the unique index {index}"
        yield f"{table.name} has {what} besides its primary key: make what must be unique the primary key."


def foreign_keys(table: Table) -> Iterator[str]:
    """Rows arrive in no particular order, the one that is referred to perhaps last or never."""
    for target in table.references:
        yield f"{table.name} has a foreign key to {target}: keep the id in a column, without REFERENCES."


def checks(table: Table) -> Iterator[str]:
    """Cells arrive one at a time: a condition over two columns fails on the way to a state that fulfils it."""
    columns = {column.name.lower() for column in table.columns if not column.key}
    for expression in _check_expressions(table.sql):
        used = [column for column in sorted(columns) if column in expression]
        if len(used) > 1:
            yield f"{table.name} has a CHECK over {' and '.join(used)}: check each column by itself, or in the app."


def _check_expressions(sql: str) -> Iterator[list[str]]:
    tokens = words(sql)
    for start, token in enumerate(tokens):
        if token == "check" and tokens[start + 1 : start + 2] == ["("]:
            depth, end = 1, start + 2
            while depth and end < len(tokens):
                depth += {"(": 1, ")": -1}.get(tokens[end], 0)
                end += 1
            yield tokens[start + 2 : end - 1]


def rollback(table: Table) -> Iterator[str]:
    """RAISE(ROLLBACK) in a merge ends the transaction of a whole piece, and the peer's rows never come in."""
    for name, sql in table.triggers.items():
        tokens = words(sql)
        if any(tokens[index : index + 3] == ["raise", "(", "rollback"] for index in range(len(tokens))):
            yield f"trigger {name} on {table.name} raises ROLLBACK: raise ABORT, so that the row alone is refused."


# --- Rules that try something in the scratch database ----------------------------------------------------------------


def triggers(scratch: Scratch, table: Table) -> Iterator[str]:
    """Triggers run in merges too, and what they write there to a replicated table is not recorded as a change."""
    replicated = {name.lower() for name in scratch.replicated}
    for trigger, target in scratch.writes_of_triggers(table):
        if target.lower() in replicated:
            yield (
                f"trigger {trigger} writes {target} when {table.name} changes, also in merges, where that does not "
                f"replicate: write to a table that is not replicated, or add WHEN {MERGE_GUARD}() = 0."
            )


def defaults_fulfil_checks(scratch: Scratch, table: Table) -> Iterator[str]:
    """The first cell of a row that arrives creates the row, with the default in every other column."""
    keys = {column.name.lower() for column in table.keys}
    if not keys or "check" not in words(table.sql):
        return
    columns = ", ".join(f'"{column.name}"' for column in table.keys)
    for value in ("zeroblob(16)", "1", "'x'", "1.5"):
        values = ", ".join([value] * len(keys))
        problem = _check_that_fails(scratch, f'INSERT INTO "{table.name}" ({columns}) VALUES ({values})')
        if problem is None:
            return
        if problem and not keys & set(words(problem)):
            yield f"{table.name}: a default does not fulfil CHECK ({problem}): allow it there, or choose another."
            return


def _check_that_fails(scratch: Scratch, insert: str) -> str | None:
    """Return the text of the CHECK that refuses a row of defaults. Empty when something else refuses it."""
    scratch.connection.execute("SAVEPOINT defaults")
    triggers = scratch.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    try:
        for (trigger,) in triggers:
            scratch.connection.execute(f'DROP TRIGGER "{trigger}"')
        scratch.connection.execute(insert)
    except apsw.ConstraintError as error:
        return str(error).partition("CHECK constraint failed: ")[2]
    except apsw.MismatchError:
        return ""
    finally:
        scratch.connection.execute("ROLLBACK TO defaults; RELEASE defaults").fetchall()
    return None


MIGRATION_RULES: tuple[Callable[[Scratch], Iterator[str]], ...] = (
    calls,
    unfinished_alter,
    alter_outside,
    removed,
    transactions,
    replacing,
    changed_keys,
    too_many_tables,
)
TABLE_RULES: tuple[Callable[[Table], Iterator[str]], ...] = (
    names,
    primary_key,
    autoincrement,
    defaults,
    unique,
    foreign_keys,
    checks,
    rollback,
)
TRIAL_RULES: tuple[Callable[[Scratch, Table], Iterator[str]], ...] = (
    triggers,
    defaults_fulfil_checks,
)
