"""Commands that hand out work and settle it: reserve, consume, skip, release, take-over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.events import TopicArgument, event_document, event_table
from leasemesh.node.cli.naming import existing_topic, find_event, find_run
from leasemesh.node.cli.output import ExitCode, count_of, styled
from leasemesh.node.model.errors import TooEarly
from leasemesh.node.model.ids import short_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leasemesh.node.stores import Event

WAIT_STEP_S = 1.0
"""A waiting take-over looks again this often: the wait is a minute or more."""

MANUAL = "manual"
"""For whom people claim by hand, unless they say it."""

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run that `leasemesh reserve` named.")]
HandlerOption = Annotated[str, typer.Option(help="Who works on them, for people.")]


@command(
    app,
    "reserve",
    panel="Work",
    examples=[
        "leasemesh reserve shop/orders --limit 10",
        "leasemesh reserve shop/orders --id order-17 --id order-18",
        "leasemesh reserve shop/orders --limit 1 --json",
    ],
)
def reserve(
    context: Context,
    topic: TopicArgument,
    limit: Annotated[int | None, typer.Option(help="Take the oldest pending ones, so many at most (10).")] = None,
    message_ids: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="MESSAGE_ID", help="Take the event with this message id; may be given again."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --id: take those that are free. Without it, all or none.")
    ] = False,
    handler: HandlerOption = MANUAL,
) -> None:
    """Reserve pending events for a new run of this device. Settle the run with consume, skip or release."""
    node = context.node
    if message_ids and limit is not None:
        raise CommandError("--limit and --id exclude each other", ExitCode.USAGE)
    workflow, name = existing_topic(node, topic)
    if message_ids:
        reservation = node.reserve(workflow, name, message_ids=message_ids, partial=partial, handler=handler)
    else:
        reservation = node.reserve(workflow, name, limit=10 if limit is None else limit, handler=handler)
    if not reservation.events:
        raise CommandError(f"nothing is pending in {topic}; nothing was reserved", ExitCode.NOT_AVAILABLE)
    _show_reservation(context, reservation.run, reservation.events, "reserved")


_NEXT = "when the work is done: leasemesh consume {run}"
_NEXT_OF_DECIDED = {
    "applied": "its effect happened; when what follows is done: leasemesh consume {run}",
    "skipped": "a person decided to skip it: leasemesh skip {run}",
}


def _show_reservation(context: Context, run: str, events: Sequence[Event], verb: str, next_step: str = _NEXT) -> None:
    document = {"run": run, "events": [event_document(event) for event in events]}

    def draw() -> list[RenderableType]:
        head = f"run {run} {verb} {count_of(len(events), 'event')}:"
        return [styled(head, "bold"), event_table(context, events), styled(next_step.format(run=run), "dim")]

    context.screen.show(document, draw)


@command(
    app,
    "consume",
    panel="Work",
    examples=["leasemesh consume 019a2b3c4d5e", "leasemesh consume 019a2b3c4d5e --effect-happened"],
)
def consume(
    context: Context,
    run: RunArgument,
    effect_happened: Annotated[
        bool,
        typer.Option(
            "--effect-happened",
            help="Record the outcome even if the lease was lost: what was done cannot be undone.",
        ),
    ] = False,
) -> None:
    """Settle all events of a run as done, for ever. Fails as a whole when another run owns one of them now."""
    _settle(context, run, "consumed", lambda found: context.node.events.consume(found, effect_happened=effect_happened))


@command(app, "skip", panel="Work", examples=["leasemesh skip 019a2b3c4d5e"])
def skip(context: Context, run: RunArgument) -> None:
    """Settle all events of a run as never to be done. Fails as a whole when another run owns one of them now."""
    _settle(context, run, "skipped", context.node.events.skip)


@command(app, "release", panel="Work", examples=["leasemesh release 019a2b3c4d5e"])
def release(context: Context, run: RunArgument) -> None:
    """Give the events of a run back: they are pending again, for anybody."""
    _settle(context, run, "released", context.node.events.release)


def _settle(context: Context, run: str, outcome: str, settle: Callable[[str], int]) -> None:
    found = find_run(context.node, run)
    count = settle(found)
    text = f"{outcome} {count_of(count, 'event')} of run {short_run(found)}"
    if not count:
        text = f"run {short_run(found)} had nothing left to be {outcome}"
    context.screen.show({"run": found, outcome: count}, lambda: [styled(text)])


@command(
    app,
    "take-over",
    panel="Work",
    examples=[
        "leasemesh take-over 3f2a91c07b",
        "leasemesh take-over shop/orders/order-17 --wait",
        "leasemesh take-over 3f2a91c07b 77b0c2d4e1 --force",
    ],
)
def take_over(
    context: Context,
    events: Annotated[list[str], typer.Argument(metavar="EVENT", help="Ids, or WORKFLOW/TOPIC/MESSAGE_ID.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the holders have been silent for long enough.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait: you know that the holders will not go on.")
    ] = False,
    handler: HandlerOption = MANUAL,
) -> None:
    """Reserve events that another device holds and has been silent about, for a new run of this device. Those of a run
    whose effect happened, or is to be skipped, are taken over together, to finish them.

    How long a holder has been silent is what this machine has seen itself, with `leasemesh serve` or --wait running.
    """
    node = context.node
    identifiers = [find_event(node, text).id for text in events]
    if wait and not force:
        _wait_for_silence(context, identifiers)
    try:
        reservation = node.take_over(identifiers, handler=handler, force=force)
    except TooEarly as error:
        raise CommandError(f"{error}; --wait waits for it, --force does not", ExitCode.NOT_AVAILABLE) from error
    effect = node.events.effect_behind(reservation.run)
    next_step = _NEXT_OF_DECIDED.get(effect.outcome) if effect is not None else None
    _show_reservation(context, reservation.run, reservation.events, "took over", next_step or _NEXT)


def _wait_for_silence(context: Context, events: Sequence[str]) -> None:
    """Return when the events may be taken over. Raises as `StalenessWatch.holder`."""
    longest_ms = context.node.staleness.longest_wait_ms(events)
    with context.screen.progress("waiting for the holder to stay silent", longest_ms) as show:
        while (left_ms := context.node.staleness.longest_wait_ms(events)) > 0:
            longest_ms = max(longest_ms, left_ms)
            show(longest_ms - left_ms)
            time.sleep(min(WAIT_STEP_S, left_ms / 1000))
