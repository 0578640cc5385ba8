"""The derived tables: rebuilding them from the facts, and showing that they equal what the triggers made of them.

Status, claims and copies are local and derived. Nothing is lost with them. Rebuilding inserts every fact into the
same `absorb_` views that the triggers on the facts use, so there is one derivation and not two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leasemesh.node.database.file import Database, Row
from leasemesh.node.database.tables import TABLES

_CONTENT = {table.name: table.content for table in TABLES if table.content}
_DERIVE = {table.name: table.derive for table in TABLES if table.derive}


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found.

    Attributes:
        facts: how many facts were read.
        corrected: derived table -> rows that differed from what the facts say. Empty when all was right.
    """

    facts: int
    corrected: dict[str, int]


def rebuild(database: Database, progress: Callable[[str, int, int], None] | None = None) -> Rebuilt:
    """Derive everything anew from the facts, in one transaction, and tell what was wrong before.

    Its temporary tables have as many rows as the derived ones. `Database.much_temporary` keeps them out of memory.

    Args:
        database: the database. Its writers wait meanwhile.
        progress: called now and then with (table, facts done, facts in all).
    """
    with database.transaction(replicated=False) as transaction:
        for table, said in _CONTENT.items():
            transaction.execute(f"CREATE TEMP TABLE before_{table} AS {said}")
        for table in _CONTENT:
            transaction.execute(f"DELETE FROM {table}")
        facts = sum(_absorb_all(database, table, sql, progress) for table, sql in _DERIVE.items())
        corrected: dict[str, int] = {}
        for table, said in _CONTENT.items():
            count = sum(
                transaction.execute(f"SELECT count(*) FROM ({first} EXCEPT {second})")[0][0]
                for first, second in ((said, f"SELECT * FROM before_{table}"), (f"SELECT * FROM before_{table}", said))
            )
            if count:
                corrected[table] = count
            transaction.execute(f"DROP TABLE before_{table}")
    return Rebuilt(facts, corrected)


def _absorb_all(database: Database, table: str, sql: str, progress: Callable[[str, int, int], None] | None) -> int:
    with database.transaction(replicated=False) as transaction:
        identifiers: list[Row] = transaction.execute(f"SELECT id FROM {table} ORDER BY id")
        for done, identifier in enumerate(identifiers, 1):
            transaction.execute(sql, identifier)
            if progress and (done % 256 == 0 or done == len(identifiers)):
                progress(table, done, len(identifiers))
    return len(identifiers)
