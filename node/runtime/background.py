"""What goes on beside the handlers: finding out what became of effects, and housekeeping.

Both begin with what the file says, so that nothing is forgotten by a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from leasemesh.node.authoring.errors import message_of
from leasemesh.node.authoring.workflow import Consumer, Handler
from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.execution.outcomes import DidNot, Happened, Outcome, Unknown, judge
from leasemesh.node.execution.recovery import HandlerKey
from leasemesh.node.model.errors import IllegalState, LeasemeshError
from leasemesh.node.model.ids import short_run
from leasemesh.node.runtime.coordination import Coordination
from leasemesh.node.runtime.driving import Driver, Signal
from leasemesh.node.runtime.performing import find_out, in_thread
from leasemesh.node.stores import HandlerRun, Mutation

if TYPE_CHECKING:
    from leasemesh.node.authoring.effects import Effect

T = TypeVar("T")

log = logging.getLogger("leasemesh.runtime")

AT_A_TIME = 4
"""Calls of reconcile functions. Each may take as long as its effect's time-out."""

TROUBLE_S = 5.0
"""After an error of the file it is looked at again this much later."""

HOUSEKEEPING_S = 5.0


class Reconciliation:
    """Finds out, in the background, what became of effects of unknown outcome, as the ledger says when."""

    def __init__(self, runner: Coordination, driver: Driver, handlers: Mapping[HandlerKey, Handler]) -> None:
        self._runner = runner
        self._driver = driver
        self._manager = driver.manager
        self._node = driver.manager.node
        self._handlers = handlers
        self._look = Signal()
        self._late = Signal()
        self._finding = self._hearing = True

    @property
    def busy(self) -> bool:
        """Whether there is something to find out or to write down now."""
        return self._finding or self._hearing

    def look(self) -> None:
        """The ledger may have changed."""
        self._finding = True
        self._look.set()

    def look_for_late_calls(self) -> None:
        """What a call came to, whose run waits for it no more, may be known."""
        self._hearing = True
        self._late.set()

    async def run(self) -> None:
        """Find out what is due, for ever."""
        while True:
            seen = self._look.count
            try:
                due, left_out = await self._in_thread(self._due)
                limit = asyncio.Semaphore(AT_A_TIME)
                asked = await asyncio.gather(*(self._within(limit, entry) for entry in due))
                next_at = await self._in_thread(self._node.mutations.next_due_at)
                wait_s = None if next_at is None else max((next_at - self._runner.clock_ms()) / 1000, 0.0)
                if wait_s is not None:  # no longer than a clock that was set back should hold it up
                    wait_s = min(wait_s, self._manager.retry.most_ms / 1000)
                if wait_s is not None and (left_out or not all(asked)):
                    wait_s = max(wait_s, TROUBLE_S)
            except LeasemeshError as error:
                log.warning("finding out what became of effects is put off: %s", error)
                wait_s = TROUBLE_S
            self._finding = self._look.count > seen
            self._runner.activity_changed()
            await self._look.after(seen, within_s=wait_s)

    async def hear(self) -> None:
        """Write down what becomes known late, for ever. Beside `run`, whose questions may take long."""
        while True:
            seen = self._late.count
            try:
                wait_s = None if await self._hear_late_calls() else TROUBLE_S
            except LeasemeshError as error:
                log.warning("what became of a call is written down later: %s", error)
                wait_s = TROUBLE_S
            self._hearing = self._late.count > seen
            self._runner.activity_changed()
            await self._late.after(seen, within_s=wait_s)

    def _due(self) -> tuple[list[Mutation], bool]:
        """Return what is due, and whether more is that is left out: its work is gone on with, which may take long."""
        now_ms, next_at = self._runner.clock_ms(), self._node.mutations.next_due_at()
        if next_at is not None and next_at > now_ms + self._manager.retry.most_ms:
            now_ms = next_at  # it was planned by a clock that has been set back since
        all_due = self._node.mutations.due(now_ms)
        due = [entry for entry in all_due if not self._manager.is_under_way(entry.run)]
        return due, len(due) < len(all_due)

    async def _within(self, limit: asyncio.Semaphore, entry: Mutation) -> bool:
        async with limit:
            return await self._find_out(entry)

    async def _find_out(self, entry: Mutation) -> bool:
        """Find out about one call. False when it cannot be asked about now."""
        run = await self._in_thread(self._node.handler_runs.get, entry.run)
        if run is None:
            return False  # an app entered it by hand, and asks itself
        try:
            if not await self._in_thread(self._decide, run, entry):
                outcome = await self._ask(run, entry)
                await self._in_thread(self._record, run, entry, outcome)
        except IllegalState as error:  # a verdict or a merge came in between
            log.info("run %s: %s", short_run(run.id), error)
            return False
        self._runner.look()
        return True

    async def last_words(self) -> None:
        """Write down what is known now, at the end. Whatever goes wrong must not keep the runner from ending."""
        try:
            await self._hear_late_calls()
        except LeasemeshError as error:
            log.warning("what became of a call is lost: %s", error)
        except Exception:
            log.exception("what became of a call is lost")

    async def _hear_late_calls(self) -> bool:
        """Record what calls came to that a thread still made when their time was over, and what the file could not
        take before. False when it must wait until a run is not under way any more."""
        all_caught_up = True
        for number, call in list(self._driver.late.items()):
            if isinstance(call, asyncio.Future) and not call.done():
                continue
            if self._manager.is_under_way(number):
                all_caught_up = False
                continue
            run = await self._in_thread(self._node.handler_runs.get, number)
            entry = await self._in_thread(self._node.mutations.get, number)
            if run is not None and entry is not None:
                try:
                    await self._in_thread(self._record_late, run, entry, self._outcome_of(call, run, entry))
                except DatabaseError:
                    raise  # the file may take it later
                except LeasemeshError as error:  # a verdict or a merge came in between, or the run is not ours any more
                    log.info("run %s: %s", short_run(run.id), error)
            del self._driver.late[number]
            self._runner.look()
            self.look()
        return all_caught_up

    async def _ask(self, run: HandlerRun, entry: Mutation) -> Outcome:
        effect = self._effect(run, entry)
        if effect is None:
            return Unknown(f"this device knows no effect {entry.tool}")
        if effect.reconciler is None:
            return Unknown(f"{entry.tool} has no reconcile function")
        if self._driver.calls.all_taken:
            return Unknown("too many calls to the outside hang beyond their time")
        return await find_out(effect, entry.work, entry.params, self._driver.calls)

    def _effect(self, run: HandlerRun, entry: Mutation) -> Effect[...] | None:
        handler = self._handlers.get((run.workflow, run.handler))
        return handler.effects.get(entry.tool) if isinstance(handler, Consumer) else None

    def _outcome_of(self, call: asyncio.Future[Any] | Outcome, run: HandlerRun, entry: Mutation) -> Outcome:
        if not isinstance(call, asyncio.Future):
            return call
        effect = self._effect(run, entry)
        return judge(effect, call) if effect is not None else Unknown("the call has ended")

    def _record_late(self, run: HandlerRun, entry: Mutation, outcome: Outcome) -> None:
        """Record it. Only what nobody knows need not be said of an entry that says so already."""
        if run.node != self._node.site_id:
            self._witness(run, entry, outcome)
            return
        if not isinstance(outcome, Unknown):
            self._record(run, entry, outcome)
        if not isinstance(outcome, Unknown) or entry.status != "in_flight":
            return
        effect = self._effect(run, entry)
        can_ask = effect is not None and effect.reconciler is not None
        self._manager.call_ended(run, outcome.reason, reconcile_at=self._runner.clock_ms() if can_ask else None)

    def _witness(self, run: HandlerRun, entry: Mutation, outcome: Outcome) -> None:
        """Say of a call that was begun under an earlier identity of this node what this one can: it may not write the
        entry of another node, but give a verdict, as any device may. Did not happen would not count, because the entry
        stays in flight."""
        text = f"{entry.tool} of run {short_run(run.id)}, begun before this device got a new identity"
        if isinstance(outcome, Happened):
            self._node.mutations.resolve(entry.work, "happened", by="the device that called", result=outcome.result)
            self._runner.tell_from_thread("reconciled", (run.workflow, run.handler), run.id, f"{text}: happened")
        else:
            self._runner.tell_from_thread("unknown", (run.workflow, run.handler), run.id, f"{text}: {_said(outcome)}")

    def _decide(self, run: HandlerRun, entry: Mutation) -> bool:
        """Record what a verdict says, if there is one that counts. Returns whether there is."""
        outcome = self._node.mutations.outcome(entry.work)
        if outcome == "unknown":
            return False
        if outcome == "failed":
            self._manager.found_not_applied(run, "a person said that it did not happen")
        else:
            self._manager.leave_to_a_person(run, f"decided: {outcome}")
        return True

    def _record(self, run: HandlerRun, entry: Mutation, outcome: Outcome) -> None:
        manager, rule = self._manager, self._manager.retry
        key = (run.workflow, run.handler)
        name = f"{entry.tool} of run {short_run(run.id)}"
        match outcome:
            case Happened(result):
                manager.found_applied(run, result)
                self._runner.tell_from_thread("reconciled", key, run.id, f"{name} had happened")
            case DidNot(error):
                manager.found_not_applied(run, message_of(error))
                self._runner.failures_changed_in_thread(key)
                self._runner.tell_from_thread(
                    "reconciled", key, run.id, f"{name} had not happened: {message_of(error)}"
                )
            case Unknown(reason):
                tries = entry.reconcile_attempts + 1
                if tries >= rule.tries:
                    manager.leave_to_a_person(run, f"{reason}; asked {tries} times, now a person must decide")
                    self._runner.tell_from_thread("unknown", key, run.id, f"{name}: a person must decide ({reason})")
                else:
                    manager.ask_again(run.id, at=self._runner.clock_ms() + rule.delay_ms(tries + 1))

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await in_thread(self._driver.executor, function, *args)


def _said(outcome: Unknown | DidNot) -> str:
    return outcome.reason if isinstance(outcome, Unknown) else f"did not happen ({message_of(outcome.error)})"


class Housekeeping:
    """Every few seconds: notices that the machine has slept, looks after silent nodes' work and after what was left
    behind."""

    def __init__(self, runner: Coordination, driver: Driver) -> None:
        self._runner = runner
        self._driver = driver

    async def run(self) -> None:
        """Keep house, for ever."""
        jumps = self._driver.sleep.look()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            jumps, before = self._driver.sleep.look(), jumps
            self._runner.look(silent=True)
            self._runner.look_for_events()
            try:
                await self._runner.read_gates()
                if jumps != before:
                    await self._runner.plan_anew()
            except LeasemeshError as error:
                log.warning("what is blocked is seen later: %s", error)
