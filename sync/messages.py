"""The messages of the protocol as values. What they look like on the wire, and when they come, is told in
sync/wire.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from leasemesh.sync.ports import Change, DatabaseDigest, TransferHeader
from leasemesh.sync.version_vector import Entry, Era, Resume, SiteId, VersionVector

Purpose = Literal["sync", "inspect"]
"""What a link is for: exchanging changes, or only comparing."""

Role = Literal["dialer", "listener"]
"""Which side of a link a node is."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """Opens a link. The nonce is new for each link."""

    nonce: bytes
    site: SiteId


@dataclass(frozen=True, slots=True)
class SealedHello:
    """A Hello as it arrives: its body is not decoded before its proof was verified."""

    proof: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a node is and what it has.

    Attributes:
        workspace: the workspace's id.
        name: the node's name for people.
        incarnation: tells this start of the node's process from others.
        purpose: "inspect" for a link that only compares. The answer repeats the dialling side's purpose.
        schema: component -> number of its last migration.
        vector: what the node includes.
        resume: how far an unfinished transfer from the receiver of this Hello came, and out of which snapshot.
    """

    workspace: str
    name: str
    incarnation: Era
    purpose: Purpose
    schema: dict[str, int]
    vector: VersionVector
    resume: Resume


@dataclass(frozen=True, slots=True)
class Changes:
    """One piece of a transfer.

    Attributes:
        header: of the transfer. In its first message only.
        rows: ordered by db_version.
        upto: the sender's history is delivered up to here, once a message is `whole`.
        whole: no version continues in the next message.
        last: the transfer is complete.
        cost: what a received message takes of the flow window: the size of its header, of its rows before
            compression, and a little.
    """

    header: TransferHeader | None
    rows: list[Change]
    upto: Entry
    whole: bool
    last: bool
    cost: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Ack:
    """All Changes messages up to this number (the first is 1) are stored."""

    messages: int


@dataclass(frozen=True, slots=True)
class RelayedHeartbeat:
    """A heartbeat of a node, passed on by another. `count` orders them: an old one is not taken for a new one."""

    incarnation: Era
    count: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class Presence:
    """A sign of life.

    Attributes:
        count: counts the sender's presence frames, over all its links, from 1.
        probe: above 0: answer at once with a Presence whose `answer` is this number.
        answer: the number of the probe that this frame answers, or 0.
        heartbeats: those of other nodes, as they came to the sender, directly or through others.
        vector: what the sender includes. None: nothing new since it last said.
    """

    count: int
    probe: int
    answer: int
    heartbeats: dict[SiteId, RelayedHeartbeat]
    vector: VersionVector | None


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """Asks for the digest of all replicated tables."""

    number: int


@dataclass(frozen=True, slots=True)
class Digest:
    """Answers a DigestRequest."""

    number: int
    digest: DatabaseDigest


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender closes the link, and why."""

    code: int
    sentence: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """Asks whether everybody behind this link has stored what came before. See sync/barrier.py."""

    identifier: bytes


@dataclass(frozen=True, slots=True)
class BarrierReply:
    """Answers a Barrier, after all that its sender and those behind it had committed.

    Attributes:
        identifier: of the Barrier.
        whole: no link ended while it owed a reply.
    """

    identifier: bytes
    whole: bool


Marker = Barrier | BarrierReply
"""A message that keeps its place in the stream of changes."""

Message = Greeting | SealedHello | Changes | Ack | Presence | DigestRequest | Digest | Goodbye | Barrier | BarrierReply
