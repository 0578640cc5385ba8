"""When to try again: pure rules over times and over runs as their rows tell them, so that a restart forgets nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import check_whole
from leasemesh.node.stores import HandlerRun
from leasemesh.sync.backoff import delay

CLAIMS_THAT_FAIL_MAX = 3
"""An event on which a handler's code has failed so often is made a dead letter: it is the event, not the service."""


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How long to wait after failures, and when to give up.

    Attributes:
        first_ms: the wait after one failure. It doubles with each further one.
        most_ms: the longest wait.
        tries: failures in a row after which a handler is blocked on its device, and reconciliation is left to a person.
        jitter: up to this share of a wait is left out, so that devices that failed together do not return together.
    """

    first_ms: int = 10_000
    most_ms: int = 600_000
    tries: int = 5
    jitter: float = 0.2

    def __post_init__(self) -> None:
        check_whole("first_ms", self.first_ms, least=1, most=86_400_000)
        check_whole("most_ms", self.most_ms, least=self.first_ms, most=86_400_000)
        check_whole("tries", self.tries, least=1, most=1_000)
        if not 0 <= self.jitter < 1:
            raise InvalidInput("jitter", f"is {self.jitter}; it must be at least 0 and below 1")

    def delay_ms(self, failures: int, chance: float = 0.0) -> int:
        """Return how long to wait after so many failures in a row. 0 after none.

        Args:
            failures: how many.
            chance: 0 to 1. How much of the jitter is left out.
        """
        return round(delay(failures, first=self.first_ms, most=self.most_ms, jitter=self.jitter, chance=chance))


@dataclass(frozen=True, slots=True)
class Streak:
    """Failures in a row of one handler on one device.

    Attributes:
        failures: how many.
        last: the newest of them, None when there is none.
        last_at: when it failed, Unix milliseconds.
    """

    failures: int = 0
    last: HandlerRun | None = None
    last_at: int = 0

    def retry_at(self, rule: RetryRule, now_ms: int) -> int:
        """Return when to try again (Unix ms), 0 for at once.

        The same answer each time, in whatever process it is asked: chance is a part of the failed run's id. A failure
        in the future, by a clock that was wrong, counts as one of now.
        """
        if self.last is None:
            return 0
        return min(self.last_at, now_ms) + rule.delay_ms(self.failures, int(self.last.id[-4:], 16) / 0xFFFF)


def streak(newest_first: Iterable[HandlerRun], *, after: str | None = None) -> Streak:
    """Count the failures since the last success, or after a run (then a person has let the handler run again).

    What ended for another reason (its lease was lost, its process crashed) says nothing about the handler.
    """
    failures = 0
    last: HandlerRun | None = None
    for run in newest_first:
        if run.status == "committed" or (after is not None and run.id <= after):
            break
        if "failure" in run.details:
            failures += 1
            last = last or run
    return Streak(failures, last, failed_at(last) if last else 0)


def failed_at(run: HandlerRun) -> int:
    """Return when a run failed (Unix ms)."""
    at = run.details.get("failed_at")
    return at if isinstance(at, int) else run.started_at
