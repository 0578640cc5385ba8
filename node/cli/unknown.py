"""Commands about effects of unknown outcome: unknown, resolve."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.effects import (
    VERDICT_SENTENCES,
    VERDICT_WORDS,
    effect_document,
    resolve_commands,
    state_sentence,
    verdict_document,
    verdict_text,
)
from leasemesh.node.cli.naming import find_work, person
from leasemesh.node.cli.output import ExitCode, ago, brief, clock, joined, styled
from leasemesh.node.model.ids import RunId, WorkId, short, short_run
from leasemesh.node.stores import Mutation, Permit
from leasemesh.node.stores.mutations import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leasemesh.node.node import Node

LIST_MAX = 1_000
PARAMS_CHARACTERS_MAX = 400
NAMED_EVENTS_MAX = 3

_STORED_VERDICTS = {word: stored for stored, word in VERDICT_WORDS.items()}


@command(app, "unknown", panel="Handlers", examples=["leasemesh unknown", "leasemesh unknown --json"])
def unknown(context: Context) -> None:
    """List the effects of which nobody knows whether they happened, and how to decide. Their events wait.

    Also permits whose holders have fallen silent: whether they have used them is not known here.
    """
    with context.node.database.snapshot():
        effects = [_unknown_document(context, entry) for entry in context.node.mutations.unresolved(limit=LIST_MAX)]
    permits = [_permit_document(context, permit) for permit in silent_permits(context.node)]

    def draw() -> Iterable[RenderableType]:
        if not effects and not permits:
            yield styled("no effect is of unknown outcome", "green")
        for number, one in enumerate(effects):
            yield from ([""] if number else [])
            yield from _draw_effect(context, one)
        for number, one in enumerate(permits):
            yield from ([""] if number or effects else [])
            yield from _draw_permit(context, one)

    context.screen.show({"unknown": effects, "silent_permits": permits}, draw)


def count_unknown(node: Node) -> tuple[int, int]:
    """Return how many effects wait for somebody to find out, and how many calls are under way (or were cut off)."""
    entries = node.mutations.unresolved(limit=LIST_MAX)
    under_way = sum(entry.status == "in_flight" for entry in entries)
    return len(entries) - under_way, under_way


def silent_permits(node: Node) -> list[Permit]:
    """Return the silent permits of the runs on other devices. The longest held first."""
    found = (silent_permit(node, run) for run in node.events.held_runs(own=False)[:LIST_MAX])
    return [permit for permit in found if permit is not None]


def silent_permit(node: Node, run: RunId) -> Permit | None:
    """Return the permit of another device's run if it stands and the device has been silent for so long that the work
    would be taken over without it. Else None."""
    permit = node.permits.get(run)
    if permit is None or permit.state != "granted" or node.mutations.outcome(permit.work) != "none":
        return None  # what is known to be begun, or decided by a person, is not for this list
    found = [node.events.get(event) for event in permit.events]
    waits = any(event is not None and event.status in ("pending", "reserved") for event in found)
    return permit if waits and node.staleness.is_silent(run) else None


def _unknown_document(context: Context, entry: Mutation) -> dict[str, Any]:
    node = context.node
    run = node.handler_runs.get(entry.run)
    reservation = node.events.reservation(entry.run)
    events = [node.events.get(event) for event in reservation.claims] if reservation is not None else []
    return {
        **effect_document(context, entry),
        "workflow": run.workflow if run else reservation.workflow if reservation else None,
        "handler": run.handler if run else reservation.handler if reservation else None,
        "events": [f"{one.workflow}/{one.topic}/{one.message_id}" for one in events if one is not None],
        "resolve": list(resolve_commands(entry.work)),
    }


def _draw_effect(context: Context, one: dict[str, Any]) -> Iterable[RenderableType]:
    now_ms = context.now_ms
    heading = f"{one['tool']} of {one['workflow']}/{one['handler']}" if one["handler"] else one["tool"]
    begun = f"begun {clock(one['begun_at'])} ({ago(one['begun_at'], now_ms)})"
    yield joined(styled(heading, "bold red"), f" on {one['device']}, {begun}")
    yield _facts(
        context,
        one["work"],
        ("state", state_sentence(one, now_ms)),
        ("params", brief(one["params"], PARAMS_CHARACTERS_MAX)),
        ("work", f"{one['work']}, run {short_run(one['run'])}"),
        ("events", _named(one["events"])),
        *(("verdict", f"{verdict_text(verdict)} ({verdict['device']})") for verdict in one["verdicts"]),
    )


def _permit_document(context: Context, permit: Permit) -> dict[str, Any]:
    found = [context.node.events.get(event) for event in permit.events]
    return {
        "work": permit.work,
        "run": permit.run,
        "node": permit.node,
        "device": context.device_name(permit.node),
        "workflow": permit.workflow,
        "handler": permit.handler,
        "events": [f"{one.workflow}/{one.topic}/{one.message_id}" for one in found if one is not None],
        "granted_at": permit.decided_at,
        "resolve": list(resolve_commands(permit.work)),
    }


def _draw_permit(context: Context, one: dict[str, Any]) -> Iterable[RenderableType]:
    granted = f"granted {clock(one['granted_at'])} ({ago(one['granted_at'], context.now_ms)})"
    yield joined(styled(f"permit of {one['workflow']}/{one['handler']}", "bold red"), f" on {one['device']}, {granted}")
    yield _facts(
        context,
        one["work"],
        ("state", f"{one['device']} has fallen silent; whether it has begun its effect is not known here"),
        ("work", f"{one['work']}, run {short_run(one['run'])}"),
        ("events", _named(one["events"])),
    )


def _facts(context: Context, work: str, *facts: tuple[str, str]) -> RenderableType:
    decisions = resolve_commands(work)
    width = max(map(len, decisions))
    decide = [
        ("" if number else "decide", joined(f"{line:<{width}}", styled(f"  # {follows}", "dim")))
        for number, (line, follows) in enumerate(decisions.items())
    ]
    return context.screen.facts([*facts, *decide], indent=2)


def _named(events: list[str]) -> str:
    more = f" and {len(events) - NAMED_EVENTS_MAX:,} more" if len(events) > NAMED_EVENTS_MAX else ""
    return (", ".join(events[:NAMED_EVENTS_MAX]) + more) or "none that is here"


# --- Deciding ---------------------------------------------------------------------------------------------------------


@command(
    app,
    "resolve",
    panel="Handlers",
    examples=[
        "leasemesh resolve 77b0c2d4e1 happened",
        "leasemesh resolve 77b0c2d4e1 happened --result '{\"id\": 17}'",
        "leasemesh resolve 77b0c2d4e1 not-happened",
        "leasemesh resolve 77b0c2d4e1 skip --by ann",
    ],
)
def resolve(
    context: Context,
    work: Annotated[str, typer.Argument(metavar="WORK", help="The work, as `leasemesh unknown` shows it.")],
    verdict: Annotated[str, typer.Argument(metavar="VERDICT", help="happened, not-happened or skip.")],
    result: Annotated[
        str | None, typer.Option(metavar="JSON", help="With happened: what the effect returned, for what follows.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who says so; by default the user's name.")] = None,
) -> None:
    """Decide what became of an effect when nobody but a person can tell: look at the outside service first.

    happened: the work goes on after the effect. not-happened: it is done again. skip: its events are settled as
    skipped. Of verdicts by several people happened counts before skip, and skip before not-happened.
    """
    if verdict not in _STORED_VERDICTS:
        raise CommandError(f"{verdict!r} is not one of {', '.join(_STORED_VERDICTS)}", ExitCode.USAGE)
    if result is not None and verdict != "happened":
        raise CommandError("--result goes with happened: only what happened has one", ExitCode.USAGE)
    node = context.node
    entered, permitted = _known_works(node)
    found = find_work(work, entered | permitted.keys())
    said = node.mutations.resolve(
        found, cast(Verdict, _STORED_VERDICTS[verdict]), by=person() if by is None else by, result=_parse_result(result)
    )
    outcome = node.mutations.outcome(found)
    node.authority.tend()  # a verdict may end a permit that others wait for
    if found in entered or found not in permitted:
        follows = _follows(context, found, said.verdict, outcome)
    else:
        follows = _follows_for_permit(context.device_name(permitted[found].node), outcome)
    document = {
        "work": found,
        "verdict": verdict_document(context, said),
        "outcome": outcome,
        "verdicts": [verdict_document(context, one) for one in node.mutations.verdicts(found)],
        "text": follows,
    }
    head = f"work {short(found)}: {verdict_text(verdict_document(context, said))}"
    context.screen.show(document, lambda: [styled(head, "bold"), styled(follows)])


def _known_works(node: Node) -> tuple[set[WorkId], dict[WorkId, Permit]]:
    """Return the works that may be named by the beginning of their ids: those whose effects wait for a verdict, and
    those that other devices have a permit for."""
    works = {entry.work for entry in node.mutations.unresolved(limit=LIST_MAX)}
    permits = (node.permits.get(run) for run in node.events.held_runs(own=False)[:LIST_MAX])
    return works, {permit.work: permit for permit in permits if permit is not None and permit.state == "granted"}


def _parse_result(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(
            f"--result is not JSON ({error}); text needs quotes of its own, '\"like this\"'", ExitCode.USAGE
        ) from error


def _follows(context: Context, work: WorkId, verdict: Verdict, outcome: str) -> str:
    """Return what the verdict leads to."""
    if outcome == "unknown":
        devices = {
            context.device_name(one.node)
            for one in context.node.mutations.unresolved(limit=LIST_MAX)
            if one.work == work and one.status == "in_flight"
        }
        where = " and ".join(sorted(devices)) or "its device"
        return f"it counts when {where} has stopped calling and says so; until then the events wait"
    counted = {"applied": "happened", "skipped": "skip", "failed": "not_happened", "none": "not_happened"}[outcome]
    if counted != verdict:
        others = [one.by for one in context.node.mutations.verdicts(work) if one.verdict == counted]
        who = f"{', '.join(others)} said" if others else "a device recorded"
        return f"it does not count: {who} that {VERDICT_SENTENCES[counted]}, which comes first"
    return _NEXT[counted]


def _follows_for_permit(device: str, outcome: str) -> str:
    """Return what a verdict leads to when nothing but a permit is known of the effect."""
    if outcome == "failed":
        return f"the permit of {device} is void: others may do the work"
    if outcome == "skipped":
        return f"its events are skipped, as soon as {device} or another device that runs the handler has heard of it"
    return f"the work goes on after the effect, on {device} or on a device that takes over"


_NEXT = {
    "happened": "the work goes on after the effect, on its own device or on one that takes over",
    "skip": "its events are skipped, as soon as a device that runs the handler has heard of it",
    "not_happened": "its events are given back and done again, with a new idempotency key",
}
