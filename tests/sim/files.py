"""The files that simulated devices begin with: the app's migrations, and migrated templates."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from random import Random

from leasemesh import Node
from leasemesh.node.machine.environment import Environment
from leasemesh.node.testing.files import memory_folder, set_site_id
from sim.params import WORKSPACE

APP = (
    """
CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL, title TEXT NOT NULL DEFAULT '', stars INTEGER NOT NULL DEFAULT 0);
SELECT crsql_as_crr('main', 'notes');
CREATE TABLE batch_rows (id BLOB PRIMARY KEY NOT NULL, body TEXT NOT NULL DEFAULT '');
SELECT crsql_as_crr('main', 'batch_rows');
""",
    """
SELECT crsql_begin_alter('main', 'notes');
ALTER TABLE notes ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';
SELECT crsql_commit_alter('main', 'notes');
CREATE TABLE tags (id BLOB PRIMARY KEY NOT NULL, name TEXT);
SELECT crsql_as_crr('main', 'tags');
""",
)
"""The app's migrations. A device with an older schema has only the first."""

NEWEST = len(APP)

TEMPLATE_SITE = b"leasemesh template"[:16]


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="leasemesh-sim-", dir=memory_folder())


@cache
def app_migrations(level: int) -> Path:
    """The folder with the first `level` migrations of the app."""
    folder = Path(_folder().name) / f"app-{level}"
    folder.mkdir()
    for number, sql in enumerate(APP[:level], 1):
        (folder / f"{number:04d}_change.sql").write_text(sql)
    return folder


@cache
def template(level: int) -> Path:
    """A migrated file, made once in a process: making it takes as long as a third of a short run."""
    path = Path(_folder().name) / f"template-{level}.db"
    environment = Environment(clock_ms=lambda: 1, random_bytes=Random(level).randbytes)
    Node.open(path, workspace=WORKSPACE, migrations=app_migrations(level), environment=environment).close()
    set_site_id(path, TEMPLATE_SITE)
    return path


@cache
def _content(level: int) -> bytes:
    return template(level).read_bytes()


def new_file(path: Path, level: int, site: bytes) -> None:
    """Make a device's file: a copy of the template with a site id of its own."""
    content = _content(level)
    assert content.count(TEMPLATE_SITE) == 2, "the id and its index"
    path.write_bytes(content.replace(TEMPLATE_SITE, site))
