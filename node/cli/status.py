"""The command status: this device, whom it knows, what is held, and what waits for a person."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from leasemesh.node.cli.app import Context, app, command
from leasemesh.node.cli.output import Column, ago, count_of, joined, styled
from leasemesh.node.cli.unknown import count_unknown, silent_permits
from leasemesh.node.model.ids import short, short_run
from leasemesh.node.replication.peers import Peer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from leasemesh.node.node import Node
    from leasemesh.sync.version_vector import VersionVector

LISTED_MAX = 10
"""Lines of each list in `status`. --json lists a hundred times as many."""

COUNTED_MAX = 1_000


@command(app, "status", panel="Devices", examples=["leasemesh status", "leasemesh status --json"])
def status(context: Context) -> None:
    """Show who this device is, its peers, what it knows of whom, and the work that is held."""
    from leasemesh.node.cli.authority import authority_document, waiting_documents
    from leasemesh.node.doctor import combined
    from leasemesh.node.replication.quarantine import count_quarantined
    from leasemesh.node.replication.version_vectors import StateReader, read_schema

    node = context.node
    with node.database.snapshot():
        state = StateReader().read(node.database.query)
        peers = node.peers()
        quarantined = {one.reason: one.rows for one in count_quarantined(node.database.query)}
        document: dict[str, Any] = {
            "database": str(node.path),
            "name": node.name,
            "workspace": node.workspace_id,
            "node": node.site_id,
            "version": state.version,
            "schema": read_schema(node.database.query),
            "digest": combined(node.digest()),
            "peers": [_peer_document(peer, state.vector, node.site_id) for peer in peers],
            "version_vector": [
                {"node": site.hex(), "device": context.device_name(site.hex()), "version": entry.version}
                for site, entry in sorted(state.vector.items())
            ],
            "events": _event_counts(node),
            "duplicates": node.events.count_duplicates(),
            "quarantined": quarantined,
            **_attention(node),
            "authority": authority_document(context),
            "waiting": waiting_documents(context, 100 * LISTED_MAX),
            "held": [
                _held_document(context, run)
                for own in (True, False)
                for run in node.events.held_runs(own=own)[: 100 * LISTED_MAX]
            ],
        }
    document["silent_permits"] = len(silent_permits(node))
    context.screen.show(document, lambda: _draw_status(context, document))


def _attention(node: Node) -> dict[str, int]:
    """Return how much waits for a person."""
    undecided, under_way = count_unknown(node)
    return {
        "unknown": undecided,
        "calls_under_way": under_way,
        "dead_letters": len(node.events.dead_letters(limit=COUNTED_MAX)),
        "blocked": len(node.handler_blocks.list(limit=COUNTED_MAX)),
    }


def _draw_attention(document: dict[str, Any]) -> Iterable[RenderableType]:
    lines = [
        ("unknown", "effect", "of which nobody knows whether it happened", "unknown", "bold red"),
        ("calls_under_way", "call", "under way, or cut off", "unknown", "yellow"),
        ("silent_permits", "permit", "of a silent device", "unknown", "bold red"),
        ("dead_letters", "dead letter", "", "dead-letters", "red"),
        ("blocked", "handler", "blocked", "blocked", "red"),
    ]
    shown = [line for line in lines if document[line[0]]]
    for key, noun, what, name, style in shown:
        count = count_of(document[key], noun) + ("+" if document[key] == COUNTED_MAX else "")
        yield joined(styled(f"{count} {what}".rstrip(), style), f": leasemesh {name}")
    if shown:
        yield ""


def _event_counts(node: Node) -> dict[str, int]:
    counts: dict[str, int] = {}
    for workflow in node.workflows.list():
        for topic in node.events.counts(workflow.id):
            for name, number in topic.by_status.items():
                counts[name] = counts.get(name, 0) + number
    return counts


def _peer_document(peer: Peer, vector: VersionVector, own: str) -> dict[str, Any]:
    """Return a peer. `behind` is how many versions of it are not here yet, `ahead` how many of ours it may lack."""
    from leasemesh.sync.version_vector import SiteId

    behind = ahead = None
    if peer.vector is not None and peer.node is not None:
        site = SiteId(bytes.fromhex(peer.node))
        behind = max(0, peer.vector.entry(site).version - vector.entry(site).version)
        mine = SiteId(bytes.fromhex(own))
        ahead = max(0, vector.entry(mine).version - peer.vector.entry(mine).version)
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


def _held_document(context: Context, run: str) -> dict[str, Any]:
    reservation = context.node.events.reservation(run)
    assert reservation is not None, "a run that holds something has a reservation"
    return {
        "run": run,
        "device": context.device_name(reservation.node),
        "own": reservation.node == context.node.site_id,
        "workflow": reservation.workflow,
        "handler": reservation.handler,
        "events": len(reservation.claims),
        "owned": len(context.node.events.reserved_by(run)),
        "since_at": reservation.at >> 16,
    }


def _draw_status(context: Context, document: dict[str, Any]) -> Iterable[RenderableType]:
    from leasemesh.node.cli.authority import authority_text, draw_waiting

    screen, now_ms = context.screen, context.now_ms
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
        facts.append(("authority", authority_text(context, document["authority"])))
    facts += [("quarantined", f"{rows:,} because {reason}") for reason, rows in document["quarantined"].items()]
    for name, text in facts:
        yield joined(styled(f"  {name:<11}", "dim"), text)
    yield ""
    yield from _draw_attention(document)
    if document["peers"]:
        yield _peer_table(context, document["peers"])
    else:
        yield styled("no process syncs this file now; `leasemesh serve` does", "dim")
    others = [one for one in document["version_vector"] if one["node"] != document["node"]]
    if others:
        yield ""
        columns = [Column("knows"), Column("name", flexible=True), Column("up to version", right=True)]
        yield screen.table(columns, (_vector_row(one) for one in others[:LISTED_MAX]))
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


def _peer_table(context: Context, peers: list[dict[str, Any]]) -> RenderableType:
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
            ago(one["since_at"], context.now_ms),
            "" if one["behind"] is None else f"{one['behind']:,}",
            "" if one["ahead"] is None else f"{one['ahead']:,}",
        ]
        for one in peers
    ]
    return context.screen.table(columns, rows)


def _vector_row(one: dict[str, Any]) -> list[str | Text]:
    identifier = short(one["node"])
    name = "" if one["device"] == identifier else one["device"]
    return [styled(identifier, "dim"), name, f"{one['version']:,}"]


def _more(count: int) -> Iterable[RenderableType]:
    if count > LISTED_MAX:
        yield styled(f"and {count - LISTED_MAX:,} more; --json lists them", "dim")
