"""The two halves of an open session: what goes to the peer, and what comes from it.

Both move the version vector only at a checkpoint, the end of a transfer. Before it, "the peer has everything of mine up
to version v" would be wrong in both directions: a cell that was overwritten after v is not in the stream at v any more,
it comes later, with its newest value. Until the last piece is stored there is only a resume position, which is good for
continuing with the same sender and says nothing to a third node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from leasemesh.sync import limits, wire
from leasemesh.sync.actions import Action, Apply, BeginRead, ContinueRead, LinkId, Send
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.messages import Ack, Barrier, BarrierReply, Changes, Marker
from leasemesh.sync.ports import Incoming, ReadRequest, ReadResult, TransferHeader
from leasemesh.sync.version_vector import SiteId, VersionVector


class SendingHalf:
    """Reads what the peer may lack and sends it, at most a window ahead of the peer's acknowledgements.

    One transfer after another, and a long one out of several snapshots, begun anew at a version's border, so no slow
    peer holds one for long. A transfer is begun when something may be there to send (`want`), and is a checkpoint
    without rows when it turns out that the peer has it all. Such a checkpoint is worth a message only now and then:
    `checkpoint_due` tells the owner to call `want_checkpoint` some time later.

    Attributes:
        peer_vector: what the peer is known to have.
        read_upto: this node's version up to which everything was read for the peer.
        allowed: False: send nothing yet.
        checkpoint_due: a checkpoint was left out.
        rows, rows_total: progress of the transfer that is under way, or of the last one.
        transfers: how many transfers were acknowledged whole.
        messages_acknowledged: how many messages the peer has stored.
    """

    def __init__(self, link: LinkId, actions: list[Action], *, peer_vector: VersionVector, compress: bool) -> None:
        self.peer_vector = peer_vector
        self.read_upto = 0
        self.allowed = False
        self.checkpoint_due = False
        self.rows = 0
        self.rows_total = 0
        self.transfers = 0
        self._link = link
        self._actions = actions
        self._compress = compress
        self._wanted_version = 0
        self._read_wanted = False
        # The first transfer ends with its checkpoint, rows or not: that is how the peer learns that it has caught up.
        self._checkpoint_wanted = True
        self._awaiting_read = False
        self._in_transfer = False
        self._header_open = False  # The peer was sent a header, and not the end of that transfer yet.
        self._snapshot_bytes = 0
        self._kept_result: ReadResult | None = None
        self._quarantined_upto = 0
        # For each message its cost, and its transfer's header if it is the last one.
        self._unacknowledged: deque[tuple[int, TransferHeader | None]] = deque()
        self._unacknowledged_bytes = 0
        self._messages_sent = 0
        self.messages_acknowledged = 0
        self._reads_begun = 0
        # Each with the version that must have been sent before it, and the number of the read that must be over.
        self._markers: deque[tuple[int, int, Marker]] = deque()
        self._replies_waiting = 0

    def want(self, version: int) -> None:
        """This node has reached `version`: read what the peer may lack of it, unless that was done already."""
        self._wanted_version = max(self._wanted_version, version)
        self.pump()

    def want_quarantined(self) -> None:
        """There are new quarantined rows, which no version tells of."""
        self._read_wanted = True
        self.pump()

    def want_checkpoint(self) -> None:
        """Send a checkpoint if it tells the peer anything, even without rows."""
        self.checkpoint_due = False
        self._checkpoint_wanted = True
        self._read_wanted = True
        self.pump()

    def mark(self, marker: Marker, version: int) -> None:
        """Send a marker after all that this node had at `version`, and all that is to be read for other reasons."""
        self._markers.append((version, self._reads_begun + self._read_wanted, marker))
        self._replies_waiting += isinstance(marker, BarrierReply)
        self.want(version)

    def check_replies(self) -> None:
        """Make sure that the peer may ask for another barrier: a reply waits for changes that the peer has to store.

        Raises:
            RemoteProtocolError: it has asked for more than anybody needs, and stores nothing.
        """
        if self._replies_waiting >= limits.BARRIERS_MAX:
            raise RemoteProtocolError(f"Barrier: more than {limits.BARRIERS_MAX} at once")

    def _send_markers(self) -> None:
        """Send the markers whose turn it is. Never within a transfer, where they would belong to none."""
        while self._markers and self.allowed and not self._in_transfer and not self._header_open:
            version, read, marker = self._markers[0]
            if version > self.read_upto or read > self._reads_begun:
                return
            self._markers.popleft()
            self._replies_waiting -= isinstance(marker, BarrierReply)
            self._actions.append(Send(self._link, wire.encode(marker)))

    def allow(self, allowed: bool) -> None:
        """Let messages go, or hold them back."""
        self.allowed = allowed
        if allowed and self._kept_result is not None:
            result, self._kept_result = self._kept_result, None
            self.read_done(result)
        else:
            self.pump()

    def pump(self) -> None:
        """Send the markers that are due, and ask for the next piece if one is."""
        self._send_markers()
        if self._awaiting_read or not self.allowed or self._unacknowledged_bytes >= limits.WINDOW_BYTES:
            return
        if self._in_transfer:
            self._actions.append(ContinueRead(self._link, limits.ROWS_BYTES_MAX))
        elif self._read_wanted or self._wanted_version > self.read_upto:
            # What becomes due from here on may not be in the snapshot any more.
            self._read_wanted = self.checkpoint_due = False
            self._in_transfer = True
            self._reads_begun += 1
            request = ReadRequest(self.read_upto, self.peer_vector, self._quarantined_upto)
            self._actions.append(BeginRead(self._link, request, limits.ROWS_BYTES_MAX))
        else:
            return
        self._awaiting_read = True

    def read_done(self, result: ReadResult) -> None:
        """Send a piece.

        Raises:
            LocalProtocolError: a row is larger than peers accept.
        """
        if not self.allowed:
            self._kept_result = result
            return
        self._awaiting_read = False
        if result.last:
            self._in_transfer = False
            self.read_upto = result.header.entry.version
            self._quarantined_upto = result.quarantined_upto
        if self._says_something(result):
            self._send(result)
        # Quarantined rows alone are left: they have no border to begin anew from, and would all be sent again.
        has_border = result.whole and result.upto != result.header.entry
        if has_border and self._snapshot_bytes >= limits.SNAPSHOT_BYTES:
            self.read_upto = result.upto.version
            self._in_transfer = False
            self._read_wanted = True
        self.pump()

    def _says_something(self, result: ReadResult) -> bool:
        if result.rows or not result.first or not result.last or self._header_open:
            return True
        if not self._checkpoint_wanted:
            self.checkpoint_due = True
            return False
        self._checkpoint_wanted = False
        return self._messages_sent == 0 or not self.peer_vector.covers(result.header.vector)

    def _send(self, result: ReadResult) -> None:
        if result.first:
            self.rows = self.rows if self._header_open else 0
            self.rows_total = self.rows + result.header.rows_estimate
            self._snapshot_bytes = 0
        message = Changes(result.header if result.first else None, result.rows, result.upto, result.whole, result.last)
        data, cost = wire.encode_changes(message, compress=self._compress)
        self.rows += len(result.rows)
        self._header_open = not result.last
        self._snapshot_bytes += cost
        if result.last:
            self._checkpoint_wanted = False
        self._unacknowledged.append((cost, result.header if result.last else None))
        self._unacknowledged_bytes += cost
        self._messages_sent += 1
        self._actions.append(Send(self._link, data))

    @property
    def waits_for_ack(self) -> bool:
        """Something was sent that the peer has not stored yet."""
        return bool(self._unacknowledged)

    def acknowledged(self, ack: Ack) -> bool:
        """Take an acknowledgement. Return whether it completed a transfer.

        Raises:
            RemoteProtocolError: it is for messages that were never sent, or not a new one.
        """
        if not self.messages_acknowledged < ack.messages <= self._messages_sent:
            raise RemoteProtocolError(
                f"Ack: of message {ack.messages}, but {self._messages_sent} were sent and "
                f"{self.messages_acknowledged} acknowledged"
            )
        completed = False
        while self.messages_acknowledged < ack.messages:
            cost, header = self._unacknowledged.popleft()
            self._unacknowledged_bytes -= cost
            self.messages_acknowledged += 1
            if header is not None:
                self.peer_vector = self.peer_vector.merged(header.vector)
                self.transfers += 1
                completed = True
        self.pump()
        return completed


class ReceivingHalf:
    """Checks what comes in the context of its transfer, and has it applied, one piece at a time.

    Attributes:
        rows, rows_total: progress of the transfer that is being applied, or of the last one.
        transfers: how many transfers were applied whole.
        allowed: False: apply nothing yet.
    """

    def __init__(self, link: LinkId, actions: list[Action], *, site: SiteId, own_version: Callable[[], int]) -> None:
        self.rows = 0
        self.rows_total = 0
        self.transfers = 0
        self.allowed = False
        self._link = link
        self._actions = actions
        self._site = site
        self._own_version = own_version
        self._header: TransferHeader | None = None  # of the transfer that has begun to come and has not ended
        self._is_whole = True  # its last message ended at a version's border
        self._row_version = 0  # of its last row
        self._border = 0  # its last `upto`
        self._queue: deque[tuple[Incoming, int]] = deque()
        self._queued_bytes = 0
        self._under_way: Incoming | None = None
        self._pieces_under_way = 0
        self._messages_received = 0
        self._messages_applied = 0
        self._applied_in_part = False  # the last transfer, so far
        self._markers: deque[tuple[int, Marker]] = deque()  # each with the number of messages before it

    def receive(self, changes: Changes) -> None:
        """Take a message in.

        Raises:
            RemoteProtocolError: it does not fit its transfer, or is more than the window allows.
        """
        # The sender counts everything that we have not acknowledged, which is at least what we have queued.
        if self._queued_bytes >= limits.WINDOW_BYTES:
            raise RemoteProtocolError(f"Changes: more than {limits.WINDOW_BYTES} bytes without waiting for an Ack")
        header = self._begin(changes)
        self._check(changes, header)
        incoming = Incoming(
            self._site, header, changes.header is not None, changes.rows, changes.upto, changes.whole, changes.last
        )
        self._is_whole = changes.whole
        if changes.last:
            self._header = None
        self._queue.append((incoming, changes.cost))
        self._queued_bytes += changes.cost
        self._messages_received += 1
        self.pump()

    def mark(self, marker: Marker) -> None:
        """Take a marker in. `take_markers` gives it out when all that came before it is stored.

        Raises:
            RemoteProtocolError: it comes within a transfer, or there are more than anybody needs.
        """
        kind = "Barrier" if isinstance(marker, Barrier) else "BarrierReply"
        if self._header is not None:
            raise RemoteProtocolError(f"{kind}: within a transfer")
        if len(self._markers) >= 2 * limits.BARRIERS_MAX:
            raise RemoteProtocolError(f"{kind}: more than {limits.BARRIERS_MAX} at once")
        self._markers.append((self._messages_received, marker))

    def take_markers(self) -> list[Marker]:
        """Return the markers whose turn has come, in order, and forget them."""
        taken = []
        while self._markers and self.allowed and self._markers[0][0] <= self._messages_applied:
            taken.append(self._markers.popleft()[1])
        return taken

    def _begin(self, changes: Changes) -> TransferHeader:
        if changes.header is None:
            if self._header is None:
                raise RemoteProtocolError("Changes: a transfer that did not begin with a header")
            return self._header
        if self._header is not None and not self._is_whole:
            raise RemoteProtocolError("Changes: a transfer begins anew in the middle of a version")
        header = changes.header
        if header.vector.entry(self._site) != header.entry and header.entry.version > 0:
            raise RemoteProtocolError("Changes: the header's version vector does not include its own entry")
        if header.entry.version > self._own_version() + limits.VERSION_JUMP_MAX:
            raise RemoteProtocolError(
                f"Changes: version {header.entry.version} is more than {limits.VERSION_JUMP_MAX} ahead of this node"
            )
        self._header = header
        self._row_version = self._border = 0
        return header

    def _check(self, changes: Changes, header: TransferHeader) -> None:
        upto = changes.upto.version
        if not self._border <= upto <= header.entry.version or (changes.last and changes.upto != header.entry):
            raise RemoteProtocolError("Changes: delivered up to a point that is not of this transfer")
        if changes.rows:
            first, last = changes.rows[0][5], changes.rows[-1][5]
            if first < self._row_version or last > (upto if changes.whole else header.entry.version):
                raise RemoteProtocolError("Changes: rows out of the order of their transfer")
            self._row_version = last
        elif not changes.whole:
            raise RemoteProtocolError("Changes: a piece of a version without rows")
        self._border = upto

    def pump(self) -> None:
        """Have what is queued applied if nothing is under way.

        Whole pieces of one transfer that have queued up are applied as one: while the database is slower than the
        link, larger transactions cost it less (a fifth of the time for a long catch-up), and a link that is slow
        shows each piece at once.
        """
        if not self._queue or not self.allowed or self._under_way is not None:
            return
        pieces = [self._queue[0][0]]
        for following, _ in islice(self._queue, 1, None):
            if not pieces[-1].whole or not following.whole or following.first:
                break
            pieces.append(following)
        self._under_way = _joined(pieces)
        self._pieces_under_way = len(pieces)
        self._actions.append(Apply(self._link, self._under_way))

    def allow(self, allowed: bool) -> None:
        """Let pieces be applied, or hold them back."""
        self.allowed = allowed
        self.pump()

    def applied(self, rows: int) -> Incoming:
        """What was under way is stored: acknowledge it, go on with what follows, and return it."""
        incoming = self._under_way
        assert incoming is not None, "nothing is being applied"
        for _ in range(self._pieces_under_way):
            self._queued_bytes -= self._queue.popleft()[1]
        self._under_way = None
        self._messages_applied += self._pieces_under_way
        self._actions.append(Send(self._link, wire.encode(Ack(self._messages_applied))))
        if incoming.first:
            self.rows = self.rows if self._applied_in_part else 0
            self.rows_total = self.rows + incoming.header.rows_estimate
        self._applied_in_part = not incoming.last
        self.rows += rows
        self.transfers += incoming.last
        self.pump()
        return incoming


def _joined(pieces: list[Incoming]) -> Incoming:
    if len(pieces) == 1:
        return pieces[0]
    rows = [row for piece in pieces for row in piece.rows]
    return replace(pieces[-1], first=pieces[0].first, rows=rows)
