"""What a user installs, built once for the tests that need it: both distributions, from their source archives."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SOURCES = {"leasemesh": ROOT, "leasemesh_crsqlite": ROOT / "node" / "crsqlite"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
_folder = TemporaryDirectory()  # until this process ends


def run(*command: object, cwd: Path | str = "/", **variables: str) -> str:
    """Run a program that must succeed, and return what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


@cache
def source_archive(name: str) -> Path:
    """The sdist of a distribution. Hatchling's program builds what is in the folder it is called in."""
    folder = Path(_folder.name) / "sdists" / name
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=SOURCES[name])
    (archive,) = folder.glob("*.tar.gz")
    return archive


@cache
def wheel(name: str) -> Path:
    """The wheel, built from the sdist with what this environment has; the extension comes out of the cache."""
    folder = Path(_folder.name) / "wheels" / name
    # As a program: with `filter=` Python 3.11.2 of Debian 12 fails, and without it Python 3.12 warns.
    run(sys.executable, "-m", "tarfile", "-e", source_archive(name), folder / "source")
    (source,) = (folder / "source").iterdir()
    return build_wheel(source, folder)


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """Build a wheel of a folder or an sdist."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(*PIP, "wheel", source, *options, **variables)
    (built,) = folder.glob("*.whl")
    return built


@cache
def installed() -> Path:
    """A folder with both wheels installed, for PYTHONPATH. What they depend on comes from this environment."""
    folder = Path(_folder.name) / "site"
    wheels = [wheel(name) for name in SOURCES]
    run(*PIP, "install", "--no-deps", "--no-index", "--target", folder, *wheels)
    return folder
