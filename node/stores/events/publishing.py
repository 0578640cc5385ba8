"""Publishing events, and publishing settled ones once more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.clock import HybridTime
from leasemesh.node.model.errors import IllegalState, NotFound
from leasemesh.node.model.ids import EventId
from leasemesh.node.model.jsonvalue import Json, check_text, check_whole
from leasemesh.node.stores.base import Store, blob_of
from leasemesh.node.stores.events.publications import (
    NewEvent,
    Origin,
    Requeue,
    cut,
    encode_event,
    encode_publication,
)
from leasemesh.node.stores.events.reading import Event, EventReader
from leasemesh.node.stores.events.times import issue_times
from leasemesh.node.stores.topics import TopicStore

GENERATION_MAX = 1_000_000
"""Generations of one event. More are a fault and not work."""

PUBLISH_CHUNK = 1_000
"""Events of a long stream that are checked and encoded at a time. All of one call is still one transaction."""


@dataclass(frozen=True, slots=True)
class Published:
    """The result of publishing one event: the event, and whether it is new."""

    event: Event
    created: bool


@dataclass(frozen=True, slots=True)
class PublishCounts:
    """The result of publishing many: how many are new, and how many the topic had already."""

    created: int
    existing: int


class EventPublisher(Store):
    """Writes publications."""

    def __init__(self, database: Database, reader: EventReader) -> None:
        super().__init__(database)
        self._reader = reader

    def publish(
        self,
        workflow: str,
        topic: str,
        message_id: str,
        *,
        title: str = "",
        payload: Json = None,
        created_by_run: str | None = None,
        caused_by: str | None = None,
    ) -> Published:
        """Publish one event, unless the topic has the message id already. Then nothing is written, whatever its status,
        and the event that there is (its newest generation) is returned. To have it done again, `requeue` it.

        Raises:
            InvalidInput: a name is empty or too long, the payload is not JSON or over 1 MiB, or an id is not one.
        """
        one = [NewEvent(message_id, title, payload)]
        with self._database.transaction():
            counts = self.publish_many(workflow, topic, one, created_by_run=created_by_run, caused_by=caused_by)
            event = self._reader.get_by_message_id(workflow, topic, message_id)
        assert event is not None, "an event is readable after it was published"
        return Published(event, counts.created == 1)

    def publish_many(
        self,
        workflow: str,
        topic: str,
        events: Iterable[NewEvent],
        *,
        created_by_run: str | None = None,
        caused_by: str | None = None,
    ) -> PublishCounts:
        """Publish events in order, in one transaction. Those that exist are left as they are.

        Raises:
            InvalidInput: naming the event that cannot be accepted. Nothing is published then.
        """
        for identifier in (created_by_run, caused_by):
            if identifier is not None:
                blob_of(identifier)
        created = total = 0
        remaining = iter(events)
        with self._database.transaction() as transaction:
            topic_id = TopicStore(self._database).get_or_create(workflow, topic).id
            origin = Origin(workflow, topic, topic_id, created_by_run, caused_by)
            while chunk := list(islice(remaining, PUBLISH_CHUNK)):
                total += len(chunk)
                created += self._publish_chunk(transaction, origin, chunk)
        return PublishCounts(created, total - created)

    def requeue(self, event: str, *, by: str = "") -> Event:
        """Publish a settled event once more, as its next generation, and return that.

        It has the same message id, title and payload, and is new work: its effects have new idempotency keys, and what
        the old generation was settled as stays as it is. Devices that requeue the same event make the same one.

        Args:
            event: the event, of the newest generation that is known here.
            by: who wants it.

        Raises:
            NotFound: there is no such event.
            IllegalState: it is not settled, or has been requeued already.
        """
        check_text("by", by, empty=True)
        with self._database.transaction() as transaction:
            found = self._reader.get(event)
            if found is None:
                raise NotFound("event", [event])
            if found.status not in ("consumed", "skipped", "dead"):
                raise IllegalState(f"event {event}", found.status, "only a settled event can be requeued")
            topic_id = TopicStore(self._database).get_or_create(found.workflow, found.topic).id
            first = ids.event_id(topic_id, found.message_id)
            (newest,) = self._reader.newest_generations([first])
            if newest != found.id:
                raise IllegalState(f"event {event}", "requeued already", f"its newest generation is event {newest}")
            generation = check_whole("generation", found.generation + 1, least=1, most=GENERATION_MAX)
            requeue = Requeue(generation, first, found.id, by)
            origin = Origin(found.workflow, found.topic, topic_id, None, found.id, requeue)
            identifier = ids.event_id(topic_id, found.message_id, generation)
            content = encode_event(NewEvent(found.message_id, found.title, found.payload))
            self._insert(transaction, origin, [(identifier, content)])
            following = self._reader.get(identifier)
        assert following is not None, "an event is readable after it was requeued"
        return following

    def _publish_chunk(self, transaction: Transaction, origin: Origin, chunk: Sequence[NewEvent]) -> int:
        encoded = [encode_event(event) for event in chunk]
        identifiers = ids.event_ids(origin.topic_id, [event.message_id for event in chunk])
        known = {
            EventId(row[0].hex())
            for row in self._database.query(
                "SELECT unhex(j.value) FROM json_each(?) AS j WHERE "
                "EXISTS (SELECT 1 FROM event_index AS e WHERE e.id = unhex(j.value) AND e.publication IS NOT NULL) "
                "OR EXISTS (SELECT 1 FROM publications AS p WHERE p.first = unhex(j.value))",
                (json.dumps(identifiers),),
            )
        }
        # A dict keeps the first of two equal message ids within the chunk and the order of the rest.
        fresh: dict[EventId, str] = {}
        for identifier, text in zip(identifiers, encoded, strict=True):
            if identifier not in known:
                fresh.setdefault(identifier, text)
        if fresh:
            self._insert(transaction, origin, list(fresh.items()))
        return len(fresh)

    def _insert(self, transaction: Transaction, origin: Origin, events: Sequence[tuple[EventId, str]]) -> None:
        at = issue_times(self._database, transaction, len(events))
        for content in cut(events):
            identifier = ids.ordered_id(self._database.clock_ms(), self._database.random_bytes)
            transaction.execute(
                "INSERT INTO publications (id, body) VALUES (?, ?)",
                (blob_of(identifier), encode_publication(origin, HybridTime(at), content)),
            )
            at += len(content)
