"""The files of simulated devices: copies, backups, and what a crash leaves behind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import apsw


def memory_folder() -> str | None:
    """A folder in memory where there is one: a run writes a few megabytes that nobody needs afterwards."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one world's files."""
    return tempfile.TemporaryDirectory(prefix="leasemesh-lab-", dir=memory_folder())


def back_up(source: Path, target: Path) -> None:
    """Copy a file that is in use, in one consistent state."""
    origin, copy = apsw.Connection(str(source)), apsw.Connection(str(target))
    with copy.backup("main", origin, "main") as backup:
        backup.step()
    copy.close()
    origin.close()


def set_site_id(path: Path, site: bytes) -> None:
    """Make a copy of a file that nothing was written to yet a file of its own."""
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0", (site,)).fetchall()
    connection.close()


def replace_file(path: Path, content: Path) -> None:
    """Put a copy of another file in the place of a closed one."""
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


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
