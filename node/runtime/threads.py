"""Threads for what blocks, some of which may never return.

Unlike those of `concurrent.futures.ThreadPoolExecutor` they do not keep the program from ending: a call that hangs for
ever must not need a second Ctrl-C. What a thread does then is as if the machine had failed, for which the file is
always ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]


class Threads(Executor):
    """At most so many threads, begun when they are needed.

    Attributes:
        most: how many.
    """

    def __init__(self, most: int, name: str) -> None:
        """Args: how many threads at the most, and what they are called."""
        self.most = most
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = 0
        self._under_way = 0
        self._ended = False

    @property
    def all_taken(self) -> bool:
        """Whether a further job would have to wait for one of those under way."""
        return self._under_way >= self.most

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do a job in a thread; see `concurrent.futures.Executor`. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("these threads have been given back")
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
            self._under_way += 1
            if self._begun < min(self._under_way, self.most):
                self._begun += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._begun}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs. Never waits for those that are under way; see `concurrent.futures.Executor`."""
        with self._lock:
            self._ended = True
            while cancel_futures:
                try:
                    job = self._jobs.get_nowait()
                except Empty:
                    break
                if job is not None:
                    job[0].cancel()
            for _ in range(self._begun):
                self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                self._do(future, call)
            with self._lock:
                self._under_way -= 1
            del job, future, call  # or the last result would be kept until the next job comes

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
