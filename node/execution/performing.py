"""Calls to the outside: making them, giving them up after their time, and telling what became of them.

The one rule: an outcome is *failed* only when the effect's author says so, or when the node stopped before the call. A
time-out, a lost connection, a cancelled call, and every error that nobody classified leave it *unknown*.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from leasemesh.node.authoring.effects import Answer, Applied, Effect, NotApplied, Retry, as_json
from leasemesh.node.authoring.errors import ERROR_CHARACTERS_MAX, DidNotHappen, storable, text_of
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import Json

T = TypeVar("T")

FAILURES: tuple[type[BaseException], ...] = (Exception, asyncio.CancelledError, SystemExit)
"""What a function of the app may raise that is its own failure: something within it was cancelled, or wants to end the
program."""


@dataclass(frozen=True, slots=True)
class Happened:
    """The effect happened.

    Attributes:
        result: JSON.
        notes: lines for the run's log.
    """

    result: Json
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DidNot:
    """The effect certainly did not happen.

    Attributes:
        error: its author's word, or why it was not called.
        stopped: it was not called, because the node stopped. That is nobody's failure.
    """

    error: DidNotHappen
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody knows.

    Attributes:
        reason: why, for people.
        may_ask: whether reconciliation may be asked now. Not while a thread still makes the call: it could answer "not
            applied", and be wrong a moment later.
        late: the call that a thread still makes; None when none does.
    """

    reason: str
    may_ask: bool = True
    late: asyncio.Future[Any] | None = None


Outcome = Happened | DidNot | Unknown


def not_called() -> DidNot:
    """Return the outcome of a call that was not made, because the node stopped before it."""
    return DidNot(DidNotHappen("the node stopped before the call", transient=True), stopped=True)


async def in_thread(executor: Executor | None, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """Call a function in a thread of an executor, with this task's context variables."""
    context = contextvars.copy_context()
    call: Callable[[], T] = functools.partial(context.run, functools.partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(executor, call)


async def perform(
    effect: Effect[...], begin: Callable[[], Awaitable[Any]], *, under_way: AbstractContextManager[object]
) -> Outcome:
    """Make a call that is awaited. Never raises; a cancelled call is of unknown outcome.

    Args:
        effect: what is called.
        begin: makes the call.
        under_way: entered for as long as the call is made, which may be longer than this waits.
    """

    async def call() -> Any:
        with under_way, no_exit():
            return await begin()

    return await _within(effect, asyncio.ensure_future(call()))


async def find_out(effect: Effect[...], key: str, params: Mapping[str, Json], executor: Executor | None) -> Outcome:
    """Ask the effect's reconcile function what became of the call. Whatever goes wrong is "not known yet"."""
    assert effect.reconciler is not None
    call = asyncio.ensure_future(_call(effect.reconciler, key, params, executor))
    call.add_done_callback(look_at)
    try:
        await asyncio.wait([call], timeout=effect.timeout_s)
    finally:
        if not (answered := call.done()):
            call.cancel()
    if not answered:
        return Unknown(f"reconciliation did not answer within {effect.timeout_s:g} s")
    if call.cancelled():
        return Unknown("reconciliation was cut off")
    if (error := call.exception()) is not None:
        return Unknown(f"reconciliation failed: {text_of(error)}")
    return _outcome_of(effect, call.result())


def judge(effect: Effect[...], call: asyncio.Future[Any] | Future[Any]) -> Outcome:
    """Tell what a call that has ended came to."""
    if call.cancelled():
        return Unknown("the call was cut off")
    error = call.exception()
    if isinstance(error, DidNotHappen):
        return DidNot(error)
    if error is not None:
        return Unknown(text_of(error))
    try:
        return Happened(as_json(f"result of effect {effect.name}", call.result()))
    except InvalidInput as problem:
        # It happened, whatever it returned; that is not to be forgotten because nobody can store it.
        return Happened(None, (f"{problem}; nothing of it is kept",))


async def _within(effect: Effect[...], call: asyncio.Future[Any]) -> Outcome:
    """Wait for a call, no longer than its time. What does not end then, although it is cancelled, is `late`."""
    try:
        await asyncio.wait([call], timeout=effect.timeout_s)
        if call.done():
            return judge(effect, call)
        reason = f"no answer within {effect.timeout_s:g} s"
    except asyncio.CancelledError:
        reason = "the node stopped during the call"
    call.cancel()
    try:
        await asyncio.wait([call], timeout=effect.timeout_s)
    except asyncio.CancelledError:
        pass
    if not call.done():
        return Unknown(reason, may_ask=False, late=call)
    outcome = judge(effect, call)
    return outcome if isinstance(outcome, Happened | DidNot) else Unknown(reason)


async def _call(function: Callable[..., Any], key: str, params: Mapping[str, Json], executor: Executor | None) -> Any:
    with no_exit():
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            return await function(key, **params)
        result = await in_thread(executor, function, key, **params)
        return await result if isinstance(result, Awaitable) else result


@contextmanager
def no_exit() -> Iterator[None]:
    """Let what leaves a program be an error like others: it is not for a handler to end the app that it is a part of.

    Raises:
        RuntimeError: in place of SystemExit.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it called sys.exit({error.code!r})") from error


def look_at(call: asyncio.Future[Any]) -> None:
    """What a call says that nobody waits for any more is no trouble worth a warning."""
    if not call.cancelled():
        call.exception()


def _outcome_of(effect: Effect[...], answer: Answer | object) -> Outcome:
    match answer:
        case Applied(result):
            try:
                return Happened(as_json(f"result of effect {effect.name}", result))
            except InvalidInput as problem:
                return Happened(None, (f"{problem}; nothing of it is kept",))
        case NotApplied():
            return DidNot(DidNotHappen("reconciliation found that it did not happen", transient=True))
        case Retry(reason):
            return Unknown(storable(str(reason))[:ERROR_CHARACTERS_MAX] or "reconciliation could not find out yet")
    return Unknown(f"reconciliation answered {type(answer).__name__}; it must be Applied(...), NotApplied() or Retry()")
