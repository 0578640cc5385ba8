"""Carrying a script in a thread, calls of plain functions to the outside included.

A call of a plain function is made by the thread that carries the script, which then goes on with it: two ways through
the event loop for each call would cost half of what the run costs otherwise. The event loop watches the time. When a
call's time is over, or the node stops, the script is taken from the thread: another thread goes on with it and the
outcome "unknown", and what the call comes to at last is `late`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from leasemesh.node.execution.outcomes import Outcome, Unknown, judge, not_called
from leasemesh.node.execution.script import Perform, Request, Result, Script
from leasemesh.node.model.ids import RunId
from leasemesh.node.runtime.performing import in_thread, look_at, no_exit


@dataclass(frozen=True, slots=True)
class Begun:
    """A plain function was called and has returned something that must be awaited."""

    request: Perform
    awaitable: Awaitable[Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """The script was taken from a thread that still makes a call."""

    request: Perform
    outcome: Unknown


@dataclass(frozen=True, slots=True)
class _Call:
    """A call under way: what was asked for, what it comes to, and when it began by the event loop's clock."""

    request: Perform
    end: Future[Any]
    began_s: float


class Carrying:
    """Threads' turns with one script.

    Rule: `_call` is unset under the lock, by the thread when the function has returned or by the event loop when it has
    not. Whoever unsets it has the script.
    """

    def __init__(
        self,
        script: Script,
        executor: Executor,
        *,
        calls_take_s: float | None,
        calling: Callable[[RunId], AbstractContextManager[None]],
    ) -> None:
        """Called in the event loop.

        Args:
            script: what to carry.
            executor: the threads. One of them stays with each call that hangs.
            calls_take_s: the shortest time-out of the plain functions that the script may call. None: it calls none.
            calling: gives what is entered for as long as a run's call is made.
        """
        self._script = script
        self._executor = executor
        self._calls_take_s = calls_take_s
        self._calling = calling
        self._loop = asyncio.get_running_loop()
        self._stop = self._loop.create_future()
        self._lock = threading.Lock()
        self._call: _Call | None = None

    def stop(self) -> None:
        """The node stops: take the script from a call that is under way, and make no other."""
        if not self._stop.done():
            self._stop.set_result(None)

    async def turn(self, answer: Any, error: BaseException | None) -> Request | Result | Begun | Taken:
        """Take the script to the next thing that must be awaited, or to its end. Raises what it raises."""
        turn = asyncio.ensure_future(in_thread(self._executor, self._carry, answer, error))
        try:
            while not turn.done():
                waits_for = [turn] if self._stop.done() else [turn, self._stop]
                await asyncio.wait(waits_for, timeout=self._seconds_left(), return_when=asyncio.FIRST_COMPLETED)
                if not turn.done() and (taken := self._take()) is not None:
                    return taken
            request = turn.result()
        finally:
            turn.cancel()  # nobody waits for it any more
        assert request is not None, "who takes a script does not wait for the thread that had it"
        return request

    # --- In the thread ------------------------------------------------------------------------------------------------

    def _carry(self, answer: Any, error: BaseException | None) -> Request | Result | Begun | None:
        """Carry the script. None when it was taken."""
        request = _advance(self._script, answer, error)
        while isinstance(request, Perform) and not request.effect.is_async:
            outcome = self._perform(request)
            if outcome is None or isinstance(outcome, Begun):
                return outcome
            request = _advance(self._script, outcome, None)
        return request

    def _perform(self, request: Perform) -> Outcome | Begun | None:
        call = _Call(request, Future(), self._loop.time())
        call.end.set_running_or_notify_cancel()  # nobody can cancel it
        with self._lock:
            if self._stop.done():
                return not_called()
            self._call = call
        try:
            with self._calling(request.run), no_exit():
                result = request.effect.function(request.key, **request.params)
        except BaseException as error:
            call.end.set_exception(error)
        else:
            call.end.set_result(result)
        with self._lock:
            if self._call is None:
                return None
            self._call = None
        if call.end.exception() is None and isinstance(call.end.result(), Awaitable):
            return Begun(request, call.end.result())
        return judge(request.effect, call.end)

    # --- In the event loop --------------------------------------------------------------------------------------------

    def _seconds_left(self) -> float | None:
        """Until a call could have had its time: no call that begins from now on could sooner."""
        with self._lock:
            call = self._call
        if call is None:
            return self._calls_take_s
        return max(0.0, call.began_s + call.request.effect.timeout_s - self._loop.time())

    def _take(self) -> Taken | None:
        """Take the script from a call that has had its time, or that the node does not wait for any more."""
        with self._lock:
            call = self._call
            if call is None or call.end.done():
                return None
            timeout_s = call.request.effect.timeout_s
            if self._stop.done():
                reason = "the node stopped during the call"
            elif self._loop.time() >= call.began_s + timeout_s:
                reason = f"no answer within {timeout_s:g} s"
            else:
                return None
            self._call = None
        late = asyncio.ensure_future(_result(call.end))
        late.add_done_callback(look_at)
        return Taken(call.request, Unknown(reason, may_ask=False, late=late))


async def _result(call: Future[Any]) -> Any:
    result = await asyncio.wrap_future(call)
    with no_exit():
        return await result if isinstance(result, Awaitable) else result


def _advance(script: Script, answer: object, error: BaseException | None) -> Request | Result:
    """Take a script to its next request, or its end. (A StopIteration cannot pass through a future.)"""
    try:
        return script.throw(error) if error is not None else script.send(answer)
    except StopIteration as stop:
        result: Result = stop.value
        return result
