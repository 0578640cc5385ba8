"""What can go wrong in a handler, and what its author can say about it."""

from __future__ import annotations

from leasemesh.node.model.errors import LeasemeshError


class PhaseViolation(LeasemeshError):
    """A handler did what its phase does not allow. Its code must be changed.

    Attributes:
        call: what was called.
        phase: the phase that ran, or that had ended.
    """

    def __init__(self, call: str, phase: str, rule: str) -> None:
        super().__init__(f"{call} in phase {phase}: {rule}")
        self.call = call
        self.phase = phase


class RunRefused(LeasemeshError):
    """Handlers cannot be run on this file now: another process does."""


class Transient(Exception):
    """Raised by a handler's code: it failed for a reason that goes away by itself (a service is down), try again
    later. OSError and TimeoutError count as this too."""


class DidNotHappen(Exception):
    """Raised by an effect: it certainly did not happen. Everything else that an effect raises, a time-out included,
    leaves its outcome unknown.

    Attributes:
        transient: it may well happen when tried again later. Otherwise the event is given up after three tries.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


TRANSIENT: tuple[type[BaseException], ...] = (Transient, OSError, TimeoutError)


def is_transient(error: BaseException) -> bool:
    """Whether trying again later may help, without a change of code or data.

    Of an effect that did not happen its author says so, or it was raised from an error that says so.
    """
    if isinstance(error, DidNotHappen):
        return error.transient or isinstance(error.__cause__, TRANSIENT)
    return isinstance(error, TRANSIENT)


ERROR_CHARACTERS_MAX = 2_000
"""Of an error as it is kept in rows and told to people."""


def message_of(error: BaseException) -> str:
    """Return what an error says as a text that can be stored. Its kind when it says nothing."""
    try:
        text = str(error)
    except Exception:  # of somebody's own class, whose fault must not hide the error that it stands for
        text = ""
    return storable(text)[:ERROR_CHARACTERS_MAX] or type(error).__name__


def text_of(error: BaseException) -> str:
    """Return an error's kind and what it says, as a text that can be stored."""
    name, message = type(error).__name__, message_of(error)
    return name if message == name else f"{name}: {message}"[:ERROR_CHARACTERS_MAX]


def storable(text: str) -> str:
    """Return text without what cannot be stored: NUL characters and halves of surrogate pairs."""
    return text.replace("\x00", "").encode(errors="replace").decode()
