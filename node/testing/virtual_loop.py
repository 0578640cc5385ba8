"""Event loops in virtual time, one for each simulated process.

A `VirtualLoop` is an asyncio event loop as far as code can tell. It has no selector and no threads: what is ready runs
in the order in which it became so, whichever loop it belongs to, and when nothing is ready the scheduler jumps to the
next timer. So an hour passes in the time that the code needs, and the same program with the same chance runs in the
same order each time.

Loops stand for operating system processes: one can be stopped for a while, and can die between two callbacks, with all
that it was about to do. A loop's clock is its device's, which need not run at the world's rate.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from leasemesh.node.testing.virtual_time import Action, Clock, RunsHandles, Scheduler

_GRAVE_STEPS_MAX = 100_000
"""Somebody who goes on for ever although cancelled is left alone in the end."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class VirtualLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process.

    Args:
        scheduler: what drives it.
        clock: its device's clocks.
        job_us: how long the next job of a thread takes, in microseconds.
        on_error: told of what nobody else handles: a sentence and the exception.

    Attributes:
        alive: False after `die`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        job_us: Callable[[], int],
        on_error: Callable[[str, BaseException | None], None],
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.job_us = job_us
        self.alive = True
        self._on_error = on_error
        self._put_off: list[asyncio.Handle] | None = None  # while paused
        self._tasks: dict[asyncio.Task[Any], None] = {}  # those that have not ended
        self._in_handle = False
        self._closed = False
        self._after_death: Action | None = None

    # --- For the world ------------------------------------------------------------------------------------------------

    def run_handle(self, handle: asyncio.Handle) -> None:
        """Run one callback, unless the process is dead or stopped."""
        if not self.alive or handle.cancelled():
            return
        if self._put_off is not None:
            self._put_off.append(handle)
            return
        asyncio._set_running_loop(self)
        self._in_handle = True
        try:
            handle._run()
        finally:
            self._in_handle = False
            asyncio._set_running_loop(None)
            if not self.alive and self._after_death is not None:
                then, self._after_death = self._after_death, None
                then()

    def pause(self) -> None:
        """Run nothing until `resume`."""
        if self._put_off is None:
            self._put_off = []

    def resume(self) -> int:
        """Go on with what has been put off. Returns how much that was."""
        put_off, self._put_off = self._put_off or [], None
        for handle in put_off:
            self.scheduler.handle_soon(self, handle)
        return len(put_off)

    def die(self, then: Action | None = None) -> None:
        """Run nothing more. When a callback of this loop is running, `then` is called at its end, otherwise now."""
        self.alive = False
        self._put_off = None
        if then is None:
            return
        if self._in_handle:
            self._after_death = then
        else:
            then()

    def dispose(self) -> None:
        """Let the tasks of a dead process end, so that they do not complain when they are collected.

        The dead do nothing: their database is closed and their network is gone. Until then they have been kept as they
        were, because no code of a process that was killed runs any more, not even its `finally`.
        """
        left = list(self._tasks)
        grave = _Grave()
        asyncio._set_running_loop(self)
        try:
            self.alive, self.scheduler = True, grave
            for task in left:
                task.cancel()
            grave.run()
        finally:
            self.alive = False
            asyncio._set_running_loop(None)
        for task in self._tasks:  # those that had not begun, and those that would not end
            setattr(task, "_log_destroy_pending", False)  # noqa: B010, not in the types
            coroutine = task.get_coro()
            if coroutine is not None:
                with suppress(Exception):  # what a `finally` of the dead says, too
                    coroutine.close()

    @property
    def is_disposed(self) -> bool:
        """Whether the process has died and what is left of it comes to its end: it must do nothing any more."""
        return isinstance(self.scheduler, _Grave)

    # --- For asyncio --------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """The device's monotonic clock, in seconds."""
        return self.clock.monotonic_us() / 1_000_000

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        self._check_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self.scheduler.handle_soon(self, handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._check_closed()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.scheduler.handle_at(self.clock.world_us(-int(-when * 1_000_000 // 1)), self, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, Result] | Generator[Any, None, Result], **options: Any
    ) -> asyncio.Task[Result]:
        self._check_closed()
        task: asyncio.Task[Result] = asyncio.Task(coro, loop=self, **options)
        # Not by weak references, as asyncio has them: what hangs when the process dies must not be collected, for that
        # runs its `finally`.
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Result], *args: Any
    ) -> asyncio.Future[Result]:
        """Do a job as a thread would: some time from now, while the loop goes on."""
        future: asyncio.Future[Result] = self.create_future()
        if self.is_disposed:
            future.set_exception(RuntimeError("this process has died"))
            return future
        self.after_us(self.job_us(), self._do_job, future, func, args)
        return future

    def _do_job(self, future: asyncio.Future[Result], work: Callable[..., Result], args: tuple[Any, ...]) -> None:
        if future.cancelled():
            return
        try:
            result = as_in_thread(work, *args)
        except Exception as error:
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)

    def is_early(self, handle: asyncio.Handle) -> bool:
        """Put a timer off again that comes too early, because the clock was slowed down meanwhile."""
        if not self.clock.ppm or not isinstance(handle, asyncio.TimerHandle):
            return False
        due_us = -int(-handle.when() * 1_000_000 // 1)
        if self.clock.monotonic_us() >= due_us - 1:
            return False
        self.scheduler.handle_at(max(self.clock.world_us(due_us), self.scheduler.now_us + 1), self, handle)
        return True

    def after_us(self, delay_us: int, callback: Callable[..., object], *args: Any) -> None:
        """Call back after a time of the world, whatever the device's clock shows."""
        self.scheduler.handle_at(self.scheduler.now_us + delay_us, self, asyncio.Handle(callback, args, self))

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed or not self.alive

    def close(self) -> None:
        self._closed = True

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Nothing of that here."""

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.alive and not self.is_disposed:
            self._on_error(str(context.get("message")), context.get("exception"))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def _check_closed(self) -> None:
        if self._closed:
            raise RuntimeError("Event loop is closed")

    def _no_network(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(
            "there is no real network in virtual time; let the code under test call a stand-in for that service"
        )

    create_connection = create_server = create_unix_connection = create_datagram_endpoint = _no_network
    getaddrinfo = subprocess_exec = subprocess_shell = sock_connect = _no_network


class _Grave(Scheduler):
    """Where the dead come to their end: in no time."""

    def handle_at(self, at_us: int, loop: RunsHandles, handle: asyncio.Handle) -> None:
        """Nobody waits here."""
        self.handle_soon(loop, handle)

    def run(self) -> None:
        """Run what is ready, as long as it ends."""
        for _ in range(_GRAVE_STEPS_MAX):
            if not self._ready:
                return
            self._run(self._ready.popleft())


def as_in_thread(work: Callable[..., Result], *args: Any) -> Result:
    """Call something as if it ran in a thread, where there is no running event loop."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return work(*args)
    finally:
        asyncio._set_running_loop(loop)


class VirtualWorker:
    """What stands for a worker thread of sync (`sync.drivers.workers.Jobs`): jobs in order, each taking some time."""

    def __init__(self, name: str, loop: VirtualLoop, around: Callable[[Callable[[], Any]], Any]) -> None:
        """Args: `around` does a job. The place to let something go wrong before or after it."""
        self.name = name
        self._loop = loop
        self._around = around
        self._free_at_us = 0
        self._stopped = False

    def submit(
        self,
        work: Callable[[], Result],
        done: Callable[[Result], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """See `sync.drivers.workers.Worker.submit`."""
        if not self._stopped and not self._loop.is_disposed:
            self._loop.after_us(self._next_us(), self._do, work, done, failed)

    async def stop(self) -> None:
        """See `sync.drivers.workers.Worker.stop`."""
        self._stopped = True
        ended = self._loop.create_future()
        self._loop.after_us(self._next_us(), ended.set_result, None)
        await ended

    def _next_us(self) -> int:
        now_us = self._loop.scheduler.now_us
        self._free_at_us = max(self._free_at_us, now_us) + self._loop.job_us()
        return self._free_at_us - now_us

    def _do(
        self,
        work: Callable[[], Result],
        done: Callable[[Result], None] | None,
        failed: Callable[[Exception], None] | None,
    ) -> None:
        try:
            result = as_in_thread(self._around, work)
        except Exception as error:
            if failed is not None:
                self._loop.call_soon(failed, error)
            else:
                self._loop.call_exception_handler({"message": f"a job of {self.name} failed", "exception": error})
        else:
            if done is not None:
                self._loop.call_soon(done, result)
