"""Commands about who grants permits: authority set, show, move. And the sentences by which others tell who is waited
for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasemesh.node.cli.app import Context, app, command
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
def set_authority(context: Context, device: DeviceArgument = None) -> None:
    """Appoint the first authority of the workspace. Do this once, best on the hub, before devices work apart."""
    node = context.node
    node.authorities.appoint(find_node(context, device) if device else node.site_id, by=person())
    _tend_and_show(context)


@command(authority, "show", panel="Devices", examples=["leasemesh authority show", "leasemesh authority show --json"])
def show(context: Context) -> None:
    """Show who grants permits, who follows, and which runs wait."""
    _show(context)


@command(
    authority,
    "move",
    panel="Devices",
    examples=["leasemesh authority move desktop", "leasemesh authority move desktop --gone 3f2a91c07b --yes"],
)
def move(
    context: Context,
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

    When that one is gone for good, say so with --gone. Then every other device must come by once and show its permits.
    `leasemesh authority show` lists those that have not.
    """
    node = context.node
    target = find_node(context, device) if device else node.site_id
    lost = [find_node(context, text) for text in gone or []]
    if lost and not yes:
        names = ", ".join(context.device_name(one) for one in lost)
        context.ask(f"{names}: gone for good, and nothing that only they knew matters?")
    node.authorities.move(target, by=person(), gone=lost)
    _tend_and_show(context)


def authority_document(context: Context) -> dict[str, Any]:
    """Return who grants permits, for programs."""
    info = context.node.authorities.info()
    return {
        "generation": info.generation,
        "node": info.authority,
        "device": context.device_name(info.authority) if info.authority else None,
        "contested": info.contested,
        "since_at": info.since_at,
        "next": {
            "generation": info.next.generation,
            "node": info.next.authority,
            "device": context.device_name(info.next.authority),
            "by": info.next.by,
            "at": info.next.at,
            "waiting_for": [{"node": node, "device": context.device_name(node)} for node in info.waiting_for],
        }
        if info.next
        else None,
    }


def waiting_documents(context: Context, limit: int) -> list[dict[str, Any]]:
    """Return the runs that wait for a permit, for programs."""
    return [
        {
            "run": permit.run,
            "device": context.device_name(permit.node),
            "workflow": permit.workflow,
            "handler": permit.handler,
            "events": len(permit.events),
            "asked_at": permit.asked_at,
            "text": waiting_text(context, permit),
        }
        for permit in context.node.permits.waiting(limit=limit)
    ]


def waiting_text(context: Context, permit: Permit) -> str:
    """Return for whom a run waits and since when."""
    whom = _decider(context, context.node.authorities.info())
    return f"waiting for confirmation by {whom} since {clock(permit.asked_at)}"


def authority_text(context: Context, document: dict[str, Any]) -> str:
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


def _decider(context: Context, info: AuthorityInfo) -> str:
    if info.next is not None:
        return context.device_name(info.next.authority)
    if info.authority is not None:
        return context.device_name(info.authority)
    return "an authority (`leasemesh authority " + ("move" if info.contested else "set") + "` names one)"


def _tend_and_show(context: Context) -> None:
    context.node.authority.tend()
    _show(context)


def _show(context: Context) -> None:
    document = authority_document(context)
    document["waiting"] = waiting_documents(context, 1_000)
    context.screen.show(document, lambda: _draw(context, document))


def _draw(context: Context, document: dict[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = [joined(styled("authority: ", "bold"), authority_text(context, document))]
    if document["node"]:
        lines.append(styled(f"device {short(document['node'])}, {ago(document['since_at'], context.now_ms)}", "dim"))
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
