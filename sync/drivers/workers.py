"""Threads for what blocks, some of which may never return.

Unlike those of `concurrent.futures.ThreadPoolExecutor` they do not keep the program from ending: a call that hangs for
ever must not need a second Ctrl-C. What a thread does then is as if the machine had failed, for which the file is
always ready.

`Worker` is one such thread that does jobs in order and posts each result back to the event loop. `asyncio.to_thread`
costs a context copy, a future and a lock for every call. A change passes through three threads on its way to a peer, so
that is worth avoiding.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Result = TypeVar("Result")
_Job = Callable[[], Callable[[], None]]
"""Runs in the worker's thread and returns what to run in the event loop afterwards."""


class Jobs(Protocol):
    """Does jobs one at a time in the order they were submitted: a `Worker`, or what stands for one in virtual time."""

    def submit(
        self,
        work: Callable[[], Result],
        done: Callable[[Result], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """See `Worker.submit`."""

    async def stop(self) -> None:
        """See `Worker.stop`."""


JobsFactory = Callable[[str, asyncio.AbstractEventLoop], Jobs]
"""Makes one, of a name and the event loop that its answers go to."""


class Threads(Executor):
    """At most so many threads, begun when they are needed.

    Attributes:
        most: how many.
    """

    def __init__(self, most: int, name: str) -> None:
        """Args: how many threads at the most, and what they are called."""
        self.most = most
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any] | None, Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = 0
        self._under_way = 0
        self._thread: threading.Thread | None = None  # the newest
        self._ended = False

    @property
    def all_taken(self) -> bool:
        """Whether a further call would have to wait for one of those under way."""
        return self._under_way >= self.most

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in a thread. See `concurrent.futures.Executor`. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("these threads have been given back")
            self._put(future, lambda: fn(*args, **kwargs))
        return future

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call a function that never raises in a thread. Nobody learns of its end. Does nothing after `shutdown`."""
        with self._lock:
            if not self._ended:
                self._put(None, call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Never waits for those that are under way. See `concurrent.futures.Executor`."""
        with self._lock:
            self._ended = True
            while cancel_futures:
                try:
                    waiting = self._calls.get_nowait()
                except Empty:
                    break
                if waiting is not None and waiting[0] is not None:
                    waiting[0].cancel()
            for _ in range(self._begun):
                self._calls.put(None)

    def join(self) -> None:
        """Wait for the one thread of a pool of one to end, after `shutdown`. What it does must end."""
        if self._thread is not None:
            self._thread.join()

    def _put(self, future: Future[Any] | None, call: Callable[[], Any]) -> None:
        self._calls.put((future, call))
        self._under_way += 1
        if self._begun < min(self._under_way, self.most):
            self._begun += 1
            name = self._name if self.most == 1 else f"{self._name}-{self._begun}"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (waiting := self._calls.get()) is not None:
            future, call = waiting
            if future is None:
                call()
            elif future.set_running_or_notify_cancel():
                self._do(future, call)
            with self._lock:
                self._under_way -= 1
            del waiting, future, call  # or the last result would be kept until the next call comes

    @staticmethod
    def _do(future: Future[Any], call: Callable[[], Any]) -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del future  # the error keeps this frame


class Worker:
    """One thread that does jobs in the order they were submitted.

    The queue has no bound of its own: whoever submits keeps at most one job per link under way.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._ended = loop.create_future()
        self._threads = Threads(1, name)

    def submit(
        self,
        work: Callable[[], Result],
        done: Callable[[Result], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Run `work` in the thread, then `done(result)` or `failed(exception)` in the event loop.

        With no `failed` an exception ends up in the event loop's exception handler. Submitting to a stopped worker does
        nothing.
        """

        def job() -> Callable[[], None]:
            try:
                result = work()
            except Exception as error:
                if failed is None:
                    raise
                handler, caught = failed, error
                return lambda: handler(caught)
            return (lambda: done(result)) if done is not None else _nothing

        self._threads.call_soon(lambda: self._run(job))

    async def stop(self) -> None:
        """Let the jobs already submitted finish, end the thread and wait for that."""
        self._threads.call_soon(lambda: self._post(self._mark_ended))
        self._threads.shutdown()
        await asyncio.shield(self._ended)
        self._threads.join()

    def _run(self, job: _Job) -> None:
        try:
            callback = job()
        except Exception as error:
            callback = self._report(error)
        if callback is not _nothing:
            self._post(callback)

    def _post(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(callback)

    def _report(self, error: Exception) -> Callable[[], None]:
        context = {"message": f"a job of {self._name} failed", "exception": error}
        return lambda: self._loop.call_exception_handler(context)

    def _mark_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _nothing() -> None:
    """No result is wanted."""
