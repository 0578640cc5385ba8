"""The rules of the architecture that a machine can check.

Which folder may import what stands in pyproject.toml, as contracts of import-linter. Here they are run, and broken once
on a copy to show that each can fail. What they cannot express follows: no circle of imports, the one name of
cr-sqlite's table, the one import name, and a sentence for each folder.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("leasemesh", "node", "sync", "migrations")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

CHANGES_TABLE = "crsql_changes"
MAY_NAME_CHANGES_TABLE = {"node/replication/merging.py", "node/replication/reading.py"}

BREAKING = {
    "Each room of node imports only those below it": ("node/stores/base.py", "import leasemesh.node.host"),
    "sync decides and does not know node": ("sync/drivers/loop.py", "import leasemesh.node.model.ids"),
    "The core of sync is pure: no sockets, threads, files, clock or chance": ("sync/engine.py", "import time"),
    "The model is pure": ("node/model/leases.py", "import os"),
    "What reads and writes the file never waits for a network": ("node/database/file.py", "import asyncio"),
    "The rules of a run have no threads, no files, no clock and no chance": (
        "node/execution/manager.py",
        "def later():\n    import threading",
    ),
    "They await nothing": ("node/execution/script.py", "import asyncio"),
    "The runtime's clock is the event loop's, and its chance the node's": ("node/runtime/loops.py", "import time"),
    "The product does not import what is for tests": ("node/cli/app.py", "import leasemesh.node.testing.lab"),
}
"""For each contract a line that breaks it, and the module that it is written into."""


def check_contracts(folder: Path) -> tuple[int, dict[str, bool]]:
    """Run import-linter on the package in a folder: its exit code, and whether each contract was kept."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    kept = {name: f"{name} KEPT" in done.stdout for name in CONTRACTS}
    assert all(f"{name} KEPT" in done.stdout or f"{name} BROKEN" in done.stdout for name in CONTRACTS), done.stdout
    return done.returncode, kept


def test_all_contracts_are_kept():
    assert check_contracts(ROOT) == (0, dict.fromkeys(CONTRACTS, True))


def test_each_contract_can_be_broken(tmp_path):
    assert set(BREAKING) == set(CONTRACTS)
    shutil.copytree(ROOT / "leasemesh", tmp_path / "leasemesh", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in BREAKING.values():
        with (tmp_path / "leasemesh" / module).open("a") as file:
            file.write(f"\n{line}\n")
    assert check_contracts(tmp_path) == (1, dict.fromkeys(CONTRACTS, False))


def test_there_is_no_circle_of_imports():
    """Imports inside functions and those for types only count too."""
    graph = grimp.build_graph("leasemesh", cache_dir=None)
    assert len(graph.modules) > 150
    TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules}).prepare()


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def modules(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def violations(module: str, source: str) -> list[str]:
    """What a module, a path such as `sync/wire.py`, does against the other rules."""
    tree = ast.parse(source)
    found = [
        f"{module} imports {name}, which is leasemesh.{name}"
        for name in imported_names(tree)
        if name.partition(".")[0] in PACKAGES[1:]
    ]
    inside = module.partition("/")[0] in PACKAGES
    if inside and module not in MAY_NAME_CHANGES_TABLE and any(CHANGES_TABLE in text for text in used_strings(tree)):
        found.append(f"{module} names {CHANGES_TABLE}, which is for {', '.join(sorted(MAY_NAME_CHANGES_TABLE))} alone")
    return found


def imported_names(tree: ast.Module) -> Iterator[str]:
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            yield statement.module


def used_strings(tree: ast.Module) -> Iterator[str]:
    """All string constants (those inside f-strings too) but docstrings, which are statements of their own."""
    mentioned = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in mentioned:
            yield node.value


def test_every_module_keeps_to_the_other_rules():
    found = modules("node", "sync", "migrations", "scripts", "tests", "examples")
    assert len(found) > 200
    assert [problem for module in found for problem in violations(module, (ROOT / module).read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("node/node.py", "from sync.engine import Engine"),
        ("tests/test_layers.py", "def later():\n    import node.stores"),
        ("scripts/set_up.py", "from migrations import nothing"),
        ("node/database/file.py", 'SQL = "SELECT 1 FROM crsql_changes"'),
        ("sync/engine.py", 'table = 1\nsql = f"SELECT {table} FROM crsql_changes"'),
    ],
)
def test_the_other_rules_find_a_module_that_breaks_them(module, source):
    assert len(violations(module, source)) == 1


def test_the_other_rules_accept_a_module_that_keeps_them():
    source = '"""What crsql_changes means here."""\nfrom leasemesh.sync import wire\nfrom .node import x'
    assert violations("sync/engine.py", source) == []
    assert violations("node/replication/reading.py", 'SQL = "SELECT 1 FROM crsql_changes"') == []


def test_every_room_says_what_belongs_there_and_architecture_names_it():
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `([\w/]+)`", table, re.MULTILINE))
    rooms = {Path(module).parent.as_posix() for module in modules(*PACKAGES) if module.endswith("__init__.py")}
    assert rooms == named
    for room in rooms:
        text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
        assert len(text.split()) > 8 and (room == "leasemesh" or "belong" in text), room


def test_folders_of_tests_can_be_collected_in_any_order():
    paths = [path for path in (ROOT / "tests").rglob("*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in paths if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
    for path in paths:  # there are several; which one is found depends on the order
        assert not any(name.endswith("conftest") for name in imported_names(ast.parse(path.read_text()))), path
