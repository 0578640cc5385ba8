"""The command mode: how a topic's events, or a handler's work, are claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.naming import existing_topic, find_node, warn_when_unknown
from leasemesh.node.cli.output import ExitCode, joined, styled
from leasemesh.node.stores.modes import Mode, ModeSetting

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(
    app,
    "mode",
    panel="Work",
    examples=[
        "leasemesh mode shop/orders",
        "leasemesh mode shop/orders confirmed",
        "leasemesh mode shop home --handler send",
    ],
)
def mode(
    context: Context,
    about: Annotated[str, typer.Argument(metavar="WORKFLOW/TOPIC", help="A topic; or a workflow, with --handler.")],
    wanted: Annotated[
        str | None, typer.Argument(metavar="MODE", help="soft, confirmed or home; without it, show what it is.")
    ] = None,
    handler: Annotated[str | None, typer.Option(help="The handler that it is about.")] = None,
    home: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="With mode home: who alone claims; this device.")
    ] = None,
    gone: Annotated[
        bool, typer.Option("--gone", help="The present home never comes back; what only it knew is lost.")
    ] = False,
) -> None:
    """Show or set how work is claimed: soft, with a permit, or by one device only.

    soft: whoever claims first. Two devices apart may do the same work. confirmed: an effect needs a permit of the
    authority. home: one device alone claims. What is claimed already ends as it began. Where nothing is set, the app's
    code says how.
    """
    modes = context.node.modes
    workflow, topic = (about, None) if handler is not None else existing_topic(context.node, about)
    if wanted is None:
        if home is not None or gone:
            raise CommandError("--home and --gone need a MODE", ExitCode.USAGE)
        setting = modes.get(workflow, topic=topic, handler=handler)
    else:
        chosen = _mode(wanted)
        node = find_node(context, home) if home is not None else None
        setting = modes.set(workflow, chosen, topic=topic, handler=handler, home=node, gone=gone)
    if handler is not None:
        warn_when_unknown(context, workflow, handler)
    document = {"workflow": workflow, "topic": topic, "handler": handler, **_document(context, setting)}
    context.screen.show(document, lambda: _draw(about, document))


def _mode(text: str) -> Mode:
    for one in get_args(Mode):
        if text == one:
            found: Mode = one
            return found
    raise CommandError(f"{text!r} is not one of {', '.join(get_args(Mode))}", ExitCode.USAGE)


def _document(context: Context, setting: ModeSetting | None) -> dict[str, Any]:
    if setting is None:
        return {"mode": None, "home": None, "device": None}
    device = context.device_name(setting.home) if setting.home else None
    return {"mode": setting.mode, "home": setting.home, "device": device}


def _draw(about: str, document: dict[str, Any]) -> list[RenderableType]:
    what = f"{about}, handler {document['handler']}" if document["handler"] else about
    where = f" on {document['device']}" if document["device"] else ""
    setting = document["mode"] or "not set: as the app's code declares"
    return [joined(styled(f"{what}: ", "bold"), f"{setting}{where}")]
