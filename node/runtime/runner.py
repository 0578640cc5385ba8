"""The runner: runs the handlers of some workflows on a node, from `start` to `stop`.

    async with node.running([mail]) as runner:
        await runner.idle()

One process runs handlers on a file at a time. A lock file beside it says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from leasemesh.node.authoring.errors import RunRefused
from leasemesh.node.authoring.retry import RetryRule
from leasemesh.node.authoring.workflow import Handler, Producer, Workflow
from leasemesh.node.database.tables import tables_that_wake
from leasemesh.node.execution.attempt import Attempt
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.recovery import Found, HandlerKey, Recovery
from leasemesh.node.execution.script import NotReached
from leasemesh.node.machine.locks import LockHeld
from leasemesh.node.machine.watch import Changed, Changes
from leasemesh.node.model.errors import InvalidInput, LeasemeshError
from leasemesh.node.model.ids import RunId, short_run
from leasemesh.node.model.jsonvalue import check_whole
from leasemesh.node.runtime.background import Housekeeping, Reconciliation
from leasemesh.node.runtime.coordination import Coordination
from leasemesh.node.runtime.driving import Driver
from leasemesh.node.runtime.loops import ConsumerLoop, HandlerLoop, HandlerStatus, ProducerLoop
from leasemesh.node.runtime.reach import catch_up_with_peers, reach, why_unreachable
from leasemesh.node.runtime.sessions import Sessions

if TYPE_CHECKING:
    from leasemesh.node.host import Host

T = TypeVar("T")

log = logging.getLogger("leasemesh.runtime")

CONCURRENCY_MAX = 1_000
BLOCK_REASON_CHARACTERS_MAX = 1_000
LAST_WORDS_S = 2.0
"""What is ended by force has so long to write down that it was."""

LOOKED_FOR_OTHERS_S = 1.0
"""How long a process that does not sync believes that no other process does."""

EVENT_TABLES = tables_that_wake("handlers")
GATE_TABLES = tables_that_wake("gates")
DECISION_TABLES = tables_that_wake("recovery")


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """How a runner stands.

    Attributes:
        handlers: each handler.
        under_way: runs that have begun and not ended, those that wait for a permit included.
    """

    handlers: tuple[HandlerStatus, ...]
    under_way: int


class Runner(Coordination):
    """Runs handlers. Made by `Node.running`. Used in one event loop."""

    def __init__(
        self, node: Host, workflows: Iterable[Workflow], *, concurrency: int, drain_s: float, retry: RetryRule
    ) -> None:
        """Check what is to run. Nothing is begun.

        Raises:
            InvalidInput: a workflow or a handler cannot run, or a number is out of its range.
        """
        super().__init__(node, Manager(node, retry))
        self._workflows = _checked(workflows)
        self._drain_s = _check_seconds("drain_s", drain_s)
        self._concurrency = check_whole("concurrency", concurrency, least=1, most=CONCURRENCY_MAX)
        self._handlers: dict[HandlerKey, Handler] = {
            (one.workflow, one.name): one for workflow in self._workflows for one in workflow.handlers
        }
        self._random = Random(int.from_bytes(node.database.random_bytes(8), "big"))
        self._tasks: list[asyncio.Task[None]] = []
        self._small: set[asyncio.Task[None]] = set()
        self._look_wanted = self._silent_wanted = self._looking = False
        self._others_looked_for_at: float | None = None
        self._failed: BaseException | None = None
        self._stop: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()

    # --- From start to stop -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look after what earlier runs have left behind, and begin.

        Raises:
            RunRefused: another process runs handlers on this file.
            DatabaseError: the file cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(self.node.environment.lock(Path(f"{self.node.path}.run-lock"), 0.0))
            except LockHeld as error:
                raise RunRefused(
                    f"another process runs handlers on {self.node.path}; stop it first, or open a file of its own here"
                ) from error
            self.driver = Driver(self.manager, concurrency=self._concurrency)
            stack.callback(self.driver.close)
            self.driver.on_waiting = self._waiting
            self.driver.on_begun = self._begun
            self.driver.on_committed = self._committed
            self.sessions = Sessions(self.driver)
            self._recovery = Recovery(self.manager, self._handlers, unrecorded=self.driver.late)
            self._reconciliation = Reconciliation(self, self.driver, self._handlers)
            self.driver.on_late = self._reconciliation.look_for_late_calls
            self._loops: dict[HandlerKey, HandlerLoop] = {
                key: self._loop_of(handler) for key, handler in self._handlers.items()
            }
            await self.in_thread(self._register)
            changes = stack.enter_context(closing(self.node.changes()))
            self._take_up(await self.in_thread(self._recovery.look))
            await self.read_gates()
            self._begin(self._watch(changes), "changes")
            self._begin(self._reconciliation.run(), "reconciliation")
            self._begin(self._reconciliation.hear(), "late calls")
            self._begin(Housekeeping(self, self.driver).run(), "housekeeping")
            self._peers_caught_up = asyncio.create_task(catch_up_with_peers(self.node), name="leasemesh hearing")
            for key, loop in self._loops.items():
                self._begin(loop.run(), f"handler {'/'.join(key)}")
            self._stack = stack.pop_all()

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Begin nothing new, let what runs end, and stop. A second call waits for the first.

        What waits for a permit gives its events back at once. What has not ended in time is ended: before the effect
        its events are given back. A call that is under way counts as unknown. Beyond it, a later start goes on.

        Args:
            drain_s: how long to let runs end, in seconds. By default what `running` was given.
        """
        if self._stop is None:
            self.stopping = True
            wait_s = self._drain_s if drain_s is None else drain_s
            self._stop = asyncio.create_task(self._stop_all(wait_s), name="leasemesh stop")
        await asyncio.shield(self._stop)

    async def _stop_all(self, drain_s: float) -> None:
        self.driver.end_waiting_for_permits()
        for loop in self._loops.values():
            loop.nudge()
        handlers = [task for task in self._tasks if task.get_name().startswith("leasemesh handler")]
        if handlers:
            await asyncio.wait(handlers, timeout=drain_s)
            self.driver.end_all()
            await asyncio.wait(handlers, timeout=LAST_WORDS_S)
        others = [*self._tasks, *self._small, self._peers_caught_up]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._reconciliation.last_words()
        await self.sessions.end_all()
        for observer in list(self._observers):
            observer.close()
        self._activity.set()
        await self._stack.aclose()

    async def wait(self) -> None:
        """Return when the runner has been stopped. Raise what it failed with, should it fail."""
        await asyncio.wait(self._tasks)
        await self.stop()
        if self._failed is not None:
            raise self._failed

    async def idle(self, *, permits: bool = False) -> None:
        """Return when there is nothing that could be done now: nothing runs, nothing is pending or due.

        What waits for its next try or for a person does not count. Use `asyncio.timeout` to bound it.

        Args:
            permits: wait also for what waits for a permit.
        """
        looked_at: int | None = None
        while not self.stopping:
            self._activity.clear()
            if not self._is_quiet(permits):
                await self._activity.wait()
                continue
            version = await self.in_thread(self.node.database.version)
            if version == looked_at and self._is_quiet(permits):
                return
            looked_at = (
                version  # notifications of changes come a little later: look, and see whether that changes anything
            )
            self.look_for_events()
            self.look()
            self._reconciliation.look()

    def _is_quiet(self, permits: bool) -> bool:
        quiet = all(loop.quiet and not (permits and loop.state == "waiting") for loop in self._loops.values())
        return quiet and not self._small and not self._reconciliation.busy

    @property
    def status(self) -> RunnerStatus:
        """How each handler stands."""
        return RunnerStatus(tuple(loop.status() for loop in self._loops.values()), len(self.manager.under_way()))

    # --- For its parts ------------------------------------------------------------------------------------------------

    def look(self, *, silent: bool = False) -> None:
        """Look after what was left behind by this node's runs, and (silent) by nodes that have been silent too long."""
        self._look_wanted = True
        self._silent_wanted |= silent
        if not self._looking and not self.stopping:
            self._looking = True
            self._soon(self._look())

    def look_for_unknown(self) -> None:
        """The ledger may have something to find out about."""
        self._reconciliation.look()

    def look_for_events(self, *, from_outside: bool = False) -> None:
        """Find out which consumers have something to do. One that is busy looks again when it has done what it does: it
        may have looked before the events came."""
        for loop in self._consumers():
            if loop.busy:
                loop.look_for_events(from_outside=from_outside)
        clean = [loop for loop in self._consumers() if loop.quiet]
        if clean and not self.stopping:
            self._soon(self._look_for_events(clean, from_outside))

    async def peers_caught_up(self) -> None:
        """Return when this node has heard what its peers had done before it started, as far as they can be reached."""
        await asyncio.wait([self._peers_caught_up])

    async def refused_here(self) -> str:
        """Return why this process must leave the work to others. "" when it need not.

        Only the process that syncs the file knows who is within reach, and only while its sync has not failed.
        """
        if self.node.sync is not None:
            return why_unreachable(self.node)
        now = self._loop.time()
        looked_at = self._others_looked_for_at
        if looked_at is not None and now - looked_at < LOOKED_FOR_OTHERS_S:
            return ""
        try:
            await reach(self.node)
        except NotReached as error:
            return str(error)
        self._others_looked_for_at = now
        return ""

    def failures_changed_in_thread(self, key: HandlerKey) -> None:
        """A run of a handler turned out, in a thread, to have failed after it had stopped."""
        if key in self._loops:
            self._loop.call_soon_threadsafe(self._loops[key].failures_changed)

    async def block(self, key: HandlerKey, reason: str, run: RunId) -> None:
        """Keep a handler from running on this device until a person lets it."""
        store, node = self.node.handler_blocks, self.node
        await self.in_thread(
            lambda: store.block(*key, reason=reason[:BLOCK_REASON_CHARACTERS_MAX], node=node.site_id, run=run)
        )
        self._loops[key].set_gate(("blocked", reason))

    # --- What happened ------------------------------------------------------------------------------------------------

    async def _watch(self, changes: Changes) -> None:
        async for change in changes:
            try:
                await self._changed(change)
            except LeasemeshError as error:  # housekeeping looks again
                log.warning("what a change means is seen later: %s", error)

    async def _changed(self, change: Changed) -> None:
        outside = change.source != "local"
        tables = change.tables
        self.driver.changed.set()
        if tables & GATE_TABLES:
            await self.read_gates()
        if tables & EVENT_TABLES:
            self.look_for_events(from_outside=outside)
        if "verdicts" in tables or (outside and tables & DECISION_TABLES):
            self.look()
            self._reconciliation.look()
        if outside and "reservations" in tables:
            await self.driver.cancel_lost()
        if outside and "handler_state" in tables:
            await self.plan_anew()

    async def _look(self) -> None:
        try:
            while self._look_wanted and not self.stopping:
                silent, self._look_wanted, self._silent_wanted = self._silent_wanted, False, False
                self._take_up(await self.in_thread(self._recovery.look))
                if silent:
                    await self.in_thread(self.node.staleness.observe)
                    self._take_up(await self.in_thread(self._recovery.look_for_silent))
        except LeasemeshError as error:
            log.warning("what was left behind is looked after later: %s", error)
        finally:
            self._looking = False
            self._activity.set()

    def _take_up(self, found: Found) -> None:
        for kind, key, run, text in found.notifications:
            self._tell(kind, key, run, text, 0)
        for continuation in found.continuations:
            consumer = continuation.consumer
            loop = self._loops[consumer.workflow, consumer.name]
            assert isinstance(loop, ConsumerLoop)
            loop.go_on_with(continuation)
        if found.notifications:
            self._reconciliation.look()

    async def _look_for_events(self, loops: list[ConsumerLoop], from_outside: bool) -> None:
        try:
            pending = await self.in_thread(lambda: [loop for loop in loops if loop.has_something_to_do()])
        except LeasemeshError as error:
            log.warning("pending events are looked for later: %s", error)
            return
        for loop in pending:
            loop.look_for_events(from_outside=from_outside)

    async def plan_anew(self) -> None:
        """Find out when producers are due: another device has run one, or the clock has jumped."""
        for loop in self._loops.values():
            if isinstance(loop, ProducerLoop) and not loop.busy:
                await loop.plan()
            else:
                loop.nudge()

    async def read_gates(self) -> None:
        """Find out which handlers are blocked or disabled."""
        gates = await self.in_thread(lambda: {key: self.manager.gate(*key) for key in self._handlers})
        for key, gate in gates.items():
            loop = self._loops[key]
            if loop.gate != gate:
                loop.set_gate(gate)

    # --- Small things -------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        for workflow in self._workflows:
            self.node.workflows.get_or_create(workflow.name, title=workflow.title)
        self.sessions.end_those_left_open([workflow.name for workflow in self._workflows])
        self.node.staleness.observe()

    def _loop_of(self, handler: Handler) -> HandlerLoop:
        random = Random(self._random.getrandbits(64))
        if isinstance(handler, Producer):
            return ProducerLoop(self, handler, random)
        return ConsumerLoop(self, handler, random)

    def _consumers(self) -> list[ConsumerLoop]:
        return [loop for loop in self._loops.values() if isinstance(loop, ConsumerLoop)]

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"leasemesh {name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What ends a part of the runner is a fault of ours: stop all of it, rather than go on without that part."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("%s failed", task.get_name(), exc_info=task.exception())
        if self._failed is None:
            self._failed = task.exception()
            self._stop = self._stop or asyncio.create_task(self._stop_all(0.0), name="leasemesh stop")
            self.stopping = True

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="leasemesh runner")
        self._small.add(task)
        task.add_done_callback(self._small_ended)

    def _small_ended(self, task: asyncio.Task[None]) -> None:
        self._small.discard(task)
        self._activity.set()
        self._ended(task)

    def _begun(self, attempt: Attempt) -> None:
        if self._observers:
            goes_on = attempt.outcome == "applied"  # later it may be of each
            self._loop.call_soon_threadsafe(self._tell_begun, attempt, goes_on)

    def _committed(self, attempt: Attempt) -> None:
        if self._observers:
            key = (attempt.handler.workflow, attempt.handler.name)
            text = f"run {short_run(attempt.run)} has committed"
            self._loop.call_soon_threadsafe(self.tell, "committed", key, attempt, text)

    def _tell_begun(self, attempt: Attempt, goes_on: bool) -> None:
        key = (attempt.handler.workflow, attempt.handler.name)
        self._loops[key].running = attempt.run
        if goes_on:
            self.tell("continued", key, attempt, f"goes on beyond the effect on {attempt.names()}")
        else:
            self.tell("started", key, attempt, f"works on {attempt.names()}")

    def _waiting(self, attempt: Attempt, whom: str | None) -> None:
        key = (attempt.handler.workflow, attempt.handler.name)
        loop = self._loops[key]
        loop.state, loop.text = ("running", "") if whom is None else ("waiting", f"for confirmation by {whom}")
        if whom is not None:
            self.tell("waiting", key, attempt, f"run {short_run(attempt.run)} waits for confirmation by {whom}")
        self._activity.set()


def _checked(workflows: Iterable[Workflow]) -> tuple[Workflow, ...]:
    if not isinstance(workflows, Iterable):
        raise InvalidInput("workflows", f"must be a list of workflows, not {type(workflows).__name__}")
    found = tuple(workflows)
    if strange := [one for one in found if not isinstance(one, Workflow)]:
        raise InvalidInput("workflows", f"{type(strange[0]).__name__} among them is not a workflow")
    names = [workflow.name for workflow in found]
    for workflow in found:
        workflow.check()
        if names.count(workflow.name) > 1:
            raise InvalidInput("workflows", f"two are called {workflow.name}; give one another name")
    return found


def _check_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise InvalidInput(name, f"is {value!r}; it must be seconds, from 0 to 86,400")
    return float(value)
