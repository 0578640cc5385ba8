"""The script that runs all checks, and the hooks before a commit."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import run_checks

ROOT = Path(__file__).parent.parent
ENTRIES = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())


def test_what_the_quick_run_leaves_out_exists():
    assert [path for path in run_checks.LEFT_OUT_OF_QUICK if not (ROOT / path).exists()] == []
    assert all(run_checks.LEFT_OUT_OF_QUICK.values())


def test_the_quick_run_leaves_it_out_and_passes_other_arguments_on(monkeypatch, capsys):
    given = []
    monkeypatch.setattr("sys.argv", ["run_checks.py", "--quick", "-k", "vector"])
    monkeypatch.setattr(run_checks, "quiet_step", lambda name, command: True)

    def test_step(arguments):
        given.extend(arguments)
        return True, run_checks.TestCounts(3)

    monkeypatch.setattr(run_checks, "test_step", test_step)
    assert run_checks.main() == 0
    assert given[-2:] == ["-k", "vector"]
    assert "--ignore=tests/sim" in given and "--quick" not in given


def test_a_check_that_fails_fails_the_run(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_checks.py"])
    monkeypatch.setattr(run_checks, "QUIET_STEPS", {"lint": ["false"]})
    monkeypatch.setattr(run_checks, "test_step", lambda arguments: (True, run_checks.TestCounts(3)))
    assert run_checks.main() == 1
    assert "Failed: lint" in capsys.readouterr().out


def test_the_hooks_are_the_checks_of_the_quiet_steps():
    assert len(ENTRIES) == len(run_checks.QUIET_STEPS) == 3


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_hook_finds_fault_with_a_bad_file(entry, tmp_path):
    """As pre-commit calls it: from the root, with the files that changed."""
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nx:int = 'a'\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [*entry.split(), *(["--check"] if "format" in entry else []), "bad.py"]
    command[0] = str(ROOT / command[0])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode != 0
    assert "bad.py" in done.stdout + done.stderr
