"""The limits: plain APSW with cr-sqlite and the same pragmas, and no leasemesh code.

Publishing: the narrowest replicated row there is, (id, body), one for each event. Reserving and consuming: one
replicated row for each batch, inserted and then updated, and a local table with the status of each event, all by
hand-written SQL: no claims, no ownership, no checks. Catching up and merging: select from crsql_changes in one
process and insert into another database, no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apsw

from benchmarks.measuring import PAYLOAD
from node.connection import connect, disconnect

CHANGES = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'

_SCHEMA = """
CREATE TABLE events (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '{}');
SELECT crsql_as_crr('main', 'events');
CREATE TABLE runs (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '{}');
SELECT crsql_as_crr('main', 'runs');
CREATE TABLE status (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, status INTEGER NOT NULL, run BLOB);
CREATE INDEX status_by_status ON status (status, n);
"""


class RawQueue:
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
