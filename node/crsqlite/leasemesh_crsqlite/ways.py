"""Getting the extension by the first way that works."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .build import build_library
from .errors import ChecksumMismatch, CrsqliteError, CrsqliteMissing, WayFailed
from .locate import ENTRY_POINT, VERSION, cache_directory, cached_path, extension_path, library_name, store
from .release import download_library
from .source import fetch_source
from .tools import Tell, require_build_tools, run


def acquire(*, sha256: str | None = None, install_tools: bool = False, tell: Tell) -> Path:
    """Return the extension's path, getting it first when it is not on this machine.

    Several processes may call this at the same time: one works, the others wait for it.

    Args:
        sha256: the checksum of the release archive, by the user's word. See `release.download_library`.
        install_tools: on Debian as root, install missing compilers with apt-get.
        tell: called with one line of progress before anything that takes long.

    Raises:
        CrsqliteError: no way works. The message says why, way by way, and what to do.
    """
    try:
        return extension_path()
    except CrsqliteMissing:
        if os.environ.get("CRSQLITE_PATH"):
            raise
    with _cache_to_ourselves(tell):
        try:
            return extension_path()  # Another process may have got it while we waited.
        except CrsqliteMissing as missing:
            if cached_path().exists():
                tell(str(missing))
        with _workspace() as workspace:
            library, origin = _first_way_that_works(workspace, sha256, install_tools, tell)
            store(library, origin, cache_directory())
    return extension_path()


def build_anew(*, install_tools: bool = False, tell: Tell) -> Path:
    """Build the extension from source and put it in the cache, whatever is there already.

    Raises:
        CrsqliteError: it cannot be built here. The message says why.
    """
    with _cache_to_ourselves(tell), _workspace() as workspace:
        try:
            library, origin = _build(workspace, install_tools, tell)
        except WayFailed as error:
            raise CrsqliteError(f"cr-sqlite {VERSION} cannot be built: {error}.") from None
        return store(library, origin, cache_directory())


def _first_way_that_works(workspace: Path, sha256: str | None, install_tools: bool, tell: Tell) -> tuple[Path, str]:
    try:
        return _download(workspace, sha256, tell), "official release"
    except WayFailed as error:
        not_downloaded = error
        if isinstance(error, ChecksumMismatch):
            tell(f"Warning: {error}; it was thrown away unopened.")
    try:
        return _build(workspace, install_tools, tell)
    except WayFailed as not_built:
        raise CrsqliteError(
            f"The cr-sqlite extension could not be got: the download failed because {not_downloaded}; the build failed "
            f"because {not_built}; put one of the two right, or set CRSQLITE_PATH to a cr-sqlite {VERSION} file "
            "that you trust."
        ) from None


def _download(workspace: Path, sha256: str | None, tell: Tell) -> Path:
    tell(f"downloading the cr-sqlite {VERSION} release ...")
    library = workspace / library_name()
    library.write_bytes(download_library(sha256=sha256))
    _check_loads(library)
    return library


def _build(workspace: Path, install_tools: bool, tell: Tell) -> tuple[Path, str]:
    if not sys.platform.startswith("linux"):
        raise WayFailed("building from source is only known to work on Linux")
    require_build_tools(install=install_tools, tell=tell)
    source = fetch_source(workspace, tell)
    library, locked = build_library(source, workspace, install_tools=install_tools, tell=tell)
    _check_loads(library)
    return library, "built from source" if locked else "built from source, with Debian's crates"


def _check_loads(library: Path) -> None:
    """Load the library in a process of its own: it may need a newer C library than this machine's, or crash."""
    code = f"import ctypes, sys; ctypes.CDLL(sys.argv[1]).{ENTRY_POINT}"
    try:
        run([sys.executable, "-c", code, str(library)])
    except WayFailed as error:
        raise WayFailed(f"{library.name} does not load on this machine: {error}") from None


@contextmanager
def _cache_to_ourselves(tell: Tell) -> Iterator[None]:
    root = cache_directory().parent
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "crsqlite.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        tell("waiting for another process that is getting the cr-sqlite extension ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder beside the cache, which unlike /tmp may surely hold programs that run. Clears what a killed run left."""
    root = cache_directory().parent
    for left_over in root.glob("building-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=root) as path:
        yield Path(path)
