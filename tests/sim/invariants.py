"""The invariants as checkers, by their numbers, each against an oracle that shares no code with what it checks.

The oracle reads the facts (`publications`, `reservations`) and applies `node.leases.decide`; what is checked are the
tables that triggers derived, and what the stores did. "convergence" stands for the demand of the second phase: equal
digests on all devices, nothing parked, nothing under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from node.ids import event_ids, topic_id
from node.leases import Claim, ClaimState, EventStatus, Ownership, decide

_FOREIGN_ROWS = """
SELECT lower(hex(t.id)), c.col_name, lower(hex(s.site_id)) FROM reservations AS t
JOIN reservations__crsql_pks AS k ON k.id = t.id JOIN reservations__crsql_clock AS c ON c.key = k.__crsql_key
JOIN crsql_site_id AS s ON s.ordinal = c.site_id
WHERE t.body <> '{}' AND lower(hex(s.site_id)) <> t.body ->> '$.node' ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation as its row says."""

    run: str
    node: str
    incarnation: str
    at: int
    state: str
    claims: dict[str, int]


class Facts:
    """The claims of one file, read from the facts themselves."""

    def __init__(self, database) -> None:
        self.reservations: dict[str, Reservation] = {}
        self.claims: dict[str, list[Claim]] = {}
        rows = database.query("SELECT lower(hex(id)), body, state FROM reservations WHERE body <> '{}' ORDER BY id")
        for run, text, state in rows:
            body = json.loads(text)
            claims = {event: int(epoch) for event, _, epoch in (one.partition("@") for one in body["events"])}
            found = Reservation(run, body["node"], body["incarnation"], body["at"], state, claims)
            self.reservations[run] = found
            for event, epoch in claims.items():
                claim = Claim(run, epoch, found.at, ClaimState[state.rpartition(" ")[2].upper()])
                self.claims.setdefault(event, []).append(claim)

    def owner(self, event: str) -> Ownership:
        return decide(self.claims.get(event, []))

    def settled(self) -> Iterator[str]:
        return (event for event, claims in self.claims.items() if any(claim.state.settled for claim in claims))


class Checks:
    """All checkers of one run.

    Attributes:
        violations: invariant -> what was found first.
        checked: invariant -> how often it was looked at, to show that it was.
    """

    def __init__(self, world) -> None:
        self._world = world
        self.violations: dict[str, str] = {}
        self.checked: dict[str, int] = {}
        self._terminal: dict[int, set[str]] = {}  # only ever compared, never iterated into anything visible
        self._commits: dict[int, int] = {}
        self._event_of: dict[tuple[str, str, str], str] = {}
        self._durable: set[str] = set()

    def demand(self, invariant: str, holds: bool, text: str) -> None:
        self.checked[invariant] = self.checked.get(invariant, 0) + 1
        if not holds and invariant not in self.violations:
            self.violations[invariant] = f"{self._world.now_ms} ms: {text}"

    # --- After each commit --------------------------------------------------------------------------------------------

    def after_commit(self, process) -> None:
        self._stays_terminal(process)
        self._batches_are_whole(process)
        number = process.device.number
        self._commits[number] = self._commits.get(number, 0) + 1
        if self._commits[number] % self._world.params.check_every == 0:
            self._follows_from_facts(process)
            self._one_event_per_message(process)
            self._one_writer(process)

    def forget_file(self, device) -> None:
        """Another file is in the place of this device's."""
        self._terminal.pop(device.number, None)

    def _stays_terminal(self, process) -> None:
        rows = process.database.query("SELECT lower(hex(id)) FROM event_index WHERE status >= 3")
        now = {event for (event,) in rows}
        before = self._terminal.get(process.device.number, set())
        self.demand("S2", before <= now, f"{process.device.name} reopened {sorted(before - now)}")
        self._terminal[process.device.number] = now | before

    def _batches_are_whole(self, process) -> None:
        for body, rows in process.database.query("SELECT body, count(*) FROM batch_rows GROUP BY body"):
            total = int(body.partition("/")[2])
            text = f"{process.device.name} shows {rows} of the {total} rows of transaction {body}"
            self.demand("S15", rows == total, text)

    def _follows_from_facts(self, process) -> None:
        facts = Facts(process.database)
        for event, status, epoch, run in _standing(process.database):
            owner = facts.owner(event)
            expected = (int(owner.status), owner.epoch, owner.owner)
            text = f"{process.device.name} says {(status, epoch, run)} of event {event}, its facts say {expected}"
            self.demand("S1", (status, epoch, run) == expected, text)

    def _one_event_per_message(self, process) -> None:
        for (text,) in process.database.query("SELECT body FROM publications WHERE body <> '{}' ORDER BY id"):
            body = json.loads(text)
            for identifier, event in zip(body["ids"], body["events"], strict=True):
                key = (body["workflow"], body["topic"], event["message_id"])
                known = self._event_of.setdefault(key, identifier)
                expected = event_ids(topic_id(key[0], key[1]), [key[2]])[0]
                found = f"{process.device.name} has {key} as {identifier}, it is {known} elsewhere"
                self.demand("S10", identifier == known == expected, found)

    def _one_writer(self, process) -> None:
        rows = process.database.query(_FOREIGN_ROWS)
        self.demand("S14", not rows, f"{process.device.name}: (run, column, site that wrote it) {rows[:3]}")

    # --- Around what the stores do ------------------------------------------------------------------------------------

    @contextmanager
    def recovery(self, process) -> Iterator[None]:
        """Around what a process does at its start."""
        before = Facts(process.database).reservations
        yield
        own, incarnation = process.database.site_id.hex(), process.database.incarnation.hex()
        after = Facts(process.database).reservations
        for run, reservation in after.items():
            if before.get(run) != reservation:
                mine = reservation.node == own and reservation.incarnation != incarnation
                self.demand("S12", mine, f"recovery on {process.device.name} changed run {run} of {reservation.node}")

    def claimed(self, process, run: str, asked: int | None, got) -> None:
        """A run was given events."""
        facts = Facts(process.database)
        name = process.device.name
        self.demand("S13", asked in (None, len(got)), f"{name} asked for {asked} events and got {len(got)}")
        claims = facts.reservations[run].claims if run in facts.reservations else {}
        self.demand("S13", sorted(claims) == sorted(event.id for event in got), f"{name}: run {run} claims others")
        for event, epoch in claims.items():
            others = max((claim.epoch for claim in facts.claims[event] if claim.run != run), default=0)
            self.demand("S9", epoch > others, f"{name}: run {run} claims {event}@{epoch}, there is @{others}")

    def refused_claim(self, process, run: str) -> None:
        """A run was given nothing, with an error."""
        exists = process.database.query("SELECT 1 FROM reservations WHERE id = unhex(?)", (run,))
        self.demand("S13", not exists, f"{process.device.name}: run {run} was refused, and has claims")

    def before_settling(self, process, run: str) -> Facts:
        return Facts(process.database)

    def refused_settling(self, process, run: str, before: Facts) -> None:
        """A run could not settle: then nothing of it is settled."""
        after = Facts(process.database)
        same = before.reservations[run] == after.reservations[run]
        self.demand("S13", same, f"{process.device.name}: run {run} could not settle, and changed")

    def settled(self, process, run: str, before: Facts) -> None:
        """A run has settled its events: it owned all of them, and saw no higher epoch."""
        reservation = before.reservations[run]
        for event, epoch in reservation.claims.items():
            highest = max(claim.epoch for claim in before.claims[event])
            text = f"{process.device.name}: run {run} settled {event}@{epoch}"
            self.demand("S9", highest == epoch, f"{text} and had seen @{highest}")
            owner = before.owner(event)
            owns = owner.owner == run and owner.status == EventStatus.RESERVED
            self.demand("S13", owns, f"{text}, which run {owner.owner} owned")

    # --- At the end ---------------------------------------------------------------------------------------------------

    def note_durable(self) -> None:
        """The faults end: every outcome that a living file holds now must be known everywhere in the end."""
        for process in self._world.processes():
            self._durable.update(Facts(process.database).settled())

    def all_settled(self) -> bool:
        return not any(_unsettled(process) for process in self._world.processes())

    def after_heal(self) -> None:
        processes = self._world.processes()
        self._converged(processes)
        standing = [list(_standing(process.database)) for process in processes]
        for process, found in zip(processes, standing, strict=True):
            self._batches_are_whole(process)
            self._follows_from_facts(process)
            self._one_event_per_message(process)
            self._one_writer(process)
            differing = [pair for pair in zip(found, standing[0], strict=False) if pair[0] != pair[1]]
            same = found == standing[0]
            self.demand("S1", same, f"{process.device.name} and {processes[0].device.name} differ: {differing[:1]}")
            terminal = {event for event, status, _, _ in found if status >= EventStatus.CONSUMED}
            lost = sorted(self._durable - terminal)
            self.demand("S3", not lost, f"{process.device.name} does not know the outcome of {lost[:3]}")
            open_events = _unsettled(process)
            self.demand(
                "L1", not open_events, f"{process.device.name} still has (event, status, run) {open_events[:3]}"
            )

    def _converged(self, processes) -> None:
        self.demand("convergence", self._world.is_level(), "the devices are not level in time")
        first = processes[0].storage.digest().tables
        for process in processes[1:]:
            tables = process.storage.digest().tables
            differing = [name for name in sorted({*tables, *first}) if tables.get(name) != first.get(name)]
            self.demand("convergence", not differing, f"{process.device.name} differs in {differing}")
        for process in processes:
            ((parked,),) = process.database.query("SELECT count(*) FROM parked")
            self.demand("convergence", parked == 0, f"{process.device.name} has {parked} rows set aside")

    def idle(self, before: list[int], after: list[int]) -> None:
        """Nobody did anything: no file may have a new version."""
        self.demand("L5", before == after, f"while idle the versions went from {before} to {after}")


def _standing(database) -> list[tuple[str, int, int, str | None]]:
    """What a file says of each event: (event, status, epoch, run)."""
    return database.query(
        "SELECT lower(hex(e.id)), e.status, e.epoch, (SELECT lower(hex(r.id)) FROM run_index AS r WHERE r.n = e.run) "
        "FROM event_index AS e ORDER BY e.id"
    )


def _unsettled(process) -> list[tuple[str, int, str | None]]:
    """The events, with content, that somebody should have finished."""
    return process.database.query(
        "SELECT lower(hex(e.id)), e.status, (SELECT lower(hex(r.id)) FROM run_index AS r WHERE r.n = e.run) "
        "FROM event_index AS e WHERE e.status < 3 AND e.publication IS NOT NULL ORDER BY e.id"
    )
