"""The invariants as checkers, by their numbers, each against an oracle that shares no code with what it checks.

The oracle reads the facts (`publications`, `reservations`) and applies `node.model.leases.decide`; what is checked are
the tables that triggers derived, and what the stores did. "convergence" stands for the demand of the second phase:
equal digests on all devices, nothing quarantined, nothing under way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from leasemesh.node.database.tables import ONE_WRITER_TABLES
from leasemesh.node.execution.recovery import Found, Recovery
from leasemesh.node.model.ids import event_ids, topic_id
from leasemesh.node.model.leases import Claim, ClaimEffect, ClaimState, EventStatus, Ownership, decide
from sim.effects import EffectChecks, effects_of_runs

_FOREIGN_ROWS = """
SELECT '{table}', lower(hex(t.id)), c.col_name, lower(hex(s.site_id)) FROM {table} AS t
JOIN {table}__crsql_pks AS k ON k.id = t.id JOIN {table}__crsql_clock AS c ON c.key = k.__crsql_key
JOIN crsql_site_id AS s ON s.ordinal = c.site_id
WHERE c.col_name <> '-1' AND t.body <> '{{}}' AND lower(hex(s.site_id)) IS NOT t.body ->> '$.node' ORDER BY 2, 3
"""
WITHOUT_HANDLERS = ("reservations", "devices")
"""Of the tables whose rows have one writer those that are written where no handlers run, too."""

_RUNS_ROWS = """
SELECT 'reservations', lower(hex(id)), body ->> '$.node', body ->> '$.incarnation', state
FROM reservations WHERE body <> '{}' UNION ALL
SELECT 'handler_runs', lower(hex(id)), body ->> '$.node', body ->> '$.incarnation', progress || ended
FROM handler_runs WHERE body <> '{}' UNION ALL
SELECT 'mutations', lower(hex(id)), body ->> '$.node', body ->> '$.incarnation', progress || outcome
FROM mutations WHERE body <> '{}' ORDER BY 1, 2
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

    def __init__(self, database, *, besides: str | None = None) -> None:
        """Args: `besides`: a run whose effect is not looked at."""
        effects, decided = effects_of_runs(database, besides=besides)
        self.reservations: dict[str, Reservation] = {}
        self.claims: dict[str, list[Claim]] = {}
        rows = database.query("SELECT lower(hex(id)), body, state FROM reservations WHERE body <> '{}' ORDER BY id")
        for run, text, state in rows:
            body = json.loads(text)
            claims = {event: int(epoch) for event, _, epoch in (one.partition("@") for one in body["events"])}
            found = Reservation(run, body["node"], body["incarnation"], body["at"], state, claims)
            self.reservations[run] = found
            for event, epoch in claims.items():
                stands = ClaimState[state.rpartition(" ")[2].upper()]
                effect = effects.get(run, decided.get(body.get("work"), ClaimEffect.NONE))
                claim = Claim(run, epoch, found.at, stands, effect)
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
        self.effects = EffectChecks(world, self.demand)

    def facts(self, database, *, besides: str) -> Facts:
        return Facts(database, besides=besides)

    def demand(self, invariant: str, holds: bool, text: str) -> None:
        self.checked[invariant] = self.checked.get(invariant, 0) + 1
        if not holds and invariant not in self.violations:
            self.violations[invariant] = f"{self._world.now_ms} ms: {text}"

    # --- After each commit --------------------------------------------------------------------------------------------

    def after_commit(self, app) -> None:
        number = app.device.number
        self._stays_terminal(app)
        self._batches_are_whole(app)
        self.effects.after_commit(app)
        self._commits[number] = self._commits.get(number, 0) + 1
        if self._commits[number] % self._world.params.check_every == 0:
            self._follows_from_facts(app)
            self._one_event_per_message(app)
            self._one_writer(app)
            if self._world.handled:
                self.effects.unknown_items_say_all(app)

    def forget_file(self, device) -> None:
        """Another file is in the place of this device's."""
        self._terminal.pop(device.number, None)
        self.effects.forget_file(device)

    def _stays_terminal(self, app) -> None:
        rows = app.database.query("SELECT lower(hex(id)) FROM event_index WHERE status >= 3")
        now = {event for (event,) in rows}
        before = self._terminal.get(app.device.number, set())
        self.demand("S2", before <= now, f"{app.device.name} reopened {sorted(before - now)}")
        self._terminal[app.device.number] = now | before

    def _batches_are_whole(self, app) -> None:
        for body, rows in app.database.query("SELECT body, count(*) FROM batch_rows GROUP BY body"):
            total = int(body.partition("/")[2])
            text = f"{app.device.name} shows {rows} of the {total} rows of transaction {body}"
            self.demand("S15", rows == total, text)

    def _follows_from_facts(self, app) -> None:
        facts = Facts(app.database)
        for event, status, epoch, run in _standing(app.database):
            owner = facts.owner(event)
            expected = (int(owner.status), owner.epoch, owner.owner)
            text = f"{app.device.name} says {(status, epoch, run)} of event {event}, its facts say {expected}"
            self.demand("S1", (status, epoch, run) == expected, text)

    def _one_event_per_message(self, app) -> None:
        for (text,) in app.database.query("SELECT body FROM publications WHERE body <> '{}' ORDER BY id"):
            body = json.loads(text)
            for identifier, event in zip(body["ids"], body["events"], strict=True):
                key = (body["workflow"], body["topic"], event["message_id"])
                known = self._event_of.setdefault(key, identifier)
                expected = event_ids(topic_id(key[0], key[1]), [key[2]])[0]
                found = f"{app.device.name} has {key} as {identifier}, it is {known} elsewhere"
                self.demand("S10", identifier == known == expected, found)

    def _one_writer(self, app) -> None:
        tables = ONE_WRITER_TABLES if self._world.handled else WITHOUT_HANDLERS
        rows = [row for table in tables for row in app.database.query(_FOREIGN_ROWS.format(table=table))]
        self.demand("S14", not rows, f"{app.device.name}: (table, run, column, site that wrote it) {rows[:3]}")

    # --- Around what the stores do ------------------------------------------------------------------------------------

    @contextmanager
    def recovery(self, app, *, at_start: bool) -> Iterator[None]:
        """Around recovery; at the start of a process no run of this incarnation has been left behind yet."""
        before = set(app.database.query(_RUNS_ROWS))
        yield
        own, incarnation = app.database.site_id.hex(), app.database.incarnation.hex()
        for row in app.database.query(_RUNS_ROWS):
            if row not in before:
                table, run, node, of, _ = row
                mine = node == own and (of != incarnation or not at_start)
                self.demand("S12", mine, f"recovery on {app.device.name} changed {table} of run {run} of {node} {of}")

    def watched(self, look: Callable[[Recovery], Found]) -> Callable[[Recovery], Found]:
        """Return the runtime's recovery, watched."""

        def watched_look(recovery: Recovery) -> Found:
            app = next(app for app in self._world.apps_by_device.values() if app.node is recovery._node)
            at_start, app.has_recovered = not app.has_recovered, True
            with self.recovery(app, at_start=at_start):
                return look(recovery)

        return watched_look

    def claimed(self, app, run: str, asked: int | None, got) -> None:
        """A run was given events."""
        facts = Facts(app.database)
        name = app.device.name
        self.demand("S13", asked in (None, len(got)), f"{name} asked for {asked} events and got {len(got)}")
        claims = facts.reservations[run].claims if run in facts.reservations else {}
        self.demand("S13", sorted(claims) == sorted(event.id for event in got), f"{name}: run {run} claims others")
        for event, epoch in claims.items():
            others = max((claim.epoch for claim in facts.claims[event] if claim.run != run), default=0)
            self.demand("S9", epoch > others, f"{name}: run {run} claims {event}@{epoch}, there is @{others}")

    def refused_claim(self, app, run: str) -> None:
        """A run was given nothing, with an error."""
        exists = app.database.query("SELECT 1 FROM reservations WHERE id = unhex(?)", (run,))
        self.demand("S13", not exists, f"{app.device.name}: run {run} was refused, and has claims")

    def before_settling(self, app, run: str) -> Facts:
        return Facts(app.database)

    def refused_settling(self, app, run: str, before: Facts) -> None:
        """A run could not settle: then nothing of it is settled."""
        after = Facts(app.database)
        same = before.reservations[run] == after.reservations[run]
        self.demand("S13", same, f"{app.device.name}: run {run} could not settle, and changed")

    def settled(self, app, run: str, before: Facts) -> None:
        """A run has settled its events: it owned all of them, and saw no higher epoch."""
        reservation = before.reservations[run]
        for event, epoch in reservation.claims.items():
            highest = max(claim.epoch for claim in before.claims[event])
            text = f"{app.device.name}: run {run} settled {event}@{epoch}"
            self.demand("S9", highest == epoch, f"{text} and had seen @{highest}")
            owner = before.owner(event)
            owns = owner.owner == run and owner.status == EventStatus.RESERVED
            self.demand("S13", owns, f"{text}, which run {owner.owner} owned")

    # --- At the end ---------------------------------------------------------------------------------------------------

    def note_durable(self) -> None:
        """The faults end: every outcome that a living file holds now must be known everywhere in the end."""
        for app in self._world.apps():
            self._durable.update(Facts(app.database).settled())

    def all_settled(self) -> bool:
        return not any(_unsettled(app) for app in self._world.apps())

    def after_heal(self) -> None:
        apps = self._world.apps()
        self._converged(apps)
        standing = [list(_standing(app.database)) for app in apps]
        for app, found in zip(apps, standing, strict=True):
            self._batches_are_whole(app)
            self._follows_from_facts(app)
            self._one_event_per_message(app)
            self._one_writer(app)
            if self._world.handled:
                self.effects.committed_runs_are_done(app)
            differing = [pair for pair in zip(found, standing[0], strict=False) if pair[0] != pair[1]]
            same = found == standing[0]
            self.demand("S1", same, f"{app.device.name} and {apps[0].device.name} differ: {differing[:1]}")
            terminal = {event for event, status, _, _ in found if status >= EventStatus.CONSUMED}
            lost = sorted(self._durable - terminal)
            self.demand("S3", not lost, f"{app.device.name} does not know the outcome of {lost[:3]}")
            open_events = _unsettled(app)
            self.demand("L1", not open_events, f"{app.device.name} still has (event, status, run) {open_events[:3]}")

    def _converged(self, apps) -> None:
        self.demand("convergence", self._world.is_level(), "the devices are not level in time")
        first = apps[0].node.digest().tables
        for app in apps[1:]:
            tables = app.node.digest().tables
            differing = [name for name in sorted({*tables, *first}) if tables.get(name) != first.get(name)]
            self.demand("convergence", not differing, f"{app.device.name} differs in {differing}")
        for app in apps:
            ((quarantined,),) = app.database.query("SELECT count(*) FROM quarantined")
            self.demand("convergence", quarantined == 0, f"{app.device.name} has {quarantined} rows set aside")

    def idle(self, before: list[int], after: list[int]) -> None:
        """Nobody did anything: no file may have a new version."""
        self.demand("L5", before == after, f"while idle the versions went from {before} to {after}")


def _standing(database) -> list[tuple[str, int, int, str | None]]:
    """What a file says of each event: (event, status, epoch, run)."""
    return database.query(
        "SELECT lower(hex(e.id)), e.status, e.epoch, (SELECT lower(hex(r.id)) FROM run_index AS r WHERE r.n = e.run) "
        "FROM event_index AS e ORDER BY e.id"
    )


def _unsettled(app) -> list[tuple[str, int, str | None]]:
    """The events, with content, that somebody should have finished."""
    return app.database.query(
        "SELECT lower(hex(e.id)), e.status, (SELECT lower(hex(r.id)) FROM run_index AS r WHERE r.n = e.run) "
        "FROM event_index AS e WHERE e.status < 3 AND e.publication IS NOT NULL ORDER BY e.id"
    )
