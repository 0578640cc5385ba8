"""The layer rule: which module may import what, read from the code itself.

Nothing of the product imports `node.testing`, which ships for the tests of apps. `sync` decides and `node` does. The
core of `sync` is pure (no sockets, no clock, no chance, no SQL), so that a simulator can drive it; SQL stays out of
its edges; the database side of `node` never waits on a network; and the name of cr-sqlite's virtual table is known to
one module.
"""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

NETWORK = {"asyncio", "select", "selectors", "socket", "ssl", "websockets"}
SQL = {"apsw", "sqlite3"}
INPUT_OUTPUT = NETWORK | SQL | {
    "concurrent", "ctypes", "multiprocessing", "os", "pathlib", "shutil", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip
CHANCE_AND_CLOCK = {"datetime", "random", "secrets", "uuid"}
DATABASE_MODULES = {
    "leasemesh.node.replication.storage", "leasemesh.node.replication.clock_tables", "leasemesh.node.database.connection", "leasemesh.node.database.file", "leasemesh.node.database.derived", "leasemesh.node.replication.identity",
    "leasemesh.node.replication.version_vectors", "leasemesh.node.database.lint", "leasemesh.node.database.migrate", "leasemesh.node.replication.quarantine", "leasemesh.node.database.scratch", "leasemesh.node.work.staleness",
    "leasemesh.node.replication.staging", "leasemesh.node.work.starting", "leasemesh.node.stores", "leasemesh.node.database.versions",
}  # fmt: skip

RULES_OF_THE_RUNTIME = (
    "attempt", "beginning", "choosing", "context", "effects", "errors", "manager", "recovery", "retry", "schedule",
    "script", "workflow",
)  # fmt: skip

# The first pattern that a module's path matches decides. What no row names may import anything.
FORBIDDEN_IMPORTS: dict[str, set[str]] = {
    "sync/drivers/loop.py": SQL | {"node"},
    "sync/drivers/dialler.py": SQL | {"node"},
    "sync/drivers/websocket.py": SQL | {"node"},
    "sync/drivers/workers.py": SQL | {"node"},
    "sync/*.py": INPUT_OUTPUT | CHANCE_AND_CLOCK | {"node"},
    "node/model/leases.py": INPUT_OUTPUT | DATABASE_MODULES,
    "node/model/ids.py": INPUT_OUTPUT | DATABASE_MODULES,
    "node/model/clock.py": INPUT_OUTPUT | DATABASE_MODULES,
    **{f"{name.replace('.', '/')}.py": NETWORK for name in sorted(DATABASE_MODULES - {"leasemesh.node.stores"})},
    "node/stores/*.py": NETWORK,
    # Rules of the runtime: pure. The rest runs in virtual time too, so its clock is the event loop's and the node's.
    **{f"node/runtime/{name}.py": INPUT_OUTPUT | {"random", "secrets", "uuid"} for name in RULES_OF_THE_RUNTIME},
    "node/runtime/*.py": SQL | {"websockets", "socket", "select", "time", "datetime", "secrets", "uuid", "os"},
}
CHANGES_TABLE = "crsql_changes"
MAY_NAME_CHANGES_TABLE = {"node/replication/reading.py", "node/replication/merging.py"}
FOR_TESTS = "leasemesh.node.testing"


def python_modules() -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix() for package in ("node", "sync") for path in ROOT.glob(f"{package}/**/*.py")
    )


def violations(module: str, source: str) -> list[str]:
    """What `module`, a path such as `sync/wire.py` with this source, does against the rule."""
    tree = ast.parse(source)
    forbidden = next((names for pattern, names in FORBIDDEN_IMPORTS.items() if fnmatch(module, pattern)), set())
    found = [f"{module} imports {name}" for name in imported_names(tree, module) if prefixes(name) & forbidden]
    if not module.startswith("node/testing/"):
        found += [f"{module} imports {name}" for name in imported_names(tree, module) if FOR_TESTS in prefixes(name)]
    if module not in MAY_NAME_CHANGES_TABLE and any(CHANGES_TABLE in text for text in strings_that_are_used(tree)):
        found.append(f"{module} names {CHANGES_TABLE}, which is for {sorted(MAY_NAME_CHANGES_TABLE)} alone")
    return found


def imported_names(tree: ast.Module, module: str) -> Iterator[str]:
    """The dotted names of what is imported, relative imports resolved: `from .a import b` in node/c.py is node.a.b."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            package = module.split("/")[: -statement.level] if statement.level else []
            origin = [*package, *([statement.module] if statement.module else [])]
            yield from (".".join([*origin, alias.name]) for alias in statement.names)


def prefixes(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[: length + 1]) for length in range(len(parts))}


def strings_that_are_used(tree: ast.Module) -> Iterator[str]:
    """All string constants (those inside f-strings too) but docstrings, which are statements of their own."""
    mentioned = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in mentioned:
            yield node.value


def test_the_table_of_layers_names_every_module_of_sync_and_every_folder_of_node():
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("## Layers")[2].partition("`tests/test_layers.py`")[0]
    named = {name.strip("/") for name in re.findall(r"`([\w/]+)`", table)}
    modules = {path.stem for path in ROOT.glob("sync/*.py")} - {"__init__"}
    folders = {f"node/{path.parent.name}" for path in ROOT.glob("node/*/__init__.py")}
    assert (modules | folders) - named == set()


@pytest.mark.parametrize("module", python_modules())
def test_module_keeps_to_its_layer(module):
    assert violations(module, (ROOT / module).read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sync/engine.py", "import time"),
        ("sync/engine.py", "def now():\n    from random import random\n    return random()"),
        ("sync/some_new_module.py", "import asyncio.queues"),
        ("sync/drivers/loop.py", "from node.changes import ChangeSource"),
        ("sync/drivers/websocket.py", "import apsw"),
        ("node/stores/events.py", "import websockets.sync.client"),
        ("node/execution/script.py", "import asyncio"),
        ("node/execution/manager.py", "import apsw"),
        ("node/runtime/loops.py", "import time"),
        ("node/replication/storage.py", "import asyncio"),
        ("node/model/leases.py", "import os"),
        ("node/model/leases.py", "from node import database"),
        ("node/model/clock.py", "from .database import connect"),
        ("node/node.py", "from node.testing.lab import DeviceLab"),
        ("node/stores/events.py", "from .. import nothing; from asyncio import run"),
        ("node/database/file.py", 'SQL = "SELECT 1 FROM crsql_changes"'),
        ("sync/engine.py", 'table = 1\nsql = f"SELECT {table} FROM crsql_changes"'),
    ],
)
def test_rule_finds_a_module_that_breaks_it(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sync/engine.py", '"""What crsql_changes means here."""\nimport struct'),
        ("sync/drivers/loop.py", "import asyncio, time"),
        ("node/replication/reading.py", 'import apsw\nSQL = "SELECT 1 FROM crsql_changes"'),
        ("node/authoring/schedule.py", "from datetime import datetime"),
        ("node/runtime/loops.py", "import asyncio\nfrom random import Random"),
        ("node/node.py", "import asyncio\nfrom sync.loop import Loop"),
    ],
)
def test_rule_accepts_a_module_that_keeps_it(module, source):
    assert violations(module, source) == []


def test_folders_of_tests_can_be_collected_in_any_order():
    modules = [path for path in (ROOT / "tests").rglob("*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in modules if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
    for path in modules:  # there are several; which one is found depends on the order
        imported = imported_names(ast.parse(path.read_text()), path.name)
        assert not any("conftest" in prefixes(name) for name in imported), path
