"""The invariants about handlers and their effects, as checkers. See `sim.invariants` for the others.

S4, S7 and S8 are looked at when an intent is committed and when a call leaves a device; S5 and S6 when an effect
happens outside; S9 when a run has claimed; S11 after commits; L2 now and then and in the end; L3 and L4 in the end, on
a mesh at rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from leasemesh.node.model.leases import ClaimEffect, EventStatus
from sim.handling import AUTOMATION, CONFIRMED, SOFT

PHASES = {
    "producer": ("pending", "executing", "committed"),
    "consumer": ("pending", "preparing", "prepared", "mutating", "mutated", "emitting", "committed"),
}
UNKNOWN = ("in_flight", "needs_reconcile", "indeterminate")
EFFECTS = {"unknown": ClaimEffect.UNKNOWN, "skipped": ClaimEffect.SKIPPED, "applied": ClaimEffect.HAPPENED}
"""What a work's outcome is to the ownership rule."""

GRACE_US = 1_500_000
"""A claim counts as made in a calm world when the calm had lasted so long."""


def effects_of_runs(database, *, besides: str | None) -> tuple[dict[str, ClaimEffect], dict[str, ClaimEffect]]:
    """What became of the effects of runs, and of works that are decided: folded here from the entries and verdicts
    themselves, as if one run had made no entry."""
    runs: dict[str, str] = {}
    entries: dict[str, set[str]] = {}
    rows = database.query("SELECT lower(hex(id)), body, progress, outcome FROM mutations WHERE body <> '{}'")
    for run, body, progress, outcome in rows:
        if run != besides:
            status = outcome.split(" ")[1] if outcome else json.loads(progress).get("status", "in_flight")
            runs[run] = json.loads(body)["work"]
            entries.setdefault(runs[run], set()).add(status)
    said: dict[str, set[str]] = {}
    for (text,) in database.query("SELECT body FROM verdicts WHERE body <> '{}'"):
        body = json.loads(text)
        said.setdefault(body["work"], set()).add(body["verdict"])
    outcomes = {work: _fold(entries.get(work, set()), said.get(work, set())) for work in entries.keys() | said.keys()}
    decided = {work: EFFECTS[outcome] for work, outcome in outcomes.items() if outcome in ("applied", "skipped")}
    permitted = dict(database.query("SELECT lower(hex(run)), lower(hex(work)) FROM standing_permits"))
    known = {run: decided[work] for run, work in permitted.items() if work in decided}
    return known | {run: EFFECTS[outcomes[work]] for run, work in runs.items() if outcomes[work] in EFFECTS}, decided


def _fold(statuses: set[str], said: set[str]) -> str:
    if "applied" in statuses or "happened" in said:
        return "applied"
    if "skip" in said:
        return "skipped"
    if "in_flight" in statuses:
        return "unknown"
    if statuses & {"needs_reconcile", "indeterminate"}:
        return "failed" if "not_happened" in said else "unknown"
    return "failed" if "failed" in statuses else "none"


@dataclass(frozen=True)
class Work:
    """Something that a device is at."""

    app: object
    run: str
    events: tuple[str, ...]


class EffectChecks:
    """The checkers of one run that have to do with handlers."""

    def __init__(self, world, demand) -> None:
        self._world = world
        self._demand = demand
        self._claimed_at_us: dict[str, int] = {}
        self._intents: dict[int, set[str]] = {}
        self._phases: dict[int, dict[str, int]] = {}
        self._works: list[Work] = []
        self._over: set[str] = set()

    # --- In a file ----------------------------------------------------------------------------------------------------

    def after_commit(self, app) -> None:
        """Look at what a commit has changed."""
        own = app.database.site_id
        for (run,) in app.database.query("SELECT lower(hex(id)) FROM run_index WHERE state = 0 AND node = ?", (own,)):
            if run not in self._claimed_at_us:
                self._claimed_at_us[run] = self._world.scheduler.now_us
                self._claims_the_next_epoch(app, run)
        if not self._world.handled:
            return
        seen = self._intents.setdefault(app.device.number, set())
        rows = app.database.query(
            "SELECT lower(hex(id)), body FROM mutations "
            "WHERE status = 'in_flight' AND body ->> '$.node' = ? AND body ->> '$.incarnation' = ? ORDER BY id",
            (own.hex(), app.database.incarnation.hex()),  # not what another copy of this file has begun
        )
        for run, body in rows:
            if run not in seen:
                seen.add(run)
                self._intent(app, run, json.loads(body))
        self._phases_go_on(app)

    def _claims_the_next_epoch(self, app, run: str) -> None:
        """A run of this process has just claimed."""
        facts = self._world.checks.facts(app.database, besides=run)
        reservation = facts.reservations[run]
        if reservation.incarnation != app.database.incarnation.hex():
            return  # It came with a merge, and was claimed long ago by this file before it was restored.
        for event, epoch in reservation.claims.items():
            others = max((claim.epoch for claim in facts.claims[event] if claim.run != run), default=0)
            self._demand(
                "S9", epoch > others, f"{app.device.name}: run {run} claims {event}@{epoch}, there is @{others}"
            )

    def forget_file(self, device) -> None:
        """Another file is in the place of this device's."""
        self._phases.pop(device.number, None)

    def _intent(self, app, run: str, body: dict) -> None:
        """A run of this device has just written that its effect is about to begin."""
        facts = app.world.checks.facts(app.database, besides=run)
        said = {
            json.loads(text)["work"] for (text,) in app.database.query("SELECT body FROM verdicts WHERE body <> '{}'")
        }
        open_runs = {
            other
            for other, status, work in app.database.query(
                "SELECT lower(hex(id)), status, body ->> '$.work' FROM mutations WHERE body <> '{}'"
            )
            if status == "in_flight" or (status in UNKNOWN and work not in said)
        }
        for event in facts.reservations[run].claims:
            others = sorted(claim.run for claim in facts.claims[event] if claim.run != run and claim.run in open_runs)
            text = f"{app.device.name}: run {run} begins its effect for {event}, and that of {others} is unknown"
            self._demand("S8", not others, text)
            owner = facts.owner(event).owner
            self._demand("S4", owner == run, f"{app.device.name}: run {run} begins its effect, {owner} owns {event}")

    def _phases_go_on(self, app) -> None:
        before = self._phases.setdefault(app.device.number, {})
        rows = app.database.query(
            "SELECT lower(hex(id)), body ->> '$.kind', phase FROM handler_runs WHERE body <> '{}'"
        )
        copies = bool(self._world.fired["restore"] or self._world.fired["clone started"])
        for run, kind, phase in rows:
            rank = PHASES[kind].index(phase)
            text = f"{app.device.name}: run {run} went back to {phase}"
            # Of what two copies of one file did to a run the later word counts, but for its end.
            was = before.get(run, 0)
            self._demand("S11", rank >= was or (copies and was < len(PHASES[kind]) - 1), text)
            before[run] = rank

    def committed_runs_are_done(self, app) -> None:
        """The events of committed runs are terminal, and consumed."""
        rows = app.database.query(
            "SELECT lower(hex(h.id)), e.status FROM handler_runs AS h JOIN run_index AS r ON r.id = h.id "
            "JOIN claims AS c ON c.run = r.n JOIN event_index AS e ON e.n = c.event WHERE h.phase = 'committed'"
        )
        for run, status in rows:
            text = f"{app.device.name}: run {run} is committed, an event of it has status {status}"
            self._demand("S11", status == EventStatus.CONSUMED, text)

    def unknown_items_say_all(self, app) -> None:
        """What is unknown says who holds it, since when, with which tool and which parameters."""
        calls = {call.run: call for call in self._world.service.calls}
        for entry in app.node.mutations.unresolved():
            call = calls.get(entry.run)
            told = entry.tool.startswith("deliver_") and entry.created_at > 0 and len(entry.node) == 32
            said = entry.params if isinstance(entry.params, dict) else {}
            same = bool(said) if call is None else (entry.node, said.get("events")) == (call.node, list(call.events))
            self._demand("L2", told and same, f"{app.device.name} says of {entry.run} only {entry}")

    # --- Outside ------------------------------------------------------------------------------------------------------

    def begins(self, app, call) -> None:
        """A call leaves a device."""
        rows = app.database.query("SELECT status, lower(hex(work)) FROM mutations WHERE id = unhex(?)", (call.run,))
        text = f"{app.device.name} calls for run {call.run}, its file says {rows}"
        self._demand("S7", rows == [("in_flight", call.key)], text)
        again = any(other.run == call.run for other in self._world.service.calls)
        self._demand("S8", not again, f"{app.device.name} calls for run {call.run} a second time")
        if call.topic == SOFT:
            self.work_begins(app, call.run, call.events)

    def work_begins(self, app, run: str, events) -> None:
        """A device begins work that it has claimed softly, behind the barrier."""
        self._works = [work for work in self._works if work.app.process.alive and work.run not in self._over]
        for other in self._works:
            shared = sorted(set(other.events) & set(events))
            if shared and other.app is not app:
                calm = self._was_calm_at_claim(other.run) and self._was_calm_at_claim(run)
                text = f"{app.device.name} begins {shared} while {other.app.device.name} is at it, and all was calm"
                self._demand("S5", not calm, text)
        if self._was_calm_at_claim(run):
            self._demand("S5", True, "")
        self._works.append(Work(app, run, tuple(events)))

    def work_ends(self, run: str) -> None:
        """It is done, or given up."""
        self._over.add(run)

    def _was_calm_at_claim(self, run: str) -> bool:
        since_us, claimed_us = self._world.calm_since_us, self._claimed_at_us.get(run)
        return since_us is not None and claimed_us is not None and claimed_us - GRACE_US > since_us

    def happens(self, call) -> None:
        """An effect has happened."""
        if call.topic == SOFT or not self._world.promises_one_effect():
            return
        for event in call.events:
            if event not in self._world.service.lied_about:
                count = self._world.service.happened(event)
                self._demand("S6", count == 1, f"the effect of {event} ({call.topic}) has happened {count} times")

    # --- On a mesh at rest --------------------------------------------------------------------------------------------

    def is_done(self, app, topic: str, message: str) -> bool:
        """Whether an event is consumed, as a device sees it."""
        return [event.status for event in app.events.get_many(AUTOMATION, topic, [message])] == ["consumed"]

    def woke(self, app, message: str) -> None:
        """Some time after a device without handlers has published an event."""
        statuses = [event.status for event in app.events.get_many(AUTOMATION, SOFT, [message])]
        self._demand("L3", statuses != ["pending"], f"nobody has taken the event that {app.device.name} published")

    def runs_have_ended(self, app) -> None:
        """All is settled: what had lost its claim was cancelled, and nothing else is under way either."""
        rows = app.database.query(
            "SELECT lower(hex(id)), phase, status FROM handler_runs "
            "WHERE body ->> '$.node' = ? AND ended = '' ORDER BY id",
            (app.database.site_id.hex(),),
        )
        self._demand("L3", not rows, f"{app.device.name} has open runs {rows[:3]}")

    def went_on_without_authority(self, app, message: str) -> None:
        """While the authority was away."""
        self._demand("L4", self.is_done(app, SOFT, message), f"{app.device.name} did no soft work meanwhile")
        (event,) = app.events.get_many(AUTOMATION, CONFIRMED, [message])
        begun = any(event.id in call.events for call in self._world.service.calls)
        self._demand("L4", not begun, f"{app.device.name} did not wait for the authority")

    def resumed(self, app, message: str) -> None:
        """The authority is back."""
        text = f"{app.device.name} did not go on when the authority was back"
        self._demand("L4", self.is_done(app, CONFIRMED, message), text)
