"""Commands that look at events: topics, peek, and how events are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from leasemesh.node.cli.app import Context, app, command
from leasemesh.node.cli.naming import existing_topic
from leasemesh.node.cli.output import Column, ago, status_text, styled
from leasemesh.node.model.errors import NotFound
from leasemesh.node.model.ids import short
from leasemesh.node.stores import Event, StatusName

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

TopicArgument = Annotated[str, typer.Argument(metavar="WORKFLOW/TOPIC", help="The topic, such as shop/orders.")]


def event_document(event: Event) -> dict[str, Any]:
    """Return an event as --json prints it."""
    return {
        "id": event.id,
        "workflow": event.workflow,
        "topic": event.topic,
        "message_id": event.message_id,
        "title": event.title,
        "payload": event.payload,
        "created_at": event.created_at,
        "generation": event.generation,
        "status": event.status,
        "epoch": event.epoch,
        "run": event.run,
    }


def event_table(context: Context, events: Iterable[Event]) -> RenderableType:
    """Return a list of events for people."""
    columns = [
        Column("id"), Column("message", flexible=True), Column("title", flexible=True), Column("published"),
        Column("status"),
    ]  # fmt: skip
    rows: Iterable[Sequence[str | Text]] = (
        [
            styled(short(event.id), "dim"),
            event.message_id,
            event.title,
            ago(event.created_at, context.now_ms),
            status_text(event.status),
        ]
        for event in events
    )
    return context.screen.table(columns, rows)


@command(app, "topics", panel="Events", examples=["leasemesh topics", "leasemesh topics shop"])
def topics(
    context: Context,
    workflow: Annotated[
        str | None, typer.Argument(metavar="WORKFLOW", help="Only the topics of this workflow.")
    ] = None,
) -> None:
    """List topics, and how many of their events are pending, reserved, done or dead."""
    node = context.node
    known = [one.id for one in node.workflows.list()]
    if workflow is not None and workflow not in known:
        raise NotFound("workflow", [workflow], "`leasemesh topics` lists all")
    counted = [
        (name, counts)
        for name in ([workflow] if workflow is not None else known)
        for counts in node.events.counts(name)
    ]
    document = {
        "topics": [
            {"workflow": name, "topic": counts.topic, "total": counts.total, "by_status": counts.by_status}
            for name, counts in counted
        ]
    }
    columns = [
        Column("topic", flexible=True),
        *(Column(title, right=True) for title in ("pending", "reserved", "consumed", "skipped", "dead", "total")),
    ]

    def draw() -> Iterable[RenderableType]:
        rows: list[Sequence[str | Text]] = []
        for name, counts in counted:
            by_status = dict(counts.by_status)
            by_status["reserved"] = by_status.get("reserved", 0) + by_status.pop("unknown", 0)
            numbers = [by_status.get(status, 0) for status in ("pending", "reserved", "consumed", "skipped", "dead")]
            cells = [styled(f"{number:,}", "" if number else "dim") for number in (*numbers, counts.total)]
            rows.append([f"{name}/{counts.topic}", *cells])
        if not rows:
            return [styled("no topics yet; the first event that is published makes one")]
        return [context.screen.table(columns, rows)]

    context.screen.show(document, draw)


@command(
    app,
    "peek",
    panel="Events",
    examples=[
        "leasemesh peek shop/orders",
        "leasemesh peek shop/orders --status reserved --limit 5",
        "leasemesh peek shop/orders --json",
    ],
)
def peek(
    context: Context,
    topic: TopicArgument,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 20,
    status: Annotated[str, typer.Option(help="pending, reserved, unknown, consumed, skipped or dead.")] = "pending",
) -> None:
    """Show the oldest events of a topic. Changes nothing."""
    workflow, name = existing_topic(context.node, topic)
    events = context.node.peek(workflow, name, limit=limit, status=cast(StatusName, status))
    document = {"events": [event_document(event) for event in events]}

    def draw() -> Iterable[RenderableType]:
        if not events:
            return [styled(f"no {status} events in {topic}")]
        more = [styled(f"the oldest {limit:,} are shown; --limit shows more", "dim")] if len(events) == limit else []
        return [event_table(context, events), *more]

    context.screen.show(document, draw)
