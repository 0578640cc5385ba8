"""Noticing that the machine has slept."""

import asyncio

import pytest
from handling import publish, to_end, until

from leasemesh import effect
from leasemesh.node.execution import script
from leasemesh.node.execution.outcomes import Happened
from leasemesh.node.runtime.clocks import SLEPT_S, SleepWatch, has_slept


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


async def test_a_machine_that_falls_asleep_again_while_a_run_hears_the_others_makes_it_hear_them_again(
    open_node, mail, inbox, hands
):
    @effect(name="mail")
    async def send_mail(key):
        pass

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())
    node = open_node("a")
    publish(node, "one")
    by = hands(node, has_sync=True)
    steps = by.consume(consumer)
    assert until(steps, script.ReachPeers).slept is False
    for _ in range(3):
        by.alarms += 1
        assert until(steps, script.ReachPeers).slept is True
    until(steps, script.Perform)
    assert to_end(steps, Happened(None)).kind == "committed"
