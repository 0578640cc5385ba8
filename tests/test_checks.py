"""The script that runs all checks, and the hooks before a commit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import run_checks

ROOT = Path(__file__).parent.parent
ENTRIES = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())

CONFIGURATION = """
[tool.ruff]
line-length = 120
[tool.ruff.lint]
select = ["F"]
[tool.mypy]
strict = true
files = ["."]
"""


@pytest.fixture
def checkout(tmp_path):
    """A small checkout with the script, this environment, and a test that is slow by its folder's name."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/run_checks.py", tmp_path / "scripts")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "pyproject.toml").write_text(CONFIGURATION)
    (tmp_path / "tests/sim").mkdir(parents=True)
    (tmp_path / "tests/test_quick.py").write_text("def test_quick() -> None:\n    pass\n")
    (tmp_path / "tests/sim/test_slow.py").write_text("def test_slow() -> None:\n    pass\n")
    return tmp_path


def run(checkout, *arguments):
    done = subprocess.run(
        [sys.executable, "scripts/run_checks.py", "-n0", "-p", "no:cacheprovider", *arguments],
        cwd=checkout, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_what_the_quick_run_leaves_out_exists():
    assert [path for path in run_checks.LEFT_OUT_OF_QUICK if not (ROOT / path).exists()] == []
    assert all(run_checks.LEFT_OUT_OF_QUICK.values())


def test_everything_is_run_and_counted(checkout):
    code, printed = run(checkout)
    assert (code, printed.splitlines()[-1]) == (0, "2 passed, 0 failed")
    assert "Every check passed: format, lint, types, tests" in printed


def test_each_check_that_fails_is_named_and_fails_the_run(checkout):
    (checkout / "tests/test_bad.py").write_text('import os\nx: int  =  "a"\ndef test_it() -> None:\n    assert False\n')
    code, printed = run(checkout, "--quick")
    assert code == 1
    assert re.search(r"^Failed: (.*) \(", printed, re.MULTILINE)[1] == "format, lint, types, tests"
    assert printed.splitlines()[-1] == "1 passed, 1 failed"


def test_the_hooks_are_the_steps_of_the_script():
    steps = [[part.removeprefix(f"{ROOT}/") for part in command[:2]] for command in run_checks.QUIET_STEPS.values()]
    assert [entry.split()[:2] for entry in ENTRIES] == steps


@pytest.mark.parametrize(
    ("entry", "text"), [*zip(ENTRIES, ["x  =  1\n", "import os\n", 'x: int = "a"\n'], strict=True)]
)
def test_each_hook_finds_fault_with_a_bad_file(checkout, entry, text):
    """As pre-commit calls it: from the root, the first two with the files that changed."""
    bad = checkout / "bad.py"
    bad.write_text(text)
    files = [] if "mypy" in entry else ["bad.py"]
    done = subprocess.run([*entry.split(), *files], cwd=checkout, capture_output=True, text=True)
    assert done.returncode != 0 or bad.read_text() != text  # a formatter mends it, which pre-commit takes for a failure
