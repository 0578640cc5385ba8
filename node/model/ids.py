"""Identity: ids from keys, time-ordered ids for facts, and the short forms that people type.

Where two devices may create the same thing, its id is a hash of its natural key, so both create the same row. Ids
are 16 bytes: BLOBs in the database, 32 lowercase hexadecimal characters everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NewType

TopicId = NewType("TopicId", str)
EventId = NewType("EventId", str)
HandlerId = NewType("HandlerId", str)
WorkId = NewType("WorkId", str)
RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)
"""A site id as text."""

ID_BYTES = 16
SHORT_ID_CHARACTERS = 10
"""What tables show. Among a million events two share ten hexadecimal characters about once in two databases."""

SHORT_RUN_CHARACTERS = 16
"""A run's id begins with the time: twelve of these are milliseconds, the others tell the runs of one apart."""

NAMES_KEPT = 4_096
"""Ids of topics, handlers and modes that are remembered: an app asks for the same few hundred again and again."""

RandomBytes = Callable[[int], bytes]

_ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}")


def _key_hash(kind: bytes, parts: Iterable[str]) -> str:
    # Each part is preceded by its length: ("ab", "c") and ("a", "bc") must differ.
    digest = blake2b(digest_size=ID_BYTES, person=kind)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big"))
        digest.update(encoded)
    return digest.hexdigest()


@lru_cache(NAMES_KEPT)
def topic_id(workflow: str, name: str) -> TopicId:
    """Return the id of the topic `name` of `workflow`, the same on every device."""
    return TopicId(_key_hash(b"topic", (workflow, name)))


def event_ids(topic: TopicId, message_ids: Sequence[str], generation: int = 0) -> list[EventId]:
    """Return the ids of a topic's events by message id. `generation` counts requeues, from 0."""
    base = blake2b(digest_size=ID_BYTES, person=b"event")
    base.update(topic.encode())
    base.update(generation.to_bytes(4, "big"))
    ids = []
    for message_id in message_ids:
        digest = base.copy()
        digest.update(message_id.encode())
        ids.append(EventId(digest.hexdigest()))
    return ids


def event_id(topic: TopicId, message_id: str, generation: int = 0) -> EventId:
    """Return the id of one event. See `event_ids`."""
    return event_ids(topic, (message_id,), generation)[0]


@lru_cache(NAMES_KEPT)
def handler_id(workflow: str, handler: str) -> HandlerId:
    """Return the id of a handler of a workflow."""
    return HandlerId(_key_hash(b"handler", (workflow, handler)))


def work_id(handler: HandlerId, events: Iterable[EventId], generation: int = 0) -> WorkId:
    """Return the id of a piece of work: the idempotency key that every device offers for it."""
    return WorkId(_key_hash(b"work", (handler, str(generation), *sorted(events))))


def state_id(handler: HandlerId, node: NodeId) -> str:
    """Return the key of the row in which `node` keeps a handler's state."""
    return _key_hash(b"state", (handler, node))


def verdict_id(work: WorkId, node: NodeId) -> str:
    """Return the key of the row in which `node` records a person's verdict on `work`."""
    return _key_hash(b"verdict", (work, node))


@lru_cache(NAMES_KEPT)
def mode_id(workflow: str, kind: str, name: str) -> str:
    """Return the key of the row that says how a topic's events or a handler's work are claimed."""
    return _key_hash(b"mode", (workflow, kind, name))


def block_id(workflow: str, handler: str, node: NodeId) -> str:
    """Return the key of the row that says whether a handler may run on `node`, or, when that is "", on any device."""
    return _key_hash(b"block", (workflow, handler, node))


def permit_id(authority: NodeId, run: RunId, generation: int) -> str:
    """Return the key of the row in which an authority of some generation decides on the request of `run`."""
    return _key_hash(b"permit", (authority, run, str(generation)))


def appointment_id(node: NodeId, generation: int) -> str:
    """Return the key of the row in which `node` records whom a person appointed as authority of a generation."""
    return _key_hash(b"authority", (node, str(generation)))


def fence_id(node: NodeId, generation: int) -> str:
    """Return the key of the row in which `node` steps back for the authority of a generation."""
    return _key_hash(b"fence", (node, str(generation)))


def ordered_id(now_ms: int, random_bytes: RandomBytes) -> str:
    """Return an id that is unique by chance and sorts by time (48 bits of milliseconds, 80 random bits).

    For facts that one node creates once: runs and publications. Ordered keys keep B-tree inserts at the right edge.
    """
    milliseconds = min(max(now_ms, 0), (1 << 48) - 1)  # A clock before 1970 costs the order, not the id.
    return milliseconds.to_bytes(6, "big").hex() + random_bytes(10).hex()


def is_id(value: object) -> bool:
    """Tell whether a value, which may be a peer's, is an id as text."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def to_blob(identifier: str) -> bytes:
    """Return an id as the database stores it. Raises ValueError when it is not 32 lowercase hexadecimal characters.

    One id has one spelling: programs compare ids as text.
    """
    if not is_id(identifier):
        raise ValueError(f"{identifier!r} is not an id: an id has {2 * ID_BYTES} lowercase hexadecimal characters")
    return bytes.fromhex(identifier)


def short(identifier: str) -> str:
    """Return the short form of an id, as tables show it and the command line accepts it."""
    return identifier[:SHORT_ID_CHARACTERS]


def short_run(run: str) -> str:
    """Return the short form of a run's id."""
    return run[:SHORT_RUN_CHARACTERS]
