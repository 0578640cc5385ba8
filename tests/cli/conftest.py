"""The command line in this process, on a database of its own; and a second device that syncs with it."""

import json
import shutil
from dataclasses import dataclass

import pytest
from cli_devices import meet

from leasemesh import Node
from leasemesh.node.cli.app import run


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """What --json printed."""
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of the commands: without a database, in a plain environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("LEASEMESH_DB", "LEASEMESH_TOKEN", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def leasemesh(folder, capsys):
    """Runs a command and returns how it ended."""

    def run_it(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run_it


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    """A folder with the databases that tests copy: making one takes as long as a dozen commands."""
    made = tmp_path_factory.mktemp("templates")
    with Node.open(made / "leasemesh.db", name="laptop", workspace="team") as node, node.transaction():
        for number in range(10):
            node.publish("shop", "orders", f"order-{number}", title=f"Order {number}", payload={"chairs": number})
    meet(made / "leasemesh.db", made / "other.db")
    return made


@pytest.fixture
def database(folder, templates):
    """./leasemesh.db: the device laptop with ten pending events in shop/orders."""
    return copy(templates, "leasemesh.db", folder)


@pytest.fixture
def other(folder, templates):
    """./other.db: the device desktop of the same workspace, which has everything that ./leasemesh.db has."""
    return copy(templates, "other.db", folder)


def copy(templates, name, folder):
    """Copy a database that nobody has open, with what SQLite keeps beside it."""
    for path in templates.glob(f"{name}*"):
        shutil.copy(path, folder)
    return folder / name
