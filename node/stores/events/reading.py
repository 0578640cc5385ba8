"""Reading events: what an event looks like to a caller, lists, look-ups by id, message id or a short form, and
counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from leasemesh.node.database.file import Database
from leasemesh.node.model.clock import unix_ms
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.ids import EventId, RunId
from leasemesh.node.model.jsonvalue import Json, check_whole
from leasemesh.node.model.leases import EventStatus
from leasemesh.node.stores.base import INTERNAL_TOPICS, LIST_MAX, Store, blob_of, events_of, topic_of
from leasemesh.node.stores.events.publications import PublicationReader

StatusName = Literal["pending", "reserved", "unknown", "consumed", "skipped", "dead"]
_NOT_PERMITTED = "AND NOT EXISTS (SELECT 1 FROM permitted_events AS s WHERE s.event = e.id)"
"""Of events e: those that stand in nobody's permit."""

_COLUMNS = (
    "e.id, e.publication, e.position, e.at, e.status, e.epoch, (SELECT r.id FROM run_index AS r WHERE r.n = e.run)"
)


class Event(NamedTuple):
    """An event as this device knows it. A tuple, because it is made a hundred at a time: a frozen dataclass takes
    four times as long.

    Attributes:
        id: 32 hexadecimal characters, the same on every device.
        workflow, topic, message_id: its identity for people.
        title: for people.
        payload: the JSON value that was published.
        created_at: Unix milliseconds of the first publication.
        created_by_run: the run that published it, if one did.
        caused_by: the event whose processing published it, or that was requeued. None when there is none.
        generation: how often it has been requeued. Each generation is an event of its own, with this message id.
        status: pending, reserved, unknown (reserved; the outcome of an effect is not known), consumed, skipped or dead.
        epoch: how often it has been claimed anew. The attempt number is this + 1.
        run: the run that holds or settled it, None when pending.
    """

    id: EventId
    workflow: str
    topic: str
    message_id: str
    title: str
    payload: Json
    created_at: int
    created_by_run: str | None
    caused_by: str | None
    generation: int
    status: StatusName
    epoch: int
    run: RunId | None


@dataclass(frozen=True, slots=True)
class TopicCounts:
    """How many events of a topic have which status. Statuses that no event has are absent."""

    topic: str
    by_status: dict[StatusName, int]

    @property
    def total(self) -> int:
        """All events of the topic."""
        return sum(self.by_status.values())


class EventReader(Store):
    """Events by topic, status, id and message id."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._publications = PublicationReader(database)

    def peek(
        self,
        workflow: str,
        topic: str,
        *,
        limit: int = 100,
        status: StatusName = "pending",
        permitted: bool = True,
    ) -> list[Event]:
        """Return the oldest events of a topic that have `status`, by creation time. Changes nothing.

        Costs the same whatever number of events has been settled.

        Args:
            workflow, topic: whose.
            limit: how many at the most.
            status: what they have in common.
            permitted: also those that stand in somebody's permit, who may begin an effect for them at any time.

        Raises:
            InvalidInput: `limit` is not within 1..10,000 or `status` is not a status.
        """
        check_whole("limit", limit, least=1, most=LIST_MAX)
        topic_id = topic_of(workflow, topic)
        return self._events(
            f"SELECT {_COLUMNS} FROM event_index AS e "
            f"WHERE e.topic = ? AND e.status = ? {'' if permitted else _NOT_PERMITTED} ORDER BY e.at, e.id LIMIT ?",
            (blob_of(topic_id), status_number(status), limit),
        )

    def get(self, event: str) -> Event | None:
        """Return the event with this id (32 hexadecimal characters)."""
        found = self._events(
            f"SELECT {_COLUMNS} FROM event_index AS e WHERE e.id = ? AND e.publication IS NOT NULL",
            (blob_of(event),),
        )
        return found[0] if found else None

    def get_by_message_id(self, workflow: str, topic: str, message_id: str) -> Event | None:
        """Return the event that a topic has under this message id: the newest generation of it that is known here."""
        first = events_of(topic_of(workflow, topic), [message_id])
        with self._database.snapshot():
            return self.get(self.newest_generations(first)[0])

    def get_many(self, workflow: str, topic: str, message_ids: Sequence[str]) -> list[Event]:
        """Return those of the named events that exist, in the order of the names, whatever their status. Of each the
        newest generation that is known here."""
        firsts = events_of(topic_of(workflow, topic), message_ids)
        with self._database.snapshot():
            return self._events(
                f"SELECT {_COLUMNS} FROM json_each(?) AS j CROSS JOIN event_index AS e "
                "WHERE e.id = unhex(j.value) AND e.publication IS NOT NULL ORDER BY j.key",
                (json.dumps(self.newest_generations(firsts)),),
            )

    def find(self, prefix: str) -> Event | None:
        """Return the event whose id begins with `prefix` (at least 4 hexadecimal characters), as tables show it.

        Raises:
            Ambiguous: more than one does.
            InvalidInput: not hexadecimal, or too short.
        """
        found = self._by_prefix("event_index", "event", prefix)
        return self.get(found) if found else None

    def reserved_by(self, run: str) -> list[Event]:
        """Return the events that a run owns now, oldest first. Without those whose content was deleted or is not here
        yet."""
        return self._events(
            f"SELECT {_COLUMNS} FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n "
            "CROSS JOIN event_index AS e ON e.n = c.event "
            "WHERE r.id = ? AND e.run = c.run AND e.status IN (1, 2) AND e.publication IS NOT NULL ORDER BY e.at, e.id",
            (blob_of(run),),
        )

    def any_pending(self, workflow: str, topic: str) -> bool:
        """Tell whether a topic has pending events. Costs the same whatever their number."""
        rows = self._database.query(
            "SELECT 1 FROM event_index WHERE topic = ? AND status = 0 LIMIT 1", (blob_of(topic_of(workflow, topic)),)
        )
        return bool(rows)

    def pending_mark(self, workflow: str, topic: str) -> tuple[int, int]:
        """Return two numbers that are the same while a topic has the same pending events, for whoever has seen them and
        waits for others. The first is their number. Both mean nothing on another device."""
        rows = self._database.query(
            "SELECT count(*), coalesce(sum(n), 0) FROM event_index WHERE topic = ? AND status = 0",
            (blob_of(topic_of(workflow, topic)),),
        )
        count, total = rows[0]
        return count, total

    def counts(self, workflow: str, *, internal: bool = False) -> list[TopicCounts]:
        """Return the counts of every topic of a workflow, by topic name. Of the runtime's own only with `internal`.

        Reads an index entry for each event.
        """
        rows = self._database.query(
            "SELECT t.name, (SELECT json_group_array(json_array(status, n)) FROM ("
            "SELECT e.status, count(*) AS n FROM event_index AS e WHERE e.topic = t.id GROUP BY e.status)) "
            "FROM topics AS t WHERE t.workflow = ? AND (? OR t.name NOT GLOB ?) ORDER BY t.name",
            (workflow, internal, INTERNAL_TOPICS),
        )
        return [
            TopicCounts(name, {status_name(status): n for status, n in json.loads(counts)}) for name, counts in rows
        ]

    def dead_letters(self, workflow: str | None = None, *, limit: int = 100) -> list[Event]:
        """Return the dead events that nobody has requeued, of a workflow or of all, the newest first by creation.

        Raises:
            InvalidInput: `limit` is not within 1..10,000.
        """
        check_whole("limit", limit, least=1, most=LIST_MAX)
        waiting = (
            "{0}.status = 5 AND {0}.publication IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM publications AS q WHERE q.requeued = {0}.id)"
        )
        if workflow is None:
            return self._events(
                f"SELECT {_COLUMNS} FROM event_index AS e WHERE {waiting.format('e')} "
                f"AND NOT EXISTS (SELECT 1 FROM topics AS t WHERE t.id = e.topic AND t.name GLOB '{INTERNAL_TOPICS}') "
                "ORDER BY e.at DESC, e.id DESC LIMIT ?",
                (limit,),
            )
        return self._events(
            f"SELECT {_COLUMNS} FROM topics AS t CROSS JOIN event_index AS e "
            f"WHERE t.workflow = ?1 AND t.name NOT GLOB '{INTERNAL_TOPICS}' AND e.n IN ("
            f"SELECT d.n FROM event_index AS d WHERE d.topic = t.id AND {waiting.format('d')} "
            "ORDER BY d.at DESC, d.id DESC LIMIT ?2) ORDER BY e.at DESC, e.id DESC LIMIT ?2",
            (workflow, limit),
        )

    def duplicates(self, *, limit: int = 100) -> list[Event]:
        """Return events that two runs consumed, the newest first."""
        check_whole("limit", limit, least=1, most=LIST_MAX)
        return self._events(
            f"SELECT {_COLUMNS} FROM (SELECT event FROM duplicates ORDER BY event DESC LIMIT ?) AS d "
            "CROSS JOIN event_index AS e ON e.n = d.event WHERE e.publication IS NOT NULL",
            (limit,),
        )

    def count_duplicates(self) -> int:
        """Return how many events two runs consumed."""
        return int(self._database.query("SELECT count(*) FROM duplicates")[0][0])

    def by_ids(self, identifiers: Sequence[EventId]) -> dict[EventId, Event]:
        """Return those of these events that exist, by id, the oldest first."""
        found = self._events(
            f"SELECT {_COLUMNS} FROM json_each(?) AS j CROSS JOIN event_index AS e "
            "WHERE e.id = unhex(j.value) AND e.publication IS NOT NULL ORDER BY e.at, e.id",
            (json.dumps(identifiers),),
        )
        return {event.id: event for event in found}

    def newest_generations(self, firsts: Sequence[EventId]) -> list[EventId]:
        """Return for each event of generation 0 the newest generation of it that is known here."""
        newest = list(firsts)
        for index, event in self._database.query(
            "SELECT j.key, lower(p.body ->> '$.ids[0]') FROM json_each(?) AS j CROSS JOIN publications AS p "
            "ON p.first = unhex(j.value) ORDER BY p.generation",
            (json.dumps(newest),),
        ):
            newest[index] = EventId(event)
        return newest

    def _events(self, sql: str, parameters: tuple[object, ...]) -> list[Event]:
        # One snapshot, so that no publication is deleted between the list and its content.
        with self._database.snapshot():
            return [self._loaded(*row) for row in self._database.query(sql, parameters)]

    def _loaded(
        self, identifier: bytes, publication: bytes, position: int, at: int, status: int, epoch: int, run: bytes | None
    ) -> Event:
        head, fields = self._publications.take(publication, position)
        return Event(
            EventId(identifier.hex()),
            head.get("workflow", ""),
            head.get("topic", ""),
            fields.get("message_id", ""),
            fields.get("title", ""),
            fields.get("payload"),
            unix_ms(at),
            head.get("run"),
            head.get("caused_by"),
            head.get("generation") or 0,
            _NAMES[status],
            epoch,
            None if run is None else RunId(run.hex()),
        )


_NAMES: tuple[StatusName, ...] = ("pending", "reserved", "unknown", "consumed", "skipped", "dead")


def status_name(number: int) -> StatusName:
    """Return the name of a status."""
    return _NAMES[number]


def status_number(name: str) -> EventStatus:
    """Return the status of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return EventStatus[name.upper()]
    except (KeyError, AttributeError) as error:
        raise InvalidInput("status", f"{name!r} is not one of {', '.join(_NAMES)}") from error
