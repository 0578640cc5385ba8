"""The event store: publishing, deleting and explaining, on top of reading and leasing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from leasemesh.node.database.file import Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.clock import HybridTime, unix_ms
from leasemesh.node.model.errors import IllegalState, NotFound
from leasemesh.node.model.ids import EventId, NodeId, RunId
from leasemesh.node.model.jsonvalue import Json, check_text, check_whole
from leasemesh.node.model.leases import ClaimState
from leasemesh.node.stores.base import blob_of, topic_of
from leasemesh.node.stores.publications import NewEvent, Origin, Requeue, cut, encode_event, encode_publication
from leasemesh.node.stores.reading import Event, StatusName, status_name
from leasemesh.node.stores.takeover import TakingOver
from leasemesh.node.stores.topics import TopicStore

GENERATION_MAX = 1_000_000
"""Generations of one event; more are a fault and not work."""

PUBLISH_CHUNK = 1_000
"""Events of a long stream that are checked and encoded at a time; all of one call is still one transaction."""


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


@dataclass(frozen=True, slots=True)
class ClaimInfo:
    """One claim in an event's story.

    Attributes:
        run, node, handler: who claimed it.
        epoch: the number of the attempt that it claimed.
        claimed_at: Unix milliseconds.
        state: held, released, lost, consumed, skipped or dead.
        effect: status of the run's external effect; None when it has none.
    """

    run: RunId
    node: NodeId
    handler: str
    epoch: int
    claimed_at: int
    state: str
    effect: str | None


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One generation of an event.

    Attributes:
        event: its id.
        generation: 0 for what was published, counted up by each requeue.
        status: as of an event.
        created_at: Unix milliseconds.
        by: who requeued it; "" when nobody did, or nobody said who.
    """

    event: EventId
    generation: int
    status: StatusName
    created_at: int
    by: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event is in its state.

    Attributes:
        event: the event.
        claims: all claims that this device knows, the oldest first.
        publications: Unix milliseconds of each publication that carries it; more than one when several devices found
            it.
        publishers: the node of each of them; "" when that is not known.
        conflicting: two publications of it differ in title or payload (the earliest one counts).
        duplicate: two runs consumed it.
        generations: all generations of it that are known here, itself among them, the oldest first.
    """

    event: Event
    claims: tuple[ClaimInfo, ...]
    publications: tuple[int, ...]
    publishers: tuple[NodeId, ...]
    conflicting: bool
    duplicate: bool
    generations: tuple[GenerationInfo, ...]


_PUBLISHERS = """
WITH published (at, publication) AS (
    SELECT e.at, e.publication FROM event_index AS e WHERE e.id = ?1
    UNION
    SELECT c.at, c.publication FROM event_index AS e CROSS JOIN event_copies AS c ON c.event = e.n WHERE e.id = ?1
)
SELECT coalesce((
    SELECT lower(hex(s.site_id)) FROM publications__crsql_pks AS k
    CROSS JOIN publications__crsql_clock AS c ON c.key = k.__crsql_key AND c.col_name = 'body'
    CROSS JOIN crsql_site_id AS s ON s.ordinal = c.site_id WHERE k.id = p.publication), '')
FROM published AS p ORDER BY p.at, p.publication
"""
"""A publication does not say who wrote it; the clock of its row does."""


class EventStore(TakingOver):
    """All operations on events."""

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
        """Publish one event, unless the topic has the message id already; then nothing is written, whatever its status,
        and the event that there is (its newest generation) is returned. To have it done again, `requeue` it.

        Raises:
            InvalidInput: a name is empty or too long, the payload is not JSON or over 1 MiB, or an id is not one.
        """
        one = [NewEvent(message_id, title, payload)]
        with self._database.transaction():
            counts = self.publish_many(workflow, topic, one, created_by_run=created_by_run, caused_by=caused_by)
            event = self.get_by_message_id(workflow, topic, message_id)
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
        """Publish events in order, in one transaction; those that exist are left as they are.

        Raises:
            InvalidInput: naming the event that cannot be accepted; nothing is published then.
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
            found = self.get(event)
            if found is None:
                raise NotFound("event", [event])
            if found.status not in ("consumed", "skipped", "dead"):
                raise IllegalState(f"event {event}", found.status, "only a settled event can be requeued")
            topic_id = TopicStore(self._database).get_or_create(found.workflow, found.topic).id
            first = ids.event_id(topic_id, found.message_id)
            (newest,) = self._newest([first])
            if newest != found.id:
                raise IllegalState(f"event {event}", "requeued already", f"its newest generation is event {newest}")
            generation = check_whole("generation", found.generation + 1, least=1, most=GENERATION_MAX)
            requeue = Requeue(generation, first, found.id, by)
            origin = Origin(found.workflow, found.topic, topic_id, None, found.id, requeue)
            identifier = ids.event_id(topic_id, found.message_id, generation)
            content = encode_event(NewEvent(found.message_id, found.title, found.payload))
            self._insert(transaction, origin, [(identifier, content)])
            following = self.get(identifier)
        assert following is not None, "an event is readable after it was requeued"
        return following

    def explain(self, event: str) -> Explanation | None:
        """Return an event's story: who claimed it, when, with which outcome, and who published it."""
        with self._database.snapshot():
            found = self.get(event)
            return None if found is None else self._explain(found)

    def _explain(self, found: Event) -> Explanation:
        blob = blob_of(found.id)
        claims = self._database.query(
            "SELECT lower(hex(r.id)), lower(hex(r.node)), v.body ->> '$.handler', c.epoch, r.at, "
            "CASE WHEN e.status = 1 AND e.run = c.run THEN 0 ELSE r.state END, m.status "
            "FROM event_index AS e CROSS JOIN claims AS c ON c.event = e.n CROSS JOIN run_index AS r ON r.n = c.run "
            "LEFT JOIN reservations AS v ON v.id = r.id LEFT JOIN mutations AS m ON m.id = r.id "
            "WHERE e.id = ? ORDER BY c.epoch, r.at, r.id",
            (blob,),
        )
        copies = self._database.query(
            "SELECT c.at, p.body -> ('$.events[' || c.position || ']') FROM event_index AS e "
            "CROSS JOIN event_copies AS c ON c.event = e.n JOIN publications AS p ON p.id = c.publication "
            "WHERE e.id = ? ORDER BY c.at, c.publication",
            (blob,),
        )
        publishers = self._database.query(_PUBLISHERS, (blob,))
        duplicate = self._database.query(
            "SELECT 1 FROM event_index AS e CROSS JOIN duplicates AS d ON d.event = e.n WHERE e.id = ?", (blob,)
        )
        return Explanation(
            event=found,
            claims=tuple(
                ClaimInfo(
                    RunId(run), NodeId(node), handler or "", epoch, unix_ms(at), ClaimState(state).name.lower(), effect
                )
                for run, node, handler, epoch, at, state, effect in claims
            ),
            publications=tuple(unix_ms(at) for at, _ in copies) or (found.created_at,),
            publishers=tuple(NodeId(node) for (node,) in publishers),
            conflicting=len({text for _, text in copies}) > 1,
            duplicate=bool(duplicate),
            generations=self._generations(found),
        )

    def _generations(self, found: Event) -> tuple[GenerationInfo, ...]:
        # Of a generation that two devices made, the publication that counts is that of the event's row.
        rows = self._database.query(
            "SELECT lower(hex(e.id)), p.generation, e.status, e.at, p.body ->> '$.by' FROM publications AS p "
            "CROSS JOIN event_index AS e ON e.id = unhex(p.body ->> '$.ids[0]') AND e.publication = p.id "
            "WHERE p.first = ?1 UNION ALL SELECT lower(hex(id)), 0, status, at, '' FROM event_index "
            "WHERE id = ?1 AND publication IS NOT NULL ORDER BY 2",
            (blob_of(ids.event_id(topic_of(found.workflow, found.topic), found.message_id)),),
        )
        return tuple(
            GenerationInfo(EventId(event), generation, status_name(status), unix_ms(at), by)
            for event, generation, status, at, by in rows
        )

    def delete_by_topic(self, workflow: str, topic: str, *, force: bool = False) -> int:
        """Delete a topic and its events; see `TopicStore.delete`.

        Raises:
            NotFound: the workflow has no such topic.
            StillReserved: events are reserved and `force` is not given.
        """
        topics = TopicStore(self._database)
        found = topics.get_by_name(workflow, topic)
        if found is None:
            raise NotFound("topic", [f"{workflow}/{topic}"])
        return topics.delete(found.id, force=force)

    def delete_by_workflow(self, workflow: str, *, force: bool = False) -> int:
        """Delete all topics and events of a workflow; see `TopicStore.delete_by_workflow`."""
        return TopicStore(self._database).delete_by_workflow(workflow, force=force)

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
        at = self._issue_time(transaction, len(events))
        for content in cut(events):
            identifier = ids.ordered_id(self._database.clock_ms(), self._database.random_bytes)
            transaction.execute(
                "INSERT INTO publications (id, body) VALUES (?, ?)",
                (blob_of(identifier), encode_publication(origin, HybridTime(at), content)),
            )
            at += len(content)
