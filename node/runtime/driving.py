"""Driving scripts: a thread carries a run as far as it goes, the event loop awaits what must be awaited.

A run holds one of a bounded number of places while it is driven. Not while it waits for a permit, which may take days.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from leasemesh.node.authoring.effects import Effect
from leasemesh.node.execution.attempt import Attempt
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.outcomes import Outcome, Unknown, not_called
from leasemesh.node.execution.script import (
    AwaitFunction,
    AwaitPermit,
    FindOut,
    LeaseTaken,
    Perform,
    ReachPeers,
    Request,
    Result,
    Script,
    Stopped,
    close_unawaited,
    close_unstarted,
)
from leasemesh.node.model.errors import LeaseLost
from leasemesh.node.model.ids import RunId, short_run
from leasemesh.node.runtime.carrying import Begun, Carrying, Taken
from leasemesh.node.runtime.clocks import SleepWatch
from leasemesh.node.runtime.performing import find_out, in_thread, no_exit, perform
from leasemesh.node.runtime.reach import reach
from leasemesh.sync.drivers.workers import Threads

log = logging.getLogger("leasemesh.runtime")

RUNS_IN_ONE_GO = 32
ONE_GO_S = 0.03
"""So many runs of one consumer, and so long, before others get its place. A change of mind (it is blocked, its
workflow is disabled) is heeded then."""

THREADS_MORE = 8
"""Threads beyond one for each place, so that looking at the file never waits for functions of the app."""

HANGING_MAX = 16
"""Calls to the outside that may hang beyond their time, each in a thread. With so many nothing new is begun."""


class Signal:
    """Something that happens again and again. Who waits misses nothing that happened since it last looked."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def set(self) -> None:
        """It happened."""
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, count: int, *, within_s: float | None = None) -> None:
        """Return when it has happened more often than `count` times, or so many seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.count <= count:
                    await self._next.wait()


class Driver:
    """Drives the scripts of one runner.

    Attributes:
        manager: makes the transitions.
        places: how many runs may be driven at a time.
        changed: happens when something was committed that a waiting run may have waited for.
        sleep: notices that the machine has slept.
        late: calls that threads still make although their time is over, and outcomes that the file could not take, by
            run, until what became of the effect is recorded.
        executor: threads for the file, and for functions of the app.
        calls: threads for scripts that make calls to the outside, some of which may hang for ever, and for asking what
            became of calls.
        on_begun: called in a thread with each run that begins.
        on_committed: called in a thread with a run that has committed, when another follows at once.
        on_late: called when one of the late calls has ended, or an outcome could not be written.
        on_waiting: called with a run that begins to wait for somebody's permit, and again, with None, at the end.
    """

    def __init__(self, manager: Manager, *, concurrency: int) -> None:
        self.manager = manager
        self.places = asyncio.Semaphore(concurrency)
        self.changed = Signal()
        self.sleep = SleepWatch(manager.node.database.clock_ms)
        self.late: dict[RunId, asyncio.Future[Any] | Outcome] = {}
        self.on_begun: Callable[[Attempt], None] = _ignore
        self.on_committed: Callable[[Attempt], None] = _ignore
        self.on_late: Callable[[], None] = _ignore
        self.on_waiting: Callable[[Attempt, str | None], None] = _ignore
        self.executor = Threads(concurrency + THREADS_MORE, "leasemesh-run")
        self.calls = Threads(concurrency + HANGING_MAX, "leasemesh-call")
        manager.calls_hang = lambda: self.calls.all_taken
        self._loop = asyncio.get_running_loop()
        self._waits: dict[RunId, tuple[Request | Begun, asyncio.Task[Any]]] = {}
        self._carried: set[Carrying] = set()
        self._permits_end = False
        self._all_end = False
        self._taken: set[RunId] = set()

    @property
    def alarms(self) -> int:
        """How often the machine seems to have slept."""
        return self.sleep.look()

    @property
    def has_sync(self) -> bool:
        """Whether other nodes may be within reach."""
        return self.manager.node.sync is not None

    def began(self, attempt: Attempt) -> None:
        """See `script.Surrounding`."""
        self.on_begun(attempt)

    def committed(self, attempt: Attempt) -> None:
        """See `script.Surrounding`."""
        self.on_committed(attempt)

    def not_written(self, run: RunId, outcome: Outcome) -> None:
        """See `script.Surrounding`."""
        self.late.setdefault(run, outcome)  # a call that goes on will say more
        self._loop.call_soon_threadsafe(self.on_late)

    def time_s(self) -> float:
        """See `script.Surrounding`."""
        return self._loop.time()

    def may_go_on(self, runs: int, since_s: float) -> bool:
        """See `script.Surrounding`. When more want to run than there are places, each gets its turn."""
        return not self._permits_end and runs < RUNS_IN_ONE_GO and self._loop.time() - since_s < ONE_GO_S

    async def drive(self, script: Script, *, calls_take_s: float | None = None) -> Result:
        """Take a script to its end. Raises what it raises: trouble with the node's file.

        Args:
            script: what to drive.
            calls_take_s: the shortest time-out of the plain functions that it may call to the outside. None: it calls
                none.
        """
        answer: Any = None
        error: BaseException | None = None
        threads = self.executor if calls_take_s is None else self.calls
        carrying = Carrying(script, threads, calls_take_s=calls_take_s, calling=self._calling)
        self._carried.add(carrying)
        if self._all_end:
            carrying.stop()
        try:
            while True:
                request = await carrying.turn(answer, error)
                if isinstance(request, Result):
                    return request
                if isinstance(request, Taken):
                    answer, error = self._note_late(request.request.run, request.outcome), None
                else:
                    answer, error = await self._carry_out(request)
        finally:
            self._carried.discard(carrying)

    # --- Ending -------------------------------------------------------------------------------------------------------

    def end_waiting_for_permits(self) -> None:
        """End all runs that wait for a permit, now and from now on."""
        self._permits_end = True
        for request, task in list(self._waits.values()):
            if isinstance(request, AwaitPermit):
                task.cancel()

    def end_all(self) -> None:
        """End whatever is awaited, now and from now on. What a thread does goes on until it returns."""
        self._all_end = self._permits_end = True
        for carrying in list(self._carried):
            carrying.stop()
        for _, task in list(self._waits.values()):
            task.cancel()

    async def cancel_lost(self) -> None:
        """End the waits of runs that a merge has taken events from. Not calls to the outside, whose outcome counts."""
        for run, (request, task) in list(self._waits.items()):
            if not isinstance(request, AwaitFunction) or request.attempt.outcome == "applied":
                continue
            try:
                await in_thread(self.executor, self.manager.require_owned, request.attempt)
            except LeaseLost:
                if self._waits.get(run) == (request, task):
                    self._taken.add(run)
                    task.cancel()

    def close(self) -> None:
        """Give the threads back, without waiting for those that hang."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.calls.shutdown(wait=False, cancel_futures=True)

    # --- Requests -----------------------------------------------------------------------------------------------------

    async def _carry_out(self, request: Request | Begun) -> tuple[Any, BaseException | None]:
        if self._all_end or (self._permits_end and isinstance(request, AwaitPermit)):
            return _unstarted(request)
        run = _run_of(request)
        task = asyncio.ensure_future(self._awaited(request))
        self._waits[run] = (request, task)
        try:
            await asyncio.wait([task])
        finally:
            del self._waits[run]
            if not task.done():  # the event loop itself is being ended
                task.cancel()
        if task.cancelled() and isinstance(request, Perform | FindOut | Begun):  # begun, it would have an outcome
            return _unstarted(request)
        if task.cancelled():
            return None, self._why_cancelled(request, run)
        return (None, error) if (error := task.exception()) is not None else (task.result(), None)

    def _why_cancelled(self, request: Request | Begun, run: RunId) -> BaseException:
        if run in self._taken:
            self._taken.discard(run)
            return LeaseTaken("another device's claim won its events")
        if self._all_end or not isinstance(request, AwaitFunction):
            return Stopped()
        return asyncio.CancelledError("something in the function was cancelled, and not by the node")

    def _awaited(self, request: Request | Begun) -> Coroutine[Any, Any, Any]:
        match request:
            case ReachPeers(_, slept):
                return reach(self.manager.node, slept=slept)
            case AwaitPermit(attempt):
                return self._permit(attempt)
            case AwaitFunction(awaitable):
                return _await(awaitable)
            case Perform(effect, key, params, run):
                return self._perform(effect, run, lambda: effect.function(key, **params))
            case Begun(Perform(effect, _, _, run), awaitable):
                return self._perform(effect, run, lambda: awaitable)
            case FindOut(effect, key, params):
                return _unless_stopped(find_out(effect, key, params, self.calls))

    async def _permit(self, attempt: Attempt) -> None:
        seen = self.changed.count
        if await in_thread(self.executor, self._is_permitted, attempt):
            return
        self.places.release()
        try:
            self.on_waiting(attempt, await in_thread(self.executor, self.manager.authority_name))
            while not await in_thread(self.executor, self._is_permitted, attempt):
                await self.changed.after(seen)
                seen = self.changed.count
        finally:
            self.on_waiting(attempt, None)
            await self.places.acquire()

    def _is_permitted(self, attempt: Attempt) -> bool:
        if not self.has_sync:  # otherwise the node does
            self.manager.node.authority.tend()
        return self.manager.has_permit(attempt)

    @contextmanager
    def _calling(self, run: RunId) -> Iterator[None]:
        going_on = self.manager.node.calls_going_on
        going_on.add(run)
        try:
            yield
        finally:
            going_on.discard(run)

    async def _perform(self, effect: Effect[...], run: RunId, begin: Callable[[], Awaitable[Any]]) -> Outcome:
        return self._note_late(run, await perform(effect, begin, under_way=self._calling(run)))

    def _note_late(self, run: RunId, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Unknown) and outcome.late is not None:
            log.warning("run %s: %s, and the call goes on", short_run(run), outcome.reason)
            self.late[run] = outcome.late
            outcome.late.add_done_callback(lambda _: self.on_late())
        return outcome


def _ignore(*_: object) -> None:
    pass


def _run_of(request: Request | Begun) -> RunId:
    match request:
        case AwaitPermit(attempt) | AwaitFunction(_, attempt):
            return attempt.run
        case Begun(call):
            return call.run
        case Perform() | FindOut() | ReachPeers():
            return request.run


def _unstarted(request: Request | Begun) -> tuple[Outcome | None, BaseException | None]:
    """Return the answer to a request that was not carried out, because the node stops, and its error."""
    if isinstance(request, Begun):
        close_unawaited(request.awaitable)
    else:
        close_unstarted(request)
    if isinstance(request, Perform):
        return not_called(), None
    if isinstance(request, FindOut | Begun):  # the call was made
        return Unknown("the node stopped before the answer", may_ask=False), None
    return None, Stopped()


async def _await(awaitable: Any) -> Any:
    with no_exit():
        return await awaitable


async def _unless_stopped(finding: Coroutine[Any, Any, Outcome]) -> Outcome:
    try:
        return await finding
    except asyncio.CancelledError:
        return Unknown("the node stopped before it was known")
