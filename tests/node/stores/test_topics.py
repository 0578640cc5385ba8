import pytest
from devices import event_of, meet, merge

from leasemesh.node.model import ids
from leasemesh.node.model.errors import InvalidInput, StillReserved
from leasemesh.node.stores.base import is_internal

WRONG_NAMES = ["", "x" * 513, None, 5, b"inbox", "a\x00b", "\ud800"]


def test_a_topic_has_the_same_id_on_every_device(pair):
    one, two = pair
    first = one.topics.get_or_create("mail", "inbox")
    two.now_ms += 5
    assert two.topics.get_or_create("mail", "inbox").id == first.id == ids.topic_id("mail", "inbox")
    meet(one, two)
    assert one.topics.list("mail") == two.topics.list("mail")
    assert len(one.topics.list("mail")) == 1


def test_creating_again_returns_the_first_and_writes_nothing(device):
    first = device.topics.get_or_create("mail", "inbox")
    device.now_ms += 5
    with device.unchanged():
        assert device.topics.get_or_create("mail", "inbox") == first


def test_a_topic_is_found_by_id_by_name_and_in_the_list(device):
    inbox, archive = (device.topics.get_or_create("mail", name) for name in ("inbox", "archive"))
    device.topics.get_or_create("other", "inbox")
    assert device.topics.get(inbox.id) == inbox == device.topics.get_by_name("mail", "inbox")
    assert device.topics.list("mail") == [archive, inbox]
    assert inbox.created_at == device.now_ms


def test_what_is_absent_reads_as_nothing(device):
    assert device.topics.get("0" * 32) is None
    assert device.topics.get_by_name("mail", "inbox") is None
    assert device.topics.list("mail") == []


def test_creating_a_topic_registers_its_workflow(device):
    device.topics.get_or_create("mail", "inbox")
    assert device.workflows.get("mail").title == "mail"


@pytest.mark.parametrize("wrong", WRONG_NAMES)
def test_wrong_names_are_refused_and_nothing_is_written(device, wrong):
    with device.unchanged():
        with pytest.raises(InvalidInput, match="topic"):
            device.topics.get_or_create("mail", wrong)
        with pytest.raises(InvalidInput, match="workflow"):
            device.topics.get_or_create(wrong, "inbox")


@pytest.mark.parametrize("wrong", ["inbox", "", None, 5, "A" * 32, b"0" * 16])
def test_a_wrong_id_is_an_error_that_shows_it(device, wrong):
    with device.unchanged():
        for call in (device.topics.get, device.topics.delete):
            with pytest.raises(InvalidInput, match="32 lowercase hexadecimal"):
                call(wrong)


def test_deleting_takes_the_events_and_leaves_other_topics(device):
    device.publish("a", "b")
    device.publish("c", topic="archive")
    assert device.topics.delete(ids.topic_id("mail", "inbox")) == 2
    assert [topic.name for topic in device.topics.list("mail")] == ["archive"]
    assert device.event("a") is None
    assert device.pending("archive") == ["c"]
    assert device.query("SELECT count(*) FROM event_index") == [(1,)]
    assert device.query("SELECT count(*) FROM publications") == [(1,)]


def test_deleting_what_is_absent_deletes_nothing(device):
    with device.unchanged():
        assert device.topics.delete("0" * 32) == 0


def test_deleting_is_refused_while_something_is_reserved(device):
    device.publish("a", "b")
    device.reserve("a")
    with device.unchanged():
        with pytest.raises(StillReserved, match="topic inbox has 1 reserved events") as caught:
            device.delete()
        assert caught.value.count == 1


def test_deleting_is_refused_while_an_effect_is_unknown(device):
    device.publish("a")
    run = device.reserve("a")
    device.effect(run)
    with device.unchanged(), pytest.raises(StillReserved):
        device.delete()


def test_a_forced_deletion_leaves_the_run_able_to_end(device):
    device.publish("a", "b")
    run, other = device.reserve("a"), device.reserve("b")
    assert device.delete(force=True) == 2
    assert device.events.reserved_by(run) == []
    assert device.events.get(event_of("a")) is None
    assert device.events.consume(run) == 1
    assert device.events.release(other) == 1
    assert device.query("SELECT id FROM events") == []
    assert device.events.counts("mail") == []


def test_an_outcome_outlives_its_topic(device):
    device.publish("a")
    device.events.consume(device.reserve("a"))
    device.delete()
    device.publish("a")
    assert device.status("a") == "consumed"


def test_a_deletion_reaches_every_device(pair):
    one, two = pair
    one.publish("a", "b")
    meet(one, two)
    two.delete()
    meet(one, two)
    assert one.event("a") is None
    assert one.topics.list("mail") == []


def test_what_another_device_published_meanwhile_survives_a_deletion(pair):
    one, two = pair
    one.publish("both", "mine")
    two.now_ms += 5
    two.publish("both", "theirs")
    assert one.delete() == 2
    meet(one, two)
    for device in (one, two):
        assert sorted(device.pending()) == ["both", "theirs"]
        assert device.event("both").created_at == two.now_ms
        assert device.events.explain(event_of("both")).publications == (two.now_ms,)


def test_of_two_publications_the_deletion_of_the_first_brings_the_second_up(trio):
    one, two, three = trio
    one.publish("a")
    two.now_ms += 5
    two.events.publish("mail", "inbox", "a", title="second")
    merge(one, three)
    merge(two, three)
    assert three.event("a").title == "Title of a"
    one.delete()
    merge(one, three)
    assert three.event("a").title == "second"
    assert not three.events.explain(event_of("a")).conflicting
    meet(*trio)


def test_a_topic_that_was_deleted_can_be_created_again(pair):
    one, two = pair
    one.publish("a")
    meet(one, two)
    one.delete()
    one.publish("b")
    meet(one, two)
    assert two.pending() == ["b"]
    assert [topic.name for topic in two.topics.list("mail")] == ["inbox"]


def test_the_runtimes_own_topics_are_shown_only_to_whoever_asks_for_them(device):
    device.publish("a")
    device.publish("token", topic="~state")
    assert [topic.name for topic in device.topics.list("mail")] == ["inbox"]
    assert [topic.name for topic in device.topics.list("mail", internal=True)] == ["inbox", "~state"]
    assert [counts.topic for counts in device.events.counts("mail")] == ["inbox"]
    assert [counts.topic for counts in device.events.counts("mail", internal=True)] == ["inbox", "~state"]
    assert is_internal("~state") and not is_internal("state~")
