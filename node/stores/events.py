"""The event store: publishing, deleting and explaining, on top of reading and leasing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from node import ids
from node.clock import HybridTime, unix_ms
from node.database import Transaction
from node.errors import NotFound
from node.ids import EventId, NodeId, RunId
from node.jsonvalue import Json
from node.leases import ClaimState
from node.stores.base import blob_of
from node.stores.publications import NewEvent, Origin, cut, encode_event, encode_publication
from node.stores.reading import Event
from node.stores.takeover import TakingOver
from node.stores.topics import TopicStore

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
class Explanation:
    """Why an event is in its state.

    Attributes:
        event: the event.
        claims: all claims that this device knows, the oldest first.
        publications: Unix milliseconds of each publication that carries it; more than one when several devices found
            it.
        conflicting: two publications of it differ in title or payload (the earliest one counts).
        duplicate: two runs consumed it.
    """

    event: Event
    claims: tuple[ClaimInfo, ...]
    publications: tuple[int, ...]
    conflicting: bool
    duplicate: bool


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
        """Publish one event, unless the topic has the message id already; then nothing is written, whatever its status.

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

    def explain(self, event: str) -> Explanation | None:
        """Return an event's story: who claimed it, when, with which outcome, and who published it."""
        with self._database.snapshot():
            found = self.get(event)
            return None if found is None else self._explain(found)

    def _explain(self, found: Event) -> Explanation:
        blob = blob_of(found.id)
        claims = self._database.query(
            "SELECT lower(hex(r.id)), lower(hex(r.node)), v.body ->> '$.handler', c.epoch, r.at, r.state, m.status "
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
            conflicting=len({text for _, text in copies}) > 1,
            duplicate=bool(duplicate),
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
                "SELECT e.id FROM json_each(?) AS j CROSS JOIN event_index AS e "
                "WHERE e.id = unhex(j.value) AND e.publication IS NOT NULL",
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
