"""leasemesh beside an app whose own modules have the names of our folders.

As a script, by `leasemesh run` and under pytest; with an editable install and with both wheels installed.
"""

import os
import subprocess
import sys

import pytest
from packages import ROOT, installed

APP = """
import sync  # the app's own
import node
from leasemesh import Node, Workflow
from migrations import VERSION

shop = Workflow("shop")
orders = shop.topic("orders")


@shop.consumer(orders)
def pack(run):
    for event in run.events:
        print("packed", event.message_id, sync.NAME, node.NAME, VERSION)


if __name__ == "__main__":
    with Node.open("shop.db", migrations="migrations") as opened:
        opened.publish("shop", "orders", "order-1")
        print(opened.query("SELECT count(*) FROM notes"), opened.peek("shop", "orders")[0].message_id)
        print(sync.NAME, node.NAME, VERSION)
"""

TEST = """
import leasemesh_app
import migrations
import node
import sync


def test_an_order_is_packed(device_lab):
    lab = device_lab(devices=["laptop"], workflows=[leasemesh_app.shop], seed=1)
    lab[0].node.publish("shop", "orders", "order-1")
    lab.settle()
    assert lab[0].node.peek("shop", "orders", status="consumed")
    assert (sync.NAME, node.NAME, migrations.VERSION) == ("my sync", "my node", 7)
"""

CREATE = """
CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL, title TEXT NOT NULL DEFAULT '');
SELECT crsql_as_crr('main', 'notes');
"""


@pytest.fixture
def app(tmp_path):
    """A folder with an app, as its author has it."""
    folder = tmp_path / "app"
    (folder / "migrations").mkdir(parents=True)
    (folder / "migrations/__init__.py").write_text("VERSION = 7\n")
    (folder / "migrations/0001_notes.sql").write_text(CREATE)
    (folder / "sync.py").write_text("NAME = 'my sync'\n")
    (folder / "node.py").write_text("NAME = 'my node'\n")
    (folder / "leasemesh_app.py").write_text(APP)
    (folder / "test_app.py").write_text(TEST)
    return folder


@pytest.fixture(params=["editable", "wheels"])
def python(request, app):
    """Runs Python in the app's folder: with this checkout's editable install, or with both wheels installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if request.param == "wheels":
        environment["PYTHONPATH"] = str(installed())

    def run(*arguments, safe_path=False):
        flags = ["-P"] if safe_path else []
        done = subprocess.run(
            [sys.executable, *flags, *arguments], cwd=app, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("-c", "import leasemesh; print(leasemesh.__file__)", safe_path=True).strip()
    assert where.startswith(str(ROOT if request.param == "editable" else environment["PYTHONPATH"]))
    return run


def test_the_app_runs_as_a_script(python):
    lines = python("leasemesh_app.py").splitlines()
    assert lines == ["[(0,)] order-1", "my sync my node 7"]


def test_the_app_runs_by_leasemesh_run(python, app):
    python("leasemesh_app.py")
    command = "import sys; from leasemesh.node.cli import main; main()"
    arguments = ["run", "leasemesh_app.py", "--db", "shop.db", "--migrations", "migrations", "--until-idle"]
    assert "packed order-1 my sync my node 7" in python("-c", command, *arguments, safe_path=True)


def test_the_app_is_tested_under_pytest(python):
    options = ["-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"]
    assert "1 passed" in python("-m", "pytest", "-q", *options)


def test_nothing_of_ours_is_importable_under_another_name(python):
    program = (
        "import importlib.util, sys; sys.path.remove('') if '' in sys.path else None\n"
        "print([name for name in ('node', 'sync', 'migrations') if importlib.util.find_spec(name)])"
    )
    assert python("-c", program, safe_path=True).strip() == "[]"
