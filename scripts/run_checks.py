"""Runs every check of the project, all of them even when one fails, and ends with one sentence.

Arguments go to pytest. The exit code is 0 only when everything passed, and when pytest ran at least one test. With
--quick, what takes long is left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


QUIET_STEPS = {
    "format": [str(BIN / "ruff"), "format", "--check", "--quiet", "--diff", "."],
    "lint": [str(BIN / "ruff"), "check", "--quiet", "."],
    "types": [str(BIN / "mypy")],
}

LEFT_OUT_OF_QUICK = {
    "tests/crash": "kills processes, again and again",
    "tests/sim": "thousands of simulated seeds",
    "tests/cli": "a process for each command",
    "tests/node/runtime": "handlers on whole devices",
    "tests/node/stores": "every rule of the SQL, on real files",
    "tests/node/test_meshes.py": "random meshes",
    "tests/node/test_mesh_engine.py": "random meshes",
    "tests/node/test_rough_links.py": "bad networks",
    "tests/node/test_slow_links.py": "slow networks",
    "tests/node/test_testing_lab.py": "whole devices in virtual time",
    "tests/node/test_testing_example.py": "the same",
    "tests/sync/test_fuzzing.py": "damaged messages by the thousand",
    "tests/test_benchmarks.py": "runs each benchmark once",
    "tests/test_beside_other_code.py": "builds wheels",
    "tests/test_checks.py": "runs this script",
    "tests/test_demo.py": "three processes and their services",
    "tests/test_demo_services.py": "the demo's services",
    "tests/test_docs.py": "builds the documentation",
    "tests/test_examples.py": "runs apps",
    "tests/test_packaging.py": "builds wheels",
    "tests/test_pyinstaller.py": "builds a program",
    "tests/test_tutorial.py": "types the whole tutorial",
}
"""What `--quick` leaves out, and what takes long there."""

ON_ALL_CORES = ("--numprocesses=auto", "--dist=loadfile")
"""Each file by one process: what a module's fixtures make is made once. `-n0` among the arguments undoes it."""


@dataclass(frozen=True)
class TestCounts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def main() -> int:
    begin = time.monotonic()
    failed = [name for name, command in QUIET_STEPS.items() if not quiet_step(name, command)]
    arguments = sys.argv[1:]
    if "--quick" in arguments:
        arguments.remove("--quick")
        arguments += [f"--ignore={path}" for path in LEFT_OUT_OF_QUICK]
    tests_passed, counts = test_step(arguments)
    if not tests_passed:
        failed.append("tests")
    seconds = f"{time.monotonic() - begin:.0f} s"
    if failed:
        print(f"\nFailed: {', '.join(failed)} ({seconds}); what is wrong is shown above.")
    else:
        print(f"\nEvery check passed: format, lint, types, tests ({seconds}).")
    print(counts)
    return 1 if failed else 0


def quiet_step(name: str, command: Sequence[str]) -> bool:
    """Run one check, show its output only when it fails, and return whether it passed."""
    begin = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed = result.returncode == 0
    if not passed:
        print(result.stdout)
    report(name, passed, begin)
    return passed


def test_step(arguments: Sequence[str]) -> tuple[bool, TestCounts]:
    """Run pytest with its output as it comes and return whether it passed, and its counts."""
    begin = time.monotonic()
    print("check: tests ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [str(BIN / "python"), "-m", "pytest", *ON_ALL_CORES, f"--junit-xml={results}", *arguments]
        status = subprocess.run(command, cwd=ROOT).returncode
        counts = read_counts(results)
    report("tests", status == 0, begin)
    return status == 0, counts


def read_counts(results: Path) -> TestCounts:
    """Read pytest's own counts. None at all when it could not even start."""
    if not results.exists():
        return TestCounts(failed=1)
    passed = failed = skipped = 0
    for suite in ElementTree.parse(results).iter("testsuite"):
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        left_out = int(suite.get("skipped", 0))
        passed += int(suite.get("tests", 0)) - bad - left_out
        failed += bad
        skipped += left_out
    return TestCounts(passed, failed, skipped)


def report(name: str, passed: bool, begin: float) -> None:
    print(f"check: {name} {'passed' if passed else 'FAILED'} ({time.monotonic() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
