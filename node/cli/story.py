"""An event's story: all that devices and people did about it, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leasemesh.node.cli.app import Context
from leasemesh.node.cli.effects import effect_document, reason_text, tried_text, verdict_text
from leasemesh.node.cli.output import brief
from leasemesh.node.cli.runs import holder_of, permit_document, reservation_document, run_document
from leasemesh.node.model.ids import short, short_run
from leasemesh.node.stores import ClaimInfo, Explanation, HandlerRun

PAUSED_FOR_GOOD = "paused:transient"
"""A run with this status has failed, too: another run tries again."""


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


def claim_documents(context: Context, explanation: Explanation) -> list[dict[str, Any]]:
    """Return all claims of an event with what is known of their runs, for programs and for `chapters`."""
    return [_claim_document(context, claim) for claim in explanation.claims]


def _claim_document(context: Context, claim: ClaimInfo) -> dict[str, Any]:
    node = context.node
    run = node.handler_runs.get(claim.run)
    entry = node.mutations.get(claim.run)
    permit = node.permits.get(claim.run)
    reservation = node.events.reservation(claim.run)
    following = node.handler_runs.retry_chain(claim.run) if entry is not None else []  # beyond an effect only
    return {
        "run": claim.run,
        "device": context.device_name(claim.node),
        "node": claim.node,
        "handler": claim.handler,
        "epoch": claim.epoch,
        "claimed_at": claim.claimed_at,
        "state": claim.state,
        "reservation": reservation_document(context, reservation) if reservation is not None else None,
        "handler_run": _run(context, run) if run is not None else None,
        "effect": effect_document(context, entry) if entry is not None else None,
        "permit": permit_document(context, permit) if permit is not None else None,
        "gone_on_by": [_run(context, one) for one in following if holder_of(one) == claim.run],
    }


def _run(context: Context, run: HandlerRun) -> dict[str, Any]:
    """A run, with the time of its failure when it failed without having ended."""
    failed_at = run.details.get("failed_at")
    ended_at = run.ended_at or (failed_at if run.status == PAUSED_FOR_GOOD and isinstance(failed_at, int) else None)
    return run_document(context, run) | {"ended_at": ended_at}


def chapters(context: Context, explanation: Explanation, claims: list[dict[str, Any]]) -> list[Chapter]:
    """Return the story of an event in order."""
    told = [*_published(context, explanation), *_generations(explanation)]
    for claim in claims:
        told += [*_claimed(claim), *_permitted(claim), *_effect(context, claim)]
        following = claim["gone_on_by"]
        told += _ended(claim["handler_run"], "" if following else claim["state"])
        for run in following:
            goes_on = f"run {short_run(run['run'])} goes on after the effect of run {short_run(claim['run'])}"
            state = claim["state"] if run["status"] == "committed" else ""
            told += [Chapter(run["started_at"], run["device"], goes_on), *_ended(run, state)]
    return sorted(told, key=lambda chapter: chapter.at)  # stable: of one moment in the order of the steps


def _published(context: Context, explanation: Explanation) -> list[Chapter]:
    event = explanation.event
    run = context.node.handler_runs.get(event.created_by_run) if event.created_by_run else None
    verb, by = "published", ""
    if event.generation:
        said = next((one.by for one in explanation.generations if one.event == event.id), "")
        verb, by = f"requeued as generation {event.generation}", f" by {said}" if said else ""
    elif event.created_by_run:
        by = f" by run {short_run(event.created_by_run)}" + (f" of {run.handler}" if run is not None else "")
    cause = context.node.events.get(event.caused_by) if event.caused_by and not event.generation else None
    because = f", because of {cause.topic}/{cause.message_id}" if cause is not None else ""
    devices = [context.device_name(node) if node else "" for node in explanation.publishers]
    first, *again = zip(explanation.publications, devices, strict=True)
    return [
        Chapter(*first, f"{verb}{by}{because}"),
        *(Chapter(at, device, "published again; nothing changed") for at, device in again),
    ]


def _generations(explanation: Explanation) -> list[Chapter]:
    told = []
    for one in explanation.generations:
        name = "first published" if one.generation == 0 else f"generation {one.generation}"
        by = f", requeued by {one.by}" if one.by else ""
        if one.generation != explanation.event.generation:
            told.append(Chapter(one.created_at, "", f"{name} as event {short(one.event)}{by}: ", one.status))
    return told


def _claimed(claim: dict[str, Any]) -> list[Chapter]:
    reservation = claim["reservation"] or {"goes_on_with": None, "mode": "soft"}
    before = reservation["goes_on_with"]
    verb = f"taken over from run {short_run(before)}" if before else "claimed"
    attempt = f" (epoch {claim['epoch']})" if claim["epoch"] > 1 else ""
    mode = f", {reservation['mode']}" if reservation["mode"] != "soft" else ""
    text = f"{verb}{attempt} by run {short_run(claim['run'])} for {claim['handler']}{mode}"
    ended = claim["handler_run"] is not None and claim["handler_run"]["ended_at"] is not None
    if ended or (claim["handler_run"] is not None and claim["state"] == "held"):
        return [Chapter(claim["claimed_at"], claim["device"], text)]
    return [Chapter(claim["claimed_at"], claim["device"], f"{text}: ", claim["state"])]


def _permitted(claim: dict[str, Any]) -> list[Chapter]:
    permit, run = claim["permit"], short_run(claim["run"])
    if permit is None:
        return []
    asked = Chapter(permit["asked_at"], claim["device"], f"run {run} asks for a permit")
    if permit["authority"] is None:
        return [asked]
    decision = f"refused: {permit['reason']}" if permit["reason"] else "granted"
    void = ", void by now" if permit["state"] == "void" else ""
    return [asked, Chapter(permit["decided_at"], permit["device"], f"permit of run {run} {decision}{void}")]


def _effect(context: Context, claim: dict[str, Any]) -> list[Chapter]:
    effect = claim["effect"]
    if effect is None:
        return []
    tool, device, reason = effect["tool"], claim["device"], ""
    if effect["error"] is not None:
        reason = f": {reason_text(effect['error'])}"
    told = [Chapter(effect["begun_at"], device, f"{tool} begins with {brief(effect['params'], 120)}")]
    match effect["status"]:
        case "applied":
            told.append(Chapter(effect["updated_at"], device, f"{tool} ", "applied"))
        case "failed":
            told.append(Chapter(effect["updated_at"], device, f"{tool} certainly did not happen{reason}"))
        case "needs_reconcile" | "indeterminate":
            tried = tried_text(effect, context.now_ms)
            told.append(Chapter(effect["updated_at"], device, f"{tool}{reason}{tried}; outcome ", "unknown"))
    told += [Chapter(one["at"], one["device"], verdict_text(one)) for one in effect["verdicts"]]
    return told


def _ended(run: dict[str, Any] | None, state: str) -> list[Chapter]:
    if run is None or run["ended_at"] is None:
        return []
    status = run["status"]
    ended = "failed, another run tries again" if status == PAUSED_FOR_GOOD else status
    error = f": {run['error']}" if run["error"] and status != "committed" else ""
    text = f"run {short_run(run['run'])} {ended}{error}"
    if not state or state == "held":
        return [Chapter(run["ended_at"], run["device"], text)]
    return [Chapter(run["ended_at"], run["device"], f"{text}; event ", state)]


def last_failure(claims: list[dict[str, Any]]) -> str | None:
    """Return what went wrong in the last run that claimed the event. None when nothing did."""
    runs = [claim["handler_run"] for claim in claims if claim["handler_run"] is not None]
    failed = [run for run in runs if run["error"] and run["status"] not in ("committed", "superseded")]
    return failed[-1]["error"] if failed else None
