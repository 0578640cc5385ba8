"""A session and what the engine notes beside it: doubts, probes, digests, and what people are told about the link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leasemesh.sync import limits
from leasemesh.sync.actions import Action, LinkId, NotificationKind, Notify, SetTimer
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.messages import Digest, DigestRequest, Purpose
from leasemesh.sync.ports import Applied, DatabaseDigest
from leasemesh.sync.session import Session
from leasemesh.sync.transfer import SendingHalf
from leasemesh.sync.version_vector import Entry, Era, SiteId, VersionVector


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One link as people see it.

    Attributes:
        link: the link's number.
        dialed: this node dialled. False: it was dialled.
        purpose: "inspect" for a link that only compares.
        state: the state of the link's session.
        site, name, incarnation: who is there (site and incarnation empty as long as it has not said).
        schema: the peer's migrations.
        ahead: how many versions of this node the peer may still lack.
        behind: how many versions of the peer this node still lacks, as far as the peer has told.
        vector: what the peer is known to have.
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
    vector: VersionVector


class Link:
    """One link of the engine.

    Attributes:
        session: its state machine.
        claims: points of this node's history that the peer told of and that are in doubt.
        doubt_number: number of the LoadState that decides about them.
        waits_for: the older link with the same site id that is being probed before this one may start.
        probe: number of the probe that this link has to answer, or 0.
        digest_asked, digest_owed: number of the digest request not answered yet, to and from the peer, or 0.
    """

    def __init__(self, session: Session, actions: list[Action]) -> None:
        self.session = session
        self.claims: list[Entry] = []
        self.doubt_number = 0
        self.waits_for: LinkId | None = None
        self.probe = 0
        self.digest_asked = 0
        self.digest_owed = 0
        self._actions = actions
        self._checkpoint_timed = False
        self._acknowledged = -1  # how many messages, when that last grew, and when that was
        self._acknowledged_at_ms = 0
        self._caught_up = False

    @property
    def id(self) -> LinkId:
        """The link's number."""
        return self.session.link

    def tell_connected(self, own_schema: dict[str, int]) -> None:
        """Changes (or digests) may flow from now on."""
        session = self.session
        assert session.peer is not None
        text = (
            f"connected, {_count(session.behind, 'version')} to come"
            if session.purpose == "sync"
            else "connected to compare"
        )
        notes = _schema_note(own_schema, session.peer.schema)
        self.tell("connected", text + notes, vector=session.peer.vector)

    def stored(self, applied: Applied, now_ms: int) -> None:
        """A piece was applied: acknowledge it, tell of it, and owe the peer a checkpoint after the last one."""
        session = self.session
        assert session.receiving is not None and session.sending is not None
        incoming = session.receiving.applied(applied.rows)
        rows, rows_total = session.receiving.rows, session.receiving.rows_total
        if not (incoming.first and incoming.last):
            self.tell(
                "receiving", f"receiving, {rows} of about {_count(rows_total, 'row')}", rows=rows, rows_total=rows_total
            )
        if applied.quarantined:
            text = f"{_count(applied.quarantined, 'row')} set aside until this node can apply them"
            self.tell("quarantined", text, rows=applied.quarantined)
        if incoming.last:
            self.tell("received", f"received {_count(rows, 'row')}", rows=rows, vector=session.sending.peer_vector)
            self._tell_caught_up()
            session.sending.checkpoint_due = True
            self._time_checkpoint(now_ms)

    def read(self, first: bool, last: bool) -> None:
        """A piece was sent: tell of the progress of a transfer that takes more than one."""
        sending = self.session.sending
        assert sending is not None
        if not (first and last):
            text = f"sending, {sending.rows} of about {_count(sending.rows_total, 'row')}"
            self.tell("sending", text, rows=sending.rows, rows_total=sending.rows_total)

    def sent(self) -> None:
        """The peer has stored a whole transfer."""
        sending = self.session.sending
        assert sending is not None
        self.tell("sent", f"sent {_count(sending.rows, 'row')}", rows=sending.rows, vector=sending.peer_vector)
        self._tell_caught_up()

    def send(self, action: Callable[[SendingHalf], None], now_ms: int) -> None:
        """Let the sending half do something, and see to the checkpoint that it may leave out.

        Raises:
            LocalProtocolError: there is something to send that no peer accepts.
        """
        assert self.session.sending is not None
        action(self.session.sending)
        self._time_checkpoint(now_ms)

    def checkpoint_timer_fired(self) -> None:
        """It is time for a checkpoint, if it was not sent with rows meanwhile."""
        self._checkpoint_timed = False
        sending = self.session.sending
        if sending is not None and sending.checkpoint_due:
            sending.want_checkpoint()

    def is_stuck(self, now_ms: int) -> bool:
        """Tell whether the peer has stored nothing for ACK_MS, although something waits for its Ack."""
        sending = self.session.sending
        if sending is None:
            return False
        if not sending.waits_for_ack or sending.messages_acknowledged != self._acknowledged:
            self._acknowledged = sending.messages_acknowledged
            self._acknowledged_at_ms = now_ms
        return now_ms - self._acknowledged_at_ms >= limits.ACK_MS

    def digest_requested(self, request: DigestRequest) -> None:
        """Note what the peer asks for.

        Raises:
            RemoteProtocolError: its earlier request is not answered yet.
        """
        if self.digest_owed:
            raise RemoteProtocolError("DigestRequest: the earlier one is not answered yet")
        self.digest_owed = request.number

    def digest_came(self, digest: Digest) -> None:
        """Tell of the peer's answer.

        Raises:
            RemoteProtocolError: nobody asked.
        """
        if digest.number != self.digest_asked:
            raise RemoteProtocolError("Digest: nobody asked for it")
        self.digest_asked = 0
        self.tell("digest", f"digest of {len(digest.digest.tables)} tables", digest=digest.digest)

    def tell(
        self,
        kind: NotificationKind,
        text: str,
        *,
        rows: int = 0,
        rows_total: int = 0,
        vector: VersionVector | None = None,
        digest: DatabaseDigest | None = None,
    ) -> None:
        """Tell people something about this link."""
        session = self.session
        site = session.peer_site or None
        sentence = f"{session.name}: {text}"
        self._actions.append(Notify(kind, sentence, session.link, site, session.name, rows, rows_total, vector, digest))

    def status(self) -> PeerStatus:
        """Return the link as people see it."""
        session = self.session
        return PeerStatus(
            session.link,
            session.dialed,
            session.purpose,
            session.state,
            session.peer_site,
            session.name,
            session.incarnation,
            session.peer.schema if session.peer is not None else {},
            session.ahead,
            session.behind,
            session.sending.peer_vector if session.sending is not None else VersionVector(),
        )

    def _tell_caught_up(self) -> None:
        session = self.session
        assert session.sending is not None and session.receiving is not None
        if not self._caught_up and session.sending.transfers and session.receiving.transfers:
            self._caught_up = True
            self.tell("caught_up", "both sides have caught up", vector=session.sending.peer_vector)

    def _time_checkpoint(self, now_ms: int) -> None:
        sending = self.session.sending
        assert sending is not None
        if sending.checkpoint_due and not self._checkpoint_timed:
            self._checkpoint_timed = True
            self._actions.append(SetTimer(("checkpoint", self.id), now_ms + limits.CHECKPOINT_MS))


def _schema_note(own: dict[str, int], peer: dict[str, int]) -> str:
    """Say which side should be upgraded, component by component."""
    notes = []
    for component in sorted({**own, **peer}):
        mine, theirs = own.get(component, 0), peer.get(component, 0)
        if mine != theirs:
            older = "the peer" if theirs < mine else "this node"
            numbers = f"{component} {min(mine, theirs)} < {max(mine, theirs)}"
            notes.append(f"; {older} has older migrations ({numbers}) and sets aside what it does not know: upgrade it")
    return "".join(notes)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
