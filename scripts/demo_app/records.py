"""Everything that a demo left behind, read once: the three databases, the mailbox, and the ledger's own calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mail_handlers import ENTRIES, FILED, HEADLINES, WORKFLOW

from demo_app.ledger import Call, read_calls
from demo_app.mail_server import Letter, Mailbox
from demo_app.played import DEVICES, Played
from leasemesh.node.doctor import Finding, combined, examine
from leasemesh.node.model.ids import EventId, RunId, event_ids, topic_id
from leasemesh.node.node import Node
from leasemesh.node.stores import Event, HandlerRun, Permit, ReservationInfo, StatusName
from leasemesh.node.stores.base import LIST_MAX
from leasemesh.node.stores.mutations import Mutation


@dataclass(frozen=True, slots=True)
class Device:
    """What one device's database says.

    Attributes:
        name: the device.
        events: those of the demo's workflow, by id.
        runs: all attempts, of every device.
        claims: what they reserved, by run.
        effects: the ledger of effects, by run.
        permits: those that runs have asked for, by run.
        unknown: effects of which nobody knows whether they happened.
        duplicates: events that leasemesh reports as done twice.
        digest: of its whole replicated content.
        findings: what the examination of the file found.
    """

    name: str
    events: dict[EventId, Event]
    runs: dict[RunId, HandlerRun]
    claims: dict[RunId, ReservationInfo]
    effects: dict[RunId, Mutation]
    permits: dict[RunId, Permit]
    unknown: list[Mutation]
    duplicates: set[EventId]
    digest: str
    findings: list[Finding]

    def events_of(self, run: RunId) -> set[EventId]:
        """Name the events that a run claimed."""
        claim = self.claims.get(run)
        return set(claim.claims) if claim is not None else set()

    def consumptions(self) -> Iterator[EventId]:
        """Name the events that were done, one that was done twice twice."""
        for claim in self.claims.values():
            if claim.state == "consumed":
                yield from claim.claims


@dataclass(frozen=True, slots=True)
class Records:
    """What all devices and services say.

    Attributes:
        played: what happened.
        expected: the events that there must be, by topic: id -> what to call it.
        devices: by name.
        name_by_node: node id -> device.
        letters: the mailbox.
        calls: what the ledger has carried out.
    """

    played: Played
    expected: dict[str, dict[EventId, str]]
    devices: dict[str, Device]
    name_by_node: dict[str, str]
    letters: list[Letter]
    calls: list[Call]

    @property
    def inbox(self) -> str:
        """The topic of the letters."""
        return self.played.source.topic

    def device_of(self, device: Device, run: RunId) -> str:
        """Name the device that made a run, as a device's database says."""
        return self.name_by_node.get(device.runs[run].node, "")

    @property
    def names(self) -> dict[EventId, str]:
        """What to call each event that there must be."""
        return {event: name for events in self.expected.values() for event, name in events.items()}

    def told(self, to: str) -> list[EventId]:
        """Name the events that a recipient was told of, one for each mail."""
        return [EventId(letter.event) for letter in self.letters if letter.to == to]


def read(folder: Path, played: Played, progress: Callable[[int], None] = lambda done: None) -> Records:
    """Read everything.

    Args:
        folder: where the demo kept it.
        played: what happened.
        progress: called with how many devices have been read.

    Raises:
        NotFound: a database is missing.
    """
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(Node.open(folder / f"{name}.db", create=False)) for name in DEVICES}
        devices = {}
        for name, node in nodes.items():
            devices[name] = _read_device(name, node, (played.source.topic, HEADLINES, ENTRIES, FILED))
            progress(len(devices))
        name_by_node: dict[str, str] = {node.site_id: name for name, node in nodes.items()}
    letters, calls = list(Mailbox(folder).letters()), list(read_calls(folder))
    return Records(played, _expected(played), devices, name_by_node, letters, calls)


def _read_device(name: str, node: Node, topics: Sequence[str]) -> Device:
    events = [
        event
        for topic in topics
        for status in get_args(StatusName)
        for event in node.peek(WORKFLOW, topic, limit=LIST_MAX, status=status)
    ]
    runs = {run.id: run for run in node.handler_runs.list(limit=LIST_MAX)}
    claims = {run: node.events.reservation(run) for run in runs}
    effects = {run: node.mutations.get(run) for run in runs}
    permits = {run: node.permits.get(run) for run in runs}
    return Device(
        name=name,
        events={event.id: event for event in events},
        runs=runs,
        claims={run: claim for run, claim in claims.items() if claim is not None},
        effects={run: effect for run, effect in effects.items() if effect is not None},
        permits={run: permit for run, permit in permits.items() if permit is not None},
        unknown=node.mutations.unresolved(),
        duplicates={event.id for event in node.events.duplicates(limit=LIST_MAX)},
        digest=combined(node.digest()),
        findings=examine(node.database),
    )


def _expected(played: Played) -> dict[str, dict[EventId, str]]:
    """What must follow from the source: a letter or headline is mailed, then entered, then filed."""
    inbox = _named(played.source.topic, {message_id: message_id for message_id in played.inbox})
    headlines = _named(HEADLINES, {message_id: f"headline {message_id}" for message_id in played.headlines})
    mailed = inbox | headlines
    entries = _named(ENTRIES, {event: f"the entry of {name}" for event, name in mailed.items()})
    filed = _named(FILED, {event: name.replace("entry", "filing", 1) for event, name in entries.items()})
    return {played.source.topic: inbox, HEADLINES: headlines, ENTRIES: entries, FILED: filed}


def _named(topic: str, names: Mapping[Any, str]) -> dict[EventId, str]:
    """Return what to call the events of a topic, given what to call them by their message ids."""
    return dict(zip(event_ids(topic_id(WORKFLOW, topic), list(names)), names.values(), strict=True))
