"""Threads that do the blocking work of the sync loop, each with its own queue.

`asyncio.to_thread` and `concurrent.futures` cost a context copy, a future and a lock for every call; a change passes
through three threads on its way to a peer, so that is worth avoiding. A worker is one thread that takes jobs from a
`SimpleQueue` in order and posts each result back to the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Job = Callable[[], Callable[[], None]]
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


class Worker:
    """One thread that does jobs in the order they were submitted.

    The queue has no bound of its own: whoever submits keeps at most one job per link under way.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ended = loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

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

        self._jobs.put(job)

    async def stop(self) -> None:
        """Let the jobs already submitted finish, end the thread and wait for that."""
        self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                callback = job()
            except Exception as error:
                callback = self._report(error)
            if callback is not _nothing:
                self._loop.call_soon_threadsafe(callback)
        self._loop.call_soon_threadsafe(self._mark_ended)

    def _report(self, error: Exception) -> Callable[[], None]:
        context = {"message": f"a job of {self._thread.name} failed", "exception": error}
        return lambda: self._loop.call_exception_handler(context)

    def _mark_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _nothing() -> None:
    """No result is wanted."""
