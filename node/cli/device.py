"""Commands about this device: init, status, doctor, identity reset, version."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.app import CommandError, Session, app, command
from node.cli.naming import short_run
from node.cli.output import Column, ExitCode, ago, count_of, joined, styled
from node.ids import short
from node.stores.peers import Peer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from node.service import Node
    from sync.knowledge import Knowledge

LISTED_MAX = 10
"""Lines of each list in `status`; --json lists a hundred times as many."""

identity = typer.Typer(help="What other devices know this database file by.", rich_markup_mode="rich")
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
    session: Session,
    name: Annotated[str | None, typer.Option(help="What to call this device; by default the machine's name.")] = None,
    workspace: Annotated[
        str | None, typer.Option(help="The workspace to join, as `leasemesh status` shows it elsewhere.")
    ] = None,
) -> None:
    """Make a database: of a new workspace, or of one that other devices have."""
    from node.service import Node

    if session.path.exists():
        raise CommandError(f"{session.path} exists; nothing was changed", ExitCode.NOT_AVAILABLE)
    if not session.path.absolute().parent.is_dir():
        raise CommandError(f"there is no folder {session.path.absolute().parent}", ExitCode.NOT_FOUND)
    with Node.open(session.path, name=name, workspace=workspace) as node:
        document = {"database": str(node.path), "name": node.name, "workspace": node.workspace_id, "node": node.site_id}
        begun = f"device {node.name} of workspace {node.workspace_id} in {session.path}"
        others = f"on another device: leasemesh init --workspace {node.workspace_id}"
    session.screen.show(document, lambda: [styled(begun, "bold"), styled(others, "dim")])


@command(app, "status", panel="Devices", examples=["leasemesh status", "leasemesh status --json"])
def status(session: Session) -> None:
    """Show who this device is, its peers, what it knows of whom, and the work that is held."""
    from node.cli.authority import authority_document, waiting_documents
    from node.doctor import combined
    from node.knowledge_store import StateReader, read_schema
    from node.parking import count_parked

    node = session.node
    with node.database.snapshot():
        state = StateReader().read(node.database.query)
        peers = node.peers()
        parked = {one.reason: one.rows for one in count_parked(node.database.query)}
        document: dict[str, Any] = {
            "database": str(node.path),
            "name": node.name,
            "workspace": node.workspace_id,
            "node": node.site_id,
            "version": state.version,
            "schema": read_schema(node.database.query),
            "digest": combined(node.digest()),
            "peers": [_peer_document(peer, state.knowledge, node.site_id) for peer in peers],
            "knowledge": [
                {"node": site.hex(), "device": session.device_name(site.hex()), "version": point.version}
                for site, point in sorted(state.knowledge.items())
            ],
            "events": _event_counts(node),
            "duplicates": node.events.count_duplicates(),
            "parked": parked,
            "authority": authority_document(session),
            "waiting": waiting_documents(session, 100 * LISTED_MAX),
            "held": [
                _held_document(session, run)
                for own in (True, False)
                for run in node.events.held_runs(own=own)[: 100 * LISTED_MAX]
            ],
        }
    session.screen.show(document, lambda: _draw_status(session, document))


def _event_counts(node: Node) -> dict[str, int]:
    counts: dict[str, int] = {}
    for workflow in node.workflows.list():
        for topic in node.events.counts(workflow.id):
            for name, number in topic.by_status.items():
                counts[name] = counts.get(name, 0) + number
    return counts


def _peer_document(peer: Peer, knowledge: Knowledge, own: str) -> dict[str, Any]:
    """Return a peer; `behind` is how many versions of it are not here yet, `ahead` how many of ours it may lack."""
    from sync.knowledge import SiteId

    behind = ahead = None
    if peer.knowledge is not None and peer.node is not None:
        site = SiteId(bytes.fromhex(peer.node))
        behind = max(0, peer.knowledge.point(site).version - knowledge.point(site).version)
        mine = SiteId(bytes.fromhex(own))
        ahead = max(0, knowledge.point(mine).version - peer.knowledge.point(mine).version)
    return {
        "peer": peer.peer,
        "direction": peer.direction,
        "node": peer.node,
        "name": peer.name,
        "state": peer.state,
        "text": peer.text,
        "since_at": peer.since_at,
        "behind": behind,
        "ahead": ahead,
    }


def _held_document(session: Session, run: str) -> dict[str, Any]:
    reservation = session.node.events.reservation(run)
    assert reservation is not None, "a run that holds something has a reservation"
    return {
        "run": run,
        "device": session.device_name(reservation.node),
        "own": reservation.node == session.node.site_id,
        "workflow": reservation.workflow,
        "handler": reservation.handler,
        "events": len(reservation.claims),
        "owned": len(session.node.events.reserved_by(run)),
        "since_at": reservation.at >> 16,
    }


def _draw_status(session: Session, document: dict[str, Any]) -> Iterable[RenderableType]:
    from node.cli.authority import authority_text, draw_waiting

    screen, now_ms = session.screen, session.now_ms
    yield joined(styled(document["name"], "bold"), f"  {document['database']}")
    schema = ", ".join(f"{name} {number}" for name, number in sorted(document["schema"].items()))
    facts = [
        ("workspace", document["workspace"]),
        ("device", document["node"]),
        ("version", f"{document['version']:,} (schema {schema})"),
        ("digest", document["digest"]),
        ("events", ", ".join(f"{count:,} {name}" for name, count in document["events"].items()) or "none"),
    ]
    if document["duplicates"]:
        facts.append(("done twice", count_of(document["duplicates"], "event")))
    if document["authority"]["generation"] or document["authority"]["next"]:
        facts.append(("authority", authority_text(session, document["authority"])))
    facts += [("parked", f"{rows:,} because {reason}") for reason, rows in document["parked"].items()]
    for name, text in facts:
        yield joined(styled(f"  {name:<11}", "dim"), text)
    yield ""
    if document["peers"]:
        yield _peer_table(session, document["peers"])
    else:
        yield styled("no process syncs this file now; `leasemesh serve` does", "dim")
    others = [one for one in document["knowledge"] if one["node"] != document["node"]]
    if others:
        yield ""
        columns = [Column("knows"), Column("name", flexible=True), Column("up to version", right=True)]
        yield screen.table(columns, (_knowledge_row(one) for one in others[:LISTED_MAX]))
        yield from _more(len(others))
    if document["held"]:
        yield ""
        held_columns = [
            Column("holding run"), Column("device", flexible=True), Column("for", flexible=True),
            Column("events", right=True), Column("since"),
        ]  # fmt: skip
        yield screen.table(
            held_columns,
            (
                [
                    short_run(one["run"]),
                    one["device"] + (" (this one)" if one["own"] else ""),
                    f"{one['workflow']}: {one['handler']}",
                    f"{one['events']:,}" if one["owned"] == one["events"] else f"{one['owned']:,} of {one['events']:,}",
                    ago(one["since_at"], now_ms),
                ]
                for one in document["held"][:LISTED_MAX]
            ),
        )
        yield from _more(len(document["held"]))
    if document["waiting"]:
        yield ""
        yield from draw_waiting(document["waiting"][:LISTED_MAX])
        yield from _more(len(document["waiting"]))


def _peer_table(session: Session, peers: list[dict[str, Any]]) -> RenderableType:
    columns = [
        Column("peer", flexible=True), Column("name"), Column("state"), Column("since"),
        Column("behind", right=True), Column("ahead", right=True),
    ]  # fmt: skip
    styles = {"connected": "green", "refused": "bold red", "waiting": "yellow"}
    rows = [
        [
            one["peer"] if one["direction"] == "dialled" else "(dialled us)",
            one["name"],
            styled(one["state"], styles.get(one["state"], "")),
            ago(one["since_at"], session.now_ms),
            "" if one["behind"] is None else f"{one['behind']:,}",
            "" if one["ahead"] is None else f"{one['ahead']:,}",
        ]
        for one in peers
    ]
    return session.screen.table(columns, rows)


def _knowledge_row(one: dict[str, Any]) -> list[str | Text]:
    identifier = short(one["node"])
    name = "" if one["device"] == identifier else one["device"]
    return [styled(identifier, "dim"), name, f"{one['version']:,}"]


def _more(count: int) -> Iterable[RenderableType]:
    if count > LISTED_MAX:
        yield styled(f"and {count - LISTED_MAX:,} more; --json lists them", "dim")


@command(app, "doctor", panel="Devices", examples=["leasemesh doctor", "leasemesh doctor --rebuild"])
def doctor(
    session: Session,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make status and claims anew from the facts, which are never touched.")
    ] = False,
) -> None:
    """Examine the database: the file, the schema, who wrote what, and whether status follows from the facts."""
    from node.derived import rebuild as rebuild_derived
    from node.doctor import combined, examine

    database = session.node.database
    corrected: dict[str, int] | None = None
    if rebuild:
        with session.screen.progress("making status and claims anew", 100) as show:
            corrected = rebuild_derived(database, lambda _, done, total: show(100 * done // total)).corrected
    with session.screen.progress("examining", 100) as show:
        findings = examine(database, progress=lambda _, done, total: show(100 * done // total))
    digest = session.node.digest()
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
            shown = ", ".join(f"{count:,} rows of {name}" for name, count in corrected.items())
            yield styled(f"made anew; {'corrected ' + shown if shown else 'nothing was wrong'}", "bold")
        for one in findings:
            yield joined(
                styled("ok   " if one.healthy else "BAD  ", "green" if one.healthy else "bold red"),
                f"{one.name}: {one.text}",
            )
        yield joined(styled("digest ", "dim"), combined(digest))

    session.screen.show(document, draw)
    if not healthy:
        bad = ", ".join(one.name for one in findings if not one.healthy)
        raise CommandError(f"not all is well with {session.path}: {bad}", ExitCode.DIFFERENT)


@command(identity, "reset", panel="Devices", examples=["leasemesh identity reset --yes"])
def identity_reset(
    session: Session,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give a copied database file an identity of its own, so that the copy and the original can both sync.

    Runs that this file held stay with the old identity: what they reserved can be taken over.
    """
    from node.syncing import SyncRefused

    node = session.node
    before = node.site_id
    if not yes and not session.screen.as_json:
        typer.confirm(f"Give {session.path} a new identity?", abort=True, err=True)
    try:
        after = node.reset_identity()
    except SyncRefused as error:
        text = f"a process syncs {session.path} now; stop it first"
        raise CommandError(text, ExitCode.NOT_AVAILABLE) from error
    text = f"{session.path} was {short(before)} and is {short(after)} from now on"
    session.screen.show({"before": before, "after": after}, lambda: [styled(text)])


@command(app, "version", panel="Devices", examples=["leasemesh version"])
def version(session: Session) -> None:
    """Show the versions of leasemesh and of what it stands on."""
    import apsw

    from node import crsqlite

    document = {
        "leasemesh": installed_version("leasemesh"),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "cr-sqlite": crsqlite.VERSION,
    }
    session.screen.show(document, lambda: [styled(f"{name} {number}") for name, number in document.items()])
