"""Effects: calls to the outside that leasemesh performs once, or whose outcome it finds out.

    @effect(timeout_s=30)
    async def send_mail(key: str, *, to: str, body: str):
        ...

The first parameter is the key of the work: the same on every device and in every attempt. An outside service that
accepts an idempotency key should get it. What the function returns, JSON, is the result. It raises `DidNotHappen` when
the effect certainly did not happen. Whatever else it raises, a time-out included, leaves the outcome unknown.

    @send_mail.reconcile
    async def was_sent(key: str, *, to: str, body: str):
        return Applied({"id": 17}) or NotApplied() or Retry()

finds out what happened. Without it an unknown outcome waits for a person.

Calling an effect does nothing: it says which call to make. A consumer's `mutate` returns that.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import Json, check_text, encode

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_S_MAX = 3_600
TIMEOUT_S = 30
"""Longer than a web request takes, and short enough that a person still waits for it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Reconciliation found that the effect happened, with this result (JSON)."""

    result: Json = None


@dataclass(frozen=True, slots=True)
class NotApplied:
    """Reconciliation found that the effect did not happen, and will not any more."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Reconciliation could not find out. Ask again later."""

    reason: str = ""


Answer = Applied | NotApplied | Retry


@dataclass(frozen=True, slots=True)
class EffectCall:
    """An effect with the parameters to call it with, as JSON. Made by calling an `Effect`."""

    effect: Effect[...]
    params: dict[str, Json]


class Effect(Generic[P]):
    """A declared effect. Made by `effect`.

    Attributes:
        name: the tool's name in the ledger. The same on every device.
        timeout_s: seconds after which a call is given up, its outcome unknown. Also for each reconciliation.
        idempotent: the outside service does nothing twice under one key, so that soft mode is safe enough.
        function: the user's function.
        is_async: whether it is declared `async`, below its decorators.
        reconciler: the function that finds out what happened, if there is one.
    """

    def __init__(
        self, function: Callable[Concatenate[str, P], Any], *, name: str | None, timeout_s: float, idempotent: bool
    ) -> None:
        """Use `effect`."""
        self.name = check_text("name of an effect", name if name is not None else function.__name__)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise InvalidInput("timeout_s", f"is {timeout_s!r}; it must be above 0 and at most {TIMEOUT_S_MAX:,}")
        self.timeout_s = float(timeout_s)
        self.idempotent = idempotent
        self.function = function
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        self.reconciler: Callable[Concatenate[str, P], Any] | None = None
        self._signature = _signature_without_key(self.name, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> EffectCall:
        """Say that this effect is to be performed, with these parameters.

        Raises:
            InvalidInput: the parameters do not fit the function, or are not JSON.
        """
        try:
            params = _flat(self._signature, self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InvalidInput(f"parameters of effect {self.name}", str(error)) from error
        return EffectCall(self, as_json(f"parameters of effect {self.name}", params))

    def reconcile(self, function: F) -> F:
        """Declare, as a decorator, how to find out whether the effect happened. Takes the same parameters."""
        if self.reconciler is not None:
            raise InvalidInput(f"effect {self.name}", "has a reconcile function already")
        self.reconciler = function
        return function

    def __repr__(self) -> str:
        return f"<effect {self.name}>"


@overload
def effect(function: Callable[Concatenate[str, P], Any], /) -> Effect[P]: ...
@overload
def effect(
    *, name: str | None = None, timeout_s: float = TIMEOUT_S, idempotent: bool = False
) -> Callable[[Callable[Concatenate[str, P], Any]], Effect[P]]: ...
def effect(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float = TIMEOUT_S,
    idempotent: bool = False,
) -> Any:
    """Declare an effect, as a decorator. See the module.

    Args:
        function: sync or async. Takes the key first, then parameters by name, and returns JSON. A sync one runs in a
            thread. What it does after its time-out cannot be stopped.
        name: what the ledger calls it. The function's name, if not given. Keep it: entries of unknown outcome find
            their reconcile function by it.
        timeout_s: seconds after which its outcome counts as unknown.
        idempotent: the outside service does nothing twice under one key.

    Raises:
        InvalidInput: the name, the time-out or the function's parameters cannot be accepted.
    """

    def declare(declared: Callable[..., Any]) -> Effect[...]:
        return Effect(declared, name=name, timeout_s=timeout_s, idempotent=idempotent)

    return declare if function is None else declare(function)


def as_json(name: str, value: Json) -> Json:
    """Return a value as it is after it was stored, so that a handler sees the same in a first run and after a crash.

    Raises:
        InvalidInput: it is not JSON, or too large.
    """
    return None if value is None else json.loads(encode(name, value))


def effects_named_in(function: Callable[..., Any]) -> list[Effect[...]]:
    """Return the effects that a function refers to by name: global ones, and those of enclosing functions."""
    variables = inspect.getclosurevars(inspect.unwrap(function))
    found = [*variables.nonlocals.values(), *variables.globals.values()]
    return [value for value in found if isinstance(value, Effect)]


def _signature_without_key(name: str, function: Callable[..., Any]) -> inspect.Signature:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise InvalidInput(f"effect {name}", "must take the key of the work as its first parameter")
    rest = parameters[1:]
    wrong = [p.name for p in rest if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)]
    if wrong:
        raise InvalidInput(f"effect {name}", f"must take {wrong[0]} by name: the ledger stores parameters by name")
    return inspect.Signature(rest)


def _flat(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return bound arguments by name, those of a `**` parameter under their own names."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat |= value
        else:
            flat[name] = value
    return flat
