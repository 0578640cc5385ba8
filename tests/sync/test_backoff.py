"""Waiting longer and longer."""

from hypothesis import given
from hypothesis import strategies as st

from leasemesh.sync.backoff import FIRST_S, MOST_S, Backoff, delay


def test_the_delay_doubles_until_the_cap() -> None:
    assert [delay(failures, first=250, most=30_000) for failures in range(10)] == [
        0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000,
    ]  # fmt: skip
    assert delay(1_000_000, first=250, most=30_000) == 30_000


@given(st.integers(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_the_jitter_takes_up_to_its_share_away(failures: int, jitter: float, chance: float) -> None:
    whole = delay(failures, first=FIRST_S, most=MOST_S)
    assert whole * (1 - jitter) <= delay(failures, first=FIRST_S, most=MOST_S, jitter=jitter, chance=chance) <= whole


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_dialler_may_wait_for_anything_from_nothing_to_the_greatest_delay(failures: int, chance: float) -> None:
    backoff = Backoff(lambda: chance)
    for _ in range(failures):
        backoff.next_delay_s()
    assert 0 < backoff.next_delay_s() <= min(MOST_S, FIRST_S * 2**failures)


def test_failures_add_up_until_a_success() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.next_delay_s() for _ in range(3)] == [0.125, 0.25, 0.5]
    backoff.reset()
    assert backoff.next_delay_s() == 0.125
    assert backoff.delay_max_s == 30
