"""Calls to the outside: making them, and giving them up after their time. What a call came to is judged in
`node/execution/outcomes.py`."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from leasemesh.node.authoring.effects import Answer, Applied, Effect, NotApplied, Retry, as_json
from leasemesh.node.authoring.errors import ERROR_CHARACTERS_MAX, DidNotHappen, storable, text_of
from leasemesh.node.execution.outcomes import DidNot, Happened, Outcome, Unknown, judge
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import Json

T = TypeVar("T")


async def in_thread(executor: Executor | None, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """Call a function in a thread of an executor, with this task's context variables."""
    context = contextvars.copy_context()
    call: Callable[[], T] = functools.partial(context.run, functools.partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(executor, call)


async def perform(
    effect: Effect[...], begin: Callable[[], Awaitable[Any]], *, under_way: AbstractContextManager[object]
) -> Outcome:
    """Make a call that is awaited. Never raises. A cancelled call is of unknown outcome.

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
