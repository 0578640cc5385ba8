"""Publications: how events travel. A publication is one immutable row with a batch of events of one topic.

A hundred events published together cost one replicated row: that is what makes publishing, catching up and merging
fast. Which events exist, in which order and in which status is derived into the local table event_index.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leasemesh.node.database.file import Database
from leasemesh.node.model.clock import HybridTime
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.ids import EventId, TopicId
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX, Json, check_text, decode_object, encode

EVENTS_MAX = 128
"""Events in one publication. Reading one event parses its publication: more would make single reads slow."""

BYTES_TARGET = 64 * 1024
"""A publication is closed when it has grown to this. Only a single large event makes a larger one."""

CACHED_MAX = 64
"""Parsed publications kept by a reader: a few hundred kilobytes, at the worst 64 large events."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to publish.

    Attributes:
        message_id: identity within the topic. Publishing the same one again changes nothing.
        title: for people.
        payload: any JSON value, at most 1 MiB as text.
    """

    message_id: str
    title: str = ""
    payload: Json = None


@dataclass(frozen=True, slots=True)
class Requeue:
    """Why a publication holds a later generation of an event.

    Attributes:
        generation: that generation, from 1.
        first: the event of generation 0.
        requeued: the event of the generation before.
        by: who asked for it, "" when nobody said.
    """

    generation: int
    first: EventId
    requeued: EventId
    by: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What all events of one call have in common."""

    workflow: str
    topic: str
    topic_id: TopicId
    run: str | None
    caused_by: str | None
    requeue: Requeue | None = None


def encode_event(event: NewEvent) -> str:
    """Return an event as it stands in a publication.

    Raises:
        InvalidInput: naming the part that cannot be accepted.
    """
    if not isinstance(event, NewEvent):
        raise InvalidInput("event", f"must be a NewEvent, not {type(event).__name__}")
    message_id = check_text("message_id", event.message_id)
    title = check_text(f"title of {message_id}", event.title, characters_max=TITLE_CHARACTERS_MAX, empty=True)
    payload = encode(f"payload of {message_id}", event.payload)
    return f'{{"message_id":{json.dumps(message_id)},"title":{json.dumps(title)},"payload":{payload}}}'


def cut(events: Sequence[tuple[EventId, str]]) -> Iterator[Sequence[tuple[EventId, str]]]:
    """Cut encoded events, in order, into the contents of publications."""
    start = 0
    size = 0
    for index, (_, text) in enumerate(events):
        length = len(text) if text.isascii() else len(text.encode())
        if index > start and (size + length > BYTES_TARGET or index - start == EVENTS_MAX):
            yield events[start:index]
            start, size = index, 0
        size += length
    if start < len(events):
        yield events[start:]


def encode_publication(origin: Origin, at: HybridTime, events: Sequence[tuple[EventId, str]]) -> str:
    """Return the body of a publication. Event number i has the hybrid time `at + i`."""
    head: dict[str, Any] = {"workflow": origin.workflow, "topic": origin.topic, "topic_id": origin.topic_id, "at": at}
    if origin.run is not None:
        head["run"] = origin.run
    if origin.caused_by is not None:
        head["caused_by"] = origin.caused_by
    if origin.requeue is not None:
        head |= asdict(origin.requeue)
    ids = '","'.join(identifier for identifier, _ in events)
    texts = ",".join(text for _, text in events)
    return f'{json.dumps(head)[:-1]},"ids":["{ids}"],"events":[{texts}]}}'


@dataclass(frozen=True, slots=True)
class Publication:
    """A parsed publication.

    Attributes:
        head: its body without ids and events.
        events: each event's fields. None for one that was handed out.
    """

    head: dict[str, Any]
    events: list[dict[str, Any] | None]


class PublicationReader:
    """Reads publications and keeps the last ones: they never change, and events are mostly read in the order of
    publishing. Any thread may read.

    Fields are handed out once and belong to the caller, who may change them. Asked for again, the publication is
    parsed again. That costs less than a copy for each reader: work is mostly read once.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._parsed: OrderedDict[bytes, Publication] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, identifier: bytes, position: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a publication's head, which must not be changed, and the fields of one of its events.

        Both are empty when it cannot be read.
        """
        with self._lock:
            kept = self._parsed.get(identifier)
            if kept is not None:
                self._parsed.move_to_end(identifier)
                if position >= len(kept.events):
                    return kept.head, {}
                fields, kept.events[position] = kept.events[position], None
                if fields is not None:
                    return kept.head, fields
        fresh = self._parse(identifier)
        fields = {}
        if position < len(fresh.events):
            fields, fresh.events[position] = fresh.events[position], None
        with self._lock:
            self._parsed[identifier] = fresh
            if len(self._parsed) > CACHED_MAX:
                self._parsed.popitem(last=False)
        return fresh.head, fields or {}

    def _parse(self, identifier: bytes) -> Publication:
        rows = self._database.query("SELECT body FROM publications WHERE id = ?", (identifier,))
        body = decode_object(rows[0][0]) if rows else {}
        events = [_readable(event, _EVENT_TEXTS) for event in body.pop("events", ())]
        return Publication(_readable(body, _HEAD_TEXTS), list(events))


_HEAD_TEXTS = ("workflow", "topic", "run", "caused_by")
_EVENT_TEXTS = ("message_id", "title")


def _readable(fields: Json, texts: Sequence[str]) -> dict[str, Json]:
    """Return the fields without those that should be text and are not.

    Our own always are. Of what a peer sent, only that was checked on which derivation depends.
    """
    if not isinstance(fields, dict):
        return {}
    wrong = [name for name in texts if name in fields and not isinstance(fields[name], str)]
    return {name: value for name, value in fields.items() if name not in wrong} if wrong else fields
