import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasemesh.node.model.clock import COUNTER_BITS, DRIFT_MS_MAX, TIME_MAX, credible_until, next_hybrid_time, unix_ms
from leasemesh.node.model.errors import InvalidInput

NOW_MS = 1_700_000_000_000


@given(st.integers(0, 2**45), st.integers(0, 2**61))
def test_the_next_time_is_later_than_all_seen_and_not_before_the_wall_clock(now_ms, latest):
    time = next_hybrid_time(now_ms, latest)
    assert time > latest
    assert unix_ms(time) >= now_ms
    assert time == now_ms << COUNTER_BITS or time == latest + 1


def test_time_does_not_go_back_when_the_wall_clock_does():
    before = next_hybrid_time(NOW_MS, 0)
    after = next_hybrid_time(NOW_MS - 3_600_000, before)
    assert after == before + 1
    assert unix_ms(after) == NOW_MS


def test_within_a_millisecond_the_counter_tells_times_apart():
    times = [next_hybrid_time(NOW_MS, 0)]
    for _ in range(100):
        times.append(next_hybrid_time(NOW_MS, times[-1]))
    assert times == sorted(set(times))
    assert {unix_ms(time) for time in times} == {NOW_MS}


def test_a_full_counter_goes_over_into_the_next_millisecond():
    full = (NOW_MS << COUNTER_BITS) + (1 << COUNTER_BITS) - 1
    assert unix_ms(next_hybrid_time(NOW_MS, full)) == NOW_MS + 1


def test_a_clock_before_1970_gives_times_after_those_seen():
    assert next_hybrid_time(-5_000, 7) == 8


def test_a_week_ahead_is_credible_and_more_is_not():
    assert unix_ms(credible_until(NOW_MS)) == NOW_MS + DRIFT_MS_MAX


@pytest.mark.parametrize("now_ms", [TIME_MAX >> COUNTER_BITS, 1 << 60])
def test_a_clock_beyond_all_reason_is_an_error_that_names_it(now_ms):
    with pytest.raises(InvalidInput, match="wall clock"):
        next_hybrid_time(now_ms, 0)
