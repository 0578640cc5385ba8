"""What must hold after the demo, and where it does not.

The databases are held against each other, and against what the services outside counted by themselves: the mailbox and
the ledger know nothing of leasemesh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mail_handlers import ENTRIES, EVERYBODY, HEADLINES, SUBSCRIBER

from demo_app.played import HUB
from demo_app.records import Device, Records
from leasemesh.node.model.ids import EventId

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


def check(records: Records) -> list[Invariant]:
    """Check everything that must hold."""
    return [Invariant(name, list(violations(records))) for name, violations in INVARIANTS.items()]


# --- The databases ----------------------------------------------------------------------------------------------------


def missing_events(records: Records) -> Iterator[str]:
    """Nothing is lost on the way, and nothing comes from nowhere."""
    for name, device in records.devices.items():
        for topic, expected in records.expected.items():
            if missing := [shown for event, shown in expected.items() if event not in device.events]:
                yield f"{name} lacks {_some(missing)}"
            if extra := [e.title for e in device.events.values() if e.topic == topic and e.id not in expected]:
                yield f"{name} has in {topic}, from nowhere, {_some(extra)}"


def unsettled_events(records: Records) -> Iterator[str]:
    """Each is done."""
    for name, device in records.devices.items():
        unsettled = [
            f"{_name(records, event.id)} ({event.status})"
            for event in device.events.values()
            if event.status != "consumed"
        ]
        if unsettled:
            yield f"on {name}: {_some(unsettled)}"


def hidden_duplicates(records: Records) -> Iterator[str]:
    """What is done twice is said to be."""
    for name, device in records.devices.items():
        times = Counter(device.consumptions())
        for event in records.names:
            if times[event] != 1 and event not in device.duplicates:
                yield f"{name} has {_name(records, event)} done {times[event]} times and reports no duplicate"
        yield from (
            f"{name} reports {_name(records, event)} without reason"
            for event in sorted(device.duplicates)
            if times[event] < 2
        )


def wrong_duplicates(records: Records) -> Iterator[str]:
    """What both had finished while they were apart, and nothing else, was done twice."""
    for name, device in records.devices.items():
        if wrong := sorted(set(records.played.done_twice) ^ device.duplicates):
            yield f"on {name}: {_some([_name(records, event) for event in wrong])}"


def disputed_owners(records: Records) -> Iterator[str]:
    """Everybody says of each event who did it."""
    first, *others = records.devices.values()
    for other in others:
        disputed = [
            _name(records, event)
            for event, said in first.events.items()
            if event in other.events
            and (other.events[event].status, other.events[event].run) != (said.status, said.run)
        ]
        if disputed:
            yield f"{first.name} and {other.name} differ about {_some(disputed)}"


def untold_losers(records: Records) -> Iterator[str]:
    """Of those who held the same event while they were apart one lost it, was told so, and had no effect on it."""
    held = records.played.contested
    for name, device in records.devices.items():
        for event in sorted(set(held.values())):
            rivals = [rival for rival, one in held.items() if one == event]
            losers = [rival for rival in rivals if _lost(records, device, rival, event)]
            if len(losers) != len(rivals) - 1:
                yield f"{name} knows of {len(losers)} that lost {_name(records, event)}, which {len(rivals)} held"
        for run, claim in device.claims.items():
            told = device.runs[run].status == "lost"
            if claim.state not in ("lost", "released") if told else claim.state == "lost":
                yield f"{name} has run {run} with its claim {claim.state} and its status {device.runs[run].status}"
            if told and run in device.effects and device.effects[run].status != "failed":
                yield f"{name} says that run {run} lost its lease, and yet had an effect"


def open_claims(records: Records) -> Iterator[str]:
    """What was lost, or let go in a crash, has been given back; no run is left half-way."""
    for name, device in records.devices.items():
        held = [run for run, claim in device.claims.items() if claim.state == "held"]
        if held:
            yield f"{name} has a claim that was never ended, of run {_some(held)}"
        if running := [run.id for run in device.runs.values() if run.ended_at is None]:
            yield f"{name} has a run that never ended: {_some(running)}"


def broken_chains(records: Records) -> Iterator[str]:
    """What a device was killed at goes on in a run of its own, and is not tried again."""
    for name, device in records.devices.items():
        for killed in records.played.killed:
            tried = [run for run in device.effects if killed.event in device.events_of(run)]
            own = [run for run in tried if records.device_of(device, run) == killed.device]
            followed = [run for run in device.runs.values() if run.retry_of in own and run.status == "committed"]
            if len(own) != 1 or len(followed) != 1:
                shown = _name(records, EventId(killed.event))
                yield (
                    f"{name} says that {killed.device} began {killed.tool} for {shown} {len(own)} times, and went on "
                    f"with it {len(followed)} times"
                )
        if device.unknown:
            yield f"{name} does not know the outcome of {_some([effect.tool for effect in device.unknown])}"


def different_digests(records: Records) -> Iterator[str]:
    """All content is equal."""
    if len({device.digest for device in records.devices.values()}) > 1:
        yield ", ".join(f"{name} {device.digest[:16]}" for name, device in records.devices.items())


def unsound_databases(records: Records) -> Iterator[str]:
    """The examination finds nothing."""
    for name, device in records.devices.items():
        yield from (f"{name}: {finding.text}" for finding in device.findings if not finding.healthy)


# --- The outside ------------------------------------------------------------------------------------------------------


def wrong_letters(records: Records) -> Iterator[str]:
    """Mode confirmed: the mailbox has each letter once."""
    times = Counter(records.told(SUBSCRIBER))
    for event, shown in records.expected[records.inbox].items():
        if times[event] != 1:
            yield f"the letter about {shown} is there {times[event]} times"
    yield from _strangers(records, times, records.inbox)


def letters_without_permit(records: Records) -> Iterator[str]:
    """Each was sent with a permit of the hub, granted for it."""
    for name, device in records.devices.items():
        for run, effect in device.effects.items():
            if device.events_of(run).isdisjoint(records.expected[records.inbox]) or effect.status == "failed":
                continue
            permit = device.permits.get(run)
            granted_by = permit.authority if permit is not None and permit.state == "granted" else None
            if records.name_by_node.get(granted_by or "") != HUB:
                yield f"{name} knows of no permit for the letter of run {run}"


def wrong_headlines(records: Records) -> Iterator[str]:
    """Mode soft: what the mailbox has twice is what leasemesh reports."""
    times = Counter(records.told(EVERYBODY))
    for event, shown in records.expected[HEADLINES].items():
        if not times[event]:
            yield f"{shown} was never sent"
    yield from _strangers(records, times, HEADLINES)
    yield from _unlike_reports(records, "the mailbox", times, HEADLINES)


def wrong_entries(records: Records) -> Iterator[str]:
    """With an idempotency key: the ledger was called twice for what leasemesh reports, and entered nothing twice."""
    entered = Counter(EventId(call.event) for call in records.calls if not call.repeated)
    for event, shown in records.expected[ENTRIES].items():
        if entered[event] != 1:
            yield f"{shown} was made {entered[event]} times"
    called = Counter(EventId(call.event) for call in records.calls)
    yield from _strangers(records, called, ENTRIES)
    yield from _unlike_reports(records, "the ledger", called, ENTRIES)


def _strangers(records: Records, times: Counter[EventId], topic: str) -> Iterator[str]:
    if strangers := [event for event in times if event not in records.expected[topic]]:
        yield f"something was done about what is no event of {topic}: {_some(strangers)}"


def _unlike_reports(records: Records, who: str, times: Counter[EventId], topic: str) -> Iterator[str]:
    twice = {event for event, count in times.items() if count > 1}
    for name, device in records.devices.items():
        reported = {event for event in device.duplicates if event in records.expected[topic]}
        if unlike := sorted(twice ^ reported):
            shown = _some([_name(records, event) for event in unlike])
            yield f"{who} saw {len(twice)} of {topic} twice, {name} reports {len(reported)}; they differ about {shown}"


INVARIANTS: dict[str, Callable[[Records], Iterable[str]]] = {
    "every event, and all that follows from it, is on every device": missing_events,
    "every event ends consumed, on every device": unsettled_events,
    "an event is done once, or reported as a duplicate": hidden_duplicates,
    "exactly what both had finished while apart is reported as a duplicate": wrong_duplicates,
    "every device names the same owner of every event": disputed_owners,
    "who lost a lease was told, and had no effect": untold_losers,
    "what was claimed was settled or given back, and every run has ended": open_claims,
    "what a killed device had begun went on, and was not tried again": broken_chains,
    "the digests of all devices are equal": different_digests,
    "every database is sound": unsound_databases,
    "confirmed: the mailbox holds every letter exactly once": wrong_letters,
    "confirmed: every letter left with a permit of the hub": letters_without_permit,
    "soft: the headlines that came twice are the reported duplicates": wrong_headlines,
    "idempotency key: the ledger saw the duplicates, and entered nothing twice": wrong_entries,
}


def _lost(records: Records, device: Device, loser: str, event: str) -> bool:
    return any(
        device.runs[run].status == "lost" and event in claim.claims and records.device_of(device, run) == loser
        for run, claim in device.claims.items()
    )


def _name(records: Records, event: str) -> str:
    return records.names.get(EventId(event), event)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    return shown if len(names) <= NAMED_MAX else f"{shown} and {len(names) - NAMED_MAX:,} more"
