"""The limits: what is measured here is plain APSW with cr-sqlite. leasemesh only makes the schema beforehand, and opens
the connections, with the pragmas that it uses itself.

`Statements` writes the same rows into the same schema, its triggers included: nothing is checked, looked up or
returned. That is the limit that publishing, reserving and consuming are held to. `Handmade` is a queue without
ownership in the fewest columns that replicate: one row (id, body) for each event, one for each batch that is taken,
and a local table of status; it shows what the rule, the claims and the derived tables cost. Catching up, merging and
seeing what a peer published: select from crsql_changes and insert into another database, one process, no network.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apsw

from benchmarks.measuring import PAYLOAD, TOPIC, WORKFLOW, database
from leasemesh.node.database.connection import connect, disconnect
from leasemesh.node.stores.events.publications import EVENTS_MAX

CHANGES = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'

_SCHEMA = """
CREATE TABLE events (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '{}');
SELECT crsql_as_crr('main', 'events');
CREATE TABLE runs (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '{}');
SELECT crsql_as_crr('main', 'runs');
CREATE TABLE status (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, status INTEGER NOT NULL, run BLOB);
CREATE INDEX status_by_status ON status (status, n);
"""


class Statements:
    """The statements that the stores run, on the real schema."""

    def __init__(self, path: Path, topic: bytes | None = None) -> None:
        with database(path):
            pass
        self._connection: apsw.Connection = connect(path)
        self.topic = topic or os.urandom(16)
        self._time = time.time_ns() // 1_000_000 << 16

    def close(self) -> None:
        """Close the connection."""
        disconnect(self._connection)

    def publish(self, first: int, count: int) -> None:
        """Insert events as publications, one transaction."""
        with self._connection:
            for start in range(first, first + count, EVENTS_MAX):
                numbers = range(start, min(start + EVENTS_MAX, first + count))
                body = {
                    "workflow": WORKFLOW,
                    "topic": TOPIC,
                    "topic_id": self.topic.hex(),
                    "at": self._next_time(len(numbers)),
                    "ids": [os.urandom(16).hex() for _ in numbers],
                    "events": [
                        {"message_id": f"<m-{n}>", "title": f"Message {n}", "payload": PAYLOAD} for n in numbers
                    ],
                }
                self._insert("publications", body)

    def take_and_settle(self, count: int) -> int:
        """Reserve `count` events in one transaction and consume them in another."""
        self._connection.execute("BEGIN IMMEDIATE")
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT id FROM event_index WHERE topic = ? AND status = 0 ORDER BY at LIMIT ?", (self.topic, count)
        ).fetchall()
        run = self._insert(
            "reservations",
            {
                "node": "00" * 16,
                "incarnation": "",
                "workflow": WORKFLOW,
                "handler": "raw",
                "at": self._next_time(1),
                "events": [f"{identifier.hex()}@1" for (identifier,) in rows],
            },
        )
        self._connection.execute("COMMIT")
        with self._connection:
            self._connection.execute("UPDATE reservations SET state = 'settled 3 consumed' WHERE id = ?", (run,))
        return len(rows)

    def _insert(self, table: str, body: dict[str, Any]) -> bytes:
        # Ordered ids, as the stores make them.
        identifier = (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)
        self._connection.execute(f"INSERT INTO {table} (id, body) VALUES (?, ?)", (identifier, json.dumps(body)))
        return identifier

    def _next_time(self, count: int) -> int:
        self._time += count
        return self._time


class Handmade:
    """A queue by hand on one connection."""

    def __init__(self, path: Path) -> None:
        new = not path.exists()
        self._connection: apsw.Connection = connect(path)
        if new:
            with self._connection:
                self._connection.execute(_SCHEMA).fetchall()

    def close(self) -> None:
        """Close the connection."""
        disconnect(self._connection)

    def publish(self, first: int, count: int) -> None:
        """Insert events, one transaction."""
        rows = [
            (os.urandom(16), json.dumps({"message_id": f"<m-{n}>", "title": f"Message {n}", "payload": PAYLOAD}))
            for n in range(first, first + count)
        ]
        with self._connection:
            self._connection.executemany("INSERT INTO events VALUES (?, ?)", rows)

    def make_pending(self, count: int) -> None:
        """Fill the status table."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO status (id, status) VALUES (?, 0)", ((os.urandom(16),) for _ in range(count))
            )

    def take_and_settle(self, count: int) -> int:
        """Reserve `count` events in one transaction and consume them in another."""
        run = os.urandom(16)
        self._connection.execute("BEGIN IMMEDIATE")
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT n, id FROM status WHERE status = 0 ORDER BY n LIMIT ?", (count,)
        ).fetchall()
        body = {"state": "held", "events": [identifier.hex() for _, identifier in rows]}
        self._connection.execute("INSERT INTO runs VALUES (?, ?)", (run, json.dumps(body)))
        self._connection.executemany("UPDATE status SET status = 1, run = ? WHERE n = ?", [(run, n) for n, _ in rows])
        self._connection.execute("COMMIT")
        body["state"] = "consumed"
        with self._connection:
            self._connection.execute("UPDATE runs SET body = ? WHERE id = ?", (json.dumps(body), run))
            self._connection.executemany("UPDATE status SET status = 3 WHERE n = ?", [(n,) for n, _ in rows])
        return len(rows)


class Copier:
    """Merges one file's changes into another, each time what is new. A context manager."""

    def __init__(self, source: Path, target: Path) -> None:
        self._reading, self._writing = connect(source), connect(target)
        self._after = 0

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        disconnect(self._reading)
        disconnect(self._writing)

    def copy(self) -> None:
        """Merge all changes since the last time, in one transaction."""
        rows = self._reading.execute(
            f"SELECT {CHANGES} FROM crsql_changes WHERE db_version > ? ORDER BY db_version, seq", (self._after,)
        )
        with self._writing:
            self._writing.executemany(
                f"INSERT INTO crsql_changes ({CHANGES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._noting_version(rows)
            )

    def _noting_version(self, rows: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        for row in rows:
            self._after = row[5]
            yield row


def copy_changes(source: Path, target: Path) -> None:
    """Merge all changes of one database into another, in one transaction, without network."""
    with Copier(source, target) as copier:
        copier.copy()
