"""Databases that exchange changes without a network, as the sync engine would let them."""

import itertools
from pathlib import Path
from random import Random

from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import own_migrations, upgrade
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.sync.ports import Incoming, ReadRequest, ReadResult
from leasemesh.sync.version_vector import START

NOTES = """
CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL, title TEXT NOT NULL DEFAULT '', stars INTEGER NOT NULL DEFAULT 0);
SELECT crsql_as_crr('main', 'notes');
"""

_ticks = itertools.count(1)


def write_migrations(folder: Path, *files: str) -> Path:
    """Write files 0001_, 0002_, … into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sql in enumerate(files, 1):
        (folder / f"{number:04d}_change.sql").write_text(sql)
    return folder


class Replica:
    """One device: a file, its database and its storage."""

    def __init__(self, path: Path, *app: str, seed: int | None = None) -> None:
        self.path = path
        self.app = app or (NOTES,)
        self.random = Random(seed)
        self.open()

    def open(self) -> None:
        self.database = Database.open(self.path, clock_ms=lambda: next(_ticks), random_bytes=self.random.randbytes)
        self.upgrade(*self.app)
        self.storage = ChangeStorage(self.database)

    def upgrade(self, *app: str) -> None:
        self.app = app
        folder = write_migrations(self.path.parent / f"{self.path.name}-migrations", *app)
        upgrade(self.database, [own_migrations(), ("app", folder)])

    def close(self) -> None:
        self.storage.close()
        self.database.close()

    def restart(self) -> None:
        self.close()
        self.open()

    @property
    def site(self):
        return self.database.site_id

    def write(self, sql, parameters=()):
        with self.database.transaction() as transaction:
            return transaction.execute(sql, parameters)

    def note(self, title, identifier: bytes | None = None) -> bytes:
        identifier = identifier or self.random.randbytes(16)
        self.write("INSERT INTO notes (id, title) VALUES (?, ?)", (identifier, title))
        return identifier

    def titles(self) -> list[str]:
        return [title for (title,) in self.database.query("SELECT title FROM notes ORDER BY title")]

    def tables(self):
        return self.storage.digest().tables

    def quarantined(self) -> int:
        return self.database.query("SELECT count(*) FROM quarantined")[0][0]


def check_identity(one: Replica, other: Replica) -> None:
    """What both do on Hello: a peer that knows of a history of mine that I do not have tells me to take a new id."""
    for mine, theirs in ((one, other), (other, one)):
        state = mine.storage.state()
        if not state.lineage.owns(theirs.storage.state().vector.entry(state.site), state.version):
            mine.storage.reidentify()


def request(sender: Replica, receiver: Replica) -> ReadRequest:
    mine, theirs = sender.storage.state(), receiver.storage.state()
    known, resume = theirs.vector.entry(mine.site), receiver.storage.resume_point(mine.site)
    entries = ((known.version, known), (resume.version, resume.snapshot), (0, START))
    after = max(version for version, entry in entries if mine.lineage.owns(entry, mine.version))
    return ReadRequest(after, theirs.vector, 0)


def pieces(sender: Replica, receiver: Replica, rows_bytes_max: int = 1000) -> list[ReadResult]:
    """Read a whole transfer; check what the wire demands of every piece."""
    reader = sender.storage.open_reader()
    try:
        results = [reader.begin(request(sender, receiver), rows_bytes_max)]
        while not results[-1].last:
            results.append(reader.read(rows_bytes_max))
    finally:
        reader.close()
    versions = [row[5] for result in results for row in result.rows]
    assert versions == sorted(versions)
    assert not versions or 1 <= versions[0] and versions[-1] <= results[0].header.entry.version
    assert all(result.whole for result in results if result.last)
    assert [result.first for result in results] == [True] + [False] * (len(results) - 1)
    return results


def incoming(sender: Replica, result: ReadResult) -> Incoming:
    return Incoming(sender.site, result.header, result.first, result.rows, result.upto, result.whole, result.last)


def send(sender: Replica, receiver: Replica, *, rows_bytes_max: int = 1000, pieces_max: int | None = None) -> int:
    """Transfer, cut off after `pieces_max` pieces; return how many rows were sent."""
    rows = 0
    for result in pieces(sender, receiver, rows_bytes_max)[:pieces_max]:
        receiver.storage.apply(incoming(sender, result))
        rows += len(result.rows)
    return rows


def exchange(one: Replica, other: Replica) -> int:
    check_identity(one, other)
    return send(one, other) + send(other, one)


def converge(*replicas: Replica) -> None:
    """Exchange in all pairs until nothing more is sent."""
    for _ in range(20):
        if not sum(exchange(one, other) for one, other in itertools.combinations(replicas, 2)):
            return
    raise AssertionError("rows are still sent after 20 rounds")
