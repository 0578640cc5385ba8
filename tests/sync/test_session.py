"""One link: the table of transitions, the opening, and the flow of transfers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasemesh.sync import limits, wire
from leasemesh.sync.actions import Action, Apply, BeginRead, Close, ContinueRead, LinkId, Send
from leasemesh.sync.engine import EngineConfig
from leasemesh.sync.errors import CloseCode, LocalProtocolError, RemoteProtocolError, TokenRefused
from leasemesh.sync.messages import (
    Ack,
    Barrier,
    BarrierReply,
    Changes,
    DigestRequest,
    Goodbye,
    Greeting,
    Hello,
    Message,
    Presence,
    Purpose,
    SealedHello,
)
from leasemesh.sync.ports import Change, Incoming, LocalState, ReadResult, TransferHeader
from leasemesh.sync.session import TRANSITIONS, Session
from leasemesh.sync.transfer import ReceivingHalf, SendingHalf
from leasemesh.sync.version_vector import FROM_START, START, Entry, Era, Lineage, Resume, SiteId, VersionVector
from tests.sync.helpers import WORKSPACE, World, keys, site_id

LINK = LinkId(1)
OWN, PEER = site_id(1), site_id(2)
ERA = Era(b"era")


def local_state(site: SiteId) -> LocalState:
    entry = Entry(5, ERA)
    return LocalState(site, 5, Lineage(((1, ERA),)), VersionVector({site: entry}), {"leasemesh": 1})


class SessionPair:
    """A dialler's and a listener's session; what one sends the other receives."""

    def __init__(
        self, *, dialer_token: str | None = None, listener_token: str | None = None, purpose: Purpose = "sync"
    ):
        self.actions: dict[str, list[Action]] = {"dialer": [], "listener": []}
        self.dialer = self._session("dialer", OWN, dialer_token, purpose)
        self.listener = self._session("listener", PEER, listener_token, "sync")

    def _session(self, role: Any, site: SiteId, token: str | None, purpose: Purpose) -> Session:
        config = EngineConfig(WORKSPACE, role, Era(role[:8].encode().ljust(8, b".")), token)
        return Session(
            LINK,
            self.actions[role],
            role=role,
            purpose=purpose,
            compress=True,
            config=config,
            local=lambda: local_state(site),
            nonce=role.encode().ljust(16, b"."),
            now_ms=0,
        )

    def pass_on(self, sender: str, now_ms: int = 1) -> list[Message | Hello]:
        """Hand everything that one side has sent to the other one; return it as the other one decoded it."""
        receiver = self.listener if sender == "dialer" else self.dialer
        sent = [action for action in self.actions[sender] if isinstance(action, Send)]
        self.actions[sender].clear()
        return [receiver.receive(action.data, now_ms) for action in sent]

    def greet(self) -> None:
        self.dialer.greet()
        self.listener.greet()
        self.pass_on("dialer")
        self.pass_on("listener")

    def open(self) -> None:
        self.greet()
        self.dialer.introduce(FROM_START)
        self.pass_on("dialer")
        self.listener.introduce(FROM_START)
        self.pass_on("listener")


# --- The table -------------------------------------------------------------------------------------------------------


def test_every_state_of_the_table_is_reached_and_every_target_is_a_state() -> None:
    for states in TRANSITIONS.values():
        reached = {"greeting"} | {target for row in states.values() for target in row.values()}
        assert reached == set(states)


def test_the_peer_may_say_goodbye_in_every_state_but_closed() -> None:
    for states in TRANSITIONS.values():
        for state, row in states.items():
            assert row.get("Goodbye") == (None if state == "closed" else "closed")


SAMPLES: dict[str, Message] = {
    "Greeting": Greeting(bytes(16), PEER),
    "Hello": SealedHello(b"", b""),
    "Changes": Changes(None, [], START, True, False),
    "Ack": Ack(1),
    "Presence": Presence(1, 0, 0, {}, None),
    "DigestRequest": DigestRequest(1),
    "Barrier": Barrier(bytes(16)),
    "BarrierReply": BarrierReply(bytes(16), True),
}


@pytest.mark.parametrize("role", ["dialer", "listener"])
@pytest.mark.parametrize("name", SAMPLES)
def test_what_the_table_does_not_list_is_refused_with_its_name_and_the_state(role: str, name: str) -> None:
    pair = SessionPair()
    session: Session = getattr(pair, role)
    for state, row in TRANSITIONS[session.role].items():
        if name in row or (name == "Hello" and state == "hello"):
            continue
        session.state = state
        with pytest.raises(RemoteProtocolError, match=f"{name} is not allowed while .* '{state}'"):
            session.receive(wire.encode(SAMPLES[name]), 1)
        assert session.state == state


# --- The opening -----------------------------------------------------------------------------------------------------


def test_a_link_opens_by_greetings_then_the_diallers_hello_then_the_listeners() -> None:
    pair = SessionPair(dialer_token="secret", listener_token="secret")
    pair.greet()
    assert (pair.dialer.state, pair.listener.state) == ("introducing", "hello")
    assert pair.dialer.peer_site == PEER and pair.dialer.peer is None and pair.dialer.name == PEER.hex()[:8]
    pair.dialer.introduce(Resume(3, Entry(4, ERA)))
    (hello,) = pair.pass_on("dialer")
    assert isinstance(hello, Hello) and hello.resume == Resume(3, Entry(4, ERA))
    assert (pair.dialer.state, pair.listener.state) == ("hello", "answering")
    assert pair.listener.name == "dialer" and pair.listener.incarnation == b"dialer.."
    pair.listener.introduce(FROM_START)
    pair.pass_on("listener")
    assert (pair.dialer.state, pair.listener.state) == ("open", "open")
    assert pair.dialer.peer is not None and pair.dialer.peer.vector == {PEER: Entry(5, ERA)}


def test_a_listener_takes_over_the_purpose_of_the_dialler() -> None:
    pair = SessionPair(purpose="inspect")
    pair.open()
    assert (pair.dialer.state, pair.listener.state) == ("inspecting", "inspecting")
    assert pair.listener.purpose == "inspect" and pair.listener.sending is None
    assert (pair.listener.ahead, pair.listener.behind) == (0, 0)


def test_a_listener_that_answers_with_another_purpose_is_refused() -> None:
    pair = SessionPair(purpose="inspect")
    pair.greet()
    pair.dialer.introduce(FROM_START)
    pair.pass_on("dialer")
    pair.listener.purpose = "sync"
    pair.listener.introduce(FROM_START)
    with pytest.raises(RemoteProtocolError, match="answers a link to inspect with one to sync"):
        pair.pass_on("listener")


def test_both_sides_prove_that_they_hold_the_token() -> None:
    pair = SessionPair(dialer_token="wrong", listener_token="secret")
    pair.greet()
    pair.dialer.introduce(FROM_START)
    with pytest.raises(TokenRefused):
        pair.pass_on("dialer")
    pair = SessionPair(dialer_token="secret", listener_token="secret")
    pair.greet()
    pair.dialer.introduce(FROM_START)
    pair.pass_on("dialer")
    pair.listener._config = EngineConfig(WORKSPACE, "impostor", Era(bytes(8)), "guess")
    pair.listener.introduce(FROM_START)
    with pytest.raises(TokenRefused):
        pair.pass_on("listener")


def test_version_vector_is_told_again_only_when_it_has_changed() -> None:
    pair = SessionPair()
    pair.open()
    known = local_state(OWN).vector
    pair.dialer.send_presence(Presence(1, 0, 0, {}, known))
    grown = known.with_entry(PEER, Entry(1, ERA))
    pair.dialer.send_presence(Presence(2, 0, 0, {}, grown))
    pair.dialer.send_presence(Presence(3, 0, 0, {}, grown))
    told = [message.vector for message in pair.pass_on("dialer") if isinstance(message, Presence)]
    assert told == [None, grown, None]


@pytest.mark.parametrize(
    ("differently", "sentence"),
    [
        ({"workspace": ""}, "workspace ''"),
        ({"name": "n" * 256}, "name 'n"),
        ({"name": "a\nb"}, "name 'a"),
        ({"incarnation": b"short"}, "incarnation: needs 8 bytes, not 5"),
        ({"token": ""}, "an empty one protects nothing"),
    ],
)
def test_a_configuration_that_cannot_be_said_is_refused(differently: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {"workspace": "w", "name": "n", "incarnation": bytes(8), "token": None}
    with pytest.raises(ValueError, match=sentence):
        EngineConfig(**(good | differently))


def test_a_token_is_not_shown() -> None:
    assert "hunter2" not in repr(EngineConfig("w", "n", Era(bytes(8)), "hunter2"))


# --- The sending half ------------------------------------------------------------------------------------------------


def row(version: int, size: int = 10, table: str = "t") -> Change:
    return (table, b"k%d" % version, "c", bytes(size), 1, version, PEER, 1, 0)


def header(version: int) -> TransferHeader:
    return TransferHeader(Entry(version, ERA), VersionVector({OWN: Entry(version, ERA)}), 1)


def piece(version: int, *rows: Change, first: bool = True, last: bool = True, upto: int | None = None) -> ReadResult:
    entry = Entry(version if upto is None else upto, ERA)
    return ReadResult(header(version), first, list(rows), entry, True, last, 7)


@pytest.fixture
def actions() -> list[Action]:
    return []


@pytest.fixture
def sending(actions: list[Action]) -> SendingHalf:
    """A sending half that has sent the checkpoint of its first transfer, at version 1, and has its ack."""
    half = SendingHalf(LINK, actions, peer_vector=VersionVector(), compress=False)
    half.allow(True)
    half.want_checkpoint()
    half.read_done(piece(1))
    half.acknowledged(Ack(1))
    actions.clear()
    return half


def sent_changes(actions: list[Action]) -> list[Changes]:
    decoded = [wire.decode(action.data) for action in actions if isinstance(action, Send)]
    return [message for message in decoded if isinstance(message, Changes)]


def test_the_first_transfer_ends_with_its_checkpoint_even_without_rows(actions: list[Action]) -> None:
    half = SendingHalf(LINK, actions, peer_vector=header(1).vector, compress=False)
    half.allow(True)
    half.want_checkpoint()
    half.read_done(piece(1))
    assert [(message.rows, message.last) for message in sent_changes(actions)] == [([], True)]


def test_nothing_is_read_for_a_version_that_was_read_already(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want(1)
    assert actions == []
    sending.want(2)
    sending.want(2)
    (begin,) = actions
    assert isinstance(begin, BeginRead)
    assert begin.request.after == 1 and begin.request.quarantined_after == 7
    assert begin.request.peer_vector == {OWN: Entry(1, ERA)}, "the acknowledged checkpoint is known of the peer"


def test_a_version_that_comes_while_reading_is_read_afterwards(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want(2)
    sending.want(3)
    actions.clear()
    sending.read_done(piece(2, row(2)))
    assert [type(action) for action in actions] == [Send, BeginRead]
    sending.read_done(piece(3, row(3)))
    assert len([action for action in actions if isinstance(action, BeginRead)]) == 1


def test_a_sender_waits_when_the_window_is_full_and_goes_on_with_the_ack(
    sending: SendingHalf, actions: list[Action]
) -> None:
    sending.want(9)
    half_a_window = limits.WINDOW_BYTES // 2
    sending.read_done(piece(9, row(2, half_a_window), last=False, upto=2))
    assert isinstance(actions[-1], ContinueRead)
    actions.clear()
    sending.read_done(piece(9, row(3, half_a_window), first=False, last=False, upto=3))
    assert [type(action) for action in actions] == [Send], "the window is full, and nothing is read in advance"
    assert not sending.acknowledged(Ack(2))
    assert isinstance(actions[-1], ContinueRead)
    sending.read_done(piece(9, row(4), first=False))
    assert sending.acknowledged(Ack(4)), "one ack may be for several messages"
    assert sending.peer_vector == {OWN: Entry(9, ERA)}


def test_version_vector_of_the_peer_moves_only_with_the_ack_of_the_last_message(
    sending: SendingHalf, actions: list[Action]
) -> None:
    sending.want(9)
    sending.read_done(piece(9, row(2), last=False, upto=2))
    sending.acknowledged(Ack(2))
    assert sending.peer_vector == {OWN: Entry(1, ERA)}
    sending.read_done(piece(9, row(3), first=False))
    sending.acknowledged(Ack(3))
    assert sending.peer_vector == {OWN: Entry(9, ERA)}


@pytest.mark.parametrize("messages", [1, 3])
def test_an_ack_of_nothing_new_or_of_what_was_not_sent_is_refused(sending: SendingHalf, messages: int) -> None:
    sending.want(2)
    sending.read_done(piece(2, row(2)))
    with pytest.raises(RemoteProtocolError, match="2 were sent and 1 acknowledged"):
        sending.acknowledged(Ack(messages))


def test_a_checkpoint_without_rows_waits_until_it_is_wanted(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want(2)
    sending.read_done(piece(2))
    assert sent_changes(actions) == [] and sending.checkpoint_due and sending.read_upto == 2
    sending.want_checkpoint()
    sending.read_done(piece(2))
    assert [message.upto for message in sent_changes(actions)] == [Entry(2, ERA)]
    assert not sending.checkpoint_due


def test_a_checkpoint_that_tells_nothing_new_is_not_sent(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want_checkpoint()
    sending.read_done(piece(1))
    assert sent_changes(actions) == []


def test_rows_take_a_checkpoint_along(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want(2)
    sending.read_done(piece(2))
    sending.want(3)
    sending.read_done(piece(3, row(3)))
    assert not sending.checkpoint_due and len(sent_changes(actions)) == 1


def test_quarantined_rows_are_read_although_no_version_tells_of_them(
    sending: SendingHalf, actions: list[Action]
) -> None:
    sending.want_quarantined()
    assert isinstance(actions[-1], BeginRead)


def test_nothing_is_sent_while_it_is_held_back(sending: SendingHalf, actions: list[Action]) -> None:
    sending.want(2)
    actions.clear()
    sending.allow(False)
    sending.read_done(piece(2, row(2)))
    sending.want(3)
    assert actions == []
    sending.allow(True)
    assert [type(action) for action in actions] == [Send, BeginRead]


def test_a_row_that_no_message_can_hold_is_this_sides_error(sending: SendingHalf) -> None:
    sending.want(2)
    with pytest.raises(LocalProtocolError, match="photos"):
        sending.read_done(piece(2, row(2, limits.MESSAGE_BYTES_MAX, "photos")))


# --- The receiving half ----------------------------------------------------------------------------------------------


@pytest.fixture
def receiving(actions: list[Action]) -> ReceivingHalf:
    half = ReceivingHalf(LINK, actions, site=OWN, own_version=lambda: 5)
    half.allow(True)
    return half


def changes(
    *rows: Change, upto: int, head: int | None = None, whole: bool = True, last: bool = False, cost: int = 100
) -> Changes:
    return Changes(header(head) if head else None, list(rows), Entry(upto, ERA), whole, last, cost)


def test_pieces_are_applied_one_at_a_time_and_acversion_vectord_when_stored(
    receiving: ReceivingHalf, actions: list[Action]
) -> None:
    receiving.receive(changes(row(1), row(2), upto=2, head=4))
    receiving.receive(changes(row(3), row(4), upto=4, last=True))
    (apply,) = actions
    assert apply == Apply(LINK, Incoming(OWN, header(4), True, [row(1), row(2)], Entry(2, ERA), True, False))
    assert receiving.applied(2).first
    assert actions[1] == Send(LINK, wire.encode(Ack(1)))
    assert isinstance(actions[2], Apply) and actions[2].incoming.header is not None and actions[2].incoming.last
    receiving.applied(2)
    assert actions[3] == Send(LINK, wire.encode(Ack(2)))
    assert (receiving.rows, receiving.rows_total, receiving.transfers) == (4, 1, 1)


def test_whole_pieces_that_have_queued_up_are_applied_and_acversion_vectord_as_one(
    receiving: ReceivingHalf, actions: list[Action]
) -> None:
    receiving.receive(changes(row(1), upto=1, head=6))
    receiving.receive(changes(row(2), upto=2))
    receiving.receive(changes(row(3), upto=3))
    receiving.receive(changes(row(4), upto=4, whole=False))
    receiving.receive(changes(row(4), upto=6, last=True))
    receiving.receive(changes(row(7), upto=7, head=7, last=True))
    receiving.applied(1)
    _, ack, joined = actions
    assert joined == Apply(LINK, Incoming(OWN, header(6), False, [row(2), row(3)], Entry(3, ERA), True, False))
    receiving.applied(2)
    *_, ack, part = actions
    assert ack == Send(LINK, wire.encode(Ack(3)))
    assert isinstance(part, Apply) and not part.incoming.whole, "a piece of a version is staged by itself"
    receiving.applied(0)
    assert isinstance(actions[-1], Apply) and actions[-1].incoming.last
    receiving.applied(2)
    assert isinstance(actions[-1], Apply) and actions[-1].incoming.header == header(7), "transfers are not mixed"


def test_nothing_is_applied_while_it_is_held_back(actions: list[Action]) -> None:
    half = ReceivingHalf(LINK, actions, site=OWN, own_version=lambda: 5)
    half.receive(changes(row(1), upto=1, head=1, last=True))
    assert actions == []
    half.allow(True)
    assert len(actions) == 1


def test_a_peer_that_does_not_wait_for_acks_is_refused(receiving: ReceivingHalf) -> None:
    receiving.receive(changes(row(1), upto=1, head=9, cost=limits.WINDOW_BYTES - 1))
    receiving.receive(changes(row(2), upto=2, cost=limits.WINDOW_BYTES))
    with pytest.raises(RemoteProtocolError, match="without waiting for an Ack"):
        receiving.receive(changes(row(3), upto=3))


def test_a_transfer_may_begin_anew_at_a_border(receiving: ReceivingHalf, actions: list[Action]) -> None:
    receiving.receive(changes(row(1), upto=1, head=3))
    receiving.applied(1)
    receiving.receive(changes(row(2), upto=2, head=4))
    assert isinstance(actions[-1], Apply) and actions[-1].incoming.first
    assert not receiving.applied(1).last
    assert (receiving.rows, receiving.rows_total, receiving.transfers) == (2, 2, 0)
    receiving.receive(changes(row(4), upto=4, last=True))
    receiving.applied(1)
    assert (receiving.rows, receiving.transfers) == (3, 1)
    receiving.receive(changes(row(5), upto=5, head=5, last=True))
    receiving.applied(1)
    assert (receiving.rows, receiving.transfers) == (1, 2)


def test_empty_messages_have_a_bound_too(receiving: ReceivingHalf) -> None:
    empty = wire.decode(wire.encode_changes(changes(upto=9, head=9, last=True), compress=False)[0])
    assert isinstance(empty, Changes)
    with pytest.raises(RemoteProtocolError, match="without waiting for an Ack"):
        for _ in range(limits.WINDOW_BYTES // limits.MESSAGE_COST_BYTES + 1):
            receiving.receive(empty)


def test_a_version_may_come_in_several_pieces(receiving: ReceivingHalf, actions: list[Action]) -> None:
    receiving.receive(changes(row(3), upto=0, head=3, whole=False))
    receiving.receive(changes(row(3), row(3), upto=3, last=True))
    assert len(actions) == 1


FORGED = TransferHeader(Entry(9, ERA), VersionVector({OWN: Entry(8, ERA)}), 0)

BAD_TRANSFERS: dict[str, list[Changes]] = {
    "does not begin with a header": [changes(row(1), upto=1)],
    "begins anew within a version": [changes(row(1), upto=0, head=9, whole=False), changes(row(1), upto=1, head=9)],
    "goes on after its end": [changes(upto=9, head=9, last=True), changes(row(2), upto=2)],
    "contradicts its own header": [Changes(FORGED, [], FORGED.entry, True, True)],
    "is far ahead of this node": [changes(upto=2**41, head=2**41, last=True)],
    "has rows after its end": [changes(row(10), upto=9, head=9, last=True)],
    "has rows after its border": [changes(row(3), upto=2, head=9)],
    "has rows that go back": [changes(row(5), upto=5, head=9), changes(row(4), upto=6)],
    "has a border that goes back": [changes(row(5), upto=5, head=9), changes(row(5), upto=4, whole=False)],
    "has a border after its end": [changes(row(5), upto=10, head=9)],
    "ends before its end": [changes(row(5), upto=8, head=9, last=True)],
    "ends in another era": [Changes(header(9), [], Entry(9, Era(b"other")), True, True)],
    "has a piece of a version without rows": [changes(upto=1, head=9, whole=False)],
}


@pytest.mark.parametrize("name", BAD_TRANSFERS)
def test_a_transfer_is_refused_that(receiving: ReceivingHalf, name: str) -> None:
    *good, bad = BAD_TRANSFERS[name]
    for message in good:
        receiving.receive(message)
    with pytest.raises(RemoteProtocolError, match="^Changes: "):
        receiving.receive(bad)


# --- Two halves against each other -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=8), st.integers(1, 5), st.booleans())
def test_whatever_was_written_arrives_in_whole_transactions(
    transactions: list[int], piece_rows: int, late: bool
) -> None:
    world = World()
    one, other = world.node(1), world.node(2)
    one.store.piece_rows = piece_rows
    written = 0
    for count in transactions[: len(transactions) // 2 if late else None]:
        one.store.write(*keys(count, written))
        written += count
    one.engine.local_commit(one.store.state(), world.now_ms)
    world.connect(one, other)
    for count in transactions[len(transactions) // 2 :] if late else []:
        world.commit(one, *keys(count, written), run=False)
        world.step()
        written += count
    world.run()
    assert other.store.content() == one.store.content()
    assert len(other.store.cells) == written
    assert other.store.vector.includes(one.site, Entry(one.store.version, one.store.state().lineage.era_at(99)))
    assert not one.closed and not other.closed


def test_a_goodbye_ends_a_session_for_good() -> None:
    pair = SessionPair()
    pair.open()
    pair.dialer.say_goodbye(Goodbye(CloseCode.STOPPING, "node-1 is being stopped", True))
    pair.pass_on("dialer")
    assert (pair.dialer.state, pair.listener.state) == ("closed", "closed")
    assert not [action for action in pair.actions["listener"] if isinstance(action, Close)]
