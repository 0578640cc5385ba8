"""The documentation is built, nothing in it leads nowhere, and every public name is in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leasemesh
import leasemesh.testing

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "node/crsqlite/README.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def build(folder, *, site):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", site],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, site=folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert pages == {
        "index.html", "tutorial.html", "modes.html", "devices.html", "commands.html", "architecture.html",
        "contributing.html", "changelog.html",
        *(f"api/{name}.html" for name in ("node", "work", "workflows", "testing", "errors")),
    }  # fmt: skip


def test_the_reference_has_what_the_docstrings_say(site):
    text = re.sub(r"<[^>]+>", "", (site / "api/node.html").read_text())
    assert "Reserve events and begin work on them" in text  # a method of Node
    assert "Begin to exchange changes with other nodes" in text  # one that it inherits
    assert "publish one event" in text  # one that it binds


def test_the_commands_are_those_of_the_program(site):
    assert "leasemesh dead-letters" in (site / "commands.html").read_text()


def test_every_public_name_is_in_the_reference():
    shown = re.findall(
        r"^::: leasemesh\.(\w+|testing\.\w+)$",
        "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md")),
        re.MULTILINE,
    )
    lab = {f"testing.{name}" for name in vars(leasemesh.testing) if name[0].isupper()}
    assert sorted(shown) == sorted({*leasemesh.__all__, *lab})


def test_a_page_that_leads_nowhere_fails_the_build(tmp_path):
    for name in ("docs", "scripts", "leasemesh"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "crsqlite"))
    for name in ("mkdocs.yml", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    modes, errors = tmp_path / "docs/modes.md", tmp_path / "docs/api/errors.md"
    before = modes.read_text(), errors.read_text()
    modes.write_text(f"{before[0]}\n[nowhere](nowhere.md) [no heading](tutorial.md#no-such-heading)\n")
    for path in (tmp_path / "docs/api").glob("*.md"):  # the reference takes longest
        path.write_text("# A page\n")
    done = build(tmp_path, site=tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr and "no-such-heading" in done.stderr
    modes.write_text(before[0])
    errors.write_text("::: leasemesh.NoSuchName\n")
    done = build(tmp_path, site=tmp_path / "site")
    assert done.returncode != 0
    assert "NoSuchName" in done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_between_documents_lead_somewhere(document):
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []
