"""Schedules: intervals, cron, time zones, and the two nights of the year on which the clock is moved."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from leasemesh.node.authoring.schedule import Cron, Every
from leasemesh.node.model.errors import InvalidInput

NOW_MS = 1_700_000_000_000


def ms(text, zone="UTC", fold=0):
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def ticks(cron, start_ms, count):
    """Ticks as the clock on the wall shows them."""
    found = []
    for _ in range(count):
        start_ms = cron.next_after(start_ms, start_ms)
        found.append(datetime.fromtimestamp(start_ms / 1000, ZoneInfo(cron.time_zone)).strftime("%d %H:%M %Z"))
    return found


def test_what_never_ran_on_an_interval_is_due_at_once():
    assert Every(60).next_after(None, NOW_MS) == NOW_MS


def test_an_interval_counts_from_the_last_time():
    assert Every(60).next_after(NOW_MS - 10_000, NOW_MS) == NOW_MS + 50_000


def test_missed_intervals_become_one():
    schedule = Every(60)
    assert schedule.next_after(NOW_MS - 1_000_000, NOW_MS) < NOW_MS
    assert schedule.next_after(NOW_MS, NOW_MS) == NOW_MS + 60_000


def test_a_last_time_in_the_future_holds_an_interval_up_no_longer_than_itself():
    assert Every(60).next_after(NOW_MS + 10**9, NOW_MS) == NOW_MS + 60_000


def test_cron_runs_at_its_time_in_its_zone():
    berlin = Cron("0 7 * * mon-fri", "Europe/Berlin")
    friday = ms("2026-01-09T12:00", "Europe/Berlin")
    assert ticks(berlin, friday, 2) == ["12 07:00 CET", "13 07:00 CET"]


def test_cron_that_never_ran_waits_for_its_first_tick():
    assert Cron("0 7 * * *").next_after(None, ms("2026-01-09T12:00")) == ms("2026-01-10T07:00")


def test_missed_ticks_of_cron_become_one():
    cron = Cron("0 * * * *")
    last, now = ms("2026-01-09T01:00"), ms("2026-01-09T12:30")
    overdue = cron.next_after(last, now)
    assert overdue < now
    assert cron.next_after(now, now) == ms("2026-01-09T13:00")


def test_a_time_that_the_clock_skips_runs_right_after_the_gap():
    cron = Cron("30 2 * * *", "Europe/Berlin")
    assert ticks(cron, ms("2026-03-28T03:00", "Europe/Berlin"), 2) == ["29 03:00 CEST", "30 02:30 CEST"]


def test_a_time_that_comes_twice_runs_once():
    cron = Cron("30 2 * * *", "Europe/Berlin")
    assert ticks(cron, ms("2026-10-24T03:00", "Europe/Berlin"), 2) == ["25 02:30 CEST", "26 02:30 CET"]


def test_a_last_run_in_the_second_pass_of_the_hour_does_not_bring_back_the_first():
    cron = Cron("45 2 * * *", "Europe/Berlin")
    within_second_pass = ms("2026-10-25T02:10", "Europe/Berlin", fold=1)
    assert cron.next_after(within_second_pass, within_second_pass) == ms("2026-10-26T02:45", "Europe/Berlin")


def test_every_hour_runs_in_both_passes_of_the_hour():
    cron = Cron("0 * * * *", "Europe/Berlin")
    assert ticks(cron, ms("2026-10-25T01:30", "Europe/Berlin"), 3) == ["25 02:00 CEST", "25 02:00 CET", "25 03:00 CET"]


def test_a_tick_on_the_very_moment_of_the_last_one_is_not_repeated():
    at = ms("2026-01-09T07:00")
    assert Cron("0 7 * * *").next_after(at, at) == ms("2026-01-10T07:00")


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "0 0 0 * * *", "often", None, 5])
def test_what_is_no_cron_expression_is_refused(expression):
    with pytest.raises(InvalidInput, match="cron"):
        Cron(expression)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", None])
def test_what_is_no_time_zone_is_refused(zone):
    with pytest.raises(InvalidInput, match="time_zone"):
        Cron("0 7 * * *", zone)


@pytest.mark.parametrize("seconds", [0, -1, 0.05, 10**9, float("nan"), "60", None, True])
def test_what_is_no_interval_is_refused(seconds):
    with pytest.raises(InvalidInput, match="every_s"):
        Every(seconds)


def test_schedules_say_what_they_are():
    assert [str(Every(60)), str(Cron("0 7 * * *", "Europe/Berlin"))] == ["every 60 s", "cron 0 7 * * * (Europe/Berlin)"]
