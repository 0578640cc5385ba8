"""One loop for each handler: it waits until the handler is due, and runs it, one run at a time.

A consumer is due when events may be pending (it is *dirty*), when its wake_at has come, or when there is work beyond
the boundary to go on with. It stays dirty until a run found nothing. A producer is due by its schedule, counted from
the last run of any device.

After a failure a handler waits (`retry`), and is blocked after too many in a row. After a lost race it waits for a
moment of random length, longer each time: two devices that reach for the same events again and again must not do so in
step. A change from outside cuts that short.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from leasemesh.node.authoring.retry import Streak, streak
from leasemesh.node.authoring.schedule import Every
from leasemesh.node.authoring.workflow import Consumer, Handler, Producer
from leasemesh.node.execution import script
from leasemesh.node.execution.attempt import RunSession
from leasemesh.node.execution.beginning import has_come
from leasemesh.node.execution.choosing import PendingMark, any_pending, pending_mark
from leasemesh.node.execution.recovery import Continuation
from leasemesh.node.execution.script import Result, Script
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.model.ids import RunId, short_run
from leasemesh.node.runtime.coordination import Coordination
from leasemesh.node.stores import HandlerRun
from leasemesh.node.stores.workflows import Trigger
from leasemesh.sync.backoff import delay

log = logging.getLogger("leasemesh.runtime")

RACE_LEAST_S, RACE_MOST_S = 0.05, 0.25
"""How long a consumer that lost a race waits: longer than two nodes take to hear of each other's claims."""

RACE_CAP_S = 30.0
"""Losing again and again, it waits no longer than this."""

SPREAD_LEAST, SPREAD_MOST, SPREAD_SHRINKS = 16, 256, 8
"""After a lost race a consumer begins elsewhere among so many of the oldest events, at random: two devices that both
take the oldest lose most of their claims to each other. Each success brings it an eighth nearer to the oldest again, so
that nothing is left lying."""

PEER_EVENTS_LATER_S = 0.02
"""Events that came from a peer are looked for after a random part of this: whoever published them comes first."""

ELSEWHERE_S = 5.0
"""How often a process looks whether it must still leave the work to another one, or to another device."""

TROUBLE_LEAST_S, TROUBLE_MOST_S = 1.0, 60.0
"""How long a handler waits when this node's file gives trouble."""

FOLLOWER_LATER_S = 5.0
"""A device that did not run a producer the last time lets the one that did go first, by a random part of this, or of a
tenth of the interval."""

RUNS_READ = 50
"""Runs of a handler that are read to count its failures. Those that lost a race say nothing, and may be many."""

LoopState = Literal["idle", "running", "waiting", "retrying", "blocked", "disabled", "elsewhere", "stopped"]


@dataclass(frozen=True, slots=True)
class HandlerStatus:
    """How a handler stands on this device.

    Attributes:
        workflow, handler: which.
        state: idle, running, waiting (for a permit), retrying (after failures), blocked, disabled (its workflow is),
            elsewhere (another device or process alone may run it, or sync has failed here), or stopped.
        text: why, for people.
        run: the run that is under way.
        next_at: when it is next due by itself, Unix milliseconds.
    """

    workflow: str
    handler: str
    state: LoopState
    text: str
    run: RunId | None
    next_at: int | None


class HandlerLoop(ABC):
    """What consumers' and producers' loops share. Used in the event loop's thread only."""

    def __init__(self, runner: Coordination, handler: Handler, random: Random) -> None:
        self.handler = handler
        self.key = (handler.workflow, handler.name)
        self.busy = False
        self.running: RunId | None = None
        self.gate: tuple[LoopState, str] | None = None
        self.state: LoopState = "idle"
        self.text = ""
        self._runner = runner
        self._random = random
        self._ready = False
        self._rests_because = ""
        self._wake = asyncio.Event()
        self._not_before = 0.0
        self._racing = False
        self._failures = 0
        self._races = 0
        self._spread = 0
        self._troubles = 0
        self._retry_of: RunId | None = None
        effects = handler.effects.values() if isinstance(handler, Consumer) else ()
        self._calls_take_s = min((one.timeout_s for one in effects if not one.is_async), default=None)
        self._failures_changed = False

    # --- For the runner -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the handler whenever it is due, until the runner stops."""
        while not self._runner.stopping:
            try:
                await self._step()
            except LeasemeshError as error:
                self._trouble(error)
                await self._sleep(self._not_before - self._now())
        self.state, self.text = "stopped", ""

    async def _step(self) -> None:
        """Run the handler, or wait until it may be due."""
        if not self._ready:
            await self._read()
            self._ready = True
        if self._failures_changed:
            self._failures_changed = False
            try:
                await self.count_failures()
            except LeasemeshError:
                self._failures_changed = True
                raise
        wait_s = self._seconds_until_due()
        if self.gate is not None:
            self.state, self.text = self.gate
            await self._sleep(None)
        elif wait_s is None or wait_s > 0:
            if self._now() >= self._not_before:
                self.state, self.text = "idle", self._rests_because
            await self._sleep(wait_s)
        else:
            self.busy = True
            self.state, self.text = "running", ""
            try:
                await self._once()
            finally:
                self.busy, self.running = False, None

    def nudge(self) -> None:
        """Something that the loop waits for may have changed."""
        self._wake.set()

    @property
    def quiet(self) -> bool:
        """Whether there is nothing that the loop could do now."""
        if self.busy or not self._ready or self._failures_changed:
            return self.state == "waiting"
        wait_s = self._seconds_until_due()
        return self.gate is not None or wait_s is None or wait_s > 0

    def status(self) -> HandlerStatus:
        """Return how the handler stands."""
        workflow, name = self.key
        return HandlerStatus(workflow, name, self.state, self.text, self.running, self._next_at())

    def set_gate(self, gate: tuple[LoopState, str] | None) -> None:
        """Say what keeps the handler from running, None for nothing."""
        if gate is not None and gate != self.gate:
            self._runner.tell("blocked", self.key, None, gate[1])
        self._failures_changed |= self.gate is not None and gate is None
        self.gate = gate
        self.nudge()

    def failures_changed(self) -> None:
        """A run turned out to have failed after it had stopped: the next one tries it again, after the usual wait."""
        self._failures_changed = True
        self.nudge()

    async def count_failures(self) -> None:
        """Learn from the rows how often the handler has failed in a row, and since when it may be tried again."""
        found, retry_of = await self._runner.in_thread(self._read_failures)
        self._failures = found.failures
        self._retry_of = retry_of
        now_ms = self._runner.clock_ms()
        late_ms = found.retry_at(self._runner.manager.retry, now_ms) - now_ms
        self._not_before = self._now() + max(0, late_ms) / 1000 if found.failures else 0.0
        if self._not_before > self._now():
            self._retrying()

    # --- For the loops below ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Learn from the file what a loop begins with."""
        await self._runner.peers_caught_up()
        await self.count_failures()

    @abstractmethod
    def _seconds_until_due(self) -> float | None:
        """Return when the handler is due by itself, in seconds from now. None: not before it is nudged."""

    @abstractmethod
    def _next_at(self) -> int | None:
        """Return when it is next due by itself (Unix ms), for people."""

    @abstractmethod
    async def _once(self) -> None:
        """Run it once, because it is due."""

    def _after_wait(self, seconds: float | None) -> float | None:
        """Return the seconds until something is due that is due in so many, not before the handler may run."""
        return None if seconds is None else max(seconds, self._not_before - self._now())

    async def _drive(self, trigger: Trigger, make: Callable[[RunSession], Script]) -> Result | None:
        """Drive a script, and learn from how it went. None when this node's file gave trouble."""
        runner = self._runner
        try:
            async with runner.driver.places:
                with runner.sessions.taking_part(self.key[0], trigger) as session:
                    result: Result = await runner.driver.drive(make(session), calls_take_s=self._calls_take_s)
        except LeasemeshError as error:
            self._trouble(error)
            return None
        self._troubles = 0
        await self._learn(result)
        return result

    async def _learn(self, result: Result) -> None:
        runner, attempt = self._runner, result.attempt
        if result.before or result.kind == "committed":
            self._failures = self._races = 0
            self._retry_of = None
            self._spread -= self._spread // SPREAD_SHRINKS
            if self._spread < SPREAD_LEAST // 2:
                self._spread = 0
        if attempt is None:
            return
        name = f"run {short_run(attempt.run)}"
        match result.kind:
            case "committed":
                done = "has found nothing" if attempt.found_nothing else "has committed"
                runner.tell("committed", self.key, attempt, f"{name} {done}")
            case "skipped":
                runner.tell("released", self.key, attempt, f"{name}: its events are skipped, as a person decided")
            case "failed":
                await self._failed(result)
            case "lost":
                self._lost(result)
            case "unknown":
                runner.tell("unknown", self.key, attempt, f"{name}: nobody knows whether its effect happened")
                runner.look_for_unknown()
            case "stopped":
                runner.tell("stopped", self.key, attempt, f"{name} was stopped")

    async def _failed(self, result: Result) -> None:
        runner, attempt, rule = self._runner, result.attempt, self._runner.manager.retry
        assert attempt is not None
        self._failures += 1
        self._races = 0
        self._retry_of = attempt.run if attempt.outcome == "none" else None
        if result.dead_lettered:
            text = f"dead letters: {result.dead_lettered}; {result.error}"
            runner.tell("failed", self.key, attempt, text)
        if self._failures >= rule.tries:
            reason = f"failed {self._failures} times in a row; the last time: {result.error}"
            await runner.block(self.key, reason, attempt.run)
            return
        delay_ms = rule.delay_ms(self._failures, int(attempt.run[-4:], 16) / 0xFFFF)
        self._not_before = self._now() + delay_ms / 1000
        self._racing = False
        self._retrying()
        text = f"run {short_run(attempt.run)} failed, next try in {delay_ms / 1000:.0f} s: {result.error}"
        runner.tell("failed", self.key, attempt, text)
        if attempt.outcome == "applied":
            runner.look()

    def _lost(self, result: Result) -> None:
        self._races += 1
        wait_s = delay(self._races, first=self._random.uniform(RACE_LEAST_S, RACE_MOST_S), most=RACE_CAP_S)
        self._spread = min(max(2 * self._spread, SPREAD_LEAST), SPREAD_MOST)
        self._racing = True
        self._not_before = self._now() + wait_s
        self.state, self.text = "idle", f"lost a race: {result.error}"
        self._runner.tell("lost", self.key, result.attempt, f"run was given up: {result.error}")

    def _trouble(self, error: LeasemeshError) -> None:
        self._troubles += 1
        wait_s = delay(self._troubles, first=TROUBLE_LEAST_S, most=TROUBLE_MOST_S)
        self._racing = False
        self._not_before = self._now() + wait_s
        self.state, self.text = "retrying", str(error)
        self._runner.tell("trouble", self.key, None, f"looks again in {wait_s:.0f} s: {error}")

    def _retrying(self) -> None:
        self.state, self.text = "retrying", f"after {self._failures} failures"

    def _read_failures(self) -> tuple[Streak, RunId | None]:
        node, rule = self._runner.node, self._runner.manager.retry
        runs = node.handler_runs.recent(*self.key, node=node.site_id, limit=max(RUNS_READ, 2 * rule.tries))
        said = node.handler_blocks.last(*self.key, node=node.site_id)
        newest = runs[0] if runs else None
        retry_of = newest.id if newest is not None and _failed_before_boundary(newest) else None
        return streak(runs, after=said.run if said is not None else None), retry_of

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _sleep(self, seconds: float | None) -> None:
        """Wait for a nudge, no longer than so many seconds."""
        self._runner.activity_changed()
        if self._runner.stopping:
            return
        handle = None
        if seconds is not None:
            handle = asyncio.get_running_loop().call_later(max(seconds, 0.001), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if handle is not None:
                handle.cancel()
            self._wake.clear()


class ConsumerLoop(HandlerLoop):
    """The loop of a consumer."""

    def __init__(self, runner: Coordination, consumer: Consumer, random: Random) -> None:
        super().__init__(runner, consumer, random)
        self.consumer = consumer
        self.declined: PendingMark | None = None
        self._dirty_at: float | None = 0.0
        self._wake_at: int | None = None
        self._continuations: dict[RunId, Continuation] = {}

    def has_something_to_do(self) -> bool:
        """Whether events are pending that its prepare phase has not left alone already. Called in a thread."""
        if self.declined is None:
            return any_pending(self._runner.node, self.consumer)
        return pending_mark(self._runner.node, self.consumer) != self.declined

    def look_for_events(self, *, from_outside: bool) -> None:
        """Events may be pending. From outside: because of another node or process."""
        at = self._now() + (self._random.random() * PEER_EVENTS_LATER_S if from_outside else 0.0)
        self._dirty_at = at if self._dirty_at is None else min(at, self._dirty_at)
        if from_outside and self._racing:
            self._not_before = min(self._not_before, at)
        self.nudge()

    def go_on_with(self, continuation: Continuation) -> None:
        """There is work beyond the boundary to go on with."""
        self._continuations[continuation.of.id] = continuation
        self.nudge()

    async def _read(self) -> None:
        await super()._read()
        self._wake_at = await self._runner.in_thread(self._runner.node.handler_states.wake_at, *self.key)

    def _seconds_until_due(self) -> float | None:
        if self._continuations:
            return self._after_wait(0.0)
        waits = []
        if self._dirty_at is not None:
            waits.append(self._dirty_at - self._now())
        if self._wake_at is not None:
            waits.append(0.0 if self._is_woken() else (self._wake_at - self._runner.clock_ms()) / 1000)
        return self._after_wait(min(waits, default=None))

    def _next_at(self) -> int | None:
        return self._wake_at

    async def _once(self) -> None:
        if self._continuations:
            await self._go_on()
            return
        refused = await self._runner.refused_here()
        if refused:
            self.state, self.text = "elsewhere", refused
            self._not_before = self._now() + ELSEWHERE_S
            return
        woken = self._is_woken()
        self._dirty_at = None
        wake = script.Wake(woken, self.declined, self._random.randrange(self._spread + 1))
        result = await self._drive(
            "retry" if self._retry_of else "event",
            lambda session: script.work_off(self._runner.driver, self.consumer, session, self._retry_of, wake=wake),
        )
        if result is None:
            self._dirty_at = self._now()
            return
        if woken and result.kind == "nothing" and result.error:
            self._not_before = self._now() + ELSEWHERE_S
        elif woken and result.kind not in ("failed", "lost"):
            self._wake_at = None
        self._rests_because = result.error if result.kind == "nothing" else ""
        if result.attempt is None:
            return
        if result.attempt.planned_at is not None:
            self._wake_at = result.attempt.planned_at
        if result.attempt.events or result.kind != "committed":
            self._dirty_at = self._now()
            self.declined = None
        else:
            self.declined = result.attempt.mark

    def _is_woken(self) -> bool:
        return has_come(self._wake_at, self._runner.clock_ms())

    async def _go_on(self) -> None:
        run, continuation = next(iter(self._continuations.items()))
        del self._continuations[run]
        await self._drive(
            "retry",
            lambda session: script.go_on(self._runner.driver, self.consumer, session, run, taken=continuation.taken),
        )


class ProducerLoop(HandlerLoop):
    """The loop of a producer."""

    def __init__(self, runner: Coordination, producer: Producer, random: Random) -> None:
        super().__init__(runner, producer, random)
        self.producer = producer
        self._due_at: int | None = None

    async def plan(self) -> None:
        """Find out when the producer is due, from the last run of any device."""
        found = await self._runner.in_thread(self._runner.node.handler_states.get, *self.key)
        self._due_at = self.producer.schedule.next_after(found.at if found else None, self._runner.clock_ms())
        if found is not None and found.node != self._runner.node.site_id:
            self._due_at += round(self._random.random() * 1000 * self._follower_later_s())
        self.nudge()

    async def _read(self) -> None:
        await super()._read()
        await self.plan()

    def _follower_later_s(self) -> float:
        schedule = self.producer.schedule
        return min(FOLLOWER_LATER_S, schedule.seconds / 10) if isinstance(schedule, Every) else FOLLOWER_LATER_S

    def _seconds_until_due(self) -> float | None:
        if self._due_at is None:
            return None
        return self._after_wait((self._due_at - self._runner.clock_ms()) / 1000)

    def _next_at(self) -> int | None:
        return self._due_at

    async def _once(self) -> None:
        result = await self._drive(
            "retry" if self._retry_of else "schedule",
            lambda session: script.produce(self._runner.driver, self.producer, session, self._retry_of),
        )
        if result is not None and result.kind in ("committed", "lost"):
            await self.plan()


def _failed_before_boundary(run: HandlerRun) -> bool:
    return "failure" in run.details and run.phase != "emitting"
