"""Noticing that the machine has slept, by its two clocks.

The monotonic clock stands still while a machine sleeps, on most systems. The wall clock goes on. On others both go on,
and a moment that is looked at every few seconds comes late. A process that was stopped for long has slept, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

log = logging.getLogger("leasemesh.runtime")

SLEPT_S = 40.0
"""Nobody has looked at the clocks for so long, although housekeeping does so every few seconds, or one of them moved so
much more than the other. Less than the time after which others take over what a silent node holds."""


class SleepWatch:
    """Counts how often the machine seems to have slept. Made in the event loop. Looked at from any thread."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        """Args: the wall clock."""
        self._monotonic = asyncio.get_running_loop().time
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._at_s = self._monotonic()
        self._wall_ms = clock_ms()
        self._count = 0

    def look(self) -> int:
        """Look at the clocks, and return how often the machine has slept so far."""
        with self._lock:
            at_s, wall_ms = self._monotonic(), self._clock_ms()
            passed_s, wall_passed_s = at_s - self._at_s, (wall_ms - self._wall_ms) / 1000
            self._at_s, self._wall_ms = at_s, wall_ms
            if has_slept(passed_s, wall_passed_s):
                log.warning("the machine seems to have slept for %.0f s", max(passed_s, wall_passed_s))
                self._count += 1
            return self._count


def has_slept(passed_s: float, wall_passed_s: float) -> bool:
    """Tell whether a machine has slept between two looks at its clocks.

    Args:
        passed_s: seconds by the monotonic clock.
        wall_passed_s: seconds by the wall clock.
    """
    return passed_s > SLEPT_S or abs(wall_passed_s - passed_s) > SLEPT_S
