"""Commands about who grants permits: authority set, show, move. And the sentences by which others tell who is waited
for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasemesh.node.cli.app import Session, app, command
from leasemesh.node.cli.helping import Group
from leasemesh.node.cli.naming import find_node, person
from leasemesh.node.cli.output import ago, clock, count_of, joined, styled
from leasemesh.node.model.ids import short, short_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leasemesh.node.stores import AuthorityInfo, Permit

authority = typer.Typer(
    help="Who grants permits for effects that must not happen twice.", rich_markup_mode="rich", cls=Group
)
app.add_typer(authority, name="authority", rich_help_panel="Devices")

DeviceArgument = Annotated[
    str | None, typer.Argument(metavar="DEVICE", help="A device's name, its id or the beginning of it; this one.")
]


@command(authority, "set", panel="Devices", examples=["leasemesh authority set"])
def set_authority(session: Session, device: DeviceArgument = None) -> None:
    """Appoint the first authority of the workspace. Do this once, best on the hub, before devices work apart."""
    node = session.node
    node.authorities.appoint(find_node(session, device) if device else node.site_id, by=person())
    _tend_and_show(session)


@command(authority, "show", panel="Devices", examples=["leasemesh authority show", "leasemesh authority show --json"])
def show(session: Session) -> None:
    """Show who grants permits, who follows, and which runs wait."""
    _show(session)


@command(
    authority,
    "move",
    panel="Devices",
    examples=["leasemesh authority move desktop", "leasemesh authority move desktop --gone 3f2a91c07b --yes"],
)
def move(
    session: Session,
    device: DeviceArgument = None,
    gone: Annotated[
        list[str] | None,
        typer.Option(
            "--gone",
            metavar="DEVICE",
            help="This device never comes back: it is lost, or has a new identity; again for more.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Appoint the next authority. It begins when the one before has stepped back and told it everything.

    When that one is gone for good, say so with --gone. Then every other device must come by once and show its permits;
    `leasemesh authority show` lists those that have not.
    """
    node = session.node
    target = find_node(session, device) if device else node.site_id
    lost = [find_node(session, text) for text in gone or []]
    if lost and not yes:
        names = ", ".join(session.device_name(one) for one in lost)
        session.ask(f"{names}: gone for good, and nothing that only they knew matters?")
    node.authorities.move(target, by=person(), gone=lost)
    _tend_and_show(session)


def authority_document(session: Session) -> dict[str, Any]:
    """Return who grants permits, for programs."""
    info = session.node.authority.info()
    return {
        "generation": info.generation,
        "node": info.authority,
        "device": session.device_name(info.authority) if info.authority else None,
        "contested": info.contested,
        "since_at": info.since_at,
        "next": {
            "generation": info.next.generation,
            "node": info.next.authority,
            "device": session.device_name(info.next.authority),
            "by": info.next.by,
            "at": info.next.at,
            "waiting_for": [{"node": node, "device": session.device_name(node)} for node in info.waiting_for],
        }
        if info.next
        else None,
    }


def waiting_documents(session: Session, limit: int) -> list[dict[str, Any]]:
    """Return the runs that wait for a permit, for programs."""
    return [
        {
            "run": permit.run,
            "device": session.device_name(permit.node),
            "workflow": permit.workflow,
            "handler": permit.handler,
            "events": len(permit.events),
            "asked_at": permit.asked_at,
            "text": waiting_text(session, permit),
        }
        for permit in session.node.permits.waiting(limit=limit)
    ]


def waiting_text(session: Session, permit: Permit) -> str:
    """Return for whom a run waits and since when."""
    whom = _decider(session, session.node.authority.info())
    return f"waiting for confirmation by {whom} since {clock(permit.asked_at)}"


def authority_text(session: Session, document: dict[str, Any]) -> str:
    """Return in one line who grants permits."""
    if document["contested"]:
        text = "contested: several devices began; nobody grants until `leasemesh authority move`"
    elif document["device"]:
        text = f"{document['device']} (generation {document['generation']})"
    else:
        text = "none"
    following = document["next"]
    if following:
        missing = ", ".join(one["device"] for one in following["waiting_for"])
        text += f"; {following['device']} follows" + (
            f" when {missing} stepped back" if missing else " when it is here"
        )
    return text


def _decider(session: Session, info: AuthorityInfo) -> str:
    if info.next is not None:
        return session.device_name(info.next.authority)
    if info.authority is not None:
        return session.device_name(info.authority)
    return "an authority (`leasemesh authority " + ("move" if info.contested else "set") + "` names one)"


def _tend_and_show(session: Session) -> None:
    session.node.authority.tend()
    _show(session)


def _show(session: Session) -> None:
    document = authority_document(session)
    document["waiting"] = waiting_documents(session, 1_000)
    session.screen.show(document, lambda: _draw(session, document))


def _draw(session: Session, document: dict[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = [joined(styled("authority: ", "bold"), authority_text(session, document))]
    if document["node"]:
        lines.append(styled(f"device {short(document['node'])}, {ago(document['since_at'], session.now_ms)}", "dim"))
    return [*lines, *draw_waiting(document["waiting"])]


def draw_waiting(waiting: list[dict[str, Any]]) -> list[RenderableType]:
    """Return a line for each run that waits."""
    return [
        joined(
            styled(f"run {short_run(one['run'])}", "yellow"),
            f" on {one['device']}, {one['workflow']}: {one['handler']}, {count_of(one['events'], 'event')}: ",
            one["text"],
        )
        for one in waiting
    ]
