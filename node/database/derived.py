"""The derived tables: rebuilding them from the facts, and showing that they equal what the triggers made of them.

Status, claims and copies are local and derived; nothing is lost with them. Rebuilding inserts every fact into the
same `absorb_` views that the triggers on the facts use, so there is one derivation and not two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leasemesh.node.database.file import Database, Row

_DERIVED = ("event_index", "event_copies", "run_index", "claims", "duplicates", "permitted_events", "waiting_permits")

_FACTS = (
    (
        "publications",
        "INSERT INTO absorb_publication SELECT id, unhex(body ->> '$.topic_id'), CAST(body ->> '$.at' AS INTEGER), "
        "body -> '$.ids' FROM publications WHERE id = ? AND body <> '{}'",
    ),
    (
        "reservations",
        "INSERT INTO absorb_reservation SELECT id, unhex(body ->> '$.node'), CAST(body ->> '$.at' AS INTEGER), state, "
        "body -> '$.events' FROM reservations WHERE id = ? AND body <> '{}'",
    ),
    ("mutations", "INSERT INTO absorb_outcome SELECT work FROM mutations WHERE id = ? AND work IS NOT NULL"),
    ("permits", "INSERT INTO absorb_permit SELECT id FROM permits WHERE id = ? AND body <> '{}'"),
    (
        "permit_requests",
        "INSERT INTO absorb_permit_request SELECT id FROM permit_requests WHERE id = ? AND body <> '{}'",
    ),
)
"""Reservations bring the outcomes of their own runs; mutations come last for those whose reservation is unknown."""

# What the derived tables say, without the local numbers `n`, which depend on the order in which things arrived.
_SAID: dict[str, str] = {
    "event_index": "SELECT e.id, e.publication, e.position, e.topic, e.at, e.status, e.epoch, r.id "
    "FROM event_index AS e LEFT JOIN run_index AS r ON r.n = e.run",
    "event_copies": "SELECT e.id, c.publication, c.position, c.topic, c.at FROM event_copies AS c "
    "JOIN event_index AS e ON e.n = c.event",
    "run_index": "SELECT id, node, state, effect, at FROM run_index",
    "claims": "SELECT e.id, r.id, c.epoch FROM claims AS c JOIN event_index AS e ON e.n = c.event "
    "JOIN run_index AS r ON r.n = c.run",
    "duplicates": "SELECT e.id FROM duplicates AS d JOIN event_index AS e ON e.n = d.event",
    "permitted_events": "SELECT event, permit FROM permitted_events",
    "waiting_permits": "SELECT run, node, generation FROM waiting_permits",
}


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found.

    Attributes:
        facts: how many facts were read.
        corrected: derived table -> rows that differed from what the facts say; empty when all was right.
    """

    facts: int
    corrected: dict[str, int]


def rebuild(database: Database, progress: Callable[[str, int, int], None] | None = None) -> Rebuilt:
    """Derive everything anew from the facts, in one transaction, and tell what was wrong before.

    Its temporary tables have as many rows as the derived ones; `Database.much_temporary` keeps them out of memory.

    Args:
        database: the database; its writers wait meanwhile.
        progress: called now and then with (table, facts done, facts in all).
    """
    with database.transaction(replicated=False) as transaction:
        for table, said in _SAID.items():
            transaction.execute(f"CREATE TEMP TABLE before_{table} AS {said}")
        for table in _DERIVED:
            transaction.execute(f"DELETE FROM {table}")
        facts = sum(_absorb_all(database, table, sql, progress) for table, sql in _FACTS)
        corrected: dict[str, int] = {}
        for table, said in _SAID.items():
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
