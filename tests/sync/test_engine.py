"""Decisions across links: who may join, what flows on, who is alive, and how a link ends."""

import copy
import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasemesh.sync import limits, wire
from leasemesh.sync.actions import (
    Apply,
    BeginRead,
    ComputeDigest,
    EndRead,
    LinkId,
    LoadResume,
    LoadState,
    Reidentify,
    Send,
)
from leasemesh.sync.errors import CloseCode, LocalProtocolError, StorageLimit, is_retryable
from leasemesh.sync.link import PeerStatus
from leasemesh.sync.messages import Changes, Digest, DigestRequest, Goodbye, Greeting, Presence, SealedHello
from leasemesh.sync.ports import DatabaseDigest
from leasemesh.sync.version_vector import FROM_START, Entry, Era, Resume, VersionVector
from tests.sync.helpers import WORKSPACE, MemoryStore, Node, World, keys, site_id


@pytest.fixture
def world() -> World:
    return World()


def open_links(node: Node) -> list[PeerStatus]:
    return [peer for peer in node.engine.peers() if peer.state in ("open", "inspecting")]


def rows_sent(node: Node) -> int:
    return sum(len(message.rows) for message in node.messages(Changes) if isinstance(message, Changes))


# --- What flows ------------------------------------------------------------------------------------------------------


def test_two_nodes_end_with_what_both_had(world: World) -> None:
    one, other = world.node(1), world.node(2)
    one.store.write(*keys(3))
    other.store.write(*keys(3, 10))
    one.engine.local_commit(one.store.state(), 0)
    other.engine.local_commit(other.store.state(), 0)
    world.connect(one, other)
    assert len(one.store.cells) == 6 and one.store.content() == other.store.content()
    assert (rows_sent(one), rows_sent(other)) == (3, 3), "nothing comes back to where it came from"
    assert one.told("caught_up") == ["node-2: both sides have caught up"]
    assert other.told("connected") == ["node-1: connected, 1 version to come"]


def test_a_commit_goes_to_the_peer_at_once(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.connect(one, other)
    world.commit(one, b"k")
    assert other.store.content() == one.store.content()
    assert other.count(BeginRead) == 1, "what came from the only peer is not read for it again"
    assert one.told("sent")[-1] == "node-2: sent 1 row" and other.told("received")[-1] == "node-1: received 1 row"


def test_a_commit_that_left_no_version_is_not_read(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.connect(one, other)
    world.commit(one, b"k")
    reads = one.count(BeginRead)
    world.call(one, lambda engine: engine.local_commit(one.store.state(), world.now_ms))
    assert one.count(BeginRead) == reads


def test_an_older_reading_of_the_state_changes_nothing(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.connect(one, other)
    world.commit(one, b"k")
    older = one.store.state()
    world.commit(one, b"l")
    world.call(one, lambda engine: engine.local_commit(older, world.now_ms))
    assert one.engine.state == one.store.state() and one.engine.state.version == 2
    world.advance(limits.CHECKPOINT_MS)
    older = dataclasses.replace(one.store.state(), vector=older.vector)
    world.call(one, lambda engine: engine.local_commit(older, world.now_ms))
    assert other.site in one.engine.state.vector, "a checkpoint without rows moves no version"


def test_changes_pass_through_a_hub_and_do_not_come_back(world: World) -> None:
    laptop, hub, desktop = world.node(1), world.node(2), world.node(3)
    world.connect(laptop, hub)
    world.connect(desktop, hub)
    world.commit(laptop, *keys(5))
    world.advance(1000)
    assert desktop.store.content() == laptop.store.content()
    assert (rows_sent(laptop), rows_sent(hub), rows_sent(desktop)) == (5, 5, 0)


def test_in_a_ring_nothing_goes_round(world: World) -> None:
    nodes = [world.node(number) for number in range(1, 4)]
    for one, other in ((0, 1), (1, 2), (2, 0)):
        world.connect(nodes[one], nodes[other])
    for node in nodes:
        world.commit(node, node.name.encode())
        world.advance(1000)
    assert all(node.store.content() == nodes[0].store.content() and len(node.store.cells) == 3 for node in nodes)
    # From its writer over two links; over the third one at most from both ends at the same moment.
    assert sum(map(rows_sent, nodes)) <= 3 * 4


def test_checkpoints_without_rows_are_sent_now_and_then_only(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.connect(one, other)
    before = len(other.messages(Changes))
    for number in range(50):
        world.commit(one, b"k%d" % number)
    assert len(other.messages(Changes)) == before
    world.advance(limits.CHECKPOINT_MS)
    assert len(other.messages(Changes)) == before + 1
    assert one.store.vector[other.site].version == other.store.version


def test_a_checkpoint_that_became_due_after_a_snapshot_is_not_dropped_with_it(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.connect(one, other)
    other.slow.add(BeginRead)
    world.commit(other, b"same")
    world.commit(one, b"same", b"new")
    world.answer(other)  # the snapshot is from before the other commit came; to `one` it brings nothing new
    other.slow.clear()
    world.advance(limits.CHECKPOINT_MS)
    assert other.store.version == 2
    assert one.store.vector[other.site].version == 2


def test_an_idle_mesh_comes_to_rest(world: World) -> None:
    nodes = [world.node(number) for number in range(1, 4)]
    for one, other in ((0, 1), (1, 2), (2, 0)):
        world.connect(nodes[one], nodes[other])
    world.commit(nodes[0], b"k")
    world.advance(10_000)
    sent = [len(node.messages(Changes)) for node in nodes]
    world.advance(60_000)
    assert [len(node.messages(Changes)) for node in nodes] == sent
    assert all(len(open_links(node)) == 2 for node in nodes)


def test_a_cut_transfer_goes_on_where_it_was_cut(world: World) -> None:
    one, other = world.node(1), world.node(2)
    one.store.piece_rows = 2
    for number in range(10):
        one.store.write(*keys(2, 2 * number))
    one.engine.local_commit(one.store.state(), 0)
    link, _ = world.connect(one, other, run=False)
    while other.store.version < 4:
        assert world.step()
    world.cut(link)
    applied = other.store.version
    assert 4 <= applied < 10 and other.store.vector == {}, "no version vector is claimed before the end"
    assert other.store.resumes == {one.site: Resume(applied, Entry(10, one.store.eras[0][1]))}
    sent = rows_sent(one)
    world.connect(one, other)
    assert other.store.content() == one.store.content()
    assert rows_sent(one) - sent == 20 - 2 * applied
    assert one.count(EndRead) == 1


def test_a_long_transfer_takes_several_snapshots(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES", 3 * limits.MESSAGE_COST_BYTES)
    one, other = world.node(1), world.node(2)
    one.store.piece_rows = 2
    for number in range(10):
        one.store.write(*keys(2, 2 * number))
    one.engine.local_commit(one.store.state(), 0)
    world.connect(one, other, run=False)
    while other.store.version < 6:
        assert world.step()
    assert one.count(BeginRead) > 1
    assert other.store.vector == {}, (
        "the first snapshot's version vector is never claimed: its stream was not sent whole"
    )
    world.commit(one, *keys(1), run=False)  # what was sent already is overwritten
    world.run()
    assert other.store.content() == one.store.content()
    assert other.store.vector == {one.site: one.store.state().vector[one.site]}
    assert rows_sent(one) == 20 + 1
    assert one.told("sending")[-1].startswith("node-2: sending, 21 of about ")
    assert other.told("caught_up") and one.told("caught_up")


def test_a_transaction_larger_than_a_piece_arrives_as_a_whole(world: World) -> None:
    one, other = world.node(1), world.node(2)
    one.store.piece_rows = 2
    world.connect(one, other)
    world.commit(one, *keys(7), run=False)
    seen = set()
    while world.step():
        seen.add(len(other.store.cells))
    assert seen == {0, 7}
    assert one.told("sending")[-1] == "node-2: sending, 7 of about 7 rows"
    assert other.told("receiving")[-1] == "node-1: receiving, 7 of about 7 rows"


def test_quarantined_rows_are_passed_on_and_told_of(world: World) -> None:
    new, old, newer = world.node(1), world.node(2), world.node(3)
    old.store.unknown_tables = {"tomorrow"}
    world.connect(new, old)
    world.connect(newer, old)
    world.commit(new, b"k", table="tomorrow")
    assert old.store.cells == {} and len(old.store.quarantined) == 1
    assert old.told("quarantined") == ["node-1: 1 row set aside until this node can apply them"]
    assert newer.store.cells == {}, "a node without a version of its own has none to send them under"
    world.commit(old, b"own")
    assert ("tomorrow", b"k", "c") in newer.store.cells
    world.commit(new, b"l", table="tomorrow")
    assert ("tomorrow", b"l", "c") in newer.store.cells, "now they go at once"


def test_the_status_tells_what_either_side_lacks(world: World) -> None:
    one, other = world.node(1), world.node(2)
    for number in range(3):
        one.store.write(b"k%d" % number)
    one.engine.local_commit(one.store.state(), 0)
    other.slow = {Apply}
    world.connect(one, other)
    (mine,), (theirs,) = one.engine.peers(), other.engine.peers()
    assert (mine.name, mine.site, mine.ahead, mine.behind, mine.dialed) == ("node-2", other.site, 3, 0, True)
    assert (theirs.ahead, theirs.behind, theirs.dialed) == (0, 3, False)
    other.slow = set()
    world.answer(other)
    assert one.engine.peers()[0].ahead == 0 and other.engine.peers()[0].behind == 0
    assert one.engine.peers()[0].vector[one.site].version == 3
    assert one.engine.peers()[0].schema == {"leasemesh": 1}


def test_different_migrations_are_told_on_both_sides(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.store.schema = {"leasemesh": 2}
    other.engine.local_commit(other.store.state(), 0)
    world.connect(one, other)
    assert "this node has older migrations (leasemesh 1 < 2)" in one.told("connected")[0]
    assert "the peer has older migrations (leasemesh 1 < 2)" in other.told("connected")[0]


# --- Who may join ----------------------------------------------------------------------------------------------------


def refusal(node: Node, link: LinkId) -> CloseCode:
    close = node.closed[link]
    assert close.retry == is_retryable(close.code)
    return CloseCode(close.code)


def test_with_the_same_token_two_nodes_meet(world: World) -> None:
    one, other = world.node(1, token="t"), world.node(2, token="t")
    world.connect(one, other)
    assert len(open_links(one)) == len(open_links(other)) == 1


@pytest.mark.parametrize(("theirs", "ours"), [("wrong", "right"), (None, "right"), ("right", None)])
def test_without_the_same_token_nothing_is_told(world: World, theirs: str | None, ours: str | None) -> None:
    dialer, listener = world.node(1, token=theirs), world.node(2, token=ours)
    listener.store.write(b"secret")
    listener.engine.local_commit(listener.store.state(), 0)
    link, listener_link = world.connect(dialer, listener)
    assert refusal(listener, listener_link) == refusal(dialer, link) == CloseCode.UNAUTHORISED
    sent = [wire.decode(action.data) for action in listener.actions if isinstance(action, Send)]
    assert [type(message) for message in sent] == [Greeting, Goodbye]
    assert listener.count(LoadResume) == listener.count(BeginRead) == 0
    assert "token" in listener.told("refused")[0] and "closed by the peer" in dialer.told("refused")[0]
    assert not any("right" in tell.text for tell in (*dialer.tells, *listener.tells))


def test_nodes_of_different_workspaces_never_exchange_a_row(world: World) -> None:
    one, other = world.node(1), world.node(2, workspace="aa" * 16)
    link, _ = world.connect(one, other)
    assert refusal(one, link) == CloseCode.WORKSPACE
    assert f"node-1 belongs to the workspace {WORKSPACE}, node-2 to {'aa' * 16}" in other.told("refused")[0]
    assert one.count(BeginRead) == other.count(BeginRead) == 0


def test_a_node_that_dials_itself_is_told_so_on_both_ends(world: World) -> None:
    node = world.node(1)
    links = world.connect(node, node)
    assert [refusal(node, link) for link in links] == [CloseCode.SELF, CloseCode.SELF]
    assert node.engine.peers() == []


def test_a_peer_that_returns_this_nodes_own_greeting_is_refused(world: World) -> None:
    node = world.node(1)
    link = world.raw_link(node)
    (greeting,) = node.messages(Greeting)
    world.feed(node, link, greeting)
    assert refusal(node, link) == CloseCode.SELF


def test_two_copies_of_one_file_that_meet_are_told_so(world: World) -> None:
    one = world.node(1)
    copied = world.node(2, store=copy.deepcopy(one.store))
    link, _ = world.connect(one, copied)
    assert refusal(one, link) == CloseCode.CLONE
    assert "leasemesh identity reset" in one.told("refused")[0]


def test_a_copy_of_a_running_node_is_refused_by_their_hub(world: World) -> None:
    hub, original = world.node(1), world.node(2)
    copied = world.node(3, store=copy.deepcopy(original.store))
    world.connect(original, hub)
    link, hub_link = world.connect(copied, hub)
    assert refusal(copied, link) == refusal(hub, hub_link) == CloseCode.CLONE
    assert "node-2 and node-3 both run with the site id" in hub.told("refused")[0]
    assert copied.count(Reidentify) == 0
    assert [peer.name for peer in hub.engine.peers()] == ["node-2"]


def test_a_copy_that_a_hub_dials_waits_for_the_probe_and_sees_no_rows(world: World) -> None:
    hub, original = world.node(1), world.node(2)
    hub_to_original, original_link = world.connect(original, hub)[::-1]
    world.commit(original, b"k")
    copied = world.node(3, store=copy.deepcopy(original.store))
    world.mute(original_link)
    link, copied_link = world.connect(hub, copied)
    assert hub.engine.peers()[1].state == "open" and copied.store.resumes == {}
    assert len([action for action in hub.actions if isinstance(action, BeginRead) and action.link == link]) == 0
    world.feed(hub, hub_to_original, Presence(9, 0, 1, {}, None))
    assert refusal(hub, link) == CloseCode.CLONE
    assert copied.closed[copied_link].code == CloseCode.CLONE


def test_a_restarted_node_takes_the_place_of_its_dead_link_after_the_probe(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    link, hub_link = world.connect(laptop, hub)
    world.mute(link, hub_link)
    restarted = world.node(3, store=laptop.store)
    world.connect(restarted, hub)
    assert not open_links(restarted), "the hub waits for the older link to answer"
    world.advance(limits.PROBE_MS)
    assert refusal(hub, hub_link) == CloseCode.TIMED_OUT
    assert [peer.name for peer in open_links(hub)] == ["node-3"] and len(open_links(restarted)) == 1


def test_a_restarted_node_takes_the_place_of_a_link_that_ends_meanwhile(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    link, hub_link = world.connect(laptop, hub)
    world.mute(link, hub_link)
    restarted = world.node(3, store=laptop.store)
    world.connect(restarted, hub)
    world.cut(hub_link)
    assert [peer.name for peer in open_links(hub)] == ["node-3"]


def test_a_third_process_with_the_same_site_is_sent_away_for_now(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    link, hub_link = world.connect(laptop, hub)
    world.mute(link, hub_link)
    world.connect(world.node(3, store=laptop.store), hub)
    third = world.node(4, store=laptop.store)
    third_link, _ = world.connect(third, hub)
    assert refusal(third, third_link) == CloseCode.DUPLICATE
    world.advance(limits.PROBE_MS)
    assert [peer.name for peer in open_links(hub)] == ["node-3"]


def test_a_peer_that_says_hello_while_another_process_of_it_still_opens_is_sent_away_for_now(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    hub.slow = {LoadResume}
    world.connect(laptop, hub)
    restarted = world.node(3, store=laptop.store)
    link, _ = world.connect(restarted, hub)
    assert refusal(restarted, link) == CloseCode.DUPLICATE


def test_a_second_address_of_the_same_peer_is_not_used(world: World) -> None:
    one, other = world.node(1), world.node(2)
    first, _ = world.connect(one, other)
    second, other_second = world.connect(one, other)
    assert refusal(one, second) == CloseCode.DUPLICATE and other_second in other.closed
    assert [peer.link for peer in open_links(one)] == [first] and len(open_links(other)) == 1
    world.advance(limits.PROBE_MS)
    assert [peer.link for peer in open_links(one)] == [first]


def test_a_second_address_leads_to_finding_out_that_the_first_link_is_dead(world: World) -> None:
    one, other = world.node(1), world.node(2)
    first, other_first = world.connect(one, other)
    world.mute(first, other_first)
    world.connect(one, other)
    world.advance(limits.PROBE_MS)
    assert refusal(one, first) == CloseCode.TIMED_OUT
    third, _ = world.connect(one, other)
    assert [peer.link for peer in open_links(one)] == [third]


def test_a_peer_that_dials_again_has_given_up_its_older_link(world: World) -> None:
    one, other = world.node(1), world.node(2)
    first, other_first = world.connect(one, other)
    world.mute(first, other_first)
    world.call(one, lambda engine: engine.disconnected(first, world.now_ms))
    second, other_second = world.connect(one, other)
    assert refusal(other, other_first) == CloseCode.DUPLICATE
    assert [peer.link for peer in open_links(other)] == [other_second]
    assert [peer.link for peer in open_links(one)] == [second]


@pytest.mark.parametrize("smaller_first", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_links_dialled_from_both_sides_both_ends_keep_the_same_one(
    world: World, smaller_first: bool, at_once: bool
) -> None:
    small, great = world.node(1), world.node(2)
    pair = (small, great) if smaller_first else (great, small)
    links = [world.connect(*pair, run=not at_once), world.connect(*reversed(pair), run=not at_once)]
    world.run()
    of_small = links[0] if smaller_first else links[1]
    assert [peer.link for peer in open_links(small)] == [of_small[0]]
    assert [peer.link for peer in open_links(great)] == [of_small[1]]
    world.commit(small, b"k")
    world.advance(limits.PROBE_MS)
    assert great.store.content() == small.store.content()
    assert len(open_links(small)) == 1


def test_a_node_takes_no_more_peers_than_it_may(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEERS_MAX", 2)
    hub = world.node(1)
    peers = [world.node(number) for number in (2, 3, 4)]
    ends = [world.connect(peer, hub)[0] for peer in peers]
    assert len(open_links(hub)) == 2
    assert refusal(peers[2], ends[2]) == CloseCode.BUSY


# --- Whose history ---------------------------------------------------------------------------------------------------


def test_a_restored_file_takes_a_new_site_id_and_gets_its_lost_future_back(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    world.commit(laptop, b"before")
    backup = copy.deepcopy(laptop.store)
    link, _ = world.connect(laptop, hub)
    world.commit(laptop, b"after")
    world.advance(1000)
    world.cut(link)
    restored = world.node(3, store=backup)
    old_site = backup.site
    link, _ = world.connect(restored, hub)
    assert restored.count(Reidentify) == 1 and backup.site != old_site
    assert refusal(restored, link) == CloseCode.IDENTITY
    assert rows_sent(restored) == 0, "nothing is sent under the old site id"
    assert "which is not in this file's history up to version 1" in restored.told("identity")[0]
    world.connect(restored, hub)
    world.advance(1000)
    assert len(backup.cells) == 2 and backup.content() == hub.store.content()


def test_a_copy_that_wrote_itself_past_the_known_version_is_found_by_its_era(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    backup = copy.deepcopy(laptop.store)
    link, _ = world.connect(laptop, hub)
    world.commit(laptop, b"future")
    world.advance(1000)
    world.cut(link)
    backup.eras = [(1, Era(b"again"))]
    for number in range(5):
        backup.write(b"k%d" % number)
    restored = world.node(3, store=backup)
    world.connect(hub, restored)
    assert restored.count(Reidentify) == 1


def test_a_resume_point_of_a_lost_history_is_a_sign_too(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    hub.store.resumes[laptop.site] = Resume(3, Entry(7, Era(b"lost")))
    world.connect(laptop, hub)
    assert laptop.count(Reidentify) == 1


def test_a_transfer_is_not_continued_out_of_an_older_copy(world: World) -> None:
    """What the lost snapshot had overwritten was left out of the part that came; the older copy still has it there."""
    laptop, hub = world.node(1), world.node(2)
    laptop.store.piece_rows = 1
    for key in (b"a", b"b", b"c"):
        laptop.store.write(key)
    backup = copy.deepcopy(laptop.store)
    laptop.store.write(b"a")
    laptop.engine.local_commit(laptop.store.state(), 0)
    link, _ = world.connect(laptop, hub, run=False)
    while hub.store.version < 3:
        assert world.step()
    world.cut(link)
    assert len(hub.store.cells) == 2
    restored = world.node(3, store=backup)
    world.connect(restored, hub)
    assert restored.count(Reidentify) == 1
    world.connect(restored, hub)
    assert hub.store.content() == restored.store.content()
    assert len(hub.store.cells) == 3


def test_version_vector_that_comes_later_through_others_is_a_sign_too(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    link, hub_link = world.connect(laptop, hub)
    world.feed(laptop, link, Presence(5, 0, 0, {}, VersionVector({laptop.site: Entry(3, Era(b"other"))})))
    assert laptop.count(LoadState) == laptop.count(Reidentify) == 1


def test_version_vector_that_comes_with_a_transfer_is_a_sign_too(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    world.connect(laptop, hub)
    hub.store.vector = VersionVector({laptop.site: Entry(3, Era(b"other"))})
    world.commit(hub, b"k")
    assert laptop.count(Reidentify) == 1


def test_a_peer_that_knows_more_than_the_engine_was_told_yet_is_no_alarm(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    one.slow = {LoadState}
    one.store.write(b"k")  # by another process; nobody has told the engine
    entry = one.store.state().vector[one.site]
    world.feed(one, link, Presence(5, 0, 0, {}, VersionVector({one.site: entry})))
    one.store.write(b"l")
    world.call(one, lambda engine: engine.local_commit(one.store.state(), world.now_ms))
    assert other.store.cells == {}, "nothing is sent while in doubt"
    world.answer(one)
    assert one.count(Reidentify) == 0 and other.store.content() == one.store.content()


def test_a_listener_in_doubt_answers_when_the_doubt_is_gone(world: World) -> None:
    one, other = world.node(1), world.node(2)
    world.commit(one, b"k")
    link, _ = world.connect(one, other)
    world.advance(1000)
    world.cut(link)
    late = world.node(3, store=one.store)
    late.engine._state = MemoryStore(one.site).state()
    late.slow = {LoadState}
    world.connect(other, late)
    assert not open_links(other)
    world.advance(limits.HANDSHAKE_MS - 1)
    world.answer(late)
    assert len(open_links(other)) == 1 and late.count(Reidentify) == 0


def test_a_state_that_was_read_before_the_claim_came_decides_nothing(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    one.slow = {LoadState}
    for version in (1, 2):
        one.store.write(b"k%d" % version)
        entry = one.store.state().vector[one.site]
        world.feed(one, link, Presence(version, 0, 0, {}, VersionVector({one.site: entry})))
    before_second = copy.deepcopy(one.store)
    before_second.version = 1
    world.call(one, lambda engine: engine.state_loaded(before_second.state(), world.now_ms))
    assert one.count(Reidentify) == 0
    world.answer(one, 1)
    assert one.count(Reidentify) == 0 and len(open_links(one)) == 1


def test_while_a_new_site_id_is_taken_nobody_is_let_in(world: World) -> None:
    hub, laptop, third = world.node(1), world.node(2), world.node(3)
    laptop.slow = {Reidentify}
    hub.store.resumes[laptop.site] = Resume(3, Entry(7, Era(b"lost")))
    world.connect(laptop, hub)
    link, _ = world.connect(laptop, third)
    assert refusal(laptop, link) == CloseCode.IDENTITY
    before = laptop.store.state()
    world.answer(laptop)
    world.call(laptop, lambda engine: engine.local_commit(before, world.now_ms))
    assert laptop.engine.state.site == laptop.store.site != before.site, "what was read before says nothing any more"
    world.connect(laptop, third)
    assert len(open_links(laptop)) == 1


# --- Who is alive ----------------------------------------------------------------------------------------------------


def test_nodes_are_heard_of_through_a_hub(world: World) -> None:
    laptop, hub, desktop = world.node(1), world.node(2), world.node(3)
    world.connect(laptop, hub)
    world.connect(desktop, hub)
    world.advance(2 * limits.PRESENCE_MS)
    incarnation, at_ms = desktop.heartbeats[laptop.site]
    assert incarnation == b"start000" and world.now_ms - at_ms <= limits.PRESENCE_MS
    assert desktop.site not in desktop.heartbeats


def test_a_dead_node_does_not_stay_young_by_being_talked_about(world: World) -> None:
    dead, hub, desktop = world.node(1), world.node(2), world.node(3)
    link, _ = world.connect(dead, hub)
    world.connect(desktop, hub)
    world.advance(limits.PRESENCE_MS)
    last_heartbeat = hub.heartbeats[dead.site][1]
    world.cut(link)
    world.advance(10 * limits.PRESENCE_MS)
    assert hub.heartbeats[dead.site][1] == last_heartbeat
    assert desktop.heartbeats[dead.site][1] <= last_heartbeat + limits.PRESENCE_MS
    world.advance(limits.AGE_MS_MAX)
    presence = hub.messages(Presence)[-1]
    assert isinstance(presence, Presence) and dead.site not in presence.heartbeats


def test_a_restarted_node_is_heard_of_as_another_incarnation(world: World) -> None:
    laptop, hub, desktop = world.node(1), world.node(2), world.node(3)
    link, _ = world.connect(laptop, hub)
    world.connect(desktop, hub)
    world.advance(3 * limits.PRESENCE_MS)
    world.cut(link)
    world.connect(world.node(4, store=laptop.store), hub)
    world.advance(limits.PRESENCE_MS)
    assert desktop.heartbeats[laptop.site][0] == b"start003"


def test_a_link_that_brings_nothing_is_closed(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, other_link = world.connect(one, other)
    world.advance(limits.SILENCE_MS * 2)
    assert not one.closed
    world.mute(link)
    world.advance(limits.SILENCE_MS + limits.PRESENCE_MS)
    assert refusal(other, other_link) == CloseCode.TIMED_OUT
    assert other.told("disconnected") == ["node-1: nothing came for 30 s"]


def test_a_peer_that_stores_nothing_is_closed(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.slow.add(Apply)
    link, _ = world.connect(one, other)
    world.answer(other)
    world.advance(2 * limits.ACK_MS)
    assert not one.closed, "nothing waits for an Ack"
    world.commit(one, b"k")
    world.advance(limits.ACK_MS - limits.PRESENCE_MS)
    assert not one.closed
    world.commit(one, b"l")
    world.advance(2 * limits.PRESENCE_MS)
    assert refusal(one, link) == CloseCode.TIMED_OUT
    assert one.told("disconnected") == ["node-2: stored nothing for 20 minutes"]


def test_a_stranger_that_says_nothing_is_closed(world: World) -> None:
    node = world.node(1)
    link = world.raw_link(node)
    world.advance(limits.HANDSHAKE_MS)
    assert refusal(node, link) == CloseCode.TIMED_OUT
    assert node.told("refused") == [f"link {link}: no valid Hello within 10000 ms"]


def test_a_slow_disk_of_its_own_is_not_held_against_a_peer(world: World) -> None:
    one, other = world.node(1), world.node(2)
    one.slow = {LoadResume}
    world.connect(one, other, run=False)
    world.run()
    world.advance(limits.HANDSHAKE_MS // 2)
    assert not one.closed
    world.answer(one)
    assert len(open_links(one)) == 1
    world.advance(limits.HANDSHAKE_MS)
    assert not one.closed


def test_a_slow_disk_while_introducing_delays_the_time_out_of_this_side(world: World) -> None:
    node = world.node(1)
    node.slow = {LoadResume}
    link = world.raw_link(node, dialed=True)
    world.feed(node, link, Greeting(bytes(16), site_id(2)))
    world.advance(limits.HANDSHAKE_MS)
    assert not node.closed
    world.answer(node)
    world.advance(limits.HANDSHAKE_MS)
    assert refusal(node, link) == CloseCode.TIMED_OUT


def test_timers_of_links_that_are_gone_do_nothing(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    world.cut(link)
    actions = len(one.actions)
    for kind in ("handshake", "probe", "checkpoint", "presence"):
        world.call(one, lambda engine, kind=kind: engine.timer_fired((kind, link), world.now_ms))
    assert len(one.actions) == actions
    world.connect(one, other)
    world.advance(limits.PRESENCE_MS)
    assert one.messages(Presence)


def test_the_board_of_heard_nodes_has_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VECTOR_ENTRIES_MAX", 4)
    hub = world.node(1)
    for number in range(2, 8):
        world.connect(world.node(number), hub)
    world.advance(limits.PRESENCE_MS)
    assert len(hub.heartbeats) == 4 and len(open_links(hub)) == 6


# --- How a link ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 40,
        wire.encode(Greeting(bytes(16), site_id(9))),
        wire.encode(SealedHello(b"", b"")),
        wire.encode(DigestRequest(1)) + b"x",
        msgpack.packb([2, 3, None, 1, b"", 0, 0, b""]),
        msgpack.packb([3, 9]),
        msgpack.packb([6, 1, [], []]),
    ],
)
def test_a_bad_message_ends_its_link_and_nothing_else(world: World, data: bytes) -> None:
    hub, good, bad = world.node(1), world.node(2), world.node(3)
    world.connect(good, hub)
    _, hub_link = world.connect(bad, hub)
    before = hub.store.state()
    world.feed(hub, hub_link, data)
    assert refusal(hub, hub_link) == CloseCode.PROTOCOL
    assert hub.store.state() == before and [peer.name for peer in hub.engine.peers()] == ["node-2"]
    assert len(hub.told("refused")) == 1 and len(hub.told("disconnected")) == 1
    assert bad.told("disconnected")[0].startswith("node-1: closed by the peer: ")
    world.feed(hub, hub_link, data)
    assert len(hub.told("refused")) == 1, "whatever comes afterwards is dropped"
    world.commit(good, b"k")
    assert hub.store.content() == good.store.content()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 30), st.randoms(use_true_random=False))
def test_no_bytes_make_the_engine_raise(garbage: list[bytes], steps: int, chance: object) -> None:
    world = World()
    one, other = world.node(1), world.node(2)
    one.store.write(*keys(3))
    one.engine.local_commit(one.store.state(), 0)
    _, link = world.connect(one, other, run=False)
    for _ in range(steps):
        world.step()
    for data in garbage:
        other.engine.received(link, data, world.now_ms)
    sent = [action.data for action in one.actions if isinstance(action, Send)]
    for data in sent:
        mutated = bytearray(data)
        mutated[chance.randrange(len(mutated))] = chance.randrange(256)  # type: ignore[attr-defined]
        other.engine.received(link, bytes(mutated), world.now_ms)
    assert len(other.engine.peers()) <= 1


def test_a_node_that_stops_takes_leave(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, other_link = world.connect(one, other)
    world.call(one, lambda engine: engine.close_all(world.now_ms))
    assert refusal(one, link) == CloseCode.STOPPING and other.closed[other_link].retry
    assert other.told("disconnected") == ["node-1: closed by the peer: node-1 is being stopped"]
    assert one.engine.peers() == other.engine.peers() == []


def test_a_connection_that_breaks_is_told_once(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    world.cut(link)
    world.call(one, lambda engine: engine.disconnected(link, world.now_ms))
    assert one.told("disconnected") == ["node-2: the connection ended"]


def test_a_storage_limit_ends_the_link_and_says_so_to_the_peer(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.slow = {Apply}
    link, other_link = world.connect(one, other)
    error = StorageLimit("200,000 rows are quarantined already", hint="upgrade this node")
    world.call(other, lambda engine: engine.apply_failed(other_link, error, world.now_ms))
    assert refusal(other, other_link) == refusal(one, link) == CloseCode.LIMIT
    assert one.closed[link].reason.endswith("200,000 rows are quarantined already; upgrade this node")


def test_a_failure_inside_is_told_here_and_not_to_the_peer(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.slow = {Apply}
    link, other_link = world.connect(one, other)
    world.call(other, lambda engine: engine.apply_failed(other_link, OSError("disk /home/ann is full"), world.now_ms))
    assert other.told("refused") == ["node-1: could not store the changes: disk /home/ann is full"]
    assert refusal(one, link) == CloseCode.INTERNAL
    assert one.closed[link].reason == "closed by the peer: node-2 could not store the changes"


def test_a_row_that_is_too_large_ends_the_link_for_good(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    world.commit(one, b"k", value=bytes(limits.MESSAGE_BYTES_MAX), table="photos")
    assert refusal(one, link) == CloseCode.LIMIT
    assert "a value of photos.c is longer than" in one.told("refused")[0]


def test_answers_that_come_when_the_link_is_gone_are_harmless(world: World) -> None:
    one, other, third = world.node(1), world.node(2), world.node(3)
    for node in (one, other):
        node.slow = {LoadResume, BeginRead, Apply, ComputeDigest}
    link, other_link = world.connect(one, other)
    world.answer(one)  # the dialler's resume point
    world.answer(other)  # the listener's
    world.answer(one)
    assert other.waiting, "a piece is being applied"
    world.cut(link)
    one.slow = other.slow = set()
    error = OSError("too late")
    for call in (
        lambda engine: engine.read_failed(link, error, 0),
        lambda engine: engine.apply_failed(link, error, 0),
        lambda engine: engine.digest_failed(link, 1, error, 0),
        lambda engine: engine.digest_done(link, 1, DatabaseDigest(VersionVector(), {}), 0),
        lambda engine: engine.resume_loaded(link, FROM_START, 0),
        lambda engine: engine.received(link, b"late", 0),
    ):
        world.call(one, call)
    world.connect(other, third)
    world.answer(one)
    world.answer(other)
    assert not one.closed and not other.closed


def test_what_was_applied_after_the_link_broke_still_flows_on(world: World) -> None:
    one, hub, third = world.node(1), world.node(2), world.node(3)
    link, _ = world.connect(one, hub)
    world.connect(hub, third)
    hub.slow = {Apply}
    world.commit(one, b"k")
    world.cut(link)
    world.answer(hub)
    assert third.store.content() == one.store.content()


def test_a_read_that_fails_ends_the_link(world: World) -> None:
    one, other = world.node(1), world.node(2)
    one.slow = {BeginRead}
    link, _ = world.connect(one, other)
    world.call(one, lambda engine: engine.read_failed(link, OSError("no such file"), world.now_ms))
    assert refusal(one, link) == CloseCode.INTERNAL and one.count(EndRead) == 1
    world.answer(one)


# --- Comparing -------------------------------------------------------------------------------------------------------


def test_a_link_to_inspect_compares_and_moves_nothing(world: World) -> None:
    hub, laptop = world.node(1), world.node(2)
    world.connect(laptop, hub)
    world.commit(laptop, b"k")
    inspector = world.node(3, store=laptop.store)
    inspector.store.write(b"unsynced")
    link, _ = world.connect(inspector, hub, purpose="inspect")
    world.call(inspector, lambda engine: engine.request_digest(link, world.now_ms))
    (tell,) = [tell for tell in inspector.tells if tell.kind == "digest"]
    assert tell.digest == hub.store.digest()
    world.advance(2 * limits.SILENCE_MS)
    assert [peer.purpose for peer in open_links(hub)] == ["sync", "inspect"], "the same site id is no clone here"
    assert inspector.messages(Changes) == [] and inspector.heartbeats == {} and inspector.count(BeginRead) == 0
    assert hub.heartbeats[laptop.site][0] == b"start001", "the inspector is not taken for the node"


def test_a_link_to_sync_compares_as_well(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    world.call(one, lambda engine: engine.request_digest(link, world.now_ms))
    world.call(one, lambda engine: engine.request_digest(link, world.now_ms))
    assert one.told("digest") == ["node-2: digest of 1 tables"] * 2


def test_a_digest_is_asked_for_on_open_links_and_one_at_a_time(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.slow = {ComputeDigest}
    link, other_link = world.connect(one, other)
    with pytest.raises(LocalProtocolError, match="link 99 is not open"):
        one.engine.request_digest(LinkId(99), 0)
    world.call(one, lambda engine: engine.request_digest(link, world.now_ms))
    with pytest.raises(LocalProtocolError, match="node-2 was asked"):
        one.engine.request_digest(link, 0)
    world.feed(other, other_link, DigestRequest(2))
    assert refusal(other, other_link) == CloseCode.PROTOCOL


def test_a_digest_that_cannot_be_computed_ends_the_link(world: World) -> None:
    one, other = world.node(1), world.node(2)
    other.slow = {ComputeDigest}
    link, other_link = world.connect(one, other)
    world.call(one, lambda engine: engine.request_digest(link, world.now_ms))
    world.call(other, lambda engine: engine.digest_failed(other_link, 1, OSError("bad page"), world.now_ms))
    assert refusal(one, link) == CloseCode.INTERNAL


def test_a_digest_that_nobody_asked_for_is_refused(world: World) -> None:
    one, other = world.node(1), world.node(2)
    link, _ = world.connect(one, other)
    world.feed(one, link, Digest(1, DatabaseDigest(VersionVector(), {})))
    assert refusal(one, link) == CloseCode.PROTOCOL


# --- Everything at once ----------------------------------------------------------------------------------------------

actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.just("connect"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("cut"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("steps"), st.integers(1, 15), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 6000), st.just(0)),
    ),
    max_size=40,
)


def play(script: list[tuple[str, int, int]]) -> World:
    """Play a script on four nodes, then connect them all in a row and let them come to rest."""
    world = World()
    nodes = [world.node(number) for number in range(1, 5)]
    links: list[LinkId] = []
    written = 0
    for action, first, second in script:
        if action == "write":
            nodes[first].store.piece_rows = 1 + second
            world.commit(nodes[first], *keys(second, written % 10), value=f"{first} {written}", run=False)
            written += second
        elif action == "connect" and first != second:
            links += world.connect(nodes[first], nodes[second], run=False)
        elif action == "cut" and links:
            world.cut(links[first % len(links)])
        elif action == "steps":
            for _ in range(first):
                world.step()
        elif action == "wait":
            world.advance(first)
    world.run()
    for one, other in zip(nodes, nodes[1:], strict=False):
        world.connect(one, other)
    world.advance(2 * limits.PRESENCE_MS)
    return world


@settings(max_examples=120, deadline=None)
@given(actions)
def test_whatever_happens_all_nodes_end_with_the_same_content(script: list[tuple[str, int, int]]) -> None:
    world = play(script)
    contents = [node.store.content() for node in world.nodes]
    assert all(content == contents[0] for content in contents)
    assert not any(node.count(Reidentify) for node in world.nodes)
    codes = {close.code for node in world.nodes for close in node.closed.values()}
    assert codes <= {CloseCode.DUPLICATE}


@settings(max_examples=20, deadline=None)
@given(actions)
def test_the_same_inputs_give_the_same_effects_in_the_same_order(script: list[tuple[str, int, int]]) -> None:
    assert play(script).trace == play(script).trace
