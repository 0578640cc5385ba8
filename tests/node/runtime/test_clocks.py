"""Noticing that the machine has slept."""

import asyncio

import pytest

from node.runtime.clocks import SLEPT_S, SleepWatch, has_slept


@pytest.mark.parametrize(
    ("passed_s", "wall_passed_s", "slept"),
    [
        (5, 5, False),
        (5.1, 4, False),
        (SLEPT_S - 1, SLEPT_S - 1, False),
        (SLEPT_S + 1, SLEPT_S + 1, True),  # both clocks went on, and nobody looked
        (5, 3_600, True),  # the monotonic clock stood still
        (5, -3_600, True),  # or somebody has set the wall clock: what others think of our leases is in doubt
        (0, 0, False),
    ],
)
def test_a_sleep_shows_in_either_clock_or_in_their_difference(passed_s, wall_passed_s, slept):
    assert has_slept(passed_s, wall_passed_s) is slept


async def test_a_sleep_is_counted_once(monkeypatch):
    wall = [0]
    watch = SleepWatch(lambda: wall[0])
    assert watch.look() == 0
    wall[0] += 3_600_000
    assert watch.look() == 1
    assert await asyncio.to_thread(watch.look) == 1
