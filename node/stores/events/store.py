"""All operations on events in one object."""

from __future__ import annotations

from leasemesh.node.database.file import Database
from leasemesh.node.stores.events.claiming import Claims
from leasemesh.node.stores.events.effects_behind import EffectsBehind
from leasemesh.node.stores.events.explaining import EventExplainer
from leasemesh.node.stores.events.publishing import EventPublisher
from leasemesh.node.stores.events.reading import EventReader
from leasemesh.node.stores.events.reservations import Reservations
from leasemesh.node.stores.events.settling import Settlements
from leasemesh.node.stores.events.takeover import TakeOvers


class EventStore:
    """All operations on events. They are the methods of its parts, which document them:

    * `EventReader`: peek, get, get_by_message_id, get_many, find, reserved_by, any_pending, pending_mark, counts,
      dead_letters, duplicates, count_duplicates
    * `EventPublisher`: publish, publish_many, requeue
    * `EventExplainer`: explain
    * `Claims`: reserve, reserve_next
    * `Reservations`: reservation, find_run, held_runs, require_owned
    * `Settlements`: consume, skip, dead_letter, release
    * `TakeOvers`: take_over, take_over_run, decided_holder, stale_candidates
    * `EffectsBehind`: effect_behind, is_continued

    As of every store, a method may be called inside `database.transaction()` or alone.
    """

    def __init__(self, database: Database) -> None:
        reader = EventReader(database)
        self.peek = reader.peek
        self.get = reader.get
        self.get_by_message_id = reader.get_by_message_id
        self.get_many = reader.get_many
        self.find = reader.find
        self.reserved_by = reader.reserved_by
        self.any_pending = reader.any_pending
        self.pending_mark = reader.pending_mark
        self.counts = reader.counts
        self.dead_letters = reader.dead_letters
        self.duplicates = reader.duplicates
        self.count_duplicates = reader.count_duplicates

        publisher = EventPublisher(database, reader)
        self.publish = publisher.publish
        self.publish_many = publisher.publish_many
        self.requeue = publisher.requeue

        self.explain = EventExplainer(database, reader).explain

        reservations = Reservations(database)
        self.reservation = reservations.reservation
        self.find_run = reservations.find_run
        self.held_runs = reservations.held_runs
        self.require_owned = reservations.require_owned

        effects = EffectsBehind(database)
        self.effect_behind = effects.effect_behind
        self.is_continued = effects.is_continued

        claims = Claims(database, reader, reservations, effects)
        self.reserve = claims.reserve
        self.reserve_next = claims.reserve_next

        settlements = Settlements(database, reservations, effects)
        self.consume = settlements.consume
        self.skip = settlements.skip
        self.dead_letter = settlements.dead_letter
        self.release = settlements.release

        take_overs = TakeOvers(database, reader, reservations, effects, claims)
        self.take_over = take_overs.take_over
        self.take_over_run = take_overs.take_over_run
        self.decided_holder = take_overs.decided_holder
        self.stale_candidates = take_overs.stale_candidates
