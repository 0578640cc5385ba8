"""Where a simulated process is to die."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Moment = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class CrashPlan:
    """Where a process is to die: at the next (count 1) or a later job, message or commit.

    Attributes:
        what: "commit", "send", or the name of a job of sync's storage ("apply", "state", "read", ...).
        moment: right before it, or right after.
        count: at which one, from 1.
    """

    what: str
    moment: Moment = "before"
    count: int = 1


class Crashed(BaseException):
    """Leaves code of a process that has just died, as nothing does in reality. Not an Exception: nobody catches it."""
