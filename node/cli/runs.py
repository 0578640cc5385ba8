"""Commands that look at runs of handlers: runs, show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasemesh.node.cli.app import Context, app, command
from leasemesh.node.cli.effects import effect_document, resolve_sentence, state_sentence, verdict_text
from leasemesh.node.cli.output import Column, ago, brief, clock, count_of, joined, lasting, status_text, styled
from leasemesh.node.model.errors import InvalidInput, NotFound
from leasemesh.node.model.ids import short, short_run
from leasemesh.node.stores import Event, HandlerRun, Permit, ReservationInfo
from leasemesh.node.stores.phases import STATUSES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WIDE_COLUMNS = 110
"""From this width on, the list of runs shows errors, too."""

SHOWN_EVENTS_MAX = 20
SHOWN_CHARACTERS_MAX = 2_000
"""Of one JSON value. --json prints it whole."""

ShownRunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")]


@command(
    app,
    "runs",
    panel="Handlers",
    examples=[
        "leasemesh runs",
        "leasemesh runs --workflow shop --handler pack",
        "leasemesh runs --status failed:logic --limit 5",
        "leasemesh runs --json",
    ],
)
def runs(
    context: Context,
    workflow: Annotated[str | None, typer.Option(help="Only those of this workflow.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only those of this handler.")] = None,
    status: Annotated[str | None, typer.Option(help="Only those with this status, such as committed.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 20,
) -> None:
    """List the runs of handlers on all devices, the newest first.

    A producer that looks and finds nothing leaves no run. Below the list stands when it looked last.
    """
    if status is not None and status not in STATUSES:
        raise InvalidInput("status", f"{status!r} is not one of {', '.join(STATUSES)}")
    found = context.node.handler_runs.list(workflow, handler, status, limit=limit)
    documents = [run_document(context, run) for run in found]
    polls = _polls(context, workflow, handler) if status in (None, "committed") else []

    def draw() -> Iterable[RenderableType]:
        if not found:
            fitting = " that fit" if workflow or handler or status else "; `leasemesh run APP` runs an app's handlers"
            return [styled(f"no runs of handlers{fitting}")]
        more = [styled(f"the newest {limit:,} are shown; --limit shows more", "dim")] if len(found) == limit else []
        return [_run_table(context, documents), *more, *(_poll_sentence(context, one) for one in polls)]

    context.screen.show({"runs": documents, "polls": polls}, draw)


def _polls(context: Context, workflow: str | None, handler: str | None) -> list[dict[str, Any]]:
    """Return the producers that found nothing when they looked last. Of that no run is kept."""
    node = context.node
    workflows = [one.id for one in node.workflows.list()] if workflow is None else [workflow]
    return [
        {
            "workflow": state.workflow,
            "handler": state.handler,
            "node": state.node,
            "device": context.device_name(state.node),
            "at": state.at,
        }
        for name in workflows
        for state in node.handler_states.looked_in_vain(name)
        if handler in (None, state.handler)
    ]


def _poll_sentence(context: Context, poll: dict[str, Any]) -> Text:
    when = ago(poll["at"], context.now_ms)
    return styled(f"{poll['workflow']}/{poll['handler']} looked {when} on {poll['device']}, and found nothing", "dim")


def run_document(context: Context, run: HandlerRun) -> dict[str, Any]:
    """Return a run, without what it worked with, for programs."""
    return {
        "run": run.id,
        "workflow": run.workflow,
        "handler": run.handler,
        "kind": run.kind,
        "node": run.node,
        "device": context.device_name(run.node),
        "phase": run.phase,
        "status": run.status,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "retry_of": run.retry_of,
        "error": error_of(run),
        "cost": run.details.get("cost", 0),
    }


def error_of(run: HandlerRun) -> str | None:
    """Return why a run ended otherwise than by its own commit, or what went wrong in it. None when nothing did."""
    said = run.details.get("ended_because") or run.details.get("error")
    return said if isinstance(said, str) and run.status != "committed" else None


def state_of(run: HandlerRun | dict[str, Any]) -> Text:
    """Return where a run stands, in one word: its phase while it moves, otherwise why it does not."""
    phase, status = (run["phase"], run["status"]) if isinstance(run, dict) else (run.phase, run.status)
    return styled(phase, "cyan") if status == "active" else status_text(status)


def _run_table(context: Context, documents: Sequence[dict[str, Any]]) -> RenderableType:
    columns = [
        Column("run"), Column("handler", flexible=True), Column("device", flexible=True), Column("state"),
        Column("started"),
    ]  # fmt: skip
    errors = context.screen.console().width >= WIDE_COLUMNS and any(one["error"] for one in documents)
    if errors:
        columns.append(Column("error", flexible=True))
    rows: list[Sequence[str | Text]] = [
        [
            styled(short_run(one["run"]), "dim"),
            f"{one['workflow']}/{one['handler']}",
            one["device"],
            state_of(one),
            ago(one["started_at"], context.now_ms),
            *([one["error"] or ""] if errors else []),
        ]
        for one in documents
    ]
    return context.screen.table(columns, rows)


# --- One run ----------------------------------------------------------------------------------------------------------


@command(
    app,
    "show",
    panel="Handlers",
    examples=["leasemesh show 019a2b3c4d5e", "leasemesh run show 019a2b3c4d5e", "leasemesh show 019a2b3c4d5e --json"],
)
def show(context: Context, run: ShownRunArgument) -> None:
    """Show one run: how far it got and when, what it worked with, its effect, its logs, and the runs before and after.

    A run that a person has reserved with `leasemesh reserve` is shown, too.
    """
    node = context.node
    found = node.handler_runs.find(run)
    identifier = found.id if found is not None else node.events.find_run(run)
    if identifier is None:
        raise NotFound("run", [run], "`leasemesh runs` lists the newest, `leasemesh status` those that hold events")
    with node.database.snapshot():
        document = _show_document(context, identifier, found)
    context.screen.show(document, lambda: _draw_run(context, document))


def _show_document(context: Context, identifier: str, run: HandlerRun | None) -> dict[str, Any]:
    node = context.node
    reservation = node.events.reservation(identifier)
    holder = holder_of(run) if run is not None else None
    entry = node.mutations.get(identifier) or (node.mutations.get(holder) if holder else None)
    effect = effect_document(context, entry) if entry is not None else None
    permit = node.permits.get(identifier)
    claims = reservation or (node.events.reservation(holder) if holder else None)
    events = [node.events.get(event) for event in claims.claims] if claims is not None else []
    document: dict[str, Any] = {
        "run": identifier,
        "handler_run": run_document(context, run) if run is not None else None,
        "session": run.session if run is not None else None,
        "prepared": run.details.get("prepared") if run is not None else None,
        "goes_on_with": holder,
        "logs": run.details.get("logs", []) if run is not None else [],
        "reservation": reservation_document(context, reservation) if reservation is not None else None,
        "events": [_event(event) for event in events if event is not None],
        "permit": permit_document(context, permit) if permit is not None else None,
        "effect": effect,
        "chain": [run_document(context, one) for one in node.handler_runs.retry_chain(identifier)],
    }
    document["phases"] = _phases(document)
    return document


def holder_of(run: HandlerRun) -> str | None:
    """Return the run whose reservation this one goes on with beyond its effect. None when it has its own."""
    holder = run.details.get("holder")
    return holder if isinstance(holder, str) else None


def reservation_document(context: Context, reservation: ReservationInfo) -> dict[str, Any]:
    """Return a reservation, for programs."""
    return {
        "node": reservation.node,
        "device": context.device_name(reservation.node),
        "workflow": reservation.workflow,
        "handler": reservation.handler,
        "mode": reservation.mode,
        "state": reservation.state,
        "at": reservation.at >> 16,
        "goes_on_with": reservation.of,
    }


def permit_document(context: Context, permit: Permit) -> dict[str, Any]:
    """Return a permit, for programs."""
    return {
        "state": permit.state,
        "work": permit.work,
        "authority": permit.authority,
        "device": context.device_name(permit.authority) if permit.authority else None,
        "asked_at": permit.asked_at,
        "decided_at": permit.decided_at,
        "reason": permit.reason,
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "workflow": event.workflow,
        "topic": event.topic,
        "message_id": event.message_id,
        "title": event.title,
        "status": event.status,
        "run": event.run,
    }


def _phases(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the run reached and when, as far as a row says when."""
    run, reservation, effect, permit = (document[key] for key in ("handler_run", "reservation", "effect", "permit"))
    own_effect = effect if effect is not None and effect["run"] == document["run"] else None
    reached: list[tuple[int, str, str]] = []
    if run is not None:
        begins = {"producer": "executing", "consumer": "emitting" if document["goes_on_with"] else "preparing"}
        at = min(run["started_at"], reservation["at"] if reservation is not None else run["started_at"])
        reached.append((at, begins[run["kind"]], f"began on {run['device']}"))
    if reservation is not None:
        what = f"reserved {count_of(len(document['events']), 'event')}, {reservation['mode']}"
        reached.append((reservation["at"], "prepared", what))
    if permit is not None:
        reached.append((permit["asked_at"], "", "asked for a permit"))
        if permit["authority"]:
            decision = f"refused: {permit['reason']}" if permit["reason"] else "granted"
            reached.append((permit["decided_at"], "", f"{permit['device']}: {decision}"))
    if own_effect is not None:
        reached.append((own_effect["begun_at"], "mutating", f"{own_effect['tool']} begins"))
        if own_effect["status"] in ("applied", "failed"):
            said = OUTCOMES[own_effect["status"]]
            reached.append((own_effect["updated_at"], "mutated", f"{own_effect['tool']} {said}"))
    if run is not None and run["ended_at"] is not None:
        phase = "committed" if run["status"] == "committed" else ""
        reached.append((run["ended_at"], phase, "" if phase else run["status"]))
    ordered = sorted(reached, key=lambda one: one[0])  # stable: of one moment as above
    return [{"at": at, "phase": phase, "text": text} for at, phase, text in ordered]


OUTCOMES = {"applied": "happened", "failed": "did not happen"}


def _draw_run(context: Context, document: dict[str, Any]) -> Iterable[RenderableType]:
    run, now_ms = document["handler_run"], context.now_ms
    yield joined(styled(f"run {document['run']}", "bold"), "  ", *([state_of(run)] if run else []))
    yield from _draw_heading(context, document)
    yield ""
    columns = [Column("when"), Column("phase"), Column("what", flexible=True, wraps=True)]
    yield context.screen.table(columns, [[clock(one["at"]), one["phase"], one["text"]] for one in document["phases"]])
    facts: list[tuple[str, str]] = []
    if run and run["error"]:
        facts.append(("error" if run["status"] != "superseded" else "ended", run["error"]))
    if run and run["cost"]:
        facts.append(("cost", f"{run['cost'] / 1_000_000:,.6f}".rstrip("0").rstrip(".")))
    if document["prepared"] is not None:
        facts.append(("prepared", brief(document["prepared"], SHOWN_CHARACTERS_MAX)))
    if document["goes_on_with"]:
        facts.append(("goes on", f"with the effect of run {short_run(document['goes_on_with'])}"))
    effect = document["effect"]
    if effect is not None:
        facts += [
            ("effect", f"{effect['tool']}, work {effect['work']}"),
            ("params", brief(effect["params"], SHOWN_CHARACTERS_MAX)),
            ("outcome", state_sentence(effect, now_ms)),
        ]
        facts += [("verdict", f"{verdict_text(one)} ({one['device']})") for one in effect["verdicts"]]
        if effect["outcome"] == "unknown":
            facts.append(("decide", resolve_sentence(effect["work"])))
    if facts:
        yield ""
        yield context.screen.facts(facts)
    yield from _draw_events(context, document["events"])
    if document["logs"]:
        yield ""
        yield styled("log", "bold")
        yield from (styled(f"  {line}") for line in document["logs"])
    yield from _draw_chain(context, document)


def _draw_heading(context: Context, document: dict[str, Any]) -> Iterable[RenderableType]:
    run, reservation = document["handler_run"], document["reservation"]
    if run is None:
        since = f", {ago(reservation['at'], context.now_ms)}" if reservation["state"] == "held" else ""
        by_hand = f"by hand on {reservation['device']}, {reservation['state']}{since}"
        yield styled(f"{reservation['workflow']}: {reservation['handler']}, {by_hand}")
        return
    took = f", took {lasting(run['ended_at'] - run['started_at'])}" if run["ended_at"] is not None else ""
    started = f"began {ago(run['started_at'], context.now_ms)}{took}"
    yield styled(f"{run['kind']} {run['workflow']}/{run['handler']} on {run['device']}, {started}")


def _draw_events(context: Context, events: Sequence[dict[str, Any]]) -> Iterable[RenderableType]:
    if not events:
        return
    yield ""
    columns = [Column("event"), Column("message", flexible=True), Column("title", flexible=True), Column("status")]
    yield context.screen.table(
        columns,
        (
            [
                styled(short(one["id"]), "dim"),
                f"{one['topic']}/{one['message_id']}",
                one["title"],
                status_text(one["status"]),
            ]
            for one in events[:SHOWN_EVENTS_MAX]
        ),
    )
    if len(events) > SHOWN_EVENTS_MAX:
        yield styled(f"and {len(events) - SHOWN_EVENTS_MAX:,} more; --json lists them", "dim")


def _draw_chain(context: Context, document: dict[str, Any]) -> Iterable[RenderableType]:
    if len(document["chain"]) < 2:
        return
    yield ""
    yield styled("tries, the first one first", "bold")
    columns = [Column(""), Column("run"), Column("device", flexible=True), Column("state"), Column("began")]
    yield context.screen.table(
        columns,
        (
            [
                "→" if one["run"] == document["run"] else "",
                short_run(one["run"]),
                one["device"],
                state_of(one),
                ago(one["started_at"], context.now_ms),
            ]
            for one in document["chain"]
        ),
    )
