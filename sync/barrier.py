"""The barrier: a node asks whether everybody it can reach has taken in what it has committed, and learns when it has
taken in what all of them had committed before. With it a run may begin work without being overtaken by an older claim.

**Markers** (the messages Barrier and BarrierReply) travel in the stream of changes. A node sends a marker on a link
only after it has sent there all that was committed here when it wanted to (sync/transfer.py), and handles one only
after it has stored all that came before it on that link. So on no hop does a marker overtake changes.

**Echo.** The node that wants to know sends a Barrier with a new id on all its open links. A node that gets an id for
the first time remembers the link as the id's parent and passes the Barrier on to its other links. When all of these
have replied, it replies to the parent. A node that has seen the id before replies at once. When all links of the first
node have replied, the barrier is done. Without links it is done at once.

**Why that is enough.** Let X be any node that was reached, C the claim that the barrier's node had committed before it
began, and D a claim of X on the same event.

1. X handles its first Barrier after it has stored C: C travelled before the Barrier on each hop.
2. If X made D before it stored C, D is older there than C is. X sends its reply after D, its parent stores D before it
   handles the reply and sends its own after that, and so on: D is merged at the barrier's node when the barrier ends.
   Both nodes then know both claims (X has C, by 1), and the ownership rule gives them the same owner.
3. If X would make D after it stored C, it sees the event reserved, and there is no D.

So of several nodes that claim, each begin a barrier, and look again who owns the event when it is done, one begins
work. This holds for nodes that stay connected, over links that stand while the barrier runs.

**Links that end.** A link that ends while it owes a reply counts as a reply that is not *whole*: the node behind it
may be reachable another way. A barrier with such a reply begins again, with a new id, on the links that are left. What
nobody can reach then is offline: nothing is promised about it. Whoever loses the parent of an id forgets the id.

Version vectors, which the nodes tell each other anyway, would not do: they move at checkpoints, which wait for rows
to travel with, and say nothing about what a third node has not passed on yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from leasemesh.sync import limits
from leasemesh.sync.actions import LinkId
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.messages import Barrier, BarrierReply, Marker


@dataclass(slots=True)
class _Echo:
    """A barrier that has passed here and is not answered yet.

    Attributes:
        parent: the link that wants the answer. None for a barrier of this node.
        token: what this node calls its barrier.
        waiting: the links that have not replied, in order.
        whole: no link has ended while it owed a reply, as far as is known here.
    """

    parent: LinkId | None
    token: int
    waiting: dict[LinkId, None]
    whole: bool = True


class Barriers:
    """All barriers of one node: its own, and those of others that pass through.

    Args:
        links: returns the links that are open for syncing.
        send: sends a marker on a link, after everything that is committed here now.
        done: called with the token of a barrier of this node that is done.
        random_bytes: source of ids.
    """

    def __init__(
        self,
        *,
        links: Callable[[], list[LinkId]],
        send: Callable[[LinkId, Marker], None],
        done: Callable[[int], None],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._links = links
        self._send = send
        self._done = done
        self._random_bytes = random_bytes
        self._echoes: dict[bytes, _Echo] = {}
        self._owed: Counter[LinkId] = Counter()
        # Ids that are over, oldest first: a request for one may still be on its way over another link.
        self._over: dict[bytes, None] = {}

    def begin(self, token: int) -> None:
        """Begin a barrier of this node. `done` may be called before this returns."""
        identifier = self._random_bytes(limits.BARRIER_BYTES)
        self._pass_on(identifier, _Echo(None, token, dict.fromkeys(self._links())))

    def take(self, link: LinkId, marker: Marker) -> None:
        """Handle a marker. Everything that came before it on its link is stored.

        Raises:
            RemoteProtocolError: the peer has asked for more than BARRIERS_MAX that are not answered.
        """
        if isinstance(marker, Barrier):
            self._requested(link, marker.identifier)
        else:
            self._replied(link, marker)

    def closed(self, link: LinkId) -> None:
        """A link has ended. It is not among the open links any more."""
        for identifier, echo in list(self._echoes.items()):
            if echo.parent == link:
                self._forget(identifier)
            elif link in echo.waiting:
                self._settle(identifier, echo, link, whole=False)
        del self._owed[link]

    def _requested(self, link: LinkId, identifier: bytes) -> None:
        if identifier in self._echoes or identifier in self._over:
            self._send(link, BarrierReply(identifier, whole=True))
            return
        if self._owed[link] >= limits.BARRIERS_MAX:
            raise RemoteProtocolError(f"Barrier: more than {limits.BARRIERS_MAX} at once")
        self._owed[link] += 1
        self._pass_on(identifier, _Echo(link, 0, {other: None for other in self._links() if other != link}))

    def _replied(self, link: LinkId, reply: BarrierReply) -> None:
        echo = self._echoes.get(reply.identifier)
        # A reply to what was forgotten, because its parent is gone, is no fault of the peer.
        if echo is not None and link in echo.waiting:
            self._settle(reply.identifier, echo, link, whole=reply.whole)

    def _pass_on(self, identifier: bytes, echo: _Echo) -> None:
        self._echoes[identifier] = echo
        for link in echo.waiting:
            self._send(link, Barrier(identifier))
        self._finish_if_answered(identifier, echo)

    def _settle(self, identifier: bytes, echo: _Echo, link: LinkId, *, whole: bool) -> None:
        del echo.waiting[link]
        echo.whole = echo.whole and whole
        self._finish_if_answered(identifier, echo)

    def _finish_if_answered(self, identifier: bytes, echo: _Echo) -> None:
        if echo.waiting:
            return
        self._forget(identifier)
        if echo.parent is not None:
            self._send(echo.parent, BarrierReply(identifier, echo.whole))
        elif echo.whole:
            self._done(echo.token)
        else:
            self.begin(echo.token)

    def _forget(self, identifier: bytes) -> None:
        echo = self._echoes.pop(identifier)
        if echo.parent is not None:
            self._owed[echo.parent] -= 1
        self._over[identifier] = None
        if len(self._over) > limits.BARRIERS_REMEMBERED:
            del self._over[next(iter(self._over))]
