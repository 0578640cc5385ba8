"""The steps of a run, as generators.

A script does everything that needs no waiting for the world: it makes transitions (`Manager`) and calls the user's
functions. What must be awaited it yields, as a request, and gets the answer back: so a run that needs nothing awaited
goes from its beginning to its end in one thread, without the event loop.

A script handles all that can happen to its run, and ends with a `Result`. What it raises is trouble with the node's
file. The run is then ended by whoever looks after what was left behind (`recovery`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

from leasemesh.node.authoring.context import FunctionPhase, Run
from leasemesh.node.authoring.effects import Effect, EffectCall, as_json
from leasemesh.node.authoring.errors import PhaseViolation, Transient, message_of
from leasemesh.node.authoring.workflow import Consumer, Producer
from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.execution.attempt import Attempt, RunSession
from leasemesh.node.execution.choosing import PendingMark, pending_mark
from leasemesh.node.execution.manager import Intent, Manager
from leasemesh.node.execution.outcomes import FAILURES, DidNot, Happened, Outcome, Unknown
from leasemesh.node.model.errors import (
    HomeElsewhere,
    IllegalState,
    InvalidInput,
    LeaseLost,
    NotAvailable,
    NotOwner,
    PermitRefused,
    StaleVersion,
)
from leasemesh.node.model.ids import RunId, WorkId
from leasemesh.node.model.jsonvalue import Json


class NotReached(Exception):
    """This process cannot tell who is within reach."""


@dataclass(frozen=True, slots=True)
class ReachPeers:
    """Wait until everybody within reach has heard of what is committed. Answered with None. Raises NotReached.

    Attributes:
        run: who waits.
        slept: the machine seems to have slept: the links must be found again first.
    """

    run: RunId
    slept: bool = False


@dataclass(frozen=True, slots=True)
class AwaitPermit:
    """Wait until the authority has decided. Answered with None. Raises PermitRefused or LeaseLost."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class AwaitFunction:
    """Await what a function of the user returned. Answered with its result."""

    awaitable: Awaitable[Any]
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Perform:
    """Make a call to the outside. Answered with an Outcome, also when the node stops meanwhile."""

    effect: Effect[...]
    key: WorkId
    params: dict[str, Json]
    run: RunId


@dataclass(frozen=True, slots=True)
class FindOut:
    """Ask what became of a call. Answered with an Outcome."""

    effect: Effect[...]
    key: WorkId
    params: dict[str, Json]
    run: RunId


Request = ReachPeers | AwaitPermit | AwaitFunction | Perform | FindOut

ResultKind = Literal["nothing", "committed", "skipped", "failed", "lost", "unknown", "stopped"]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run went.

    Attributes:
        kind: nothing: there was nothing to do, and nothing was written.
        attempt: the run.
        error: what failed, or why the run was lost.
        made a dead letter: events that were given up for good.
        before: runs that have committed before it, in one go.
        following: the next run, which has begun with the end of this one.
        looked: whether a next one was looked for.
    """

    kind: ResultKind
    attempt: Attempt | None = None
    error: str = ""
    dead_lettered: int = 0
    before: int = 0
    following: Attempt | None = None
    looked: bool = False


Follow = Callable[[], bool]
Script = Generator[Request, Any, Result]


class Stopped(Exception):
    """Thrown into a script at a request: the node stops, and the run must not go on."""


class LeaseTaken(Exception):
    """Thrown into a script at a request: a merge has given the run's events to another."""


class Surrounding(Protocol):
    """What a script asks of whoever drives it. From any thread."""

    manager: Manager

    @property
    def alarms(self) -> int:
        """How often the machine seems to have slept."""

    @property
    def has_sync(self) -> bool:
        """Whether other nodes may be within reach."""

    def began(self, attempt: Attempt) -> None:
        """A run has begun."""

    def committed(self, attempt: Attempt) -> None:
        """A run has committed, and another one follows at once."""

    def not_written(self, run: RunId, outcome: Outcome) -> None:
        """What became of a run's effect could not be written: the file could not take it, or the node got a new
        identity during the call. Somebody must write it down as soon and as well as it can be."""

    def time_s(self) -> float:
        """Seconds by the event loop's clock."""

    def may_go_on(self, runs: int, since_s: float) -> bool:
        """Whether another run may follow at once, after so many since then."""


_LOST = (
    LeaseLost, LeaseTaken, NotAvailable, NotReached, PermitRefused, StaleVersion, HomeElsewhere, IllegalState,
)  # fmt: skip


class _UserFailed(Exception):
    """A function of the user failed. The cause says how."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Why a consumer is run.

    Attributes:
        woken: the time has come that the handler itself has asked for.
        declined: what was pending when its prepare phase last chose nothing.
        skip: how many of the oldest events to leave to others, after lost races.
    """

    woken: bool = False
    declined: PendingMark | None = None
    skip: int = 0


def _never() -> bool:
    return False


# --- Whole runs -------------------------------------------------------------------------------------------------------


def work_off(
    by: Surrounding, consumer: Consumer, session: RunSession, retry_of: RunId | None, *, wake: Wake = Wake()
) -> Script:
    """Runs of a consumer, one after the other, while events are pending and nobody else has a claim to the place.

    Between two runs of a few hundred microseconds the way through the event loop would cost as much again.
    """
    runs, since_s = 0, by.time_s()
    follow = partial(by.may_go_on, 1, since_s)
    result = yield from consume(by, consumer, session, retry_of, wake=wake, follow=follow)
    while result.following is not None or (_leaves_more(result) and by.may_go_on(runs + 1, since_s)):
        assert result.attempt is not None
        runs += 1
        by.committed(result.attempt)
        if result.following is not None:
            follow = partial(by.may_go_on, runs + 1, since_s)
            result = yield from _guarded(by, result.following, _consume(by, result.following, follow))
        else:
            result = yield from consume(by, consumer, session, None)
    return replace(result, before=runs)


def _leaves_more(result: Result) -> bool:
    """Whether there may be more to do, and nobody has looked yet."""
    attempt = result.attempt
    if result.kind != "committed" or result.looked or attempt is None:
        return False
    return bool(attempt.events) and not attempt.planned_at


def consume(
    by: Surrounding,
    consumer: Consumer,
    session: RunSession,
    retry_of: RunId | None,
    *,
    wake: Wake = Wake(),
    follow: Follow = _never,
) -> Script:
    """A run of a consumer, from choosing events to committed.

    Args:
        by: whoever drives it.
        consumer: what runs.
        session: what it belongs to.
        retry_of: the run that it tries again.
        wake: why it is run now.
        follow: asked at its end: whether to begin the next run with its last transaction.
    """
    manager = by.manager
    try:
        if consumer.prepare_function is not None:
            mark = pending_mark(manager.node, consumer)
            if not wake.woken and (mark == wake.declined or not any(count for count, _ in mark)):
                return Result("nothing")
            attempt = manager.begin_preparing(consumer, session, retry_of=retry_of)
            attempt.mark = mark
        else:
            if wake.woken:
                manager.wake_up_has_come(consumer)
            found = manager.begin(consumer, session, retry_of=retry_of, skip=wake.skip)
            if found is None:
                return Result("nothing")
            attempt = found
    except (HomeElsewhere, NotAvailable, IllegalState) as error:
        return Result("nothing", error=str(error))
    return (yield from _guarded(by, attempt, _consume(by, attempt, follow)))


def go_on(by: Surrounding, consumer: Consumer, session: RunSession, of: RunId, *, taken: bool) -> Script:
    """What is left beyond the boundary of a run of this node, or (taken) of another one."""
    manager = by.manager
    begin = manager.take_over_to_go_on if taken else manager.go_on
    try:
        attempt = begin(consumer, of, session)
    except (HomeElsewhere, NotAvailable, IllegalState) as error:
        return Result("nothing", error=str(error))
    if attempt is None:
        return Result("nothing")
    return (yield from _guarded(by, attempt, _emit(by, attempt)))


def produce(by: Surrounding, producer: Producer, session: RunSession, retry_of: RunId | None) -> Script:
    """A run of a producer."""
    attempt = by.manager.begin_producing(producer, session, retry_of=retry_of)
    return (yield from _guarded(by, attempt, _produce(by, attempt)))


def _guarded(by: Surrounding, attempt: Attempt, steps: Generator[Request, Any, Result]) -> Script:
    """Carry out steps, and end the run by what they raise."""
    manager = by.manager
    attempt.alarm = by.alarms
    by.began(attempt)
    try:
        return (yield from steps)
    except Stopped:
        manager.stop(attempt, "the node stopped before it was done")
        return Result("stopped", attempt)
    except _LOST as error:
        manager.lose(attempt, str(error))
        return Result("lost", attempt, str(error))
    except _UserFailed as failed:
        cause = failed.__cause__ or failed
        return Result("failed", attempt, message_of(cause), manager.fail(attempt, cause))
    finally:
        manager.over(attempt)


# --- Phases -----------------------------------------------------------------------------------------------------------


def _consume(by: Surrounding, attempt: Attempt, follow: Follow) -> Script:
    consumer, manager = _consumer(attempt), by.manager
    if consumer.prepare_function is not None:
        result = yield from _call(by, attempt, "prepare", consumer.prepare_function)
        with _user_errors():
            manager.prepared(attempt, as_json("prepare result", result))
    if attempt.holder is not None:
        yield from _begin_work(by, attempt)
        if attempt.events and consumer.mutate_function is not None:
            call = yield from _call(by, attempt, "mutate", consumer.mutate_function)
            if call is not None:
                yield from _recheck(by, attempt)
                outcome = yield from _effect(by, attempt, _checked_call(attempt, call), follow)
                if outcome is not None:
                    return outcome
    return (yield from _emit(by, attempt, follow))


def _begin_work(by: Surrounding, attempt: Attempt) -> Generator[Request, Any, None]:
    """Wait for what the mode asks for before anything is done with the events."""
    if by.manager.waits_for_permit(attempt):
        yield AwaitPermit(attempt)
    elif attempt.mode != "home" and by.has_sync:
        yield ReachPeers(attempt.run)
        by.manager.require_owned(attempt)


def _recheck(by: Surrounding, attempt: Attempt) -> Generator[Request, Any, None]:
    """After the machine has slept every lease counts as lost until it was looked at again. It may sleep meanwhile."""
    while attempt.holder is not None and attempt.alarm != (alarms := by.alarms):
        attempt.alarm = alarms
        yield ReachPeers(attempt.run, slept=True)
        by.manager.require_its_own(attempt)


def _effect(
    by: Surrounding, attempt: Attempt, call: EffectCall, follow: Follow
) -> Generator[Request, Any, Result | None]:
    """Perform the effect. None when it happened, and the phase `next` comes."""
    manager = by.manager
    if manager.calls_hang():
        raise _UserFailed from Transient("too many calls to the outside hang beyond their time; start the app anew")
    if (known := manager.intend(attempt, call)) != "call":
        return _as_known(attempt, known)
    assert attempt.work is not None, "an intent has a work"
    outcome: Outcome = yield Perform(call.effect, attempt.work, call.params, attempt.run)
    if isinstance(outcome, Unknown) and outcome.may_ask and call.effect.reconciler is not None:
        outcome = yield FindOut(call.effect, attempt.work, call.params, attempt.run)
    try:
        return _record(manager, attempt, call, outcome, follow)
    except (DatabaseError, NotOwner):
        by.not_written(attempt.run, outcome)
        raise


def _record(manager: Manager, attempt: Attempt, call: EffectCall, outcome: Outcome, follow: Follow) -> Result | None:
    """Record what became of the effect. None when it happened, and the phase `next` comes."""
    if isinstance(outcome, Happened):
        attempt.told.logs += outcome.notes
        if _consumer(attempt).next_function is None:
            goes_on = _may_be_followed(attempt) and follow()
            following = manager.applied_and_committed(attempt, outcome.result, and_begin=goes_on)
            return Result("committed", attempt, following=following, looked=goes_on)
        manager.applied(attempt, outcome.result)
        return None
    if isinstance(outcome, DidNot):
        known, dead_lettered = manager.did_not_happen(attempt, outcome.error, stopped=outcome.stopped)
        if known != "call":
            return _as_known(attempt, known)
        if outcome.stopped:
            return Result("stopped", attempt)
        return Result("failed", attempt, message_of(outcome.error), dead_lettered)
    at = None
    if call.effect.reconciler is not None:
        at = manager.node.database.clock_ms() + manager.retry.delay_ms(1)
    manager.unknown(attempt, outcome.reason, reconcile_at=at, still_called=outcome.late is not None)
    return Result("unknown", attempt, outcome.reason)


def _as_known(attempt: Attempt, known: Intent) -> Result | None:
    """Go on with what is known of the work, or end the run with it."""
    return None if known == "applied" else Result("skipped", attempt)


def _emit(by: Surrounding, attempt: Attempt, follow: Follow = _never) -> Script:
    """The phase `next`, and the end."""
    consumer = _consumer(attempt)
    state: Json = None
    deleted = attempt.holder is not None and attempt.outcome == "applied" and not attempt.events
    if deleted and consumer.stateful:
        state = attempt.state
    if consumer.next_function is not None and not deleted:
        yield from _recheck(by, attempt)
        state = yield from _call(by, attempt, "next", consumer.next_function)
        if state is not None and not consumer.stateful:
            rule = f"{consumer.name} returns a state, which would be lost; declare consumer(..., stateful=True)"
            raise _UserFailed from PhaseViolation("return", "next", rule)
    yield from _recheck(by, attempt)
    with _user_errors():
        kept = as_json("state", state)
        if not _may_be_followed(attempt) or not follow():
            by.manager.commit(attempt, kept)
            return Result("committed", attempt)
        return Result("committed", attempt, following=by.manager.commit_and_begin(attempt, kept), looked=True)


def _may_be_followed(attempt: Attempt) -> bool:
    return attempt.holder is not None and _consumer(attempt).prepare_function is None and attempt.told.wake_at is None


def _produce(by: Surrounding, attempt: Attempt) -> Script:
    producer = attempt.handler
    assert isinstance(producer, Producer)
    state = yield from _call(by, attempt, "producer", producer.function, attempt.state)
    with _user_errors():
        by.manager.commit(attempt, as_json("state", state))
    return Result("committed", attempt)


# --- The user's functions ---------------------------------------------------------------------------------------------


def _call(
    by: Surrounding, attempt: Attempt, phase: FunctionPhase, function: Callable[..., Any], *more: Json
) -> Generator[Request, Any, Any]:
    """Call a function of the user with a fresh context. Raises _UserFailed from whatever it raises."""
    node = by.manager.node
    context = Run(
        attempt.run,
        attempt.handler,
        phase,
        given=attempt.given(),
        told=attempt.told,
        events=node.events,
        clock_ms=node.database.clock_ms,
        closed=attempt.closed,
    )
    try:
        result = function(context, *more)
        if inspect.isawaitable(result):
            result = yield AwaitFunction(result, attempt)
        return result
    except (Stopped, LeaseTaken):
        raise
    except FAILURES as error:
        raise _UserFailed from error
    finally:
        context._end()


class _user_errors:
    """What a transition refuses of what a function returned is the function's failure."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidInput):
            raise _UserFailed from error


def _checked_call(attempt: Attempt, call: object) -> EffectCall:
    consumer = _consumer(attempt)
    if isinstance(call, Effect):
        rule = f"mutate returned the effect {call.name} itself; return what calling it gives"
        raise _UserFailed from PhaseViolation("return", "mutate", rule)
    if not isinstance(call, EffectCall):
        rule = f"mutate returns one effect to perform, or None, not {type(call).__name__}"
        raise _UserFailed from PhaseViolation("return", "mutate", rule)
    if consumer.effects.get(call.effect.name) is not call.effect:
        rule = f"{consumer.name} does not declare {call.effect.name}; name it in consumer(..., effects=[...])"
        raise _UserFailed from PhaseViolation("return", "mutate", rule)
    return call


def _consumer(attempt: Attempt) -> Consumer:
    assert isinstance(attempt.handler, Consumer)
    return attempt.handler


def close_unstarted(request: Request) -> None:
    """Give up a request that is not carried out."""
    if isinstance(request, AwaitFunction):
        close_unawaited(request.awaitable)


def close_unawaited(awaitable: Awaitable[Any]) -> None:
    """Give up what nobody will await."""
    if isinstance(awaitable, Coroutine):
        with closing(awaitable):
            pass
