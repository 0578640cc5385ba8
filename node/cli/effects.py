"""How effects, permits and verdicts are told: what the commands show, unknown and why have in common."""

from __future__ import annotations

from typing import Any

from leasemesh.node.cli.app import Context
from leasemesh.node.cli.output import ago, brief, count_of
from leasemesh.node.model.ids import short
from leasemesh.node.stores import Mutation, VerdictInfo

VERDICT_WORDS = {"happened": "happened", "skip": "skip", "not_happened": "not-happened"}
"""Verdicts as people type them, by what is stored."""

VERDICT_SENTENCES = {
    "happened": "it happened",
    "skip": "it is to be skipped",
    "not_happened": "it did not happen",
}


def effect_document(context: Context, entry: Mutation) -> dict[str, Any]:
    """Return a ledger entry with what all runs and verdicts on its work come to, for programs."""
    mutations = context.node.mutations
    happened = entry.status == "applied"
    return {
        "work": entry.work,
        "tool": entry.tool,
        "params": entry.params,
        "run": entry.run,
        "node": entry.node,
        "device": context.device_name(entry.node),
        "status": entry.status,
        "outcome": mutations.outcome(entry.work),
        "result": entry.result if happened else None,
        "error": None if happened else entry.result,
        "begun_at": entry.created_at,
        "updated_at": entry.updated_at,
        "reconcile_attempts": entry.reconcile_attempts,
        "next_reconcile_at": entry.next_reconcile_at,
        "verdicts": [verdict_document(context, one) for one in mutations.verdicts(entry.work)],
    }


def verdict_document(context: Context, verdict: VerdictInfo) -> dict[str, Any]:
    """Return a person's verdict, for programs."""
    return {
        "verdict": VERDICT_WORDS[verdict.verdict],
        "by": verdict.by,
        "node": verdict.node,
        "device": context.device_name(verdict.node),
        "at": verdict.at,
        "result": verdict.result,
    }


def verdict_text(document: dict[str, Any]) -> str:
    """Return in one sentence what a person said."""
    stored = next(key for key, word in VERDICT_WORDS.items() if word == document["verdict"])
    result = f", result {brief(document['result'])}" if document["result"] is not None else ""
    return f"{document['by']} said: {VERDICT_SENTENCES[stored]}{result}"


def state_sentence(effect: dict[str, Any], now_ms: int) -> str:
    """Return in one sentence where an effect stands, by its device's word."""
    reason = f": {reason_text(effect['error'])}" if effect["error"] is not None else ""
    match effect["status"]:
        case "pending":
            return "entered, and not begun"
        case "in_flight":
            return "the call may have left, and no answer is recorded"
        case "applied":
            return "it happened" + (f", result {brief(effect['result'])}" if effect["result"] is not None else "")
        case "failed":
            return f"it did not happen{reason}"
        case "needs_reconcile" | "indeterminate":
            return f"nobody knows whether it happened{reason}{tried_text(effect, now_ms)}"
        case other:
            return f"{other}{reason}"  # a word of a later version


def tried_text(effect: dict[str, Any], now_ms: int) -> str:
    """Return what was tried to find out what became of an effect, and what will be."""
    tries, next_at = effect["reconcile_attempts"], effect["next_reconcile_at"]
    tried = f"; asked the service {count_of(tries, 'time')} in vain" if tries else ""
    if effect["status"] == "needs_reconcile" and next_at is not None:
        when = ago(next_at, now_ms) if next_at > now_ms else "when its device runs"
        return f"{tried}; asks {'again ' if tries else ''}{when}"
    if effect["status"] == "indeterminate":
        return f"{tried}; only a person can tell"
    return tried


def reason_text(reason: Any) -> str:
    """Return an error as text. It is whatever JSON somebody stored."""
    return reason if isinstance(reason, str) else brief(reason)


def resolve_sentence(work: str) -> str:
    """Return how to decide what became of a work, for a sentence."""
    return f"leasemesh resolve {short(work)} happened (or not-happened, or skip)"


def resolve_commands(work: str) -> dict[str, str]:
    """Return the command lines that decide what became of a work, and what each leads to."""
    return {
        f"leasemesh resolve {short(work)} happened": "the work goes on after it",
        f"leasemesh resolve {short(work)} not-happened": "it is done again",
        f"leasemesh resolve {short(work)} skip": "its events are skipped",
    }
