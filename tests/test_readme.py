"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^\$ leasemesh ([a-z-]+)", README, re.MULTILINE)))


def test_the_first_example_runs_as_it_stands(tmp_path: Path) -> None:
    example = README.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "Hello {'from': 'ann@example.com'}\n"
    assert (tmp_path / "laptop.db").exists()


def test_the_handlers_of_the_readme_can_be_declared_as_they_stand() -> None:
    example = README.split("```python\n")[3].split("```")[0]
    assert "mail.consumer" in example
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{example}\nmail.check()"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leasemesh", command, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    missing = [target for target in targets if not (Path(__file__).parent.parent / target).exists()]
    assert missing == []
