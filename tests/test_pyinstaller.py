"""A program that PyInstaller makes of an app starts where nothing is installed."""

import os
import subprocess
import sys

import pytest
from leasemesh_crsqlite import extension_path
from packages import installed

APP = """
from leasemesh import Node, Run, Workflow, effect
from leasemesh.node.cli import main

with Node.open("app.db", workspace="shop") as node:
    node.publish("shop", "orders", "order-1", title="Frozen")
    with node.reserve("shop", "orders") as work:
        work.consume()
    print(node.workspace_id, node.peek("shop", "orders", status="consumed")[0].title, node.doctor()[1].text)
"""


@pytest.fixture(params=["bundled in the wheel", "named by the variable"])
def extension(request, tmp_path):
    """The variable that the build gets: none, or one that names a file without a record, under a name of its own."""
    if request.param == "bundled in the wheel":
        return {"CRSQLITE_PATH": ""}
    mine = tmp_path / "mine.so"
    mine.write_bytes(extension_path().read_bytes())
    return {"CRSQLITE_PATH": str(mine)}


def test_a_plain_pyinstaller_gives_a_program_that_starts(tmp_path, extension):
    (tmp_path / "app.py").write_text(APP)
    built = subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed()), **extension},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [tmp_path / "dist/app/app"], cwd=empty, env={"HOME": str(empty)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "shop Frozen up to date (leasemesh 4)"), done.stderr
