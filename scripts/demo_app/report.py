"""The end of the demo: what held and what did not, who did how much, and what the services counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mail_handlers import ENTRIES, EVERYBODY, HEADLINES, SUBSCRIBER
from rich.text import Text

from demo_app.invariants import Invariant
from demo_app.records import Device, Records
from demo_app.screen import STYLES
from leasemesh.node.cli.output import Column, Screen, count_of, joined, styled

DIGEST_CHARACTERS = 12
VIOLATIONS_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Tally:
    """A device's share of the work, as its own database says.

    Attributes:
        device: its name.
        reserved: events that it claimed; one that it claimed twice counts twice.
        lost: claims that it gave back, because another device's outranked them or because it was killed.
        consumed: events that it did.
        duplicates: those of them that another device did too.
        digest: of its whole replicated content.
    """

    device: str
    reserved: int
    lost: int
    consumed: int
    duplicates: int
    digest: str


@dataclass(frozen=True, slots=True)
class Service:
    """What a service counted, beside what leasemesh says.

    Attributes:
        name: what was asked for.
        mode: how leasemesh went about it.
        calls: requests that it carried out.
        events: different events that they were about.
        keys: different keys that they came with.
        repeated: calls about an event that there had been a call about.
        reported: events of that kind that leasemesh reports as duplicates.
        doubled: events for which something was really done more than once.
    """

    name: str
    mode: str
    calls: int
    events: int
    keys: int
    repeated: int
    reported: int
    doubled: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out.

    Attributes:
        invariants: all that was checked.
        devices, services: what they did.
        records: where all of that comes from.
    """

    invariants: list[Invariant]
    devices: list[Tally]
    services: list[Service]
    records: Records

    @property
    def violated(self) -> list[Invariant]:
        """The invariants that do not hold."""
        return [invariant for invariant in self.invariants if invariant.violations]


def judge(records: Records, invariants: list[Invariant]) -> Verdict:
    """Put together what came out."""
    tallies = [_tally(records, device) for device in records.devices.values()]
    return Verdict(invariants, tallies, [*_mails(records), _ledger(records)], records)


def document(verdict: Verdict, seconds: float | None) -> dict[str, Any]:
    """Return a verdict for programs."""
    return {
        "held": not verdict.violated,
        "sentence": sentence(verdict),
        "seconds": round(seconds, 2) if seconds is not None else None,
        "invariants": [asdict(invariant) for invariant in verdict.invariants],
        "devices": [asdict(tally) for tally in verdict.devices],
        "services": [asdict(service) for service in verdict.services],
    }


def draw(screen: Screen, verdict: Verdict, seconds: float | None) -> Iterator[Any]:
    """Draw a verdict for people."""
    for invariant in verdict.invariants:
        mark = styled("  BAD ", "bold red") if invariant.violations else styled("  ok  ", "green")
        yield joined(mark, invariant.name)
        for violation in invariant.violations[:VIOLATIONS_SHOWN_MAX]:
            yield styled(f"        {violation}", "red")
    yield ""
    yield _devices(screen, verdict)
    yield ""
    yield _services(screen, verdict)
    yield ""
    took = f" ({seconds:.1f} s)" if seconds is not None else ""
    yield styled(f"{sentence(verdict)}{took}.", "bold red" if verdict.violated else "bold green")


def sentence(verdict: Verdict) -> str:
    """Return in one sentence, without its full stop, what came out."""
    if verdict.violated:
        count = count_of(len(verdict.violated), "promise was broken", "promises were broken")
        return f"FAILED: {count}: {'; '.join(one.name for one in verdict.violated)}"
    letters, headlines, entries = verdict.services
    kills = count_of(len(verdict.records.played.killed), "kill")
    return (
        f"Through a partition and {kills}, {count_of(letters.events, 'letter')} went out, each exactly once; "
        f"leasemesh reports the {count_of(headlines.reported, 'headline')} that went out twice, and no other; "
        f"{count_of(entries.calls, 'call')} made {count_of(entries.keys, 'entry', 'entries')} in the ledger; "
        "the three databases have the same content"
    )


def _devices(screen: Screen, verdict: Verdict) -> Any:
    names = ("reserved", "lost", "consumed", "duplicates")
    columns = [Column("device"), *(Column(name, right=True) for name in names), Column("digest")]
    rows: list[list[str | Text]] = [
        [
            styled(one.device, STYLES[one.device]),
            *(f"{number:,}" for number in (one.reserved, one.lost, one.consumed, one.duplicates)),
            styled(one.digest[:DIGEST_CHARACTERS]),
        ]
        for one in verdict.devices
    ]
    return screen.table(columns, rows)


def _services(screen: Screen, verdict: Verdict) -> Any:
    names = ("calls", "events", "keys", "repeated", "reported", "doubled")
    columns = [Column("service"), Column("mode"), *(Column(name, right=True) for name in names)]
    rows = [
        [
            one.name,
            one.mode,
            *map("{:,}".format, (one.calls, one.events, one.keys, one.repeated, one.reported, one.doubled)),
        ]
        for one in verdict.services
    ]
    return screen.table(columns, rows)


def _tally(records: Records, device: Device) -> Tally:
    own = [claim for run, claim in device.claims.items() if records.device_of(device, run) == device.name]
    reserved = sum(len(claim.claims) for claim in own)
    done = [event for claim in own if claim.state == "consumed" for event in claim.claims]
    twice = sum(event in device.duplicates for event in done)
    return Tally(device.name, reserved, reserved - len(done), len(done), twice, device.digest)


def _mails(records: Records) -> Iterator[Service]:
    for name, mode, to, topic in (
        ("letters, mail", "confirmed", SUBSCRIBER, records.inbox),
        ("headlines, mail", "soft", EVERYBODY, HEADLINES),
    ):
        letters = [letter for letter in records.letters if letter.to == to]
        keys = {letter.key for letter in letters}
        sent = Counter(letter.event for letter in letters)
        yield _service(records, name, mode, topic, calls=sent, keys=len(keys), done=sent)


def _ledger(records: Records) -> Service:
    called = Counter(call.event for call in records.calls)
    entered = Counter(call.event for call in records.calls if not call.repeated)
    keys = {call.key for call in records.calls}
    return _service(records, "entries, HTTP", "idempotent", ENTRIES, calls=called, keys=len(keys), done=entered)


def _service(
    records: Records, name: str, mode: str, topic: str, *, calls: Counter[str], keys: int, done: Counter[str]
) -> Service:
    (device, *_) = records.devices.values()
    return Service(
        name,
        mode,
        calls=calls.total(),
        events=len(calls),
        keys=keys,
        repeated=calls.total() - len(calls),
        reported=sum(event in records.expected[topic] for event in device.duplicates),
        doubled=sum(count > 1 for count in done.values()),
    )
