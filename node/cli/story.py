"""The command why: an event's story in order, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.app import Session, app, command
from node.cli.authority import waiting_text
from node.cli.events import event_document
from node.cli.naming import find_event, short_run
from node.cli.output import Column, ago, iso, joined, status_text, styled
from node.ids import short
from node.stores import ClaimInfo, Explanation

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing that happened to an event.

    Attributes:
        at: when, Unix milliseconds.
        device: where, as far as known.
        text: what.
        state: how it ended, for its colour.
    """

    at: int
    device: str
    text: str
    state: str = ""


@command(
    app,
    "why",
    panel="Events",
    examples=["leasemesh why shop/orders/order-17", "leasemesh why 3f2a91c07b", "leasemesh why 3f2a91c07b --json"],
)
def why(
    session: Session,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="An id, its beginning, or WORKFLOW/TOPIC/MESSAGE_ID.")],
) -> None:
    """Tell an event's story: who published it, who claimed it, how that ended, and what to do next."""
    found = find_event(session.node, event)
    explanation = session.node.explain(found.id)
    assert explanation is not None, "an event that was found can be explained"
    next_step = _next_step(session, explanation)
    document = _document(session, explanation) | {"next": next_step}
    session.screen.show(document, lambda: _draw(session, explanation, next_step))


def _document(session: Session, explanation: Explanation) -> dict[str, Any]:
    return {
        "event": event_document(explanation.event),
        "published_at": list(explanation.publications),
        "claims": [
            {
                "run": claim.run,
                "device": session.device_name(claim.node),
                "node": claim.node,
                "handler": claim.handler,
                "epoch": claim.epoch,
                "claimed_at": claim.claimed_at,
                "state": claim.state,
                "effect": claim.effect,
                "permit": _permit_document(session, claim),
            }
            for claim in explanation.claims
        ],
        "duplicate": explanation.duplicate,
        "conflicting": explanation.conflicting,
    }


def _permit_document(session: Session, claim: ClaimInfo) -> dict[str, Any] | None:
    permit = session.node.permits.get(claim.run)
    if permit is None:
        return None
    return {
        "state": permit.state,
        "authority": permit.authority,
        "asked_at": permit.asked_at,
        "decided_at": permit.decided_at,
        "reason": permit.reason,
    }


def _draw(session: Session, explanation: Explanation, next_step: str) -> list[RenderableType]:
    event = explanation.event
    lines: list[RenderableType] = [
        joined(styled(f"{event.workflow}/{event.topic}/{event.message_id}", "bold"), "  ", status_text(event.status)),
        styled(event.title) if event.title else styled("(no title)", "dim"),
        styled(f"event {event.id}", "dim"),
        "",
    ]
    columns = [Column("when"), Column("ago"), Column("device"), Column("what", flexible=True)]
    rows = [
        [
            iso(chapter.at)[:19].replace("T", " "),
            ago(chapter.at, session.now_ms),
            chapter.device,
            joined(chapter.text, status_text(chapter.state)) if chapter.state else chapter.text,
        ]
        for chapter in _chapters(session, explanation)
    ]
    lines += [session.screen.table(columns, rows), ""]
    if explanation.duplicate:
        lines.append(
            styled("DUPLICATE: more than one run did this work; it was done before they could meet.", "bold magenta")
        )
    if explanation.conflicting:
        lines.append(styled("It was published with different contents; the earliest publication counts.", "yellow"))
    return [*lines, joined(styled("next: ", "bold"), next_step)]


def _chapters(session: Session, explanation: Explanation) -> list[Chapter]:
    first, *again = explanation.publications
    by = f" by run {short_run(run)}" if (run := explanation.event.created_by_run) else ""
    chapters = [Chapter(first, "", f"published{by}")]
    chapters += [Chapter(at, "", "published again; nothing changed") for at in again]
    chapters += [_chapter_of(session, claim) for claim in explanation.claims]
    chapters += [chapter for claim in explanation.claims for chapter in _chapters_of_permit(session, claim)]
    return sorted(chapters, key=lambda chapter: chapter.at)


def _chapter_of(session: Session, claim: ClaimInfo) -> Chapter:
    verb = "claimed" if claim.epoch == 1 else f"claimed (epoch {claim.epoch})"
    effect = f", effect {claim.effect}" if claim.effect else ""
    text = f"{verb} by run {short_run(claim.run)} for {claim.handler}{effect}: "
    return Chapter(claim.claimed_at, session.device_name(claim.node), text, claim.state)


def _chapters_of_permit(session: Session, claim: ClaimInfo) -> list[Chapter]:
    permit = session.node.permits.get(claim.run)
    if permit is None:
        return []
    asked = Chapter(permit.asked_at, session.device_name(permit.node), f"run {short_run(claim.run)} asks for a permit")
    if permit.authority is None:
        return [asked]
    decision = f"refused: {permit.reason}" if permit.reason else "granted"
    text = f"permit of run {short_run(claim.run)} {decision}" + (", void since" if permit.state == "void" else "")
    return [asked, Chapter(permit.decided_at, session.device_name(permit.authority), text)]


def _next_step(session: Session, explanation: Explanation) -> str:
    event = explanation.event
    if event.status == "pending":
        return f"it is free: leasemesh reserve {event.workflow}/{event.topic} --id {event.message_id}"
    if event.status == "unknown":
        return "whether its effect happened is not known; it waits until that is found out or a person decides"
    if event.status != "reserved":
        return "nothing; it is settled for ever"
    permit = session.node.permits.get(event.run) if event.run else None
    if permit is not None and permit.state == "waiting":
        return waiting_text(session, permit)
    holder = next(claim for claim in explanation.claims if claim.run == event.run)
    if holder.node == session.node.site_id:
        return f"this device holds it: leasemesh consume {short_run(holder.run)}, or release it"
    wait_ms = session.node.staleness.holder(event.id).wait_ms
    when = (
        f"in {wait_ms / 1000:.0f} s, if it stays silent" if wait_ms else "now, for it has been silent for long enough"
    )
    device = session.device_name(holder.node)
    return f"{device} holds it; others may take it over {when}: leasemesh take-over {short(event.id)}"
