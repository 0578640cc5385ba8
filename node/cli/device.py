"""Commands about this device: init, doctor, identity reset, version."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.helping import Group
from leasemesh.node.cli.naming import person
from leasemesh.node.cli.output import ExitCode, count_of, joined, styled
from leasemesh.node.model.ids import short

if TYPE_CHECKING:
    from rich.console import RenderableType

identity = typer.Typer(help="What other devices know this database file by.", rich_markup_mode="rich", cls=Group)
app.add_typer(identity, name="identity", rich_help_panel="Devices")


@command(
    app,
    "init",
    panel="Devices",
    examples=[
        "leasemesh init --name laptop",
        "leasemesh init --name desktop --workspace 1f0c4be8a2d94f6f9d7b52e0c6a3b811",
    ],
)
def init(
    context: Context,
    name: Annotated[str | None, typer.Option(help="What to call this device; by default the machine's name.")] = None,
    workspace: Annotated[
        str | None, typer.Option(help="The workspace to join, as `leasemesh status` shows it elsewhere.")
    ] = None,
) -> None:
    """Make a database: of a new workspace, or of one that other devices have.

    The device that begins a workspace grants the permits for effects that must not happen twice, until `leasemesh
    authority move` gives that to another one.
    """
    from leasemesh.node.node import Node

    if context.path.exists():
        raise CommandError(f"{context.path} exists; nothing was changed", ExitCode.NOT_AVAILABLE)
    if not context.path.absolute().parent.is_dir():
        raise CommandError(f"there is no folder {context.path.absolute().parent}", ExitCode.NOT_FOUND)
    with Node.open(context.path, name=name, workspace=workspace) as node:
        if workspace is None:
            node.authorities.appoint(node.site_id, by=person())
            node.authority.tend()
        document = {
            "database": str(node.path),
            "name": node.name,
            "workspace": node.workspace_id,
            "node": node.site_id,
            "authority": node.authorities.info().authority,
        }
    begun = f"device {document['name']} of workspace {document['workspace']} in {context.path}"
    permits = _PERMITS_BEGIN if workspace is None else _PERMITS_JOIN
    others = f"on another device: leasemesh init --workspace {document['workspace']}"
    context.screen.show(document, lambda: [styled(begun, "bold"), styled(others), styled(permits, "dim")])


_PERMITS_BEGIN = (
    "this device grants permits for effects that must not happen twice; `leasemesh authority move DEVICE` gives that "
    "to another one, best to one that is always on"
)
_PERMITS_JOIN = (
    "who grants permits comes with the first sync; if that is nobody (`leasemesh authority show`), say once on one "
    "device: leasemesh authority set"
)


@command(app, "doctor", panel="Devices", examples=["leasemesh doctor", "leasemesh doctor --rebuild"])
def doctor(
    context: Context,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make status and claims anew from the facts, which are never touched.")
    ] = False,
) -> None:
    """Examine the database: the file, the schema, who wrote what, and whether status follows from the facts."""
    from leasemesh.node.database.derived import rebuild as rebuild_derived
    from leasemesh.node.doctor import combined, examine

    database = context.node.database
    corrected: dict[str, int] | None = None
    if rebuild:
        with context.screen.progress("making status and claims anew", 100) as show:
            corrected = rebuild_derived(database, lambda _, done, total: show(100 * done // total)).corrected
    with context.screen.progress("examining", 100) as show:
        findings = examine(database, progress=lambda _, done, total: show(100 * done // total))
    digest = context.node.digest()
    healthy = all(finding.healthy for finding in findings)
    document = {
        "healthy": healthy,
        "findings": [{"name": one.name, "healthy": one.healthy, "text": one.text} for one in findings],
        "corrected": corrected,
        "digest": combined(digest),
        "tables": {
            name: {"cells": one.cells, "digest": one.digest.hex()} for name, one in sorted(digest.tables.items())
        },
    }

    def draw() -> Iterable[RenderableType]:
        if corrected is not None:
            shown = ", ".join(f"{count_of(count, 'row')} of {name}" for name, count in corrected.items())
            yield styled(f"made anew; {'corrected ' + shown if shown else 'nothing was wrong'}", "bold")
        for one in findings:
            yield joined(
                styled("ok   " if one.healthy else "BAD  ", "green" if one.healthy else "bold red"),
                f"{one.name}: {one.text}",
            )
        yield joined(styled("digest ", "dim"), combined(digest))

    context.screen.show(document, draw)
    if not healthy:
        bad = ", ".join(one.name for one in findings if not one.healthy)
        raise CommandError(f"not all is well with {context.path}: {bad}", ExitCode.DIFFERENT)


@command(identity, "reset", panel="Devices", examples=["leasemesh identity reset --yes"])
def identity_reset(
    context: Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give a copied database file an identity of its own, so that the copy and the original can both sync.

    Runs that this file held stay with the old identity: what they reserved can be taken over.
    """
    from leasemesh.node.replication.syncing import SyncRefused

    node = context.node
    before = node.site_id
    if not yes:
        context.ask(f"Give {context.path} a new identity?")
    try:
        after = node.reset_identity()
    except SyncRefused as error:
        text = f"a process syncs {context.path} now; stop it first"
        raise CommandError(text, ExitCode.NOT_AVAILABLE) from error
    text = f"{context.path} was {short(before)} and is {short(after)} from now on"
    context.screen.show({"before": before, "after": after}, lambda: [styled(text)])


@command(app, "version", panel="Devices", examples=["leasemesh version"])
def version(context: Context) -> None:
    """Show the versions of leasemesh and of what it stands on."""
    import apsw
    import leasemesh_crsqlite

    document = {
        "leasemesh": installed_version("leasemesh"),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "cr-sqlite": leasemesh_crsqlite.VERSION,
    }
    context.screen.show(document, lambda: [styled(f"{name} {number}") for name, number in document.items()])
