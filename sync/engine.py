"""The engine of one node: every decision about every link, with no socket, no clock, no SQL and no chance of its own.

Inputs are method calls, each with the monotonic time; outputs are the effects that `take_effects` returns
(sync/effects.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sync.effects import Effect, LinkId
from sync.knowledge import Era, Point, SiteId
from sync.messages import Purpose as Purpose
from sync.ports import Applied, DatabaseDigest, LocalState, ReadResult


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a node is besides its database.

    Attributes:
        workspace: the workspace's id.
        name: the node's name for people.
        incarnation: a random token of 8 bytes, new for each start of the process.
        token: the workspace's shared secret; None: links need no proof. Never sent, never shown.
    """

    workspace: str
    name: str
    incarnation: Era
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One link as people see it.

    Attributes:
        link: the link's number.
        dialed: this node dialled; False: it was dialled.
        purpose: "inspect" for a link that only compares.
        state: the state of the link's session.
        site, name, incarnation: who is there (site and incarnation empty as long as it has not said).
        schema: the peer's migrations.
        ahead: how many versions of this node the peer may still lack.
        behind: how many versions of the peer this node still lacks, as far as the peer has told.
        knowledge: what the peer is known to have.
    """

    link: LinkId
    dialed: bool
    purpose: Purpose
    state: str
    site: SiteId
    name: str
    incarnation: Era
    schema: dict[str, int]
    ahead: int
    behind: int


class Engine:
    """Decides for one node.

    Args:
        state: the database's state at the start.
        config: the rest of what the node is.
        random_bytes: source of nonces: called with a length, returns as many bytes (`secrets.token_bytes`, or seeded).
    """

    def __init__(self, state: LocalState, config: EngineConfig, random_bytes: Callable[[int], bytes]) -> None: ...

    @property
    def state(self) -> LocalState:
        """This node as last heard from the database."""

    def take_effects(self) -> list[Effect]:
        """Return the effects asked for since the last call, in order, and forget them."""

    # Links.

    def connected(
        self, link: LinkId, *, dialed: bool, now_ms: int, purpose: Purpose = "sync", compress: bool = True
    ) -> None:
        """A link is open.

        Args:
            link: a number never used before.
            dialed: this node opened it.
            now_ms: monotonic milliseconds, here and in every other input.
            purpose: "inspect" for a link that only asks for digests. Only whoever dials decides; ignored otherwise.
            compress: compress large messages sent over this link (a loopback link is faster without).
        """

    def received(self, link: LinkId, data: bytes, now_ms: int) -> None:
        """One whole binary message arrived."""

    def disconnected(self, link: LinkId, now_ms: int) -> None:
        """The link is gone, by whomever. Also expected after a Close effect (and harmless then)."""

    def close_all(self, now_ms: int) -> None:
        """Take leave of every peer (the node is stopping): a Goodbye and a Close for each link."""

    # Answers to effects.

    def resume_loaded(self, link: LinkId, point: Point, now_ms: int) -> None:
        """Answers LoadResume."""

    def state_loaded(self, state: LocalState, now_ms: int) -> None:
        """Answers LoadState."""

    def read_done(self, link: LinkId, result: ReadResult, now_ms: int) -> None:
        """Answers BeginRead and ContinueRead."""

    def read_failed(self, link: LinkId, error: Exception, now_ms: int) -> None:
        """Answers BeginRead and ContinueRead; ends the link."""

    def applied(self, link: LinkId, applied: Applied, now_ms: int) -> None:
        """Answers Apply."""

    def apply_failed(self, link: LinkId, error: Exception, now_ms: int) -> None:
        """Answers Apply; ends the link. A `SyncError` decides by its attributes whether dialling again can help."""

    def digest_done(self, link: LinkId, request: int, digest: DatabaseDigest, now_ms: int) -> None:
        """Answers ComputeDigest."""

    def digest_failed(self, link: LinkId, request: int, error: Exception, now_ms: int) -> None:
        """Answers ComputeDigest; ends the link."""

    def reidentified(self, state: LocalState, now_ms: int) -> None:
        """Answers Reidentify. (When it fails the node cannot go on: the caller stops the engine.)"""

    # Everything else.

    def local_commit(self, state: LocalState, now_ms: int) -> None:
        """Something was committed here, by this process or another; `state` is the database's state read after it."""

    def timer_fired(self, key: tuple[str, int], now_ms: int) -> None:
        """A timer asked for by SetTimer is due. A timer that is no longer wanted is harmless."""

    def request_digest(self, link: LinkId, now_ms: int) -> None:
        """Ask the peer for its digest; the answer comes as a Tell of kind "digest". The link must be open.

        Raises:
            LocalProtocolError: the link is not open, or an earlier request is not answered yet.
        """

    def peers(self) -> list[PeerStatus]:
        """Return all links, in the order they were opened."""
