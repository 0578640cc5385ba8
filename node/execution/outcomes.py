"""What a call to the outside came to.

The one rule: an outcome is *failed* only when the effect's author says so, or when the node stopped before the call. A
time-out, a lost connection, a cancelled call, and every error that nobody classified leave it *unknown*.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from leasemesh.node.authoring.effects import Effect, as_json
from leasemesh.node.authoring.errors import DidNotHappen, text_of
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import Json

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
        late: the call that a thread still makes. None when none does.
    """

    reason: str
    may_ask: bool = True
    late: asyncio.Future[Any] | None = None


Outcome = Happened | DidNot | Unknown


def not_called() -> DidNot:
    """Return the outcome of a call that was not made, because the node stopped before it."""
    return DidNot(DidNotHappen("the node stopped before the call", transient=True), stopped=True)


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
