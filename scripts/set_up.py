"""The part of `scripts/setup` that runs once a Python is found. Standard library only.

Rule: `.venv/.ready` names the fingerprint of everything that the environment was made from, is removed before the
environment changes and written when it is whole. So a run that was cut off leaves an environment without it, and the
next run makes it anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
READY = VENV / ".ready"
PYTHON = VENV / "bin" / "python"
DISTRIBUTIONS = (ROOT / "node" / "crsqlite", ROOT)
"""What the checkout builds, in the order in which it is installed."""
LOCK = ROOT / "scripts" / "requirements.txt"
OUTPUT_LINES_SHOWN = 15


def main() -> int:
    with one_at_a_time():
        fingerprint = environment_fingerprint()
        if stored_fingerprint() != fingerprint or not PYTHON.exists():
            make_environment(fingerprint)
        # A step of its own, because the extension lives in a cache outside the checkout, which may come and go.
        return subprocess.run(
            [str(PYTHON), "-m", "leasemesh_crsqlite", "get", "--install-tools", "--quiet"], cwd=ROOT
        ).returncode


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the checkout's lock; the lock goes with the process, so a killed run leaves none behind."""
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def environment_fingerprint() -> str:
    """Hash of what the environment depends on: the lock, the project files, the Python, and the checkout's place."""
    digest = hashlib.sha256()
    projects = [(folder / "pyproject.toml").read_bytes() for folder in DISTRIBUTIONS]
    for part in (LOCK.read_bytes(), *projects, sys.version.encode(), os.fsencode(ROOT)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def stored_fingerprint() -> str:
    try:
        return READY.read_text()
    except FileNotFoundError:
        return ""


def make_environment(fingerprint: str) -> None:
    if READY.exists() and python_works():
        READY.unlink()
    else:
        shutil.rmtree(VENV, ignore_errors=True)
        step("making .venv", [sys.executable, "-m", "venv", str(VENV)])
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    step("installing the locked dependencies", [*pip, "--require-hashes", "--requirement", str(LOCK)])
    editable = [part for folder in DISTRIBUTIONS for part in ("--editable", str(folder))]
    step("installing leasemesh", [*pip, "--no-deps", "--no-build-isolation", *editable])
    READY.write_text(fingerprint)


def python_works() -> bool:
    """Whether .venv still has a working pip under this very Python; an upgrade of the system's Python breaks it."""
    check = f"import pip, sys; sys.exit(sys.version != {sys.version!r})"
    try:
        return subprocess.run([str(PYTHON), "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def step(title: str, command: Sequence[str]) -> None:
    """Run a command that may take long, telling so; show the end of its output and leave when it fails."""
    say(f"{title} ...")
    begin = time.monotonic()
    environment = os.environ | {"PIP_ROOT_USER_ACTION": "ignore"}
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        lines = result.stdout.decode(errors="replace").splitlines()
        print("\n".join(lines[-OUTPUT_LINES_SHOWN:]), file=sys.stderr)
        sys.exit(f"setup: {title} failed; its last lines are above. Run scripts/setup again once that is put right.")
    say(f"{title}: {time.monotonic() - begin:.1f} s")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the next run goes on from here.")
