"""The set-up script, where something is missing and where all is there. What it installs is proven by its use."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bare_checkout(tmp_path):
    """A checkout without .venv, and a PATH on which there is a user who is not root, and no Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout" / "scripts")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    program(folder, "id", "echo 1000")
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def set_up(place: Path) -> tuple[int, str]:
    result = subprocess.run(
        [place / "checkout/scripts/setup"], env={"PATH": str(place / "bin")}, capture_output=True, text=True
    )
    assert result.stdout == ""
    return result.returncode, result.stderr


def test_no_python_is_one_sentence(bare_checkout):
    assert set_up(bare_checkout) == (
        1,
        "setup: Python 3.11 or newer is needed and was not found; "
        "install it (Debian 12: apt-get install python3 python3-venv).\n",
    )


def test_old_python_is_as_good_as_none(bare_checkout):
    program(bare_checkout / "bin", "python3", 'case "$2" in *"(3, 11)"*) exit 1 ;; esac; exit 0')
    assert "Python 3.11 or newer is needed" in set_up(bare_checkout)[1]


def test_newer_python_under_another_name_is_found(bare_checkout):
    program(bare_checkout / "bin", "python3", "exit 1")
    program(bare_checkout / "bin", "python3.12", '[ "$1" = scripts/set_up.py ] && exit 7; exit 0')
    assert set_up(bare_checkout) == (7, "")


def test_python_without_its_venv_module_is_one_sentence(bare_checkout):
    program(
        bare_checkout / "bin",
        "python3",
        'case "$2" in *ensurepip*) exit 1 ;; *version_info\\[:2\\]*) echo 3.11 ;; esac; exit 0',
    )
    assert set_up(bare_checkout) == (
        1,
        "setup: python3 cannot make virtual environments; "
        "install its venv module (Debian: apt-get install python3.11-venv).\n",
    )


def test_set_up_that_is_done_says_nothing():
    result = subprocess.run([ROOT / "scripts/setup"], env=os.environ, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_command_is_installed():
    assert (ROOT / ".venv/bin/leasemesh").is_file()
