"""What the engine asks for: actions are values. The loop (or the simulator) carries them out.

The engine never waits. Each input returns at once. The answer to an action comes back as a later input:

| action | answered by |
|---|---|
| Send, Close, SetTimer, Notify, RecordHeartbeats, BarrierDone | nothing (SetTimer: `timer_fired`) |
| LoadResume | `resume_loaded` |
| LoadState | `state_loaded`, read after the action was given |
| BeginRead, ContinueRead | `read_done` or `read_failed` |
| EndRead | nothing |
| Apply | `applied` or `apply_failed` |
| ComputeDigest | `digest_done` or `digest_failed` |
| Reidentify | `reidentified` |

Answers about a link that is gone may still be given. The engine takes from them what is about the database and forgets
the rest. Order matters for Send (within a link), for BeginRead, ContinueRead and EndRead (within a link: one after
another, in the order given) and for Apply (in the order given, over all links).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

from leasemesh.sync.ports import DatabaseDigest, Incoming, ReadRequest
from leasemesh.sync.version_vector import Era, SiteId, VersionVector

LinkId = NewType("LinkId", int)
"""One connection to one peer, numbered by the loop. Never used again within a process."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send one binary message. Messages of one link arrive in order or not at all."""

    link: LinkId
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the link. `code` is a websocket close code, `reason` one sentence (at most 120 bytes of UTF-8 are sent).

    `retry` is False when dialling again cannot help before somebody changes something.
    """

    link: LinkId
    code: int
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class LoadResume:
    """Read the resume point for `site`."""

    link: LinkId
    site: SiteId


@dataclass(frozen=True, slots=True)
class LoadState:
    """Read the local state again: a peer claims to know more about this node than the engine does."""


@dataclass(frozen=True, slots=True)
class BeginRead:
    """Take a snapshot and read the first piece of a transfer for this link."""

    link: LinkId
    request: ReadRequest
    rows_bytes_max: int


@dataclass(frozen=True, slots=True)
class ContinueRead:
    """Read the next piece."""

    link: LinkId
    rows_bytes_max: int


@dataclass(frozen=True, slots=True)
class EndRead:
    """Release the link's snapshot and reader (the link is gone)."""

    link: LinkId


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply a piece that came over this link. At most one is under way for each link."""

    link: LinkId
    incoming: Incoming


@dataclass(frozen=True, slots=True)
class ComputeDigest:
    """Compute the database digest for a peer that asked."""

    link: LinkId
    request: int


@dataclass(frozen=True, slots=True)
class Reidentify:
    """Give the database a new site id. Nothing else is done by the engine until `reidentified`."""

    reason: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call `timer_fired(key)` at `at_ms` (monotonic milliseconds). A later SetTimer with the same key replaces it."""

    key: tuple[str, int]
    at_ms: int


@dataclass(frozen=True, slots=True)
class RecordHeartbeats:
    """A node was heard of, directly or through others: site -> (incarnation, monotonic milliseconds)."""

    heartbeats: dict[SiteId, tuple[Era, int]]


@dataclass(frozen=True, slots=True)
class BarrierDone:
    """The barrier that was begun with this token is done."""

    token: int


NotificationKind = Literal[
    "connected",
    "disconnected",
    "refused",
    "sending",
    "sent",
    "receiving",
    "received",
    "caught_up",
    "quarantined",
    "identity",
    "digest",
]


@dataclass(frozen=True, slots=True)
class Notify:
    """Something that a person or a log wants to know. Never needed for correctness.

    Attributes:
        kind: what happened.
        link: the link, when it is about one.
        site, name: the peer, as far as known.
        text: one sentence for people.
        rows, rows_total: progress of a transfer.
        vector: for "connected", "received", "sent": what the peer is known to have, where that changed.
        digest: for "digest": the peer's answer.
    """

    kind: NotificationKind
    text: str
    link: LinkId | None = None
    site: SiteId | None = None
    name: str = ""
    rows: int = 0
    rows_total: int = 0
    vector: VersionVector | None = None
    digest: DatabaseDigest | None = None


Action = (
    Send
    | Close
    | LoadResume
    | LoadState
    | BeginRead
    | ContinueRead
    | EndRead
    | Apply
    | ComputeDigest
    | Reidentify
    | SetTimer
    | RecordHeartbeats
    | BarrierDone
    | Notify
)
