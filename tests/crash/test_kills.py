"""A process is killed at every step that it takes to publish, reserve, settle, merge, fold its log and create a file.

Each time the file must be whole, every acknowledged write must be there, and an operation must have happened wholly or
not at all. The operation is repeated, on the same file, and killed one step later, until it ends before it is killed:
so no step is left out.
"""

import signal
from collections import Counter

import pytest
from crash_child import OPTIONS, names_of, run_operation, transfer
from sweeps import STEPS_MAX, kill_at_every_step, problems_of

from leasemesh import NewEvent, Node


class Witness:
    """Remembers what children acknowledged, and looks whether it is in the file."""

    def __init__(self, path):
        self.path = path
        self.peer = Node.open(path.with_name("peer.db"), name="peer", **OPTIONS)
        self.said = {"published": [], "reserved": [], "consumed": []}
        Node.open(path, name="victim", **OPTIONS).close()

    def hear(self, child):
        """Return the step that the child was killed at, None when it came to its end."""
        last = ("nothing", None)
        for last in child.words():
            if last[0] in self.said:
                self.said[last[0]].append(last[1])
        kind, step = last
        assert (kind, child.process.exitcode) in {("killed", -signal.SIGKILL), ("done", 0)}
        return step

    def check(self, operation, number):
        with Node.open(self.path) as node:
            assert problems_of(node) == []
            statuses = dict(self.statuses(node))
            for names in self.said["published"]:
                assert statuses.keys() >= set(names), "an acknowledged event was lost"
            for names in self.said["consumed"]:
                assert {statuses[name] for name in names} == {"consumed"}
            for run, names in self.said["reserved"]:
                assert set(node.events.reservation(run).claims) == {
                    node.events.get_by_message_id("mail", "inbox", name).id for name in names
                }
            # What was killed happened wholly or not at all: three events published, reserved, consumed, or merged.
            assert len({name in statuses for name in names_of(number)}) == 1
            if operation != "merge":  # the peer has done different things to the events since
                assert len({statuses.get(name) for name in names_of(number)}) == 1

    def statuses(self, node):
        for status in ("pending", "reserved", "consumed"):
            for event in node.peek("mail", "inbox", status=status, limit=10_000):
                yield event.message_id, status

    def heal(self):
        """Exchange everything with the peer."""
        with Node.open(self.path) as node:
            transfer(self.peer, node)
            transfer(node, self.peer)
            assert node.digest().tables == self.peer.digest().tables


@pytest.fixture
def witness(tmp_path):
    witness = Witness(tmp_path / "victim.db")
    yield witness
    witness.peer.close()


def kill(witness, child, operation, number, kill_at):
    """Return the step that the operation was killed at, None when it came to its end before."""
    with child(run_operation, str(witness.path), operation, number, kill_at) as process:
        step = witness.hear(process)
    witness.check(operation, number)
    return step


def sweep(witness, child, operation, expected, *, before=lambda number: None):
    """Kill an operation at its first step, its second, ... to its last; and at each `expected` one at least once."""

    def kill_one(number, kill_at):
        before(number)
        return kill(witness, child, operation, number, kill_at)

    hit = kill_at_every_step(kill_one, expected, pages_at_once=1)
    witness.heal()
    return hit


@pytest.mark.parametrize(
    ("operation", "steps"),
    [
        ("publish", {"BEGIN IMMEDIATE", "INSERT INTO publications", "RELEASE part", "COMMIT", "write log"}),
        ("reserve", {"BEGIN IMMEDIATE", "UPDATE hybrid_clock SET", "INSERT INTO reservations", "COMMIT", "write log"}),
        ("settle", {"BEGIN IMMEDIATE", "UPDATE reservations SET", "COMMIT", "write log"}),
        ("checkpoint", {"sync log", "write file", "sync file", "delete log"}),
    ],
)
def test_a_kill_at_any_step_loses_nothing_acversion_vectord(witness, child, operation, steps):
    hit = sweep(witness, child, operation, steps)
    assert sum(hit.values()) >= 10


def test_a_kill_at_any_step_of_a_merge_is_mended_by_the_next_one(witness, child):
    def more_to_merge(number):
        witness.peer.publish_many("mail", "inbox", [NewEvent(name, "", "x" * 400) for name in names_of(number)])
        with witness.peer.reserve("mail", "inbox", limit=2) as reservation:
            reservation.consume()

    merging = {"INSERT INTO crsql_changes", "INSERT INTO absorbed", "INSERT OR REPLACE"}
    hit = sweep(witness, child, "merge", merging | {"BEGIN IMMEDIATE", "COMMIT", "write log"}, before=more_to_merge)
    assert sum(hit.values()) >= 50


def test_a_file_whose_creation_was_killed_can_be_created_again(tmp_path, child):
    hit = Counter()
    for number in range(1, STEPS_MAX, 17):
        path = tmp_path / f"{number}.db"
        with child(run_operation, str(path), "create", number, number) as process:
            *_, (kind, step) = process.words()
        with Node.open(path, **OPTIONS) as node:
            node.publish("mail", "inbox", "first")
            assert problems_of(node) == []
        if kind == "done":
            break
        hit[step] += 1
    assert hit["write log"] and hit.keys() - {"write log"}
    assert kind == "done" and sum(hit.values()) >= 10
