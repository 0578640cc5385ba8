import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasemesh.node.model import ids

HANDLER = ids.handler_id("mail", "send")


def all_kinds():
    topic = ids.topic_id("mail", "inbox")
    event = ids.event_id(topic, "m1")
    return [
        topic,
        event,
        HANDLER,
        ids.work_id(HANDLER, [event]),
        ids.state_id(HANDLER, ids.NodeId("0" * 32)),
        ids.verdict_id(ids.work_id(HANDLER, [event]), ids.NodeId("0" * 32)),
        ids.ordered_id(0, os.urandom),
    ]


def test_every_id_is_32_lowercase_hexadecimal_characters_and_16_bytes():
    for identifier in all_kinds():
        assert len(identifier) == 32 and identifier == identifier.lower()
        assert ids.to_blob(identifier).hex() == identifier


def test_ids_never_change_between_versions_and_machines():
    topic = ids.topic_id("mail", "inbox")
    event = ids.event_id(topic, "münchen@example.org")
    assert topic == "09f878ca99508f815c55c14228516c6b"
    assert event == "0f9fc51c3042ce8077ad46c8c8557c0b"
    assert HANDLER == "10a56b3befeebfa1217b964030dd9bf1"
    assert ids.work_id(HANDLER, [event]) == "cecbc454d2dddce18d86a4209b341757"


@given(st.lists(st.text(max_size=5), min_size=2, max_size=2, unique=True), st.text(max_size=5))
def test_different_names_have_different_ids(names, workflow):
    first, second = names
    assert ids.topic_id(workflow, first) != ids.topic_id(workflow, second)
    assert ids.handler_id(workflow, first) != ids.handler_id(workflow, second)
    topic = ids.topic_id(workflow, first)
    assert ids.event_id(topic, first) != ids.event_id(topic, second)


def test_where_one_name_ends_and_the_next_begins_counts():
    assert ids.topic_id("ab", "c") != ids.topic_id("a", "bc")
    assert ids.handler_id("ab", "c") != ids.handler_id("a", "bc")


def test_one_name_in_two_kinds_has_two_ids():
    assert ids.topic_id("mail", "send") != ids.handler_id("mail", "send")


def test_a_generation_is_another_event_and_other_work():
    topic = ids.topic_id("mail", "inbox")
    assert len({ids.event_id(topic, "m1", generation) for generation in range(5)}) == 5
    event = ids.event_id(topic, "m1")
    assert ids.work_id(HANDLER, [event]) != ids.work_id(HANDLER, [event], 1)


def test_work_does_not_depend_on_the_order_of_its_events():
    events = [ids.event_id(ids.topic_id("mail", "inbox"), name) for name in "abc"]
    assert ids.work_id(HANDLER, events) == ids.work_id(HANDLER, reversed(events))
    assert ids.work_id(HANDLER, events) != ids.work_id(HANDLER, events[:2])


def test_ordered_ids_sort_by_time_and_differ_within_a_millisecond():
    same = {ids.ordered_id(5, os.urandom) for _ in range(100)}
    assert len(same) == 100
    assert max(same) < min(ids.ordered_id(6, os.urandom) for _ in range(100))


@pytest.mark.parametrize("now_ms", [-1, -(10**15), 1 << 48, 10**30])
def test_a_clock_that_is_far_off_still_gives_ids(now_ms):
    assert len(ids.to_blob(ids.ordered_id(now_ms, os.urandom))) == 16


@pytest.mark.parametrize(
    "wrong",
    [
        "", "abc", "0" * 31, "0" * 33, "0" * 64, "A" * 32, "g" * 32, "0" * 30 + " 0", " ".join(["00"] * 16),
        "0" * 32 + "\n", "٠" * 32,
    ],
)  # fmt: skip
def test_another_spelling_is_not_an_id(wrong):
    with pytest.raises(ValueError, match="not an id"):
        ids.to_blob(wrong)


def test_short_ids_begin_the_long_ones():
    assert all(identifier.startswith(ids.short(identifier)) for identifier in all_kinds())
