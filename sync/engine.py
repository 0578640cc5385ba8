"""The engine of one node: every decision about every link, with no socket, no clock, no SQL and no chance of its own.

Inputs are method calls, each with the monotonic time. Outputs are the actions that `take_actions` returns
(sync/actions.py). Given the same inputs it gives the same outputs, in the same order: nothing here is iterated in the
order of a set.

What holds at any time (cited as E1 to E6 below):

E1 An error of a peer ends its link and changes nothing else.
E2 Nothing of the database is told to a peer that has not proven to hold the token.
E3 At most one link to a site has `started` for syncing. Two processes with one site id are a clone, never two peers.
E4 While a peer's claim about this node's own history is in doubt, that peer is sent no rows. When the claim is true and
   this file does not know of it, the file takes a new site id before anything else happens.
E5 Whatever is committed here, locally or from a peer, is read for every other started link.
E6 Every link brings something every SILENCE_MS, and an Ack every ACK_MS when one is due, or is closed.
"""

from __future__ import annotations

from collections.abc import Callable

from leasemesh.sync import limits
from leasemesh.sync.actions import (
    Action,
    BarrierDone,
    Close,
    ComputeDigest,
    EndRead,
    LinkId,
    LoadResume,
    LoadState,
    Notify,
    RecordHeartbeats,
    Reidentify,
    SetTimer,
)
from leasemesh.sync.barrier import Barriers
from leasemesh.sync.errors import (
    BusyRefused,
    CloneRefused,
    CloseCode,
    DuplicateRefused,
    LocalProtocolError,
    SelfRefused,
    SyncError,
    TimedOut,
    WorkspaceRefused,
)
from leasemesh.sync.link import Link
from leasemesh.sync.link import PeerStatus as PeerStatus
from leasemesh.sync.messages import (
    Ack,
    Barrier,
    BarrierReply,
    Changes,
    Digest,
    DigestRequest,
    Goodbye,
    Greeting,
    Hello,
    Marker,
    Presence,
)
from leasemesh.sync.messages import Purpose as Purpose
from leasemesh.sync.ports import Applied, DatabaseDigest, LocalState, ReadResult
from leasemesh.sync.presence import Heartbeat, PresenceBoard
from leasemesh.sync.session import EngineConfig as EngineConfig
from leasemesh.sync.session import Session
from leasemesh.sync.transfer import SendingHalf
from leasemesh.sync.version_vector import FROM_START, Entry, Resume, SiteId

CONNECTION_ENDED = "the connection ended"


class Engine:
    """Decides for one node.

    Args:
        state: the database's state at the start.
        config: the rest of what the node is.
        random_bytes: source of nonces: called with a length, returns as many bytes (`secrets.token_bytes`, or seeded).
    """

    def __init__(self, state: LocalState, config: EngineConfig, random_bytes: Callable[[int], bytes]) -> None:
        self._state = state
        self._config = config
        self._random_bytes = random_bytes
        self._actions: list[Action] = []
        self._links: dict[LinkId, Link] = {}
        self._board = PresenceBoard()
        self._barriers = Barriers(
            links=self._syncing_links,
            send=self._send_marker,
            done=lambda token: self._actions.append(BarrierDone(token)),
            random_bytes=random_bytes,
        )
        self._heartbeats_sent = 0
        self._presence_timed = False
        self._probes = 0
        self._digests = 0
        self._states_asked = 0
        self._states_loaded = 0
        self._reidentifying = False

    @property
    def state(self) -> LocalState:
        """This node as last heard from the database."""
        return self._state

    def take_actions(self) -> list[Action]:
        """Return the actions asked for since the last call, in order, and forget them."""
        # The sessions hold the same list, so it is emptied and not replaced.
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    # --- Links -------------------------------------------------------------------------------------------------------

    def connected(
        self, link: LinkId, *, dialed: bool, now_ms: int, purpose: Purpose = "sync", compress: bool = True
    ) -> None:
        """A link is open.

        Args:
            link: a number never used before.
            dialed: this node opened it.
            now_ms: monotonic milliseconds, here and in every other input.
            purpose: "inspect" for a link that only asks for digests. Only whoever dials decides. Ignored otherwise.
            compress: compress large messages sent over this link (a loopback link is faster without).
        """
        session = Session(
            link,
            self._actions,
            role="dialer" if dialed else "listener",
            purpose=purpose,
            compress=compress,
            config=self._config,
            local=lambda: self._state,
            nonce=self._random_bytes(limits.NONCE_BYTES),
            now_ms=now_ms,
        )
        connection = self._links[link] = Link(session, self._actions)
        if self._reidentifying:
            self._end(connection, _identity_changes(), now_ms)
            return
        session.greet()
        self._actions.append(SetTimer(("handshake", link), now_ms + limits.HANDSHAKE_MS))
        self._time_presence(now_ms)

    def received(self, link: LinkId, data: bytes, now_ms: int) -> None:
        """One whole binary message arrived."""
        connection = self._links.get(link)
        if connection is None:
            return
        try:
            self._take(connection, connection.session.receive(data, now_ms), now_ms)
        except SyncError as error:
            self._end(connection, error, now_ms)

    def note_traffic(self, link: LinkId, now_ms: int) -> None:
        """A part of a message has arrived: the link is alive, however long the whole takes."""
        connection = self._links.get(link)
        if connection is not None:
            connection.session.received_at_ms = now_ms

    def disconnected(self, link: LinkId, now_ms: int, reason: str = CONNECTION_ENDED) -> None:
        """The link is gone, by whomever. Also expected after a Close action (and harmless then).

        Args:
            link: the link.
            now_ms: see `connected`.
            reason: one sentence, where the transport knows more.
        """
        connection = self._links.get(link)
        if connection is not None:
            self._drop(connection, reason, now_ms)

    def close_all(self, now_ms: int) -> None:
        """Take leave of every peer (the node is stopping): a Goodbye and a Close for each link."""
        for connection in list(self._links.values()):
            self._end(
                connection, SyncError(f"{self._config.name} is being stopped", close_code=CloseCode.STOPPING), now_ms
            )

    def _take(self, connection: Link, message: object, now_ms: int) -> None:
        session = connection.session
        match message:
            case Greeting():
                self._meet(connection, message, now_ms)
            case Hello():
                self._admit(connection, message, now_ms)
            case Changes():
                self._take_changes(connection, message)
            case Ack():
                assert session.sending is not None
                if session.sending.acknowledged(message):
                    connection.sent()
            case Barrier() | BarrierReply():
                assert session.receiving is not None
                session.receiving.mark(message)
                self._take_markers(connection, now_ms)
            case Presence():
                self._take_presence(connection, message, now_ms)
            case DigestRequest():
                connection.digest_requested(message)
                self._actions.append(ComputeDigest(connection.id, message.number))
            case Digest():
                connection.digest_came(message)
            case Goodbye():
                reason = f"closed by the peer: {message.sentence}"
                self._actions.append(Close(session.link, message.code, reason, message.retry))
                self._drop(connection, reason, now_ms)

    # --- Who may join ------------------------------------------------------------------------------------------------

    def _meet(self, connection: Link, greeting: Greeting, now_ms: int) -> None:
        """The peer's Greeting came: it claims a site, no more."""
        session = connection.session
        if greeting.site == self._state.site:
            for other in list(self._links.values()):
                if other.session.nonce == greeting.nonce:
                    if other is not connection:
                        self._end(other, SelfRefused("this node reached itself"), now_ms)
                    raise SelfRefused("this node reached itself")
            raise CloneRefused(f"the peer has this node's own site id {greeting.site.hex()}")
        if not session.dialed:
            return
        if session.purpose == "inspect":
            session.introduce(FROM_START)
            return
        for other in self._links.values():
            rival = other.session
            if (
                other is not connection
                and rival.dialed
                and rival.purpose == "sync"
                and rival.peer_site == greeting.site
            ):
                # Said before the peer hears our Hello: it would take the newer link for the better one.
                self._probe(other, now_ms)
                raise DuplicateRefused(f"this node has dialled {rival.name} under another address already")
        self._actions.append(LoadResume(session.link, session.peer_site))

    def _admit(self, connection: Link, hello: Hello, now_ms: int) -> None:
        """The peer's Hello came, and its proof was right."""
        if hello.workspace != self._config.workspace:
            raise WorkspaceRefused(
                f"{hello.name} belongs to the workspace {hello.workspace}, "
                f"{self._config.name} to {self._config.workspace}"
            )
        if hello.purpose == "sync":
            self._settle_rivals(connection, now_ms)
            self._doubt(connection, [hello.vector.entry(self._state.site), hello.resume.snapshot])
        self._proceed(connection, now_ms)

    def _settle_rivals(self, connection: Link, now_ms: int) -> None:
        """Keep E3: of two links to one site keep one, and have the older one probed when they are two processes."""
        newcomer = connection.session
        known = [
            other for other in self._links.values() if other is not connection and other.session.sending is not None
        ]
        rivals = [other for other in known if other.session.peer_site == newcomer.peer_site]
        if not rivals:
            if len(known) >= limits.PEERS_MAX:
                raise BusyRefused(f"{self._config.name} has {limits.PEERS_MAX} peers, and takes no more")
            return
        older = rivals[0].session
        if older.incarnation == newcomer.incarnation:
            if len(rivals) == 1 and _newcomer_wins(self._state.site, older, newcomer):
                self._end(rivals[0], DuplicateRefused(f"a newer link to {newcomer.name} takes its place"), now_ms)
                return
        elif len(rivals) == 1 and older.started:
            connection.waits_for = older.link
            self._probe(rivals[0], now_ms)
            return
        self._probe(rivals[0], now_ms)
        raise DuplicateRefused(f"{self._config.name} has another link to {newcomer.name}")

    def _probe(self, connection: Link, now_ms: int) -> None:
        """Make sure that a link is alive, within PROBE_MS."""
        if connection.session.started and not connection.probe:
            self._probes += 1
            connection.probe = self._probes
            self._send_presence(connection, now_ms, probe=connection.probe)
            self._actions.append(SetTimer(("probe", connection.id), now_ms + limits.PROBE_MS))

    def _probe_answered(self, connection: Link, now_ms: int) -> None:
        connection.probe = 0
        for other in list(self._links.values()):
            if other.waits_for == connection.id:
                site = connection.session.peer_site.hex()
                self._end(
                    other,
                    CloneRefused(
                        f"{connection.session.name} and {other.session.name} both run with the site id {site}"
                    ),
                    now_ms,
                )

    def _doubt(self, connection: Link, claims: list[Entry]) -> None:
        """Keep E4: compare what a peer says of this node's history with it. When in doubt, ask the database again."""
        doubtful = self._not_owned(claims)
        if not doubtful:
            return
        connection.claims += doubtful
        self._states_asked += 1
        connection.doubt_number = self._states_asked
        if connection.session.started and connection.session.sending is not None:
            connection.session.sending.allow(False)
        self._actions.append(LoadState())

    def _not_owned(self, claims: list[Entry]) -> list[Entry]:
        state = self._state
        return [claim for claim in claims if not state.lineage.owns(claim, state.version)]

    def _proceed(self, connection: Link, now_ms: int) -> None:
        """Go on with the opening, unless something still stands against the peer."""
        session = connection.session
        if connection.claims or connection.waits_for is not None:
            return
        if session.state != "answering":
            self._start(connection, now_ms)
        elif session.purpose == "sync":
            self._actions.append(LoadResume(session.link, session.peer_site))
        else:
            session.introduce(FROM_START)
            self._start(connection, now_ms)

    def _start(self, connection: Link, now_ms: int) -> None:
        session = connection.session
        session.start()
        connection.tell_connected(self._state.schema)
        if session.purpose == "sync":
            self._note_heartbeats(session.peer_site, Heartbeat(session.incarnation, 0, now_ms), {})
            self._take_markers(connection, now_ms)

    # --- Answers to actions ------------------------------------------------------------------------------------------

    def resume_loaded(self, link: LinkId, resume: Resume, now_ms: int) -> None:
        """Answers LoadResume."""
        connection = self._links.get(link)
        if connection is None:
            return
        answering = connection.session.state == "answering"
        connection.session.introduce(resume)
        if answering:
            self._start(connection, now_ms)

    def state_loaded(self, state: LocalState, now_ms: int) -> None:
        """Answers LoadState."""
        self._refresh(state)
        self._states_loaded += 1
        for connection in list(self._links.values()):
            if not connection.claims or connection.doubt_number > self._states_loaded:
                continue
            claims = self._not_owned(connection.claims)
            if claims:
                self._reidentify(connection, claims[0], now_ms)
                return
            connection.claims.clear()
            if connection.session.started:
                self._send(connection, lambda sending: sending.allow(True), now_ms)
            else:
                self._proceed(connection, now_ms)
        self._poke()

    def read_done(self, link: LinkId, result: ReadResult, now_ms: int) -> None:
        """Answers BeginRead and ContinueRead."""
        connection = self._links.get(link)
        if connection is None:
            return
        if self._send(connection, lambda sending: sending.read_done(result), now_ms):
            connection.read(result.first, result.last)

    def read_failed(self, link: LinkId, error: Exception, now_ms: int) -> None:
        """Answers BeginRead and ContinueRead. Ends the link."""
        self._failed(link, error, now_ms, "could not read its changes")

    def applied(self, link: LinkId, applied: Applied, now_ms: int) -> None:
        """Answers Apply."""
        self._refresh(applied.state)
        connection = self._links.get(link)
        if connection is not None:
            connection.stored(applied, now_ms)
            self._take_markers(connection, now_ms)
        # The peer that the rows came from has them (E5): its own session only owes it a checkpoint some time.
        self._poke(but=link, quarantined=applied.quarantined > 0)

    def apply_failed(self, link: LinkId, error: Exception, now_ms: int) -> None:
        """Answers Apply. Ends the link. A `SyncError` decides by its attributes whether dialling again can help."""
        self._failed(link, error, now_ms, "could not store the changes")

    def digest_done(self, link: LinkId, request: int, digest: DatabaseDigest, now_ms: int) -> None:
        """Answers ComputeDigest."""
        connection = self._links.get(link)
        if connection is not None:
            connection.digest_owed = 0
            connection.session.send(Digest(request, digest))

    def digest_failed(self, link: LinkId, request: int, error: Exception, now_ms: int) -> None:
        """Answers ComputeDigest. Ends the link."""
        self._failed(link, error, now_ms, "could not compute its digest")

    def reidentified(self, state: LocalState, now_ms: int) -> None:
        """Answers Reidentify. (When it fails the node cannot go on: the caller stops the engine.)"""
        self._reidentifying = False
        self._state = state
        self._actions.append(Notify("identity", f"this node has the new site id {state.site.hex()}"))

    def _failed(self, link: LinkId, error: Exception, now_ms: int, what: str) -> None:
        connection = self._links.get(link)
        if connection is None:
            return
        # What went wrong inside is for this node's log; the peer learns no more than that something did.
        if not isinstance(error, SyncError):
            connection.tell("refused", f"{what}: {error}")
            error = SyncError(f"{self._config.name} {what}")
        self._end(connection, error, now_ms)

    # --- Everything else ---------------------------------------------------------------------------------------------

    def local_commit(self, state: LocalState, now_ms: int) -> None:
        """Something was committed here, by this process or another. `state` is the database's state read after it."""
        self._refresh(state)
        self._poke()

    def begin_barrier(self, token: int, state: LocalState, now_ms: int) -> None:
        """Find out when everybody within reach has what is committed here. BarrierDone with the token tells it.

        Then this node also has what all of them had committed before. See sync/barrier.py. It takes as long as the
        slowest link needs to be level. One barrier at a time is enough for a node: the next covers all who wait.

        Args:
            token: any number.
            state: the database's state, read after the commit in question.
            now_ms: see `connected`.
        """
        self.local_commit(state, now_ms)
        self._barriers.begin(token)

    def timer_fired(self, key: tuple[str, int], now_ms: int) -> None:
        """A timer asked for by SetTimer is due. A timer that is no longer wanted is harmless."""
        kind, number = key
        if kind == "presence":
            self._send_heartbeat(now_ms)
            return
        connection = self._links.get(LinkId(number))
        if connection is None:
            return
        session = connection.session
        if kind == "probe" and connection.probe:
            self._end(connection, TimedOut(f"no answer within {limits.PROBE_MS} ms"), now_ms)
        elif kind == "handshake" and not session.started:
            if session.peer is not None or session.state == "introducing":  # It is this node that takes its time.
                self._actions.append(SetTimer(key, now_ms + limits.HANDSHAKE_MS))
            else:
                self._end(connection, TimedOut(f"no valid Hello within {limits.HANDSHAKE_MS} ms"), now_ms)
        elif kind == "checkpoint":
            connection.checkpoint_timer_fired()

    def request_digest(self, link: LinkId, now_ms: int) -> None:
        """Ask the peer for its digest. The answer comes as a Tell of kind "digest". The link must be open.

        Raises:
            LocalProtocolError: the link is not open, or an earlier request is not answered yet.
        """
        connection = self._links.get(link)
        if connection is None or not connection.session.started:
            raise LocalProtocolError(f"link {link} is not open")
        if connection.digest_asked:
            raise LocalProtocolError(f"{connection.session.name} was asked for its digest and has not answered yet")
        self._digests += 1
        connection.digest_asked = self._digests
        connection.session.send(DigestRequest(self._digests))

    def peers(self) -> list[PeerStatus]:
        """Return all links, in the order they were opened."""
        return [connection.status() for connection in self._links.values()]

    # --- Changes -----------------------------------------------------------------------------------------------------

    def _take_changes(self, connection: Link, changes: Changes) -> None:
        session = connection.session
        assert session.receiving is not None
        session.receiving.receive(changes)
        if changes.header is not None:
            session.learn(changes.header.vector)
            self._doubt(connection, [changes.header.vector.entry(self._state.site)])

    def _syncing_links(self) -> list[LinkId]:
        return [
            connection.id
            for connection in self._links.values()
            if connection.session.started and connection.session.sending
        ]

    def _send_marker(self, link: LinkId, marker: Marker) -> None:
        sending = self._links[link].session.sending
        assert sending is not None
        sending.mark(marker, self._state.version)

    def _take_markers(self, connection: Link, now_ms: int) -> None:
        """Handle the markers before which everything is stored; end the link when one may not be (E1)."""
        receiving, sending = connection.session.receiving, connection.session.sending
        assert receiving is not None and sending is not None
        try:
            for marker in receiving.take_markers():
                if isinstance(marker, Barrier):
                    sending.check_replies()
                self._barriers.take(connection.id, marker)
        except SyncError as error:
            self._end(connection, error, now_ms)

    def _poke(self, *, but: LinkId | None = None, quarantined: bool = False) -> None:
        """Keep E5: have what is new read for every link but the one that brought it."""
        for connection in self._links.values():
            sending = connection.session.sending
            if sending is None or not connection.session.started or connection.id == but:
                continue
            if quarantined:
                sending.want_quarantined()
            sending.want(self._state.version)

    def _send(self, connection: Link, action: Callable[[SendingHalf], None], now_ms: int) -> bool:
        """Let the sending half do something; end the link and return False when that fails (E1)."""
        try:
            connection.send(action, now_ms)
        except SyncError as error:
            self._end(connection, error, now_ms)
            return False
        return True

    def _refresh(self, state: LocalState) -> None:
        """Take in a state of the database. Readings of several threads may come out of their order."""
        if state.site != self._state.site:
            return
        newest = state if state.version >= self._state.version else self._state
        vector = self._state.vector.merged(state.vector)
        self._state = LocalState(state.site, newest.version, newest.lineage, vector, newest.schema)

    def _reidentify(self, connection: Link, claim: Entry, now_ms: int) -> None:
        """Keep E4: this file is an older copy of one that has written on."""
        own = self._state
        text = (
            f"{connection.session.name} knows this node at version {claim.version}, which is not in this file's "
            f"history up to version {own.version}: the file is an older copy, and takes a new site id"
        )
        self._reidentifying = True
        for other in list(self._links.values()):
            self._end(other, _identity_changes(), now_ms)
        self._actions.append(Notify("identity", text))
        self._actions.append(Reidentify(text))

    # --- Presence ----------------------------------------------------------------------------------------------------

    def _time_presence(self, now_ms: int) -> None:
        if not self._presence_timed:
            self._presence_timed = True
            self._actions.append(SetTimer(("presence", 0), now_ms + limits.PRESENCE_MS))

    def _send_heartbeat(self, now_ms: int) -> None:
        """Keep E6, and tell every peer who is alive."""
        self._presence_timed = False
        self._board.forget_old(now_ms)
        for connection in list(self._links.values()):
            if not connection.session.started:
                continue
            if now_ms - connection.session.received_at_ms >= limits.SILENCE_MS:
                self._end(connection, TimedOut(f"nothing came for {limits.SILENCE_MS // 1000} s"), now_ms)
            elif connection.is_stuck(now_ms):
                self._end(connection, TimedOut(f"stored nothing for {limits.ACK_MS // 60_000} minutes"), now_ms)
            else:
                self._send_presence(connection, now_ms)
        if self._links:
            self._time_presence(now_ms)

    def _send_presence(self, connection: Link, now_ms: int, *, probe: int = 0, answer: int = 0) -> None:
        session = connection.session
        self._heartbeats_sent += 1
        if session.purpose == "sync":
            heartbeats = self._board.tell(but=session.peer_site, now_ms=now_ms)
            session.send_presence(Presence(self._heartbeats_sent, probe, answer, heartbeats, self._state.vector))
        else:
            session.send_presence(Presence(self._heartbeats_sent, probe, answer, {}, None))

    def _take_presence(self, connection: Link, presence: Presence, now_ms: int) -> None:
        session = connection.session
        if presence.probe:
            self._send_presence(connection, now_ms, answer=presence.probe)
        if presence.answer and presence.answer == connection.probe:
            self._probe_answered(connection, now_ms)
        if session.purpose != "sync" or not session.started:
            return
        own = self._state.site
        news = self._board.note_all(presence.heartbeats, own_site=own, now_ms=now_ms)
        self._note_heartbeats(session.peer_site, Heartbeat(session.incarnation, presence.count, now_ms), news)
        if presence.vector is not None:
            session.learn(presence.vector)
            self._doubt(connection, [presence.vector.entry(own)])

    def _note_heartbeats(self, site: SiteId, direct: Heartbeat, news: dict[SiteId, Heartbeat]) -> None:
        """Take in news that a peer brought of itself, and pass on all news that came with them."""
        if self._board.note(site, direct):
            news[site] = direct
        if news:
            self._actions.append(
                RecordHeartbeats(
                    {site: (heartbeats.incarnation, heartbeats.at_ms) for site, heartbeats in news.items()}
                )
            )

    # --- Ends --------------------------------------------------------------------------------------------------------

    def _end(self, connection: Link, error: SyncError, now_ms: int) -> None:
        """Keep E1: say why, close the link and forget it."""
        session = connection.session
        session.say_goodbye(Goodbye(error.close_code, str(error), error.retryable))
        self._actions.append(Close(session.link, error.close_code, str(error), error.retryable))
        if session.started and (error.close_code == CloseCode.PROTOCOL or not error.retryable):
            connection.tell("refused", str(error))
        self._drop(connection, str(error), now_ms)

    def _drop(self, connection: Link, reason: str, now_ms: int) -> None:
        session = connection.session
        del self._links[session.link]
        session.state = "closed"
        if session.sending is not None:
            self._actions.append(EndRead(session.link))
        connection.tell("disconnected" if session.started else "refused", reason)
        self._barriers.closed(session.link)
        for other in list(self._links.values()):
            if other.waits_for == session.link:
                other.waits_for = None
                self._proceed(other, now_ms)


def _newcomer_wins(own_site: SiteId, older: Session, newcomer: Session) -> bool:
    """Decide between two links to one and the same process, alike on both ends.

    When one side dialled both it has given up the older one: it would not have said Hello on the newer one otherwise
    (see `_meet`). When each side dialled one, the link that the smaller site dialled stays.
    """
    if older.dialed == newcomer.dialed:
        return not newcomer.dialed
    return newcomer.dialed == (own_site < newcomer.peer_site)


def _identity_changes() -> SyncError:
    return SyncError("this node is taking a new site id, dial it again", close_code=CloseCode.IDENTITY)
