"""The command why: an event's story in order, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leasemesh.node.cli.app import Context, app, command
from leasemesh.node.cli.authority import waiting_text
from leasemesh.node.cli.effects import resolve_sentence
from leasemesh.node.cli.events import event_document
from leasemesh.node.cli.naming import find_event
from leasemesh.node.cli.output import Column, ago, clock, joined, status_text, styled
from leasemesh.node.cli.story import Chapter, chapters, claim_documents, last_failure
from leasemesh.node.cli.unknown import silent_permit
from leasemesh.node.cli.work import MANUAL
from leasemesh.node.model.errors import HomeElsewhere, IllegalState
from leasemesh.node.model.ids import short, short_run
from leasemesh.node.stores import Event, Explanation

if TYPE_CHECKING:
    from rich.console import RenderableType


@command(
    app,
    "why",
    panel="Events",
    examples=["leasemesh why shop/orders/order-17", "leasemesh why 3f2a91c07b", "leasemesh why 3f2a91c07b --json"],
)
def why(
    context: Context,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="An id, its beginning, or WORKFLOW/TOPIC/MESSAGE_ID.")],
) -> None:
    """Tell an event's story: who published it, who claimed it, what was done, how that ended, and what to do next."""
    found = find_event(context.node, event)
    with context.node.database.snapshot():
        explanation = context.node.explain(found.id)
        assert explanation is not None, "an event that was found can be explained"
        claims = claim_documents(context, explanation)
        story = chapters(context, explanation, claims)
    next_step = _next_step(context, explanation, claims)
    document = {
        "event": event_document(explanation.event),
        "published": [
            {"at": at, "node": node, "device": context.device_name(node)}
            for at, node in zip(explanation.publications, explanation.publishers, strict=True)
        ],
        "generations": [
            {"event": one.event, "generation": one.generation, "status": one.status, "by": one.by, "at": one.created_at}
            for one in explanation.generations
        ],
        "claims": claims,
        "duplicate": explanation.duplicate,
        "conflicting": explanation.conflicting,
        "story": [{"at": one.at, "device": one.device, "text": one.text + one.state} for one in story],
        "next": next_step,
    }
    context.screen.show(document, lambda: _draw(context, explanation, story, next_step))


def _draw(context: Context, explanation: Explanation, story: list[Chapter], next_step: str) -> list[RenderableType]:
    event = explanation.event
    generation = f", generation {event.generation}" if event.generation else ""
    lines: list[RenderableType] = [
        joined(styled(f"{event.workflow}/{event.topic}/{event.message_id}", "bold"), "  ", status_text(event.status)),
        styled(event.title) if event.title else styled("(no title)", "dim"),
        styled(f"event {event.id}{generation}, published {ago(event.created_at, context.now_ms)}", "dim"),
        "",
    ]
    columns = [Column("when"), Column("device", flexible=True), Column("what", flexible=True, wraps=True)]
    rows = [
        [clock(one.at), one.device, joined(one.text, status_text(one.state)) if one.state else one.text]
        for one in story
    ]
    lines += [context.screen.table(columns, rows), ""]
    if explanation.duplicate:
        lines.append(
            styled("DUPLICATE: more than one run did this work; it was done before they could meet.", "bold magenta")
        )
    if explanation.conflicting:
        lines.append(styled("It was published with different contents; the earliest publication counts.", "yellow"))
    return [*lines, joined(styled("next: ", "bold"), next_step)]


# --- What to do next --------------------------------------------------------------------------------------------------


def _next_step(context: Context, explanation: Explanation, claims: list[dict[str, Any]]) -> str:
    event = explanation.event
    newest = explanation.generations[-1] if explanation.generations else None
    if newest is not None and newest.generation > event.generation:
        return f"it was requeued; of its newest generation: leasemesh why {short(newest.event)}"
    match event.status:
        case "pending":
            return _next_of_pending(context, explanation, claims)
        case "unknown":
            return _next_of_unknown(context, explanation, claims)
        case "reserved":
            return _next_of_reserved(context, explanation, claims)
        case "dead":
            return (
                f"it was given up after too many failures; to have it done again: leasemesh requeue {short(event.id)}"
            )
    return "nothing; it is settled for ever"


def _next_of_pending(context: Context, explanation: Explanation, claims: list[dict[str, Any]]) -> str:
    event, node = explanation.event, context.node
    for handler in dict.fromkeys(claim["handler"] for claim in claims):
        block = node.handler_blocks.get(event.workflow, handler)
        if block is not None:
            reason = f" ({block.reason})" if block.reason else ""
            return f"handler {handler} is blocked{reason}: leasemesh unblock {event.workflow}/{handler}"
    holders = node.permits.holders(event.id)
    if holders:
        return f"the permit of run {short_run(holders[0])} stands for it, so nobody else may do it: leasemesh unknown"
    refused = _refused_here(context, event)
    if refused is not None:
        return refused
    reserve = f"leasemesh reserve {event.workflow}/{event.topic} --id {event.message_id}"
    failure = last_failure(claims)
    if failure is not None:
        return f"a device that runs {claims[-1]['handler']} tries again; to do it by hand: {reserve}"
    return f"it is free: {reserve}"


def _refused_here(context: Context, event: Event, holder: dict[str, Any] | None = None) -> str | None:
    """Return why nobody claims the event by hand on this device: neither from its holder, nor when it has none."""
    modes = context.node.modes
    try:
        modes.claiming(event.workflow, [event.topic], MANUAL)
    except HomeElsewhere as elsewhere:
        home = elsewhere.node
    except IllegalState as waiting:
        return str(waiting)
    else:
        if holder is None or holder["reservation"] is None or holder["reservation"]["mode"] != "home":
            return None
        home = holder["node"]
        if home in modes.gone_homes(event.workflow, [event.topic], holder["handler"]):
            return None
    return f"it is for {context.device_name(home)}, which alone claims here (mode home)"


def _next_of_unknown(context: Context, explanation: Explanation, claims: list[dict[str, Any]]) -> str:
    for claim in reversed(claims):
        effect = claim["effect"]
        if effect is None or effect["outcome"] != "unknown":
            continue
        resolve = resolve_sentence(effect["work"])
        decide = f"ask the service, then: {resolve}"
        if effect["status"] == "in_flight" and claim["node"] == context.node.site_id:
            return f"this device calls {effect['tool']}, or was cut off: the app finds that out when it runs again"
        if effect["status"] == "in_flight":
            return f"{claim['device']} calls {effect['tool']}, or was cut off; when it is not coming back, {decide}"
        if effect["status"] == "needs_reconcile":
            return f"{claim['device']} asks what became of it; whoever knows may say so: {resolve}"
        return decide
    return "whether its effect happened is not known; it waits until that is found out: leasemesh unknown"


def _next_of_reserved(context: Context, explanation: Explanation, claims: list[dict[str, Any]]) -> str:
    event, node = explanation.event, context.node
    permit = node.permits.get(event.run) if event.run else None
    if permit is not None and permit.state == "waiting":
        return waiting_text(context, permit)
    holder = next(claim for claim in claims if claim["run"] == event.run)
    run, device = holder["handler_run"], holder["device"]
    effect = node.events.effect_behind(holder["run"])
    outcome = effect.outcome if effect is not None else "none"
    if holder["node"] == node.site_id:
        number = short_run(holder["run"])
        if outcome == "skipped":
            by_app = "the app does so when it runs, or: " if run is not None else ""
            return f"a person decided to skip it: {by_app}leasemesh skip {number}"
        if run is None and outcome == "applied":
            return f"its effect happened; when what follows is done: leasemesh consume {number}"
        if run is None:
            return f"this device holds it: leasemesh consume {number}, or release it"
        if outcome == "applied":
            return "its effect happened, and what follows is still to be done: this device does it while the app runs"
        return f"this device works on it, or does when the app runs again: leasemesh show {number}"
    if permit is not None and silent_permit(node, permit.run) is not None:
        return f"{device} has a permit and fell silent; ask the service, then: {resolve_sentence(permit.work)}"
    refused = _refused_here(context, event, holder)
    if refused is not None:
        return refused
    try:
        wait_ms = node.staleness.holder(event.id).wait_ms
    except IllegalState:  # it changed a moment ago
        return f"{device} had it a moment ago; look again"
    when = (
        f"in {wait_ms / 1000:.0f} s, if it stays silent" if wait_ms else "now, for it has been silent for long enough"
    )
    if outcome == "skipped":
        by_hand = f"leasemesh take-over {short(event.id)}, and skip its run"
        return f"{device} skips it, as a person decided; devices that run the handler may do so {when}, or: {by_hand}"
    if outcome == "applied":
        return f"{device} goes on after the effect; devices that run the handler may take over {when}"
    return f"{device} holds it; others may take it over {when}: leasemesh take-over {short(event.id)}"
