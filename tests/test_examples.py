"""The examples run as they stand, where only leasemesh is installed."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demo_app.ledger import Ledger
from demo_app.mail_server import MailServer
from mail_handlers import EVERYBODY, SUBSCRIBER

from leasemesh import Node

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def environment(**variables):
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


def test_hello_runs_in_ten_lines(tmp_path):
    lines = [line for line in (EXAMPLES / "hello.py").read_text().splitlines() if line]
    assert len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "hello.py"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("Hello {'from': 'ann'}\n[]\n", "")


def test_the_readme_shows_hello_as_it_is():
    assert f"```python\n{(EXAMPLES / 'hello.py').read_text()}```" in (ROOT / "README.md").read_text()


@pytest.fixture
def app(tmp_path):
    """The example's folder, somewhere else, with two files to send."""
    shutil.copytree(EXAMPLES / "mail", tmp_path / "mail", ignore=shutil.ignore_patterns("__pycache__"))
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    (outbox / "first.txt").write_text("one")
    (outbox / "second.txt").write_text("two")
    return tmp_path


async def leasemesh(app, *arguments, **variables):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "leasemesh", *arguments,
        cwd=app, env=environment(LEASEMESH_DB=str(app / "app.db"), **variables),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_the_mail_app_sends_a_letter_for_each_file_and_enters_each_mail(app, within):
    async with within(), MailServer(app) as mail, Ledger(app) as ledger:
        services = {"MAIL_PORT": str(mail.port), "LEDGER_PORT": str(ledger.port), "MAIL_FOLDER": "outbox"}
        await leasemesh(app, "init")
        await leasemesh(app, "run", "mail/app.py", "--until-idle", **services)
        assert (mail.events(SUBSCRIBER), mail.events(EVERYBODY), ledger.entered) == (2, 2, 4)
    with Node.open(app / "app.db") as node:
        assert [counts.by_status for counts in node.events.counts("demo") if counts.topic == "filed"] == [
            {"consumed": 4}
        ]
