"""Builds a release and tries it: `scripts/release --dry-run`, then the same without.

1. Refuses what is not committed, and versions that do not agree: both projects, the changelog, the tag.
2. Builds both source archives, and the wheels from them.
3. Installs the wheels in a new environment outside the checkout, and runs the tutorial and an example there.

It uploads nothing: that is done by hand, with the commands that it prints.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = (ROOT / "node" / "crsqlite", ROOT)
DIST = ROOT / "dist"


class Refused(Exception):
    """Something stands against a release; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="before the tag is set: build and try, nothing more")
    options = parser.parse_args(arguments)
    try:
        check_committed(git("status", "--porcelain"))
        version = check_versions(projects())
        check_changelog((ROOT / "CHANGELOG.md").read_text(), version, final=not options.dry_run)
        if not options.dry_run:
            check_tag(git("tag", "--points-at", "HEAD").split(), version)
        wheels = build(version)
        try_out(wheels)
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    if options.dry_run:
        say(f"version {version} is good; set the tag v{version}, and run scripts/release")
    else:
        files = " ".join(sorted(f"dist/{path.name}" for path in DIST.iterdir()))
        say(f"upload them: python -m twine upload {files}")
    return 0


def projects() -> list[dict[str, Any]]:
    """Return the project tables of both distributions, that of the extension first."""
    return [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in DISTRIBUTIONS]


def check_versions(projects: Sequence[dict[str, Any]]) -> str:
    """Return the version that both have.

    Raises:
        Refused: they differ, one does not depend on the other, or it is not written as a package index has it.
    """
    extension, leasemesh = (project["version"] for project in projects)
    if extension != leasemesh:
        raise Refused(f"leasemesh-crsqlite is {extension} and leasemesh {leasemesh}; give both the same version")
    try:
        normal = str(Version(leasemesh))
    except InvalidVersion:
        raise Refused(f"{leasemesh!r} is not a version; write it like 0.2.0 or 0.3.0rc1") from None
    if normal != leasemesh:
        raise Refused(f"the version {leasemesh} is written {normal} on an index; write it so in both projects")
    pin = f"leasemesh-crsqlite=={leasemesh}"
    if pin not in projects[1]["dependencies"]:
        raise Refused(f"leasemesh does not depend on {pin}; write that into the dependencies of pyproject.toml")
    return str(leasemesh)


def check_changelog(text: str, version: str, *, final: bool) -> None:
    """Raises Refused: the newest heading of the changelog is another version, or still says that it is unreleased."""
    heading = re.search(r"^## (.+)", text, re.MULTILINE)
    found = heading[1] if heading else "nothing"
    if final and "unreleased" in found:
        raise Refused(f"the changelog says {found}; write the day of the release there")
    if found.split()[0] != version:
        raise Refused(f"the changelog begins with {found}; write what is new in {version} under its heading")


def check_committed(status: str) -> None:
    """Raises Refused: something is not committed."""
    if status.strip():
        raise Refused(f"not committed: {', '.join(line[3:] for line in status.splitlines()[:5])}; commit it first")


def check_tag(tags: Sequence[str], version: str) -> None:
    """Raises Refused: this commit does not have the version's tag."""
    if f"v{version}" not in tags:
        raise Refused(f"this commit has no tag v{version}; set it when the dry run was good: git tag v{version}")


def build(version: str) -> list[Path]:
    """Build both distributions into `dist`, the wheels from the source archives."""
    shutil.rmtree(DIST, ignore_errors=True)
    wheels: list[Path] = []
    for folder in DISTRIBUTIONS:
        name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"].replace("-", "_")
        say(f"building {name} {version} ...")
        run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", DIST], cwd=folder)
        archive = DIST / f"{name}-{version}.tar.gz"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", DIST, archive], cwd=DIST)
        wheels += DIST.glob(f"{name}-{version}-*.whl")
    return wheels


def try_out(wheels: Sequence[Path]) -> None:
    """Install the wheels in a new environment outside the checkout; run an example and the tutorial there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("installing the wheels in a new environment ...")
        run([sys.executable, "-m", "venv", folder / "venv"], cwd=folder)
        python = folder / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, *wheels, "pytest"], cwd=folder)
        say("running examples/hello.py and the tutorial there ...")
        shutil.copy(ROOT / "examples" / "hello.py", folder)
        run([python, "-W", "error", "hello.py"], cwd=folder)
        tests = folder / "tests"
        tests.mkdir()
        shutil.copy(ROOT / "tests" / "test_tutorial.py", tests)
        shutil.copytree(ROOT / "docs", folder / "docs")
        run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], cwd=folder)


def run(command: Sequence[object], *, cwd: Path) -> None:
    """Run a program without this environment's variables for Python; leave with its output when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"PIP_ROOT_USER_ACTION": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        print(result.stdout, file=sys.stderr)
        raise Refused(f"`{Path(str(command[0])).name} {' '.join(map(str, command[1:4]))}` failed; see above")


def git(*arguments: str) -> str:
    """Return what git prints about this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"release: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
