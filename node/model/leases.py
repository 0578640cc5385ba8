"""Who owns an event: the ownership rule as pure functions, without clock and without I/O.

An event's status is a function of the set of claims on it and of nothing else, so two nodes that know the same
claims agree, in whatever order and batches they learned them. The view `ranked_claims` computes the same function
incrementally. A property test holds the two equal.

The rule, first match wins:

1. a settled claim: consumed before skipped before dead. Terminal, for ever.
2. a claim whose run has an external effect in flight or of unknown outcome: reserved, and nobody runs it again by
   itself.
3. a claim whose effect is decided: it happened, or a person said to skip it. Reserved, by the run or by the last one
   that goes on with its work, until it is settled. Also when the run gave its events back (a copy of its file may do
   that, which does not know of the effect), and whatever was claimed later: what is decided goes forward. Of runs that
   all gave it back, by the earliest.
4. the held claims of the highest epoch of *all* claims, ended ones included: lowest hybrid time, then lowest run id.
   A held claim of a lower epoch owns nothing, even after the higher one was released.
5. otherwise pending. The next claim is made at the highest epoch + 1.

Time appears only in `take_over_wait_ms`, which decides whether a node may *write* a claim at the next epoch. It uses
this node's own monotonic clock, never a comparison with somebody else's wall clock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from leasemesh.node.model.ids import RunId

EPOCH_MAX = 1_000_000
"""Claims above it are ignored, so that a hostile row cannot use up the numbers. A million take-overs of one event is
a fault."""


class ClaimState(IntEnum):
    """How a claim stands. The run's own node writes it. The numbers are those of the local table run_index."""

    HELD = 0
    RELEASED = 1
    LOST = 2
    CONSUMED = 3
    SKIPPED = 4
    DEAD = 5

    @property
    def settled(self) -> bool:
        """Whether the claim ended with an outcome."""
        return self >= ClaimState.CONSUMED


class EventStatus(IntEnum):
    """What the claims on an event come to. The numbers are those of the local table event_index."""

    PENDING = 0
    RESERVED = 1
    UNKNOWN = 2
    CONSUMED = 3
    SKIPPED = 4
    DEAD = 5

    @property
    def terminal(self) -> bool:
        """Whether nothing can reopen the event."""
        return self >= EventStatus.CONSUMED


class ClaimEffect(IntEnum):
    """What became of the external effect behind a claim. The numbers are those of the local table run_index."""

    NONE = 0
    """None was begun, or it did not happen."""
    UNKNOWN = 1
    """In flight, or nobody knows."""
    SKIPPED = 2
    """A person decided that its events are never to be done."""
    HAPPENED = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """One run's claim on one event.

    Attributes:
        run: the claiming run.
        epoch: 1, 2, 3 and so on. Each take-over claims the next one.
        at: hybrid time of the reservation.
        state: how it stands.
        effect: what became of the run's effect. If it has none, of that which it goes on with.
    """

    run: RunId
    epoch: int
    at: int
    state: ClaimState
    effect: ClaimEffect = ClaimEffect.NONE

    @property
    def decided(self) -> bool:
        """Whether what is known of its effect keeps the event reserved until it is settled.

        An effect that happened does. So does one that a person said to skip, unless the run gave its events up because
        it did not own all of them any more.
        """
        skipped = self.effect == ClaimEffect.SKIPPED and self.state != ClaimState.LOST
        return self.effect == ClaimEffect.HAPPENED or skipped


@dataclass(frozen=True, slots=True)
class Ownership:
    """The status of an event and who holds or settled it.

    Attributes:
        status: see the rule.
        epoch: that of the claim which settled it or whose effect is unknown, otherwise the highest of all claims, after
            which the next claim comes. 0 when nobody ever claimed it.
        owner: the deciding run, None when pending.
    """

    status: EventStatus
    epoch: int
    owner: RunId | None


def decide(claims: Collection[Claim]) -> Ownership:
    """Apply the ownership rule to all claims on one event that a node knows."""
    settled = [claim for claim in claims if claim.state.settled]
    if settled:
        first = min(settled, key=lambda claim: (claim.state, claim.at, claim.run))
        return Ownership(EventStatus(first.state), first.epoch, first.run)
    unknown = [claim for claim in claims if claim.effect == ClaimEffect.UNKNOWN]
    if unknown:
        first = min(unknown, key=lambda claim: (claim.state != ClaimState.HELD, claim.at, claim.run))
        return Ownership(EventStatus.UNKNOWN, first.epoch, first.run)
    epoch = max((claim.epoch for claim in claims), default=0)
    if decided := [claim for claim in claims if claim.decided]:
        return Ownership(EventStatus.RESERVED, epoch, min(decided, key=_last_to_go_on).run)
    held = [claim for claim in claims if claim.epoch == epoch and claim.state == ClaimState.HELD]
    if held:
        first = min(held, key=lambda claim: (claim.at, claim.run))
        return Ownership(EventStatus.RESERVED, epoch, first.run)
    return Ownership(EventStatus.PENDING, epoch, None)


def _last_to_go_on(claim: Claim) -> tuple[bool, int, int, RunId]:
    """Order claims by who goes on with what is decided: who has not given it back, the latest to take it over first.
    Then the earliest of the others."""
    ended = claim.state != ClaimState.HELD
    return ended, 0 if ended else -claim.epoch, claim.at, claim.run


@dataclass(frozen=True, slots=True)
class StalenessRule:
    """How long a holder must have been silent before its claims may be taken over.

    Attributes:
        ttl_ms: silence after which a holder counts as gone. Twelve missed presence frames.
        margin_ms: added for pauses and for monotonic clocks that run at slightly different rates.
    """

    ttl_ms: int = 60_000
    margin_ms: int = 15_000


def take_over_wait_ms(*, rule: StalenessRule, watched_since_ms: int, heartbeat_at_ms: int | None, now_ms: int) -> int:
    """Return how much longer this node must wait before it may claim the next epoch. 0 when it may now.

    Args:
        rule: time to live and margin.
        watched_since_ms: since when this node has itself seen the claim unchanged (own monotonic clock).
        heartbeat_at_ms: when this node last heard of the holder, directly or through others. None: never.
        now_ms: own monotonic clock.
    """
    quiet_since_ms = watched_since_ms if heartbeat_at_ms is None else max(watched_since_ms, heartbeat_at_ms)
    return max(0, quiet_since_ms + rule.ttl_ms + rule.margin_ms - now_ms)
