"""The ownership rule, said as examples and as properties. That the database computes the same: test_merging."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasemesh.node.model.ids import RunId
from leasemesh.node.model.leases import (
    Claim,
    ClaimEffect,
    ClaimState,
    EventStatus,
    Ownership,
    StalenessRule,
    decide,
    take_over_wait_ms,
)

HELD, RELEASED, LOST, CONSUMED, SKIPPED, DEAD = ClaimState
NONE, UNKNOWN, TO_SKIP, HAPPENED = ClaimEffect
RULE = StalenessRule(ttl_ms=60_000, margin_ms=15_000)

claims = st.builds(
    Claim,
    run=st.sampled_from([RunId(letter * 32) for letter in "abcdef"]),
    epoch=st.integers(1, 3),
    at=st.integers(0, 3),
    state=st.sampled_from(ClaimState),
    effect=st.sampled_from(ClaimEffect),
)
claim_sets = st.lists(claims, max_size=6, unique_by=lambda claim: claim.run)


def claim(run, state=HELD, *, epoch=1, at=1, effect=NONE):
    return Claim(RunId(run), epoch, at, state, effect)


@pytest.mark.parametrize(
    ("known", "status", "epoch", "owner"),
    [
        ([], EventStatus.PENDING, 0, None),
        ([claim("a")], EventStatus.RESERVED, 1, "a"),
        ([claim("a", RELEASED)], EventStatus.PENDING, 1, None),
        ([claim("a", LOST)], EventStatus.PENDING, 1, None),
        ([claim("a", CONSUMED)], EventStatus.CONSUMED, 1, "a"),
        ([claim("a", SKIPPED)], EventStatus.SKIPPED, 1, "a"),
        ([claim("a", DEAD)], EventStatus.DEAD, 1, "a"),
        # Precedence of outcomes.
        ([claim("a", DEAD), claim("b", SKIPPED), claim("c", CONSUMED)], EventStatus.CONSUMED, 1, "c"),
        ([claim("a", DEAD), claim("b", SKIPPED)], EventStatus.SKIPPED, 1, "b"),
        # An outcome of a lower epoch stands against a held claim of a higher one.
        ([claim("a", CONSUMED), claim("b", epoch=2)], EventStatus.CONSUMED, 1, "a"),
        # Of two equal claims the earlier wins, then the lower run id.
        ([claim("a", at=2), claim("b", at=1)], EventStatus.RESERVED, 1, "b"),
        ([claim("b"), claim("a")], EventStatus.RESERVED, 1, "a"),
        # A take-over wins, though it came later.
        ([claim("a"), claim("b", epoch=2, at=9)], EventStatus.RESERVED, 2, "b"),
        # A held claim of a lower epoch owns nothing, even after the higher one was released.
        ([claim("a"), claim("b", RELEASED, epoch=2)], EventStatus.PENDING, 2, None),
        # One of two equal claims was released: the other owns.
        ([claim("a", RELEASED), claim("b", at=5)], EventStatus.RESERVED, 1, "b"),
        # An effect of unknown outcome keeps the event, whatever became of the claim.
        ([claim("a", RELEASED, effect=UNKNOWN)], EventStatus.UNKNOWN, 1, "a"),
        ([claim("a", LOST, effect=UNKNOWN), claim("b", epoch=3)], EventStatus.UNKNOWN, 1, "a"),
        ([claim("a", CONSUMED), claim("b", effect=UNKNOWN)], EventStatus.CONSUMED, 1, "a"),
        ([claim("a", RELEASED, effect=UNKNOWN), claim("b", effect=UNKNOWN, at=9)], EventStatus.UNKNOWN, 1, "b"),
        # One that happened keeps it, too, when it was given back or claimed later; the next claim is the highest.
        ([claim("a", RELEASED, effect=HAPPENED)], EventStatus.RESERVED, 1, "a"),
        ([claim("a", LOST, effect=HAPPENED), claim("b", epoch=3)], EventStatus.RESERVED, 3, "a"),
        ([claim("a", effect=HAPPENED), claim("b", RELEASED, epoch=2)], EventStatus.RESERVED, 2, "a"),
        ([claim("a", effect=HAPPENED), claim("b", epoch=2, effect=UNKNOWN)], EventStatus.UNKNOWN, 2, "b"),
        ([claim("a", effect=HAPPENED), claim("b", SKIPPED, epoch=2)], EventStatus.SKIPPED, 2, "b"),
        # The last to go on with it has it; of those that gave it back the first, which began it.
        ([claim("a", effect=HAPPENED), claim("b", epoch=2, effect=HAPPENED)], EventStatus.RESERVED, 2, "b"),
        ([claim("a", LOST, effect=HAPPENED), claim("b", epoch=2, effect=HAPPENED)], EventStatus.RESERVED, 2, "b"),
        ([claim("a", effect=HAPPENED), claim("b", RELEASED, epoch=2, effect=HAPPENED)], EventStatus.RESERVED, 2, "a"),
        (
            [claim("a", LOST, effect=HAPPENED), claim("b", RELEASED, epoch=2, at=2, effect=HAPPENED)],
            EventStatus.RESERVED, 2, "a",
        ),
        # One that a person decided to skip: also when it was given back, but not when it let go of what others own.
        ([claim("a", RELEASED, effect=TO_SKIP), claim("b", epoch=2)], EventStatus.RESERVED, 2, "a"),
        ([claim("a", LOST, effect=TO_SKIP), claim("b", epoch=2)], EventStatus.RESERVED, 2, "b"),
        ([claim("a", LOST, effect=TO_SKIP)], EventStatus.PENDING, 1, None),
    ],
)  # fmt: skip
def test_the_rule(known, status, epoch, owner):
    assert decide(known) == Ownership(status, epoch, owner)
    assert decide(known[::-1]) == Ownership(status, epoch, owner)


@given(st.data(), claim_sets)
def test_the_order_in_which_claims_are_known_does_not_matter(data, known):
    assert decide(data.draw(st.permutations(known))) == decide(known)


# What devices know, and merge: each run's claim never changes, and of its states (one writer) the later one counts.
STAGES = (HELD, RELEASED, LOST, DEAD, SKIPPED, CONSUMED)
fixed_claims = {
    RunId(letter * 32): Claim(RunId(letter * 32), epoch, at, HELD)
    for letter, epoch, at in [("a", 1, 2), ("b", 1, 1), ("c", 2, 3), ("d", 2, 3), ("e", 3, 0)]
}
knowings = st.dictionaries(
    st.sampled_from(sorted(fixed_claims)),
    st.tuples(st.integers(0, len(STAGES) - 1), st.sampled_from(ClaimEffect)),
    max_size=5,
)


def merged(one, other):
    """What a device knows after it has met another."""
    return {run: max(known[run] for known in (one, other) if run in known) for run in {**one, **other}}


def decided(known):
    return decide(
        [replace(fixed_claims[run], state=STAGES[stage], effect=effect) for run, (stage, effect) in known.items()]
    )


@given(knowings, knowings, knowings)
def test_devices_agree_in_whatever_order_and_however_often_they_meet(one, other, third):
    assert decided(merged(one, other)) == decided(merged(other, one))
    assert decided(merged(merged(one, other), third)) == decided(merged(one, merged(other, third)))
    assert decided(merged(merged(one, other), other)) == decided(merged(one, other))


@given(knowings, knowings)
def test_meeting_another_device_reopens_nothing(one, other):
    if decided(one).status.terminal:
        assert decided(merged(one, other)).status.terminal


@given(claim_sets, claims)
def test_what_is_terminal_stays_so_whatever_else_becomes_known(known, more):
    before = decide(known)
    if before.status.terminal and more.run not in {one.run for one in known}:
        after = decide([*known, more])
        assert after.status.terminal
        assert after.status <= before.status  # Only by precedence: dead, skipped, consumed.


@given(claim_sets)
def test_an_owner_is_one_of_the_claimants_and_none_when_pending(known):
    owned = decide(known)
    assert (owned.owner is None) == (owned.status == EventStatus.PENDING)
    assert owned.owner is None or owned.owner in {one.run for one in known}


@given(claim_sets)
def test_a_pending_event_counts_every_epoch_that_was_claimed(known):
    owned = decide(known)
    if owned.status in (EventStatus.PENDING, EventStatus.RESERVED):
        assert owned.epoch == max((one.epoch for one in known), default=0)


def wait(watched_since_ms, heartbeat_at_ms, now_ms):
    return take_over_wait_ms(
        rule=RULE, watched_since_ms=watched_since_ms, heartbeat_at_ms=heartbeat_at_ms, now_ms=now_ms
    )


def test_a_holder_must_be_silent_for_the_whole_time_and_the_margin():
    assert wait(1_000, None, 1_000) == 75_000
    assert wait(1_000, None, 75_999) == 1
    assert wait(1_000, None, 76_000) == 0
    assert wait(1_000, None, 500_000) == 0


def test_a_word_from_the_holder_begins_the_wait_anew():
    assert wait(1_000, 50_000, 76_000) == 49_000


def test_what_was_heard_before_the_claim_was_seen_does_not_shorten_the_wait():
    assert wait(10_000, 1_000, 80_000) == 5_000
