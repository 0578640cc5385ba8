"""Looks at the three databases after the demo and finds whatever is not as leasemesh promises.

Nothing is taken over from what the devices said, but for the list of those that were told of a lost lease; everything
else is read from the source and from the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from node.demo.scenario import DEVICES, Played
from node.doctor import combined, examine
from node.ids import EventId, event_ids, topic_id
from node.importers import Problem
from node.service import Node

PIECE_EVENTS = 500
NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must hold.

    Attributes:
        name: what must hold, one sentence.
        violations: where it does not; empty when it holds.
    """

    name: str
    violations: list[str]


@dataclass(frozen=True, slots=True)
class Tally:
    """A device's share of the work, as its reservations say; without those that it gave back before it began.

    Attributes:
        device: its name.
        reserved: events that it claimed; one that it claimed twice counts twice.
        kept: claims that it settled or owns.
        lost: claims of runs that were given up because another device's claim outranked one of them.
        consumed: events that it did.
        duplicates: those of them that another device did too.
        digest: of its whole replicated content.
    """

    device: str
    reserved: int
    kept: int
    lost: int
    consumed: int
    duplicates: int
    digest: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the databases say.

    Attributes:
        invariants: all that was checked.
        tallies: one for each device.
        events: how many events the source holds.
        duplicates: how many of them were done twice.
        told_lost: the devices that were told of a lost lease.
    """

    invariants: list[Invariant]
    tallies: list[Tally]
    events: int
    duplicates: int
    told_lost: list[str]

    @property
    def violated(self) -> list[Invariant]:
        """The invariants that do not hold."""
        return [invariant for invariant in self.invariants if invariant.violations]


def judge(folder: Path, played: Played, progress: Callable[[int], None] = lambda done: None) -> Verdict:
    """Check everything that must hold after the demo.

    Args:
        folder: with the three databases.
        played: what happened.
        progress: called now and then with how many events have been looked at.

    Raises:
        NotFound: a database is missing.
    """
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(Node.open(folder / f"{name}.db", create=False)) for name in DEVICES}
        view = _View(nodes, played, progress)
        invariants = [
            Invariant("every event of the input is on every device", list(view.missing_events())),
            Invariant("every event ends consumed, on every device", list(view.unsettled_events())),
            Invariant("an event is consumed once, or reported as a duplicate", list(view.hidden_duplicates())),
            Invariant("exactly what both finished offline is reported as a duplicate", list(view.wrong_duplicates())),
            Invariant("every device names the same owner of every event", list(view.disputed_owners())),
            Invariant("a device that lost events was told LeaseLost", list(view.untold_losers())),
            Invariant("what was lost before its work began was given back", list(view.wrongly_given_back())),
            Invariant("the digests of all devices are equal", list(view.different_digests())),
            Invariant("every database is sound", list(view.unsound_databases())),
        ]
        duplicates = len(view.duplicates[DEVICES[0]])
        return Verdict(invariants, view.tallies(), len(view.names), duplicates, sorted(played.told_lost))


@dataclass(frozen=True, slots=True)
class _Run:
    """A reservation: who made it, how it ended, and what it claimed."""

    device: str
    state: str
    events: list[EventId]


@dataclass(frozen=True, slots=True)
class _Standing:
    """How an event stands."""

    status: str
    run: str | None


class _View:
    """The databases, read once. The methods return where something is wrong."""

    def __init__(self, nodes: Mapping[str, Node], played: Played, progress: Callable[[int], None]) -> None:
        self._nodes = nodes
        self._played = played
        self._given_back = frozenset(played.given_back)
        device_by_node = {node.site_id: name for name, node in nodes.items()}
        self._digests = {name: combined(node.digest()) for name, node in nodes.items()}
        self._runs = {name: dict(_read_runs(node, device_by_node)) for name, node in nodes.items()}
        self._topic = topic_id(played.source.workflow, played.source.topic)
        self.names: dict[EventId, str] = {}
        self._standing: dict[str, dict[EventId, _Standing]] = {name: {} for name in nodes}
        for message_ids in _pieces(played):
            self.names |= zip(event_ids(self._topic, message_ids), message_ids, strict=True)
            for name, node in nodes.items():
                found = node.events.get_many(played.source.workflow, played.source.topic, message_ids)
                self._standing[name] |= {event.id: _Standing(event.status, event.run) for event in found}
            progress(len(self.names))
        self.duplicates = {name: _read_duplicates(node) for name, node in nodes.items()}

    def missing_events(self) -> Iterator[str]:
        for name, standing in self._standing.items():
            missing = [shown for event, shown in self.names.items() if event not in standing]
            if missing:
                yield f"{name} lacks {_some(missing)}"

    def unsettled_events(self) -> Iterator[str]:
        for name, standing in self._standing.items():
            unsettled = [
                f"{self._name(event)} ({how.status})" for event, how in standing.items() if how.status != "consumed"
            ]
            if unsettled:
                yield f"on {name}: {_some(unsettled)}"

    def hidden_duplicates(self) -> Iterator[str]:
        for name, duplicates in self.duplicates.items():
            times = self._times_consumed(name)
            for event in self.names:
                if times[event] != 1 and event not in duplicates:
                    yield f"{name} has {self._name(event)} consumed {times[event]} times and reports no duplicate"
            yield from (
                f"{name} reports {self._name(event)} without reason" for event in duplicates if times[event] < 2
            )

    def wrong_duplicates(self) -> Iterator[str]:
        expected = set(event_ids(self._topic, self._played.done_twice))
        for name, duplicates in self.duplicates.items():
            if wrong := sorted(expected ^ duplicates):
                yield f"on {name}: {_some([self._name(event) for event in wrong])}"

    def disputed_owners(self) -> Iterator[str]:
        first, *others = self._standing
        for name in others:
            disputed = [
                self._name(event)
                for event, how in self._standing[first].items()
                if self._standing[name].get(event) != how
            ]
            if disputed:
                yield f"{first} and {name} differ about {_some(disputed)}"

    def untold_losers(self) -> Iterator[str]:
        told = self._played.told_lost
        if bool(self._played.contested) != (len(told) == 1):
            yield f"{len(self._played.contested)} events were contested, and {len(told)} devices were told of a loss"
        for name, runs in self._runs.items():
            for identifier, run in runs.items():
                if identifier in self._given_back:
                    continue
                if self._lost(name, identifier, run) and told.get(run.device) != identifier:
                    yield f"{name} says that run {identifier} of {run.device} lost; it was not told"
            yield from (
                f"{name} has no lost run {run}, of which {device} was told"
                for device, run in told.items()
                if run not in runs or runs[run].state != "lost"
            )

    def wrongly_given_back(self) -> Iterator[str]:
        for name, runs in self._runs.items():
            yield from (
                f"{name} has no lost run {run}, which was given back"
                for run in sorted(self._given_back)
                if run not in runs or runs[run].state != "lost"
            )

    def different_digests(self) -> Iterator[str]:
        if len(set(self._digests.values())) > 1:
            yield ", ".join(f"{name} {digest[:16]}" for name, digest in self._digests.items())

    def unsound_databases(self) -> Iterator[str]:
        for name, node in self._nodes.items():
            yield from (f"{name}: {finding.text}" for finding in examine(node.database) if not finding.healthy)

    def tallies(self) -> list[Tally]:
        """Return each device's share, as its own database says."""
        return [self._tally(name) for name in self._nodes]

    def _tally(self, name: str) -> Tally:
        own = {
            identifier: run
            for identifier, run in self._runs[name].items()
            if run.device == name and identifier not in self._given_back
        }
        reserved = sum(len(run.events) for run in own.values())
        lost = sum(len(run.events) for identifier, run in own.items() if self._lost(name, identifier, run))
        done = [event for run in own.values() if run.state == "consumed" for event in run.events]
        twice = sum(event in self.duplicates[name] for event in done)
        return Tally(name, reserved, reserved - lost, lost, len(done), twice, self._digests[name])

    def _lost(self, name: str, identifier: str, run: _Run) -> bool:
        """Whether a run was given up, or left with events that are not its own."""
        if run.state == "consumed":
            return False
        return run.state == "lost" or any(self._owner(name, event) != identifier for event in run.events)

    def _owner(self, name: str, event: EventId) -> str | None:
        standing = self._standing[name].get(event)
        return standing.run if standing is not None else None

    def _times_consumed(self, name: str) -> Counter[EventId]:
        return Counter(event for run in self._runs[name].values() if run.state == "consumed" for event in run.events)

    def _name(self, event: EventId) -> str:
        return self.names.get(event, event)


def _pieces(played: Played) -> Iterator[list[str]]:
    """Yield the message ids of the source, some hundred at a time."""
    ids = (record.message_id for record in played.source.records() if not isinstance(record, Problem))
    while piece := list(islice(ids, PIECE_EVENTS)):
        yield piece


def _read_runs(node: Node, device_by_node: Mapping[str, str]) -> Iterator[tuple[str, _Run]]:
    for (run,) in node.query("SELECT lower(hex(id)) FROM reservations ORDER BY id"):
        found = node.events.reservation(run)
        assert found is not None, "a row that was just read is there"
        yield run, _Run(device_by_node.get(found.node, found.node), found.state, list(found.claims))


def _read_duplicates(node: Node) -> set[EventId]:
    rows = node.query("SELECT lower(hex(e.id)) FROM duplicates AS d JOIN event_index AS e ON e.n = d.event")
    return {EventId(event) for (event,) in rows}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    return shown if len(names) <= NAMED_MAX else f"{shown} and {len(names) - NAMED_MAX:,} more"
