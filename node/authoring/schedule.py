"""When a producer runs: every so often, or by a cron expression in a time zone. Pure: the time is given.

Ticks that were missed, because no device was running, become one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from leasemesh.node.model.errors import InvalidInput

EVERY_S_LEAST = 0.1
EVERY_S_MOST = 366 * 86_400

YEAR_2000_MS = 946_684_800_000
"""Where the search for a first tick begins, to know that there is one."""


class Schedule(Protocol):
    """When a producer is due."""

    def next_after(self, last_ms: int | None, now_ms: int) -> int:
        """Return when it is due next (Unix ms), in the past when it is overdue.

        Args:
            last_ms: when it last ran, on whichever device. None: never.
            now_ms: now.
        """


@dataclass(frozen=True, slots=True)
class Every:
    """Every so often. The first time at once.

    Attributes:
        seconds: between 0.1 and a year.
    """

    seconds: float

    def __post_init__(self) -> None:
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not EVERY_S_LEAST <= self.seconds <= EVERY_S_MOST:
            raise InvalidInput("every_s", f"is {self.seconds!r}; it must be from {EVERY_S_LEAST} to {EVERY_S_MOST:,}")

    @property
    def interval_ms(self) -> int:
        """The interval in milliseconds."""
        return round(self.seconds * 1000)

    def next_after(self, last_ms: int | None, now_ms: int) -> int:
        """See `Schedule`. A last time in the future, by a clock that is wrong, holds it up for one interval only."""
        return now_ms if last_ms is None else min(last_ms, now_ms) + self.interval_ms

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron expression of five fields, as Debian's cron reads it, in a time zone.

    Around daylight saving: a job for a certain time that the clock skips runs right after the gap. One whose time comes
    twice runs once. Jobs of every hour or minute follow the time that really passes.

    Attributes:
        expression: for example "0 7 * * mon-fri".
        time_zone: an IANA name, for example "Europe/Berlin".
    """

    expression: str
    time_zone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.time_zone))
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise InvalidInput("time_zone", f"{self.time_zone!r} is not a time zone such as Europe/Berlin") from error
        if not isinstance(self.expression, str) or len(self.expression.split()) != 5:
            raise InvalidInput(
                "cron", f"{self.expression!r} is not five fields: minute, hour, day of month, month, day of week"
            )
        try:
            self._tick_after(YEAR_2000_MS)
        except CronSimError as error:
            raise InvalidInput("cron", f"{self.expression!r} cannot be read: {error}") from error

    def next_after(self, last_ms: int | None, now_ms: int) -> int:
        """See `Schedule`. What has never run waits for its first tick."""
        return self._tick_after(now_ms if last_ms is None else min(last_ms, now_ms))

    def _tick_after(self, after_ms: int) -> int:
        after = datetime.fromtimestamp(after_ms / 1000, self._zone)
        for tick in CronSim(self.expression, after):
            tick_ms = round(tick.timestamp() * 1000)
            if tick_ms > after_ms:  # in the hour that comes twice, the first answer may lie in its first pass
                return tick_ms
        raise InvalidInput("cron", f"{self.expression!r} names no time that ever comes")

    def __str__(self) -> str:
        return f"cron {self.expression} ({self.time_zone})"
