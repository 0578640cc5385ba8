"""Where the extension lies, and whether the file there is the one that was put there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from .errors import CrsqliteMissing

VERSION = "0.16.3"
ENTRY_POINT = "sqlite3_crsqlite_init"

# Part of the cache's path. Raise it whenever the way of building changes what comes out: old builds are then not used.
RECIPE = 2

_HOW_TO_GET = "run `python -m leasemesh_crsqlite get`, or set CRSQLITE_PATH to a cr-sqlite 0.16.3 file that you trust"

# (inode, size, modification time) of files whose checksum this process has compared already, by path.
_verified: dict[Path, tuple[int, int, int]] = {}


@dataclass(frozen=True)
class Record:
    """What lies beside a stored extension: which file it must be, and how it was got."""

    sha256: str
    origin: str


def extension_path() -> Path:
    """Return the extension that a connection should load.

    Costs a few stat calls. The first call of a process also reads the file once to compare its checksum.

    Raises:
        CrsqliteMissing: there is none, or it is not the file that was stored there.
    """
    if explicit := os.environ.get("CRSQLITE_PATH"):
        path = Path(explicit).expanduser().absolute()
        if not path.is_file():
            raise CrsqliteMissing(f"CRSQLITE_PATH names {path}, which is not a file; correct it or unset it.")
        return path
    for path in (bundled_path(), cached_path()):
        if _is_stored(path):
            return path
    raise CrsqliteMissing(f"The cr-sqlite extension is not on this machine; {_HOW_TO_GET}.")


def bundled_path() -> Path:
    """Where the wheel carries the extension."""
    return Path(__file__).parent / "bundled" / library_name()


def cached_path() -> Path:
    """Where `acquire` keeps the extension for this user."""
    return cache_directory() / library_name()


def cache_directory() -> Path:
    """The per-user folder of this version, recipe and platform. It need not exist."""
    return platformdirs.user_cache_path("leasemesh") / f"crsqlite-{VERSION}-{RECIPE}-{platform_name()}"


def record_path(library: Path) -> Path:
    """The file beside `library` that holds its Record."""
    return library.with_name(library.name + ".json")


def library_name() -> str:
    """The extension's file name on this operating system."""
    return {"darwin": "crsqlite.dylib", "win32": "crsqlite.dll"}.get(sys.platform, "crsqlite.so")


def platform_name() -> str:
    """This platform as the release archives name it, such as `linux-x86_64`.

    A Linux with another C library than glibc is named `linux-musl-...`: the releases do not run there.
    """
    system = {"win32": "win"}.get(sys.platform, sys.platform)
    if system == "linux" and platform.libc_ver()[0] != "glibc":
        system = "linux-musl"
    machine = platform.machine().lower()
    return f"{system}-{ {'amd64': 'x86_64', 'arm64': 'aarch64', 'x86': 'i686'}.get(machine, machine) }"


def store(library: Path, origin: str, directory: Path) -> Path:
    """Put a copy of `library` with its record into `directory` and return its new path.

    Each file appears whole or not at all. The record goes first, so that a crash in between leaves a record without a
    file, which counts as no extension, and never a file without a record.
    """
    content = library.read_bytes()
    record = Record(sha256=hashlib.sha256(content).hexdigest(), origin=origin)
    directory.mkdir(parents=True, exist_ok=True)
    destination = directory / library_name()
    _write_whole(record_path(destination), json.dumps(asdict(record)).encode() + b"\n", mode=0o644)
    _write_whole(destination, content, mode=0o755)
    return destination


def store_for_bundle(library: Path, where: str, directory: Path) -> Path:
    """Put a copy of `library` into `directory` under the name that a program looks for, and return its new path.

    Its record keeps how the library was got, and adds `where` it is bundled. What CRSQLITE_PATH names has no record.

    Raises:
        CrsqliteMissing: the record is not there or not readable.
    """
    origin = "named by CRSQLITE_PATH" if os.environ.get("CRSQLITE_PATH") else read_record(library).origin
    return store(library, f"{origin}, bundled in {where}", directory)


def read_record(library: Path) -> Record:
    """Read what is recorded about a stored extension.

    Raises:
        CrsqliteMissing: the record is not there or not readable.
    """
    path = record_path(library)
    try:
        fields = json.loads(path.read_bytes())
        return Record(sha256=str(fields["sha256"]), origin=str(fields["origin"]))
    except (OSError, ValueError, TypeError, KeyError):
        raise CrsqliteMissing(f"{library} has no readable record {path.name} beside it; {_HOW_TO_GET}.") from None


def _is_stored(path: Path) -> bool:
    """Whether `path` exists. Raises CrsqliteMissing when it is not what its record says."""
    try:
        status = path.stat()
    except OSError:
        return False
    signature = (status.st_ino, status.st_size, status.st_mtime_ns)
    if _verified.get(path) == signature:
        return True
    if hashlib.sha256(path.read_bytes()).hexdigest() != read_record(path).sha256:
        raise CrsqliteMissing(f"{path} is not the file that was stored there (its SHA-256 differs); {_HOW_TO_GET}.")
    _verified[path] = signature
    return True


def _write_whole(path: Path, content: bytes, *, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
