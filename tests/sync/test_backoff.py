"""Waiting before dialling again."""

from hypothesis import given
from hypothesis import strategies as st

from leasemesh.sync.backoff import BASE_MS, CAP_MS, Backoff, delay_ms

ALMOST_ONE = 1 - 2**-53


def test_the_greatest_delay_doubles_until_the_cap() -> None:
    greatest = [delay_ms(attempt, ALMOST_ONE) + 1 for attempt in range(9)]
    assert greatest == [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]
    assert delay_ms(10_000, ALMOST_ONE) + 1 == CAP_MS


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_the_jitter_reaches_from_nothing_to_the_greatest_delay(attempt: int, random_unit: float) -> None:
    assert 0 <= delay_ms(attempt, random_unit) < min(CAP_MS, BASE_MS * 2**attempt)
    assert delay_ms(attempt, 0.0) == 0


def test_failures_add_up_until_a_success() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.next_delay_s() for _ in range(3)] == [0.125, 0.25, 0.5]
    backoff.reset()
    assert backoff.next_delay_s() == 0.125
    assert backoff.delay_max_s == 30
