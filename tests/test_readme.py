"""What the README and the page about devices show works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs/devices.md"]
COMMANDS = sorted(
    {name for page in PAGES for name in re.findall(r"^\$ leasemesh ([a-z-]+)", page.read_text(), re.MULTILINE)}
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leasemesh", command, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_code_of_the_page_about_devices_runs(tmp_path: Path) -> None:
    start, tables = re.findall(r"```python\n(.*?)```", PAGES[1].read_text(), re.DOTALL)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations/0001_notes.sql").write_text("CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL)")
    program = (
        "import asyncio\nfrom leasemesh import Node\n\n\n"
        'async def main():\n    node = Node.open("start.db")\n    node.publish("inbox", "mail", "1", title="Hello")\n'
        + "".join(f"    {line}\n" for line in start.splitlines())
        + "    node.close()\n\n\nasyncio.run(main())\n"
        + f"{tables.replace('Node.open', 'opened = Node.open')}opened.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("Hello\n", "")
