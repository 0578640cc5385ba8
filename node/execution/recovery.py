"""Recovery finds what earlier runs have left behind, and does what is to be done about it.

It looks when a runner starts, when a verdict or an outcome arrives, and every few seconds. It looks at two kinds of
runs. The first are runs of this node that nobody carries on: their process died, their code failed, or a person has
decided. The second are runs of other nodes that have been silent for long enough.

| what is found of a run of this node | what is done |
|---|---|
| a producer that was executing | it is marked as crashed, and polls again |
| no effect was begun, or it did not happen | its events are released, and a fresh run takes them |
| the call was under way | its outcome is unknown: it is found out, or a person decides. The events stay reserved |
| the outcome is unknown | nothing. Reconciliation and people are at it |
| the effect happened | a new run goes on at emitting, with the same results. Without its handler, a person is told |
| a person said to skip it | its events are skipped |
| another run goes on with its work already | it ends, and its claims with that one's |

The rows of other nodes' runs are never written here. What a silent run holds is claimed at the next epoch, unless the
outcome of its effect is unknown, or it has a permit to begin one.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass

from leasemesh.node.authoring.progress import ProgressKind
from leasemesh.node.authoring.workflow import Consumer, Handler
from leasemesh.node.execution.beginning import PROCESS_ENDED
from leasemesh.node.execution.manager import Manager
from leasemesh.node.model.errors import HomeElsewhere, IllegalState, LeaseLost, NotAvailable, NotFound
from leasemesh.node.model.ids import RunId, short, short_run
from leasemesh.node.stores import HandlerRun, Mutation
from leasemesh.node.stores.events.takeover import HeldElsewhere
from leasemesh.node.stores.phases import ENDED, RunStatus

log = logging.getLogger("leasemesh.runtime")

CANDIDATES_MAX = 100
"""Silent runs that are looked at in one go. The longest silent come first."""

SETTLED = ("consumed", "skipped", "dead")

HandlerKey = tuple[str, str]
Notification = tuple[ProgressKind, HandlerKey, RunId, str]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Work beyond the boundary that a new run is to go on with.

    Attributes:
        of: the run whose reservation holds the events.
        consumer: who goes on.
        taken: the run is another node's, silent for long enough.
    """

    of: HandlerRun
    consumer: Consumer
    taken: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What looking brought.

    Attributes:
        continuations: what is to be gone on with.
        notifications: what was done, as (kind, handler, run, sentence).
    """

    continuations: tuple[Continuation, ...]
    notifications: tuple[Notification, ...]


class Recovery:
    """Looks after what was left behind. Synchronous. Each thing that it does is a transaction of its own."""

    def __init__(
        self, manager: Manager, handlers: Mapping[HandlerKey, Handler], *, unrecorded: Container[RunId] = ()
    ) -> None:
        """Make one.

        Args:
            manager: makes the transitions.
            handlers: those that run on this node, by (workflow, name).
            unheard: runs whose effect's outcome is known to this process, or will be, and is not recorded yet.
        """
        self._manager = manager
        self._unrecorded = unrecorded
        self._node = manager.node
        self._handlers = handlers
        self._told: list[Notification] = []
        self._without_handler: set[RunId] = set()

    # --- This node's ----------------------------------------------------------------------------------------------

    def look(self) -> Found:
        """Look after runs of this node that nobody runs."""
        self._told = []
        self._end_polls()
        found: list[Continuation] = []
        for run in self._left_behind():
            try:
                continuation = self._settle(run)
            except (LeaseLost, IllegalState) as error:  # a merge came in between: the next look sees what it brought
                log.info("run %s is looked at again later: %s", short_run(run.id), error)
                continue
            if continuation is not None:
                found.append(continuation)
        return Found(tuple(found), tuple(self._told))

    def _end_polls(self) -> None:
        for poll, began_as in self._node.handler_runs.polls().items():
            if not self._manager.is_under_way(poll):
                run = self._manager.poll_was_cut_off(poll, began_as)
                if run is not None:
                    self._tell_of_end(run)

    def _left_behind(self) -> list[HandlerRun]:
        """Return this node's runs that have not ended, still hold events, or have an effect in flight: a copy of this
        file that did not know of that may have ended the run and given its events back.

        What this process runs is told from the rest after the rows were read, and the rest is then read again: a run
        that began or ended in between is not mistaken.
        """
        runs, node = self._node.handler_runs, self._node
        open_runs = [run.id for run in runs.own_incomplete()]
        found = dict.fromkeys([*open_runs, *node.events.held_runs(own=True), *node.mutations.own_in_flight()])
        left = [runs.get(run) for run in found if not self._manager.is_under_way(run)]
        return [run for run in left if run is not None]  # what has no row people hold, or an app by hand

    def _settle(self, run: HandlerRun) -> Continuation | None:
        manager, events = self._manager, self._node.events
        reservation = events.reservation(run.id)
        held = reservation is not None and reservation.state == "held"
        entry = self._node.mutations.get(run.id)
        if entry is not None and entry.status == "in_flight" and self._node.mutations.outcome(entry.work) == "unknown":
            if run.id not in self._node.calls_going_on and run.id not in self._unrecorded:
                self._cut_off(run, entry)
            return None
        effect = events.effect_behind(run.id) if held else None
        outcome = effect.outcome if effect is not None else "none"
        if outcome == "unknown":
            return None
        if not held:
            self._end_without_events(run)
        elif outcome == "applied":
            return self._beyond(run)
        elif outcome == "skipped":
            manager.end_earlier(run, "superseded", "a person decided to skip its events", settle="skip")
            self._tell("released", run, f"skipped the events of run {short_run(run.id)}, as a person decided")
        else:
            status, reason = _ending(run, outcome)
            manager.end_earlier(run, status, reason, settle="release")
            self._tell("released", run, f"released the events of run {short_run(run.id)}: {reason}")
        return None

    def _cut_off(self, run: HandlerRun, entry: Mutation) -> None:
        """The intent is on the disk and the answer is not: the call may have left, and may have arrived."""
        handler = self._handlers.get((run.workflow, run.handler))
        effect = handler.effects.get(entry.tool) if isinstance(handler, Consumer) else None
        can_ask = effect is not None and effect.reconciler is not None
        at = self._node.database.clock_ms() if can_ask else None
        self._manager.call_ended(run, "the process ended before the answer was seen", reconcile_at=at)
        self._tell("unknown", run, f"nobody knows whether {entry.tool} happened in run {short_run(run.id)}")

    def _beyond(self, run: HandlerRun) -> Continuation | None:
        handler = self._handlers.get((run.workflow, run.handler))
        if self._node.events.is_continued(run.id):
            self._manager.end_continued(run)
            return None
        if isinstance(handler, Consumer):
            return Continuation(run, handler, taken=False)
        if run.id not in self._without_handler:
            self._without_handler.add(run.id)
            wanted = f"bring the handler back, or end it (`leasemesh consume {short_run(run.id)}`)"
            self._tell("trouble", run, f"run {short_run(run.id)} cannot go on beyond its effect: {wanted}")
        return None

    def _end_without_events(self, run: HandlerRun) -> None:
        if run.status in ENDED:
            return
        if run.status == "paused:transient":  # it waits for the run that tries again
            if self._is_done_with(run):
                self._manager.end_earlier(run, "superseded", "another run has done its work, or begun since")
            return
        self._manager.end_earlier(run, "crashed", PROCESS_ENDED)
        self._tell_of_end(run)

    def _is_done_with(self, run: HandlerRun) -> bool:
        """Whether no run of this node tries a failed one again: another has begun since, or its events are settled."""
        newest = self._node.handler_runs.recent(run.workflow, run.handler, node=run.node, limit=1)
        if [one.id for one in newest] != [run.id]:
            return True
        reservation = self._node.events.reservation(run.id)
        claimed = [self._node.events.get(event) for event in reservation.claims] if reservation is not None else []
        return bool(claimed) and all(event is None or event.status in SETTLED for event in claimed)

    # --- Other nodes' -------------------------------------------------------------------------------------------------

    def look_for_silent(self) -> Found:
        """Look after runs of other nodes that have been silent for long enough: free what was not begun, and say what
        is to be gone on with."""
        self._told = []
        found: list[Continuation] = []
        keys = [key for key, handler in self._handlers.items() if isinstance(handler, Consumer)]
        for candidate in self._node.events.stale_candidates(keys, limit=CANDIDATES_MAX):
            try:
                if self._node.staleness.holder(candidate.event).wait_ms == 0:
                    continuation = self._take(candidate)
                    if continuation is not None:
                        found.append(continuation)
            except (IllegalState, NotAvailable, NotFound, HomeElsewhere, LeaseLost) as error:
                log.info("run %s of node %s is left alone: %s", short_run(candidate.run), short(candidate.node), error)
        return Found(tuple(found), tuple(self._told))

    def _take(self, candidate: HeldElsewhere) -> Continuation | None:
        consumer = self._handlers[(candidate.workflow, candidate.handler)]
        assert isinstance(consumer, Consumer)
        outcome = candidate.effect.outcome if candidate.effect is not None else "none"
        if outcome == "applied":
            run = self._node.handler_runs.get(candidate.run)
            return None if run is None else Continuation(run, consumer, taken=True)
        if outcome != "skipped" and candidate.run in self._node.permits.holders(candidate.event):
            return None  # it may begin its effect at any time; only a person can say that it never will
        reason = f"node {short(candidate.node)} was silent for too long"
        count = self._manager.take_over_to_free(consumer, candidate.run, skip=outcome == "skipped", reason=reason)
        if count:
            key = (candidate.workflow, candidate.handler)
            self._told.append(("taken_over", key, candidate.run, f"events taken over: {count}; {reason}"))
        return None

    def _tell_of_end(self, run: HandlerRun) -> None:
        self._tell("released", run, f"run {short_run(run.id)} had been cut off by the end of its process")

    def _tell(self, kind: ProgressKind, run: HandlerRun, text: str) -> None:
        self._told.append((kind, (run.workflow, run.handler), run.id, text))


def _ending(run: HandlerRun, outcome: str) -> tuple[RunStatus, str]:
    if outcome == "failed":
        return "superseded", "its effect did not happen"
    return "crashed", PROCESS_ENDED
