"""A database in memory that a migration is tried in: what the SQL does is recorded, and the resulting schema can be
read.

cr-sqlite's functions are replaced by ones that record their calls, so that SQL which cr-sqlite would refuse runs to
its end and everything that is wrong with it can be told at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import apsw

_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*'                              # text: no word
    | --[^\n]* | /\*.*?\*/                      # comments
    | "(?P<quoted>(?:[^"]|"")*)" | `(?P<ticked>[^`]*)` | \[(?P<bracketed>[^\]]*)\]
    | (?P<word>[A-Za-z_][A-Za-z0-9_$]*)
    | (?P<sign>[().;])
    """,
    re.VERBOSE | re.DOTALL,
)

# A trigger that names this function in its condition does not run in merges, so it may do what it likes.
MERGE_GUARD = "crsql_internal_sync_bit"


def words(sql: str) -> list[str]:
    """Return the words, names and parentheses of SQL, without comments and text, all in lower case."""
    return [(match[match.lastgroup]).lower() for match in _TOKEN.finditer(sql) if match.lastgroup]


@dataclass(frozen=True, slots=True)
class Column:
    """A column as SQLite reports it. `key` is its place in the primary key, 0 when it is in none."""

    name: str
    declared: str
    not_null: bool
    default: str | None
    key: int
    generated: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A replicated table as it came out.

    Attributes:
        sql: its CREATE statement.
        columns: all, generated ones too.
        unique: name -> origin of each unique index but the primary key's: "u" of a constraint, "c" of CREATE INDEX.
        collations: key column -> collation, where it is not BINARY.
        references: the tables that foreign keys name.
        triggers: name -> CREATE statement.
    """

    name: str
    sql: str
    columns: tuple[Column, ...]
    unique: dict[str, str]
    collations: dict[str, str]
    references: tuple[str, ...]
    triggers: dict[str, str]

    @property
    def keys(self) -> tuple[Column, ...]:
        """The primary key's columns."""
        return tuple(column for column in self.columns if column.key)


@dataclass(frozen=True, slots=True)
class Event:
    """What a statement is about to do, as SQLite asks its authorizer: operation, two arguments, the trigger at work."""

    operation: int
    subject: str | None
    detail: str | None
    trigger: str | None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the migration, with the tables that were open for changes when it ran."""

    sql: str
    events: tuple[Event, ...]
    altering: frozenset[str]


class Scratch:
    """The database, and what the migrations run in it have done.

    Attributes:
        connection: plain SQLite.
        replicated: the tables that are declared to replicate, in the order of that.
        altering: the tables between begin_alter and commit_alter.
        statements, misuse: what `run` recorded: statements, and sentences about wrong calls of cr-sqlite's functions.
        before: the replicated tables before the last `run`.
    """

    def __init__(self) -> None:
        self.connection = apsw.Connection(":memory:")
        self.connection.pragma("foreign_keys", False)
        self.replicated: list[str] = []
        self.altering: set[str] = set()
        self.statements: list[Statement] = []
        self.misuse: list[str] = []
        self.before: dict[str, Table] = {}
        self._events: list[Event] = []
        self._register()

    def close(self) -> None:
        """Drop the database."""
        self.connection.close()

    def run(self, sql: str) -> None:
        """Run a migration and record what it does.

        Raises:
            apsw.Error: SQLite refuses a statement.
        """
        self.before = {table.name: table for table in self.tables()}
        self.statements, self.misuse = [], []
        self.connection.authorizer = self._authorize
        self.connection.exec_trace = self._trace
        try:
            for _ in self.connection.execute(sql):
                pass
        finally:
            self.connection.authorizer = None
            self.connection.exec_trace = None

    def tables(self) -> Iterator[Table]:
        """Read the replicated tables. One that is not there is left out."""
        for name in self.replicated:
            found = self._query("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE", name)
            if found and found[0][0]:
                yield self._read_table(name, found[0][0])

    def writes_of_triggers(self, table: Table) -> list[tuple[str, str]]:
        """Return (trigger, table written) for all that the triggers of `table` set off in a merge, views included.

        Raises:
            apsw.Error: a trigger names something that does not exist.
        """
        events: list[Event] = []
        connection = self.connection
        columns = [_quote(column.name) for column in table.columns if not column.generated]
        name = _quote(table.name)
        connection.execute("SAVEPOINT without_guarded")
        for trigger, sql in table.triggers.items():
            if MERGE_GUARD in words(sql):
                connection.execute(f"DROP TRIGGER {_quote(trigger)}")
        connection.authorizer = lambda *call: self._note(events, *call)
        try:
            values = ", ".join("1" for _ in columns)
            connection.execute(f"EXPLAIN INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})").fetchall()
            connection.execute(f"EXPLAIN UPDATE {name} SET {', '.join(f'{c} = {c}' for c in columns)}").fetchall()
            connection.execute(f"EXPLAIN DELETE FROM {name} WHERE true").fetchall()
        finally:
            connection.authorizer = None
            connection.execute("ROLLBACK TO without_guarded; RELEASE without_guarded").fetchall()
        written = {
            (event.trigger, event.subject)
            for event in events
            if event.trigger and event.subject and event.operation in WRITES
        }
        return sorted(written)

    def _query(self, sql: str, *parameters: str) -> list[tuple[object, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def _read_table(self, name: str, sql: object) -> Table:
        query = self.connection.execute
        columns = tuple(
            Column(column, declared, bool(not_null), default, key, hidden > 1)
            for _, column, declared, not_null, default, key, hidden in query(
                'SELECT cid, name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (name,)
            )
        )
        indexes = query('SELECT name, "unique", origin FROM pragma_index_list(?)', (name,)).fetchall()
        collations: dict[str, str] = {}
        for index in (index for index, _, origin in indexes if origin == "pk"):
            rows = query("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", (index,))
            collations |= {str(column): str(collation) for column, collation in rows}
        return Table(
            name,
            str(sql),
            columns,
            {str(index): str(origin) for index, unique, origin in indexes if unique and origin != "pk"},
            {column: collation for column, collation in collations.items() if collation.upper() != "BINARY"},
            tuple(target for (target,) in query('SELECT DISTINCT "table" FROM pragma_foreign_key_list(?)', (name,))),
            dict(
                query(
                    "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE",
                    (name,),
                )
            ),
        )

    def _authorize(self, *call: object) -> int:
        return self._note(self._events, *call)

    def _note(self, events: list[Event], *call: object) -> int:
        operation, subject, detail, _, trigger = call
        assert isinstance(operation, int)
        events.append(Event(operation, *(None if text is None else str(text) for text in (subject, detail, trigger))))
        return apsw.SQLITE_OK

    def _trace(self, _: apsw.Cursor, sql: str, __: object) -> bool:
        self.statements.append(Statement(sql.strip(), tuple(self._events), frozenset(self.altering)))
        self._events.clear()
        return True

    def _register(self) -> None:
        for name in ("crsql_as_crr", "crsql_begin_alter", "crsql_commit_alter"):
            self.connection.create_scalar_function(name, lambda *a, name=name: self._called(name, *a))
        for name, answer in (
            (MERGE_GUARD, 0), ("crsql_db_version", 0), ("crsql_next_db_version", 1), ("crsql_site_id", bytes(16)),
        ):  # fmt: skip
            self.connection.create_scalar_function(name, lambda *_, answer=answer: answer)

    def _called(self, function: str, *arguments: object) -> str:
        if len(arguments) != 2 or arguments[0] != "main":
            self.misuse.append(f"{function} must be called with two arguments: {function}('main', 'a_table').")
        table = str(arguments[-1]) if arguments else ""
        known = table in self.replicated
        if function == "crsql_as_crr":
            if known:
                self.misuse.append(f"{table} replicates already: leave this {function} out.")
            else:
                self.replicated.append(table)
        elif function == "crsql_begin_alter":
            if not known:
                self.misuse.append(f"{function} names {table}, which does not replicate: call crsql_as_crr instead.")
            self.altering.add(table)
        else:
            if table not in self.altering:
                self.misuse.append(f"{function} names {table} without a crsql_begin_alter before it.")
            self.altering.discard(table)
        return "OK"


WRITES = (apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
