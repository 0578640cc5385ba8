"""News of nodes, when telling them takes time."""

from leasemesh.sync.presence import Heartbeat, PresenceBoard
from leasemesh.sync.version_vector import Era
from tests.sync.helpers import site_id

ONE, OTHER, DEAD = site_id(1), site_id(2), site_id(3)
FIRST, SECOND = Era(b"start001"), Era(b"start002")
TRANSIT_MS = 400


def test_two_nodes_that_tell_each_other_of_a_dead_one_do_not_make_it_younger() -> None:
    one, other = PresenceBoard(), PresenceBoard()
    one.note(DEAD, Heartbeat(FIRST, 7, 1000))
    now_ms = 1000
    for _ in range(20):
        told = one.tell(but=OTHER, now_ms=now_ms)
        now_ms += TRANSIT_MS
        other.note_all(told, own_site=OTHER, now_ms=now_ms)
        told = other.tell(but=ONE, now_ms=now_ms)
        now_ms += TRANSIT_MS
        one.note_all(told, own_site=ONE, now_ms=now_ms)
    assert one.tell(but=OTHER, now_ms=now_ms)[DEAD].age_ms == now_ms - 1000
    assert other.tell(but=ONE, now_ms=now_ms)[DEAD].age_ms == now_ms - 1000 - TRANSIT_MS


def test_a_higher_beat_is_news_and_the_same_one_is_not() -> None:
    board = PresenceBoard()
    assert board.note(DEAD, Heartbeat(FIRST, 7, 1000))
    assert not board.note(DEAD, Heartbeat(FIRST, 7, 2000))
    assert not board.note(DEAD, Heartbeat(FIRST, 6, 3000))
    assert board.note(DEAD, Heartbeat(FIRST, 8, 900))


def test_of_two_starts_of_a_node_the_one_heard_later_counts() -> None:
    board = PresenceBoard()
    board.note(DEAD, Heartbeat(FIRST, 900, 1000))
    assert board.note(DEAD, Heartbeat(SECOND, 0, 1000))
    assert not board.note(DEAD, Heartbeat(FIRST, 901, 999))


def test_a_node_is_told_neither_of_itself_nor_by_others() -> None:
    board = PresenceBoard()
    board.note(ONE, Heartbeat(FIRST, 1, 1000))
    told = board.tell(but=OTHER, now_ms=1000)
    assert set(told) == {ONE} and board.tell(but=ONE, now_ms=1000) == {}
    assert PresenceBoard().note_all(told, own_site=ONE, now_ms=1000) == {}
