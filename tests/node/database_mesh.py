"""Random meshes of real databases; in the end all must be equal.

What happens to them: writes, cut transfers, restarts, upgrades, restored backups, clones.

Run many by hand: `python tests/node/database_mesh.py FIRST LAST`. A failing seed fails again: everything random
comes from it.
"""

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from replicas import NOTES, Replica, check_identity, converge, send

OTHER = """
CREATE TABLE items (shelf TEXT NOT NULL, place INTEGER NOT NULL, label TEXT, PRIMARY KEY (shelf, place));
SELECT crsql_as_crr('main', 'items');
"""
NEWER = """
SELECT crsql_begin_alter('main', 'notes');
ALTER TABLE notes ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';
SELECT crsql_commit_alter('main', 'notes');
CREATE TABLE tags (id BLOB PRIMARY KEY NOT NULL, name TEXT);
SELECT crsql_as_crr('main', 'tags');
"""
KEYS = [bytes([number]) * 16 for number in range(8)]


class Mesh:
    """Some replicas with what was done to them. `fired` counts each kind of step, to show that it happened."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.fired: Counter[str] = Counter()
        self.backups: list[tuple[Replica, Path]] = []
        self.replicas = [
            Replica(folder / f"{number}.db", NOTES, OTHER, seed=self.random.getrandbits(64))
            for number in range(self.random.randint(3, 5))
        ]

    def close(self) -> None:
        for replica in self.replicas:
            replica.close()

    def run(self, steps: int) -> None:
        often = [self.write] * 8 + [self.transfer] * 10
        kinds = [*often, self.back_up, self.back_up, self.restart, self.restore, self.clone, self.upgrade]
        for _ in range(steps):
            step = self.random.choice(kinds)
            if step(self.random.choice(self.replicas)):
                self.fired[step.__name__] += 1

    def write(self, replica: Replica) -> bool:
        with replica.database.transaction() as transaction:
            for _ in range(self.random.choice([1, 1, 1, 2, 12])):
                transaction.execute(*self.statement(NEWER in replica.app))
        return True

    def statement(self, is_newer):
        key, number = self.random.choice(KEYS), self.random.randrange(1000)
        fresh = self.random.randbytes(16)
        shelf, place = self.random.choice("ab"), self.random.randrange(4)
        newer = [
            ("UPDATE notes SET colour = ? WHERE id = ?", (f"colour {number}", key)),
            ("INSERT INTO tags VALUES (?, ?)", (fresh, f"tag {number}")),
            ("INSERT OR IGNORE INTO tags VALUES (?, ?)", (key, f"tag {number}")),
            ("DELETE FROM tags WHERE id = ?", (key,)),
        ]
        return self.random.choice(
            newer * is_newer
            + [
                ("INSERT INTO notes (id, title) VALUES (?, ?)", (fresh, f"fresh {number}")),
                ("INSERT OR IGNORE INTO notes (id, title, stars) VALUES (?, ?, ?)", (key, f"shared {number}", number)),
                ("UPDATE notes SET title = ? WHERE id = ?", (f"edited {number}", key)),
                ("UPDATE notes SET stars = stars + 1, title = title || '!' WHERE id = ?", (key,)),
                ("UPDATE notes SET title = title", ()),
                ("DELETE FROM notes WHERE id = ?", (key,)),
                ("INSERT OR IGNORE INTO items VALUES (?, ?, ?)", (shelf, place, f"label {number}")),
                ("UPDATE items SET label = ? WHERE shelf = ?", (f"moved {number}", shelf)),
                ("DELETE FROM items WHERE shelf = ? AND place = ?", (shelf, place)),
            ]
        )

    def transfer(self, sender: Replica) -> bool:
        receiver = self.random.choice([replica for replica in self.replicas if replica is not sender])
        self.meet(sender, receiver)
        pieces_max = self.random.choice([None, None, 1, 2, 3])
        send(sender, receiver, rows_bytes_max=self.random.choice([200, 500, 10**6]), pieces_max=pieces_max)
        return True

    def meet(self, one: Replica, other: Replica) -> None:
        if one.site == other.site:
            # Two that live with one id: the newcomer is refused, and somebody resets its identity.
            other.storage.reidentify()
            self.fired["clone found"] += 1
        sites = one.site, other.site
        check_identity(one, other)
        self.fired["older copy found"] += (one.site, other.site) != sites

    def restart(self, replica: Replica) -> bool:
        replica.restart()
        return True

    def back_up(self, replica: Replica) -> bool:
        path = self.folder / f"backup-{len(self.backups)}"
        copy(replica, path)
        self.backups.append((replica, path))
        return True

    def restore(self, _: Replica) -> bool:
        if not self.backups:
            return False
        replica, path = self.random.choice(self.backups)
        replica.close()
        shutil.copy(path, replica.path)
        replica.open()
        return True

    def clone(self, replica: Replica) -> bool:
        if len(self.replicas) > 6:
            return False
        path = self.folder / f"clone-{len(self.replicas)}.db"
        copy(replica, path)
        self.replicas.append(Replica(path, *replica.app, seed=self.random.getrandbits(64)))
        return True

    def upgrade(self, replica: Replica) -> bool:
        if NEWER in replica.app:
            return False
        self.fired["quarantined before the upgrade"] += replica.quarantined() > 0
        replica.upgrade(NOTES, OTHER, NEWER)
        return True

    def heal(self) -> None:
        """Upgrade all, let all meet until nothing is sent any more, and demand equal content."""
        for replica in self.replicas:
            self.upgrade(replica)
            replica.storage.retry_quarantined()
        for replica in self.replicas:
            for other in self.replicas:
                if replica is not other:
                    self.meet(replica, other)
        converge(*self.replicas)
        digests = [replica.tables() for replica in self.replicas]
        assert all(digest == digests[0] for digest in digests)
        rows = [replica.database.query("SELECT * FROM notes ORDER BY id") for replica in self.replicas]
        assert all(found == rows[0] for found in rows)
        assert len({replica.site for replica in self.replicas}) == len(self.replicas)
        for replica in self.replicas:
            assert replica.database.query("PRAGMA integrity_check") == [("ok",)]
            assert replica.quarantined() == 0


def copy(replica: Replica, path: Path) -> None:
    """Copy the file as a backup program would, in one consistent state."""
    replica.database.query("SELECT 1")
    replica.close()
    shutil.copy(replica.path, path)
    replica.open()


def run_mesh(folder: Path, seed: int, steps: int = 60) -> Counter:
    mesh = Mesh(folder, seed)
    try:
        mesh.run(steps)
        mesh.heal()
    finally:
        mesh.close()
    return mesh.fired


def main(first: int, last: int) -> None:
    fired: Counter = Counter()
    for seed in range(first, last + 1):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            try:
                fired += run_mesh(Path(folder), seed)
            except BaseException:
                sys.stderr.write(f"seed {seed} fails\n")
                raise
    sys.stdout.write(f"{last - first + 1} meshes converged; {dict(fired)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
