"""Hybrid logical time: wall-clock milliseconds with a counter, so that what follows from something is later than it.

Kulkarni et al., "Logical Physical Clocks" (2014). A hybrid time is one integer, `milliseconds << 16 | counter`: it
sorts as time does and fits SQLite's 64 bits (it ends in the year 4199, to leave room for the counting in a batch). It
orders events for people and breaks ties between claims of one epoch. It never decides by itself that a claim is stale.
"""

from __future__ import annotations

from typing import NewType

from leasemesh.node.model.errors import InvalidInput

HybridTime = NewType("HybridTime", int)

COUNTER_BITS = 16
TIME_MAX = 1 << 62
"""The greatest time that is issued or accepted (the CHECKs of `migrations/0001_facts.sql` say the same)."""

DRIFT_MS_MAX = 7 * 24 * 3600 * 1000
"""A time of another device further ahead of the wall clock than this does not move ours: one broken clock must not drag
everyone's."""


def credible_until(now_ms: int) -> HybridTime:
    """Return the greatest time of another device that moves our clock when the wall clock shows `now_ms`."""
    return HybridTime(min((now_ms + DRIFT_MS_MAX) << COUNTER_BITS, TIME_MAX))


def next_hybrid_time(now_ms: int, latest: int) -> HybridTime:
    """Return the next time to issue: after every time seen, and not before the wall clock.

    Args:
        now_ms: the wall clock, Unix milliseconds. It may have been set back. Time issued here does not go back.
        latest: the greatest hybrid time issued so far, or seen and credible.

    Raises:
        InvalidInput: the wall clock is beyond the year 4199.
    """
    time = max(now_ms << COUNTER_BITS, latest + 1)
    if time >= TIME_MAX:
        raise InvalidInput("wall clock", f"shows {now_ms:,} ms since 1970, which cannot be; set the clock right")
    return HybridTime(time)


def unix_ms(time: int) -> int:
    """Return the Unix milliseconds of a hybrid time."""
    return time >> COUNTER_BITS
