"""One link's state machine: which message may come when, the opening, and the two halves of an open session.

TRANSITIONS is the document: for each role and state it lists what may happen and where it leads. Whatever it does not
list is a RemoteProtocolError. Two rules stand behind it:

1. A listener says its own Hello only after the dialler's was verified ("answering" may last, while the engine makes
sure
   that the peer may join).
2. Rows, barriers, presence and digests flow in the last two states only, rows and barriers only in "open".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from leasemesh.sync import limits, wire
from leasemesh.sync.actions import Action, LinkId, Send
from leasemesh.sync.errors import RemoteProtocolError
from leasemesh.sync.messages import Goodbye, Greeting, Hello, Message, Presence, Purpose, Role, SealedHello
from leasemesh.sync.ports import LocalState
from leasemesh.sync.transfer import ReceivingHalf, SendingHalf
from leasemesh.sync.version_vector import NO_ERA, Era, Resume, SiteId, VersionVector

State = Literal["greeting", "introducing", "hello", "answering", "open", "inspecting", "closed"]

# What both roles may do once both have said Hello.
_ESTABLISHED: dict[State, dict[str, State]] = {
    "open": {
        "Changes": "open",
        "Ack": "open",
        "Presence": "open",
        "DigestRequest": "open",
        "Digest": "open",
        "Barrier": "open",
        "BarrierReply": "open",
        "Goodbye": "closed",
    },
    "inspecting": {
        "Presence": "inspecting",
        "DigestRequest": "inspecting",
        "Digest": "inspecting",
        "Goodbye": "closed",
    },
    "closed": {},
}

# Role -> state -> what the peer sends (or "own Hello", sent by this side) -> next state.
TRANSITIONS: dict[Role, dict[State, dict[str, State]]] = {
    "dialer": {
        "greeting": {"Greeting": "introducing", "Goodbye": "closed"},
        "introducing": {"own Hello": "hello", "Goodbye": "closed"},
        "hello": {"Hello to sync": "open", "Hello to inspect": "inspecting", "Goodbye": "closed"},
        **_ESTABLISHED,
    },
    "listener": {
        "greeting": {"Greeting": "hello", "Goodbye": "closed"},
        "hello": {"Hello to sync": "answering", "Hello to inspect": "answering", "Goodbye": "closed"},
        "answering": {"own Hello to sync": "open", "own Hello to inspect": "inspecting", "Goodbye": "closed"},
        **_ESTABLISHED,
    },
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a node is besides its database.

    Attributes:
        workspace: the workspace's id.
        name: the node's name for people.
        incarnation: a random token of 8 bytes, new for each start of the process.
        token: the workspace's shared secret. None: links need no proof. Never sent, never shown.

    Raises:
        ValueError: one of them cannot be said on the wire. The text says which.
    """

    workspace: str
    name: str
    incarnation: Era
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for what, text in (("workspace", self.workspace), ("name", self.name)):
            if not 1 <= len(text.encode()) <= limits.NAME_BYTES_MAX or not text.isprintable():
                raise ValueError(f"{what} {text!r}: needs printable text of 1 to {limits.NAME_BYTES_MAX} bytes")
        if len(self.incarnation) != limits.INCARNATION_BYTES:
            raise ValueError(f"incarnation: needs {limits.INCARNATION_BYTES} bytes, not {len(self.incarnation)}")
        if self.token == "":
            raise ValueError("token: an empty one protects nothing; leave it out")


class Session:
    """One link.

    Attributes:
        link, role, compress: as given.
        purpose: what the link is for. A listener learns it from the peer's Hello.
        state: where TRANSITIONS has got to.
        peer: what the peer said of itself, once that was verified.
        peer_site: the peer's site. A mere claim as long as `peer` is None. Empty before its Greeting.
        sending, receiving: the halves, once the peer is verified. They are still held back until `start`.
        started: changes flow (or digests, on a link to inspect): nothing stands against the peer any more.
        peer_version: the peer's own version as far as it has told.
        received_at_ms: when anything last came.
        nonce: of this side's Greeting.
    """

    def __init__(
        self,
        link: LinkId,
        actions: list[Action],
        *,
        role: Role,
        purpose: Purpose,
        compress: bool,
        config: EngineConfig,
        local: Callable[[], LocalState],
        nonce: bytes,
        now_ms: int,
    ) -> None:
        self.link = link
        self.role: Role = role
        self.purpose: Purpose = purpose
        self.compress = compress
        self.state: State = "greeting"
        self.peer: Hello | None = None
        self.peer_site = SiteId(b"")
        self.sending: SendingHalf | None = None
        self.receiving: ReceivingHalf | None = None
        self.started = False
        self.peer_version = 0
        self.received_at_ms = now_ms
        self.nonce = nonce
        self._actions = actions
        self._config = config
        self._local = local
        self._greeting = Greeting(nonce, local().site)
        self._peer_greeting: Greeting | None = None
        self._told_vector: VersionVector | None = None

    @property
    def dialed(self) -> bool:
        """This side dialled."""
        return self.role == "dialer"

    @property
    def name(self) -> str:
        """The peer's name. Something to call it by as long as it is not known."""
        if self.peer is not None:
            return self.peer.name
        return self.peer_site.hex()[:8] or f"link {self.link}"

    @property
    def incarnation(self) -> Era:
        """The peer's incarnation. Empty when it is not known."""
        return self.peer.incarnation if self.peer is not None else NO_ERA

    # --- Opening -----------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Send the Greeting."""
        self.send(self._greeting)

    def receive(self, data: bytes, now_ms: int) -> Message | Hello:
        """Decode a message, check that it may come now, and take in what belongs to the opening.

        A Hello is returned opened, never sealed.

        Raises:
            RemoteProtocolError: it is malformed, not allowed now, or (as TokenRefused) without a valid proof.
        """
        message = wire.decode(data)
        received: Message | Hello = message
        if isinstance(message, SealedHello) and self.state == "hello":
            received = self._open_hello(message)
        self._advance(_event(received))
        self.received_at_ms = now_ms
        if isinstance(received, Greeting):
            self._peer_greeting = received
            self.peer_site = received.site
        elif isinstance(received, Hello):
            self._accept(received)
        return received

    def introduce(self, resume: Resume) -> None:
        """Say Hello. `resume` is how far an unfinished transfer from the peer came."""
        local = self._local()
        hello = Hello(
            self._config.workspace,
            self._config.name,
            self._config.incarnation,
            self.purpose,
            local.schema,
            local.vector,
            resume,
        )
        dialer, listener = self._greetings()
        self._told_vector = local.vector
        self._advance("own Hello" if self.dialed else f"own Hello to {self.purpose}")
        self.send(wire.seal_hello(hello, token=self._config.token, role=self.role, dialer=dialer, listener=listener))

    def start(self) -> None:
        """Let changes flow. Both sides have said Hello, and nothing stands against the peer."""
        assert self.peer is not None and self.state in ("open", "inspecting")
        self.started = True
        if self.sending is not None and self.receiving is not None:
            own = self._local().site
            self.sending.read_upto = max(self.peer.vector.entry(own).version, self.peer.resume.version)
            self.sending.allow(True)
            self.receiving.allow(True)
            self.sending.want_checkpoint()

    def _open_hello(self, sealed: SealedHello) -> Hello:
        dialer, listener = self._greetings()
        peer_role: Role = "listener" if self.dialed else "dialer"
        hello = wire.open_hello(sealed, token=self._config.token, role=peer_role, dialer=dialer, listener=listener)
        if self.dialed and hello.purpose != self.purpose:
            raise RemoteProtocolError(f"Hello: the peer answers a link to {self.purpose} with one to {hello.purpose}")
        return hello

    def _accept(self, hello: Hello) -> None:
        self.peer = hello
        self.purpose = hello.purpose
        self.learn(hello.vector)
        if hello.purpose == "sync":
            self.sending = SendingHalf(self.link, self._actions, peer_vector=hello.vector, compress=self.compress)
            self.receiving = ReceivingHalf(
                self.link, self._actions, site=self.peer_site, own_version=lambda: self._local().version
            )

    def _greetings(self) -> tuple[Greeting, Greeting]:
        """The dialler's and the listener's."""
        assert self._peer_greeting is not None
        pair = (self._greeting, self._peer_greeting)
        return pair if self.dialed else (pair[1], pair[0])

    def _advance(self, event: str) -> None:
        following = TRANSITIONS[self.role][self.state].get(event)
        if following is None:
            raise RemoteProtocolError(f"{event} is not allowed while the link is in the state {self.state!r}")
        self.state = following

    # --- Afterwards --------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message other than Changes."""
        self._actions.append(Send(self.link, wire.encode(message)))

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """Send the last message."""
        self.send(goodbye)
        self.state = "closed"

    def learn(self, vector: VersionVector) -> None:
        """Take in what the peer says that it includes."""
        self.peer_version = max(self.peer_version, vector.entry(self.peer_site).version)
        if self.sending is not None:
            self.sending.peer_vector = self.sending.peer_vector.merged(vector)

    def send_presence(self, presence: Presence) -> None:
        """Send a sign of life, with this node's version vector only if the peer has not been told it yet."""
        vector = presence.vector
        if vector == self._told_vector:
            vector = None
        if vector is not None:
            self._told_vector = vector
        self.send(Presence(presence.count, presence.probe, presence.answer, presence.heartbeats, vector))

    @property
    def ahead(self) -> int:
        """How many versions of this node the peer may still lack."""
        if self.sending is None:
            return 0
        local = self._local()
        return max(0, local.version - self.sending.peer_vector.entry(local.site).version)

    @property
    def behind(self) -> int:
        """How many versions of the peer this node still lacks, as far as it has told."""
        if self.receiving is None:
            return 0
        return max(0, self.peer_version - self._local().vector.entry(self.peer_site).version)


def _event(message: Message | Hello) -> str:
    if isinstance(message, Hello):
        return f"Hello to {message.purpose}"
    return "Hello" if isinstance(message, SealedHello) else type(message).__name__
