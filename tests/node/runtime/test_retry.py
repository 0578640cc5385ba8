"""When to try again, as the rows of earlier runs tell."""

import pytest

from leasemesh.node.authoring.errors import DidNotHappen, Transient, is_transient
from leasemesh.node.authoring.retry import RetryRule, streak
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.stores import HandlerRun

RULE = RetryRule()


def run(status, *, at=1_000, failure=None, number=1):
    details = {"failure": failure, "failed_at": at + 5} if failure else {}
    return HandlerRun(
        f"{number:032x}", "0" * 32, "i", "mail", "send", "consumer", "prepared", status, None, None, at, None, details
    )


def test_waits_double_up_to_ten_minutes():
    assert [RULE.delay_ms(failures) for failures in range(9)] == [
        0, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 600_000, 600_000,
    ]  # fmt: skip


def test_a_million_failures_wait_no_longer():
    assert RULE.delay_ms(1_000_000) == 600_000


def test_jitter_only_shortens():
    assert [RULE.delay_ms(1, chance) for chance in (0.0, 0.5, 1.0)] == [10_000, 9_000, 8_000]


def test_failures_count_back_to_the_last_success():
    runs = [run("failed:logic", failure="logic"), run("superseded", failure="transient"), run("committed")]
    assert streak([*runs, run("failed:logic", failure="logic")]).failures == 2


def test_runs_that_ended_otherwise_neither_count_nor_end_the_count():
    runs = [
        run("lost"),
        run("failed:logic", failure="logic"),
        run("crashed"),
        run("failed:internal", failure="internal"),
    ]
    assert streak(runs).failures == 2


def test_failures_before_a_person_unblocked_do_not_count():
    runs = [run("failed:logic", failure="logic", number=number) for number in (3, 2, 1)]
    assert streak(runs, after=f"{2:032x}").failures == 1


def test_the_next_try_counts_from_the_last_failure_and_is_the_same_each_time_it_is_asked():
    found = streak([run("failed:logic", at=1_000, failure="logic", number=2**31)])
    assert found.retry_at(RULE, 2_000) == found.retry_at(RULE, 3_000) == 1_005 + 10_000
    jittered = streak([run("failed:logic", at=1_000, failure="logic", number=0xFFFF)])
    assert jittered.retry_at(RULE, 2_000) == 1_005 + 8_000


def test_without_failure_there_is_nothing_to_wait_for():
    assert streak([]).retry_at(RULE, 2_000) == 0


def test_a_failure_in_the_future_is_waited_for_no_longer_than_one_of_now():
    found = streak([run("failed:logic", at=9_000_000, failure="logic")])
    assert found.retry_at(RULE, 2_000) == 2_000 + 10_000
    assert streak([run("committed")]).failures == 0


@pytest.mark.parametrize(
    "values", [{"first_ms": 0}, {"most_ms": 5}, {"tries": 0}, {"jitter": 1.0}, {"jitter": -0.1}, {"first_ms": 1.5}]
)
def test_a_rule_that_makes_no_sense_is_refused(values):
    with pytest.raises(InvalidInput):
        RetryRule(**values)


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (Transient("down"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
        (KeyError(), False),
        (DidNotHappen("no such mailbox"), False),
        (DidNotHappen("refused", transient=True), True),
        (raised_from(DidNotHappen("refused"), ConnectionRefusedError()), True),
        (raised_from(DidNotHappen("refused"), ValueError()), False),
    ],
)
def test_errors_that_go_away_by_themselves_are_told_from_those_that_do_not(error, transient):
    assert is_transient(error) is transient
