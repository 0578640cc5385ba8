"""Commands that keep handlers from running, or let them run again, and those for dead letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.events import event_document
from leasemesh.node.cli.naming import find_event, person, split_handler, warn_when_unknown
from leasemesh.node.cli.output import Column, ExitCode, ago, styled
from leasemesh.node.cli.runs import error_of
from leasemesh.node.model.ids import short, short_run
from leasemesh.node.stores import EVERYWHERE, Event, HandlerBlock
from leasemesh.node.stores.base import is_internal

if TYPE_CHECKING:
    from rich.console import RenderableType

HandlerArgument = Annotated[str, typer.Argument(metavar="WORKFLOW/HANDLER", help="The handler, such as shop/pack.")]
HereOption = Annotated[bool, typer.Option("--here", help="On this device only; without it, on all devices.")]


@command(
    app,
    "block",
    panel="Handlers",
    examples=[
        "leasemesh block shop/pack --reason 'the label printer is broken'",
        "leasemesh block shop/pack --here",
    ],
)
def block(
    context: Context,
    handler: HandlerArgument,
    here: HereOption = False,
    reason: Annotated[str, typer.Option(help="Why, one sentence for people.")] = "",
) -> None:
    """Keep a handler from running. A run that is under way ends as it would. `leasemesh unblock` lets it run again."""
    workflow, name = split_handler(handler)
    node = context.node
    where = node.site_id if here else EVERYWHERE
    said = node.handler_blocks.block(workflow, name, reason=reason, by=person(), node=where)
    warn_when_unknown(context, workflow, name)
    text = f"{handler} does not run {_where(context, said)} any more"
    context.screen.show(_block_document(context, said), lambda: [styled(text)])


@command(
    app, "unblock", panel="Handlers", examples=["leasemesh unblock shop/pack", "leasemesh unblock shop/pack --here"]
)
def unblock(
    context: Context,
    handler: HandlerArgument,
    here: Annotated[
        bool, typer.Option("--here", help="Take back the block of this device only; without it, every block.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, one sentence for people.")] = "",
) -> None:
    """Let a handler run again that a person or a device has blocked. Its failures are counted anew."""
    workflow, name = split_handler(handler)
    node = context.node
    blocks = [one for one in node.handler_blocks.list(workflow) if one.handler == name]
    chosen = [one for one in blocks if not here or one.node == node.site_id]
    for one in chosen:
        node.handler_blocks.unblock(workflow, name, reason=reason, by=person(), node=one.node)
    left = [one for one in blocks if one not in chosen]
    document = {"unblocked": [_block_document(context, one) for one in chosen], "blocked": len(left)}
    places = " and ".join(_where(context, one) for one in chosen)
    text = f"{handler} may run again {places}" if chosen else f"{handler} is not blocked" + (" here" if here else "")
    still = [styled(f"it stays blocked {' and '.join(_where(context, one) for one in left)}", "yellow")] if left else []
    context.screen.show(document, lambda: [styled(text), *still])


@command(app, "blocked", panel="Handlers", examples=["leasemesh blocked", "leasemesh blocked --json"])
def blocked(context: Context) -> None:
    """List the handlers that do not run, where, and why."""
    blocks = context.node.handler_blocks.list()
    documents = [_block_document(context, one) for one in blocks]

    def draw() -> Iterable[RenderableType]:
        if not blocks:
            return [styled("no handler is blocked", "green")]
        columns = [
            Column("handler", flexible=True), Column("where", flexible=True), Column("since"),
            Column("by", flexible=True), Column("why", flexible=True, wraps=True),
        ]  # fmt: skip
        rows = [
            [
                styled(f"{one['workflow']}/{one['handler']}", "bold red"),
                one["device"] or "everywhere",
                ago(one["at"], context.now_ms),
                one["by"],
                one["reason"] + (f" (run {short_run(one['run'])})" if one["run"] else ""),
            ]
            for one in documents
        ]
        return [context.screen.table(columns, rows), styled("leasemesh unblock WORKFLOW/HANDLER lets it run", "dim")]

    context.screen.show({"blocked": documents}, draw)


def _block_document(context: Context, block: HandlerBlock) -> dict[str, Any]:
    return {
        "workflow": block.workflow,
        "handler": block.handler,
        "node": block.node or None,
        "device": context.device_name(block.node) if block.node else None,
        "blocked": block.blocked,
        "reason": block.reason,
        "by": _by(context, block.by),
        "run": block.run,
        "at": block.at,
    }


def _by(context: Context, by: str) -> str:
    """Return who said so: a person as named, a device by its name."""
    return context.device_name(by) if by in context.names() else by


def _where(context: Context, block: HandlerBlock) -> str:
    return f"on {context.device_name(block.node)}" if block.node else "on any device"


# --- Dead letters -----------------------------------------------------------------------------------------------------


@command(
    app,
    "dead-letters",
    panel="Handlers",
    examples=["leasemesh dead-letters", "leasemesh dead-letters shop", "leasemesh dead-letters --json"],
)
def dead_letters(
    context: Context,
    workflow: Annotated[str | None, typer.Argument(metavar="WORKFLOW", help="Only those of this workflow.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 20,
) -> None:
    """List the dead letters: events that were given up after too many failures, with the last failure of each."""
    events = context.node.events.dead_letters(workflow, limit=limit)
    documents = [_dead_letter_document(context, event) for event in events]

    def draw() -> Iterable[RenderableType]:
        if not events:
            return [styled("there are no dead letters", "green")]
        columns = [
            Column("id"), Column("message", flexible=True), Column("failed in", flexible=True),
            Column("last failure", flexible=True, wraps=True),
        ]  # fmt: skip
        rows = [
            [
                styled(short(one["event"]["id"]), "dim"),
                f"{one['event']['workflow']}/{one['event']['topic']}/{one['event']['message_id']}",
                f"{one['handler']} on {one['device']}",
                one["error"] or "",
            ]
            for one in documents
        ]
        more = [styled(f"the newest {limit:,} are shown; --limit shows more", "dim")] if len(events) == limit else []
        after = styled("leasemesh requeue EVENT has it done again, leasemesh why EVENT tells its story", "dim")
        return [context.screen.table(columns, rows), *more, after]

    context.screen.show({"dead_letters": documents}, draw)


def _dead_letter_document(context: Context, event: Event) -> dict[str, Any]:
    node = context.node
    reservation = node.events.reservation(event.run) if event.run else None
    run = node.handler_runs.get(event.run) if event.run else None
    return {
        "event": event_document(event),
        "handler": reservation.handler if reservation else None,
        "node": reservation.node if reservation else None,
        "device": context.device_name(reservation.node) if reservation else None,
        "error": error_of(run) if run else None,
    }


@command(
    app,
    "requeue",
    panel="Handlers",
    examples=["leasemesh requeue shop/orders/order-17", "leasemesh requeue 3f2a91c07b --by ann"],
)
def requeue(
    context: Context,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="An id, its beginning, or WORKFLOW/TOPIC/MESSAGE_ID.")],
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who wants it; by default the user's name.")] = None,
) -> None:
    """Have a settled event done once more, as its next generation. What it was settled as stays as it is.

    Its effects happen again, under new idempotency keys: look with `leasemesh why` what had been done already.
    """
    found = find_event(context.node, event)
    if is_internal(found.topic):
        raise CommandError(f"{found.topic} is a topic of leasemesh itself; nobody requeues there", ExitCode.USAGE)
    following = context.node.events.requeue(found.id, by=person() if by is None else by)
    document = {"requeued": found.id, "event": event_document(following)}
    name = f"{found.workflow}/{found.topic}/{found.message_id}"
    text = f"{name} is pending again as event {short(following.id)}, generation {following.generation}"
    context.screen.show(document, lambda: [styled(text)])
