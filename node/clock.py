"""Hybrid logical time: wall-clock milliseconds with a counter, so that what follows from something is later than it.

Kulkarni et al., "Logical Physical Clocks" (2014). A hybrid time is one integer, `milliseconds << 16 | counter`: it
sorts as time does and fits SQLite's 64 bits until the year 6429. It orders events for people and breaks ties between
claims of one epoch; it never decides by itself that a claim is stale.
"""

from __future__ import annotations

from typing import NewType

HybridTime = NewType("HybridTime", int)

COUNTER_BITS = 16
DRIFT_MS_MAX = 7 * 24 * 3600 * 1000
"""A time further ahead than this does not move our clock (the triggers of migration 2 use the same number)."""


def next_hybrid_time(now_ms: int, latest: int) -> HybridTime:
    """Return the next time to issue: after every time seen, and not before the wall clock.

    Args:
        now_ms: the wall clock, Unix milliseconds. It may have been set back; time issued here does not go back.
        latest: the greatest hybrid time seen or issued so far.
    """
    return HybridTime(max(now_ms << COUNTER_BITS, latest + 1))


def unix_ms(time: int) -> int:
    """Return the Unix milliseconds of a hybrid time."""
    return time >> COUNTER_BITS
