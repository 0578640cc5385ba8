"""Two nodes as an app uses them, beside a model of them that is small enough to be believed.

The model of a node is the set of facts that it knows: which events were published, and all claims with their states.
What the node shows must follow from these by the ownership rule, which is written here once more, in another way.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from replicas import check_identity, send

from leasemesh import IllegalState, LeaseLost, NewEvent, Node, NotAvailable, NotFound
from leasemesh.node.machine.environment import Environment
from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.replication.storage import ChangeStorage

NAMES = [f"event {number}" for number in range(4)]
STATUSES = ("pending", "reserved", "consumed", "skipped", "dead")
SETTLED = ("consumed", "skipped", "dead")
STAGES = ("held", "released", "lost", *SETTLED)

nodes = st.integers(0, 1)
some_names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


@dataclass(frozen=True)
class Claim:
    """A reservation as the model knows it: the events with their epochs, and what has become of it."""

    run: str
    node: int
    at: int
    epochs: tuple[tuple[str, int], ...]
    state: str = "held"
    changes: int = 0  # Each change of state; of two versions of one claim the later one is the truth.

    def epoch(self, name):
        return dict(self.epochs).get(name, 0)


class Side:
    """A node with its file, and what the model thinks that it knows."""

    def __init__(self, path, number, ticks):
        self.path, self.number, self._ticks = path, number, ticks
        self.published: set[str] = set()
        self.claims: dict[str, Claim] = {}
        self.open()

    def open(self):
        self.node = Node.open(
            self.path,
            workspace="team",
            name=f"node {self.number}",
            environment=Environment(clock_ms=lambda: next(self._ticks), staleness=StalenessRule(ttl_ms=0, margin_ms=0)),
        )
        self.storage = ChangeStorage(self.node.database)

    @property
    def site(self):
        return self.node.database.site_id

    def status(self, name):
        """What must be shown of an event: its status and its owner."""
        claims = [claim for claim in self.claims.values() if claim.epoch(name)]
        for outcome in SETTLED:
            runs = [claim for claim in claims if claim.state == outcome]
            if runs:
                return outcome, None
        epoch = max((claim.epoch(name) for claim in claims), default=0)
        held = [claim for claim in claims if claim.state == "held" and claim.epoch(name) == epoch]
        if held:
            return "reserved", min(held, key=lambda claim: (claim.at, claim.run)).run
        return "pending", None

    def next_epoch(self, name):
        return 1 + max((claim.epoch(name) for claim in self.claims.values()), default=0)

    def owns_all(self, claim):
        return all(self.status(name) == ("reserved", claim.run) for name, _ in claim.epochs)

    def claim(self, run, names):
        at = self.node.events.reservation(run).at
        self.claims[run] = Claim(run, self.number, at, tuple((name, self.next_epoch(name)) for name in names))

    def set_state(self, claim, state):
        self.claims[claim.run] = replace(claim, state=state, changes=claim.changes + 1)

    def learn(self, other):
        self.published |= other.published
        for run, claim in other.claims.items():
            self.claims[run] = max(claim, self.claims.get(run, claim), key=lambda one: one.changes)


class TwoNodes(RuleBasedStateMachine):
    runs = Bundle("runs")
    fired: ClassVar[Counter[str]] = Counter()
    """How often what a test of this kind is for has happened, in all examples together."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        ticks = itertools.count(1_700_000_000_000)
        self.sides = [Side(self.folder / f"{number}.db", number, ticks) for number in (0, 1)]
        self.transactions: list[set[str]] = []
        self.publish(0, NAMES[:3])
        self.send_all(0, 1)

    def teardown(self):
        for one, other in ((0, 1), (1, 0)) * 2:
            self.send_all(one, other)
        first, second = self.sides
        assert first.claims == second.claims and first.published == second.published
        assert first.node.digest().tables == second.node.digest().tables
        self.what_is_shown_follows_from_the_facts()
        for side in self.sides:
            assert [finding.text for finding in side.node.doctor() if not finding.healthy] == []
            side.node.close()
        shutil.rmtree(self.folder)

    # --- What an app does ---------------------------------------------------------------------------------------------

    @rule(number=nodes, names=some_names)
    def publish(self, number, names):
        side = self.sides[number]
        counts = side.node.publish_many("mail", "inbox", [NewEvent(name, name, {"of": number}) for name in names])
        fresh = set(names) - side.published
        assert (counts.created, counts.existing) == (len(fresh), len(names) - len(fresh))
        self.transactions.append(fresh)
        side.published |= fresh

    @rule(target=runs, number=nodes, names=some_names, partial=st.booleans())
    def reserve(self, number, names, partial):
        side = self.sides[number]
        free = [name for name in names if side.status(name)[0] == "pending"]
        if not set(names) <= side.published:
            with pytest.raises(NotFound):
                side.node.reserve("mail", "inbox", message_ids=names, partial=partial)
        elif len(free) < len(names) and not partial:
            with pytest.raises(NotAvailable):
                side.node.reserve("mail", "inbox", message_ids=names)
            self.fired["not available"] += 1
        else:
            return self.claimed(side, side.node.reserve("mail", "inbox", message_ids=names, partial=partial), free)
        return multiple()

    @rule(target=runs, number=nodes, limit=st.integers(1, 3))
    def reserve_next(self, number, limit):
        side = self.sides[number]
        free = [event.message_id for event in side.node.peek("mail", "inbox", limit=limit)]
        return self.claimed(side, side.node.reserve("mail", "inbox", limit=limit), free)

    @rule(target=runs, number=nodes, name=st.sampled_from(NAMES))
    def take_over(self, number, name):
        side = self.sides[number]
        status, owner = side.status(name)
        event = side.node.events.get_by_message_id("mail", "inbox", name)
        if event is None:
            assert name not in side.published
            return multiple()
        if status != "reserved" or side.claims[owner].node == number:
            with pytest.raises(IllegalState):
                side.node.take_over([event.id])
            return multiple()
        self.fired["taken over"] += 1
        return self.claimed(side, side.node.take_over([event.id]), [name])

    def claimed(self, side, reservation, names):
        assert {event.message_id for event in reservation} == set(names)
        if not names:
            return multiple()
        side.claim(reservation.run, names)
        return reservation.run, side.number

    @rule(target=runs, name=st.sampled_from(NAMES), go_on=st.booleans())
    def race(self, name, go_on):
        """Both reserve an event that is free for both, and meet: the later one has lost it, and may try to settle."""
        if any(name not in side.published or side.status(name)[0] != "pending" for side in self.sides):
            return multiple()
        runs = [
            self.claimed(side, side.node.reserve("mail", "inbox", message_ids=[name]), [name]) for side in self.sides
        ]
        self.send_all(0, 1)
        self.send_all(1, 0)
        if go_on:
            for run in runs:
                self.end(*run, "consumed", happened=False)
        return multiple(*runs)

    @rule(run=runs, outcome=st.sampled_from(SETTLED))
    def settle(self, run, outcome):
        self.end(*run, outcome, happened=False)

    @rule(run=runs)
    def record_what_happened(self, run):
        self.end(*run, "consumed", happened=True)

    def end(self, run, number, outcome, *, happened):
        side = self.sides[number]
        claim, events = side.claims[run], side.node.events
        method = {"consumed": events.consume, "skipped": events.skip, "dead": events.dead_letter}[outcome]
        options = {"effect_happened": True} if happened else {}
        if claim.state == outcome:
            assert method(run, **options) == 0
        elif claim.state != "held" and not (happened and claim.state in ("released", "lost")):
            with pytest.raises(IllegalState):
                method(run, **options)
        elif not side.owns_all(claim) and not happened:
            with pytest.raises(LeaseLost) as caught:
                method(run)
            assert caught.value.run == run
            self.fired["lease lost"] += 1
        else:
            self.fired["recorded although lost" if not side.owns_all(claim) else "settled"] += 1
            assert method(run, **options) == len(claim.epochs)
            side.set_state(claim, outcome)

    @rule(run=consumes(runs))
    def release(self, run):
        run, number = run
        side = self.sides[number]
        claim = side.claims[run]
        if claim.state in SETTLED:
            with pytest.raises(IllegalState):
                side.node.events.release(run)
            return
        given_up = side.node.events.release(run)
        if claim.state == "held":
            assert given_up == sum(side.status(name) == ("reserved", run) for name, _ in claim.epochs)
            state = "released" if given_up == len(claim.epochs) else "lost"
            self.fired[state] += 1
            side.set_state(claim, state)
        else:
            assert given_up == 0

    # --- What happens to nodes ----------------------------------------------------------------------------------------

    @rule(number=nodes)
    def restart(self, number):
        self.sides[number].node.close()
        self.sides[number].open()

    @rule(number=nodes)
    def send_everything(self, number):
        self.send_all(number, 1 - number)

    def send_all(self, number, other):
        check_identity(*self.sides)
        send(self.sides[number], self.sides[other])
        self.sides[other].learn(self.sides[number])

    @rule(number=nodes, pieces=st.integers(0, 3))
    def send_a_part(self, number, pieces):
        """A cut transfer brings some of the transactions: what was known before, and never more than both know."""
        sender, receiver = self.sides[number], self.sides[1 - number]
        check_identity(sender, receiver)
        send(sender, receiver, rows_bytes_max=200, pieces_max=pieces)
        all_published = receiver.published | sender.published
        shown = {event.message_id for status in STATUSES for event in self.peek(receiver, status)}
        assert receiver.published <= shown <= all_published
        for fresh in self.transactions:
            assert fresh <= shown or not (fresh & shown) or fresh & receiver.published, "half a transaction arrived"
        if pieces and (shown != all_published or len(receiver.claims) < len(sender.claims)):
            self.fired["cut"] += 1
        receiver.published = shown
        for run, theirs in sender.claims.items():
            found = receiver.node.events.reservation(run)
            mine = receiver.claims.get(run)
            if found is None:
                assert mine is None
                continue
            # A claim whose end has not come yet is held, also when its first state was overwritten at the sender.
            begun = replace(theirs, state="held", changes=0)
            versions = [claim for claim in (begun, theirs, mine) if claim is not None and claim.state == found.state]
            assert versions, f"{found.state} is neither what was known nor what was sent"
            receiver.claims[run] = versions[-1]

    # --- What must hold -----------------------------------------------------------------------------------------------

    def peek(self, side, status):
        return side.node.peek("mail", "inbox", status=status, limit=100)

    @invariant()
    def what_is_shown_follows_from_the_facts(self):
        for side in getattr(self, "sides", ()):
            shown = {
                event.message_id: (status, event.run if status == "reserved" else None)
                for status in STATUSES
                for event in self.peek(side, status)
            }
            assert shown == {name: side.status(name) for name in side.published}


def test_two_nodes_show_what_the_model_says_whatever_is_done_with_them():
    TwoNodes.fired.clear()
    run_state_machine_as_test(
        TwoNodes,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    kinds = {
        "settled",
        "released",
        "lost",
        "lease lost",
        "recorded although lost",
        "not available",
        "taken over",
        "cut",
    }
    assert TwoNodes.fired.keys() == kinds
