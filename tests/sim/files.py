"""The files of simulated devices: migrated templates, copies, backups, and what a crash leaves behind."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import apsw

from node.database import Database
from node.migrate import own_migrations, upgrade

APP = (
    """
CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL, title TEXT NOT NULL DEFAULT '', stars INTEGER NOT NULL DEFAULT 0);
SELECT crsql_as_crr('main', 'notes');
CREATE TABLE batch_rows (id BLOB PRIMARY KEY NOT NULL, body TEXT NOT NULL DEFAULT '');
SELECT crsql_as_crr('main', 'batch_rows');
""",
    """
SELECT crsql_begin_alter('main', 'notes');
ALTER TABLE notes ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';
SELECT crsql_commit_alter('main', 'notes');
CREATE TABLE tags (id BLOB PRIMARY KEY NOT NULL, name TEXT);
SELECT crsql_as_crr('main', 'tags');
""",
)
"""The app's migrations. A device with an older schema has only the first."""

NEWEST = len(APP)


def memory_folder() -> str | None:
    """A folder in memory where there is one: a run writes a few megabytes that nobody needs afterwards."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="leasemesh-sim-", dir=memory_folder())


@cache
def app_migrations(level: int) -> Path:
    """The folder with the first `level` migrations of the app."""
    folder = Path(_folder().name) / f"app-{level}"
    folder.mkdir()
    for number, sql in enumerate(APP[:level], 1):
        (folder / f"{number:04d}_change.sql").write_text(sql)
    return folder


def sources(level: int):
    """What `node.migrate.upgrade` takes, for a schema level."""
    return [own_migrations(), ("app", app_migrations(level))]


@cache
def template(level: int) -> Path:
    """A migrated file, made once in a process: making it takes as long as a third of a short run."""
    path = Path(_folder().name) / f"template-{level}.db"
    database = Database.open(path, clock_ms=lambda: 1, random_bytes=Random(level).randbytes)
    upgrade(database, sources(level))
    database.close()
    return path


def new_file(path: Path, level: int, site: bytes) -> None:
    """Make a device's file: a copy of the template with a site id of its own."""
    shutil.copyfile(template(level), path)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0", (site,)).fetchall()
    connection.close()


def back_up(source: Path, target: Path) -> None:
    """Copy a file that is in use, in one consistent state."""
    origin, copy = apsw.Connection(str(source)), apsw.Connection(str(target))
    with copy.backup("main", origin, "main") as backup:
        backup.step()
    copy.close()
    origin.close()


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def replace_file(path: Path, content: Path) -> None:
    """Put another file in the place of a closed one."""
    _log(path).unlink(missing_ok=True)
    shutil.copyfile(content, path)


class Image:
    """What the disk holds at one moment: the file and its log, committed or not.

    To be taken right before the connections are closed: closing another handle of a file gives up SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = path.read_bytes()
        log = _log(path)
        self._log_content = log.read_bytes() if log.exists() else b""

    def put_back(self) -> None:
        """Make the disk look as it did: the next process recovers from the log, as after a crash."""
        self._path.write_bytes(self._content)
        self._path.with_name(self._path.name + "-shm").unlink(missing_ok=True)
        _log(self._path).write_bytes(self._log_content)
