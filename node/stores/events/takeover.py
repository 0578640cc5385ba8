"""Taking over what another run holds: its holder has been silent for too long, or the run cannot go on itself.

Two ways, which differ in what becomes of the holder's effect:

* `take_over` claims events to do them anew. It refuses what an effect has happened for, or is to be skipped.
* `take_over_run` claims all that a run still owns, to go on where it stopped, and records that it does: whoever takes
  over from the taker finds the first run's effect behind it (`EffectsBehind.effect_behind`), and does not repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from leasemesh.node.database.file import Database
from leasemesh.node.model.errors import HomeElsewhere, IllegalState, NotFound
from leasemesh.node.model.ids import EventId, NodeId, RunId
from leasemesh.node.model.jsonvalue import check_whole
from leasemesh.node.stores.base import CLAIMS_MAX, LIST_MAX, Store, blob_of
from leasemesh.node.stores.events.claiming import Claims
from leasemesh.node.stores.events.effects_behind import EffectBehind, EffectsBehind
from leasemesh.node.stores.events.reading import Event, EventReader
from leasemesh.node.stores.events.reservations import ReservationInfo, Reservations
from leasemesh.node.stores.modes import Mode, ModeStore


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """A run of another node that holds events.

    Attributes:
        run, node, workflow, handler: whose work on what.
        event: one of the events that it owns: `StalenessWatch.holder` tells how much longer it must be left alone.
        effect: what stands behind its claims. None when no effect was entered.
    """

    run: RunId
    node: NodeId
    workflow: str
    handler: str
    event: EventId
    effect: EffectBehind | None


class TakeOvers(Store):
    """Gives one run's work to another."""

    def __init__(
        self,
        database: Database,
        reader: EventReader,
        reservations: Reservations,
        effects: EffectsBehind,
        claims: Claims,
    ) -> None:
        super().__init__(database)
        self._reader = reader
        self._reservations = reservations
        self._effects = effects
        self._claims = claims

    def take_over(
        self, run: str, events: Sequence[str], *, handler: str = "manual", default_mode: Mode = "soft"
    ) -> list[Event]:
        """Claim events that other runs hold for `run`, at the next epoch, to do them anew. All or nothing.

        Whether the holders have been silent for long enough is decided by `node.work.staleness` before this is called.

        Raises:
            NotFound: an event does not exist.
            IllegalState: an event is not reserved (reserve it instead), is settled, its effect's outcome is unknown, or
                its effect happened, or is to be skipped (`take_over_run` goes on with that).
            HomeElsewhere: another node alone claims there.
        """
        check_whole("number of events to take over", len(events), least=1, most=CLAIMS_MAX)
        for event in events:
            blob_of(event)
        with self._database.transaction() as transaction:
            found = self._reader.by_ids([EventId(event) for event in events])
            missing = [event for event in events if event not in found]
            if missing:
                raise NotFound("event", missing)
            for one in found.values():
                if one.status != "reserved":
                    raise IllegalState(f"event {one.id}", one.status, "only a reserved event can be taken over")
            for holder in dict.fromkeys(one.run for one in found.values() if one.run):
                effect = self._effects.effect_behind(holder)
                if effect is not None and effect.outcome in ("applied", "skipped"):
                    wanted = f"it must not be done again; take over what run {holder} holds by itself, to finish it"
                    raise IllegalState(f"the effect of run {effect.run}", effect.outcome, wanted)
            workflow = found[EventId(events[0])].workflow
            mode = self._mode_to_take(workflow, list(found.values()), handler, default_mode)
            self._claims.refuse_permitted(list(found.values()), mode)
            return self._claims.claim(transaction, run, workflow, handler, list(found.values()), mode)

    def decided_holder(self, events: Sequence[str]) -> ReservationInfo | None:
        """Return the reservation of the one run that holds all these events, if its effect happened or is to be
        skipped: then they are to be finished, by `take_over_run`. Otherwise None."""
        with self._database.snapshot():
            found = self._reader.by_ids([EventId(event) for event in events]).values()
            holders = {event.run if event.status == "reserved" else None for event in found}
            holder = holders.pop() if len(holders) == 1 else None
            effect = self._effects.effect_behind(holder) if holder is not None else None
            if holder is None or effect is None or effect.outcome not in ("applied", "skipped"):
                return None
            return self._reservations.reservation(holder)

    def take_over_run(self, run: str, of: str, *, handler: str, default_mode: Mode = "soft") -> list[Event]:
        """Claim all events that run `of` still owns for `run`, at the next epoch, to go on with its work.

        Returns them. None, and nothing is written, when it owns none any more. Whether its node has been silent for
        long enough is decided by `node.work.staleness` before this is called.

        Raises:
            NotFound: there is no such reservation.
            IllegalState: the outcome of its effect is unknown. Its events wait until it is known.
            HomeElsewhere: another node alone claims there.
            NotAvailable: its effect may still be begun, and events stand in a permit.
        """
        with self._database.transaction() as transaction:
            held = self._reservations.reservation(of)
            if held is None:
                raise NotFound("reservation of run", [of], "`leasemesh status` lists the held ones")
            events = self._reader.reserved_by(of)
            if not events:
                return []
            effect = self._effects.effect_behind(of)
            if any(event.status == "unknown" for event in events) or (effect and effect.outcome == "unknown"):
                raise IllegalState(f"the effect of run {of}", "unknown", "its events wait until it is known")
            mode = self._mode_to_take(held.workflow, events, handler, default_mode)
            # Its permit has served when the effect happened, or never shall: nobody does it any more.
            if effect is None or effect.outcome not in ("applied", "skipped"):
                self._claims.refuse_permitted(events, mode)
            return self._claims.claim(transaction, run, held.workflow, handler, events, mode, of=of)

    def stale_candidates(self, handlers: Collection[tuple[str, str]], *, limit: int = 100) -> list[HeldElsewhere]:
        """Return what other nodes' runs of these (workflow, handler) pairs hold, the longest silent first.

        They are candidates: `node.work.staleness` tells which have been silent for long enough. Runs whose effect has
        an unknown outcome are left out, because nobody may take over from them.
        """
        check_whole("limit", limit, least=1, most=LIST_MAX)
        with self._database.snapshot():
            rows = self._database.query(_HELD_ELSEWHERE, (self._database.site_id, json.dumps(list(handlers)), limit))
            return [
                HeldElsewhere(
                    RunId(run), NodeId(node), workflow, handler, EventId(event), self._effects.effect_behind(run)
                )
                for run, node, workflow, handler, event in rows
            ]

    def _mode_to_take(self, workflow: str, events: Sequence[Event], handler: str, default: Mode) -> Mode:
        topics = dict.fromkeys(event.topic for event in events)
        mode = self._claims.mode(workflow, topics, handler, default)
        self._refuse_claims_of_home(workflow, topics, handler, events)
        return mode

    def _refuse_claims_of_home(
        self, workflow: str, topics: Iterable[str], handler: str, events: Sequence[Event]
    ) -> None:
        """Silence says nothing about a home: it works offline. Only a person knows that it never comes back."""
        gone = ModeStore(self._database).gone_homes(workflow, topics, handler) | {self._node}
        runs = [event.run for event in events if event.run]
        for run, node in self._database.query(
            "SELECT lower(hex(v.id)), v.body ->> '$.node' FROM json_each(?) AS j CROSS JOIN reservations AS v "
            "WHERE v.id = unhex(j.value) AND v.body ->> '$.mode' = 'home'",
            (json.dumps(runs),),
        ):
            if node not in gone:
                raise HomeElsewhere(f"run {run}", node)


_HELD_ELSEWHERE = """
SELECT lower(hex(r.id)), lower(hex(r.node)), v.body ->> '$.workflow', v.body ->> '$.handler', (
    SELECT lower(hex(e.id)) FROM claims AS c CROSS JOIN event_index AS e
    WHERE c.run = r.n AND e.n = c.event AND e.run = r.n AND e.status = 1 AND e.publication IS NOT NULL LIMIT 1
) AS event
FROM holding_runs AS r CROSS JOIN reservations AS v
LEFT JOIN claim_watches AS w ON w.run = r.id
LEFT JOIN heartbeats AS h ON h.site = r.node AND h.boot = w.boot
WHERE r.node <> ? AND r.effect <> 1 AND v.id = r.id AND event IS NOT NULL AND EXISTS (
    SELECT 1 FROM json_each(?) AS j
    WHERE j.value ->> 0 = v.body ->> '$.workflow' AND j.value ->> 1 = v.body ->> '$.handler')
ORDER BY w.since_ms IS NULL, max(w.since_ms, coalesce(h.monotonic_ms, w.since_ms)), r.id LIMIT ?
"""
