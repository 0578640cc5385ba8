import threading
from collections import OrderedDict

import pytest
from devices import NOW_MS, event_of, meet, merge

from leasemesh.node.model import ids
from leasemesh.node.model.errors import Ambiguous, InvalidInput
from leasemesh.node.model.leases import EventStatus
from leasemesh.node.stores import ClaimInfo, NewEvent
from leasemesh.node.stores.base import LIST_MAX
from leasemesh.node.stores.events.publications import PublicationReader
from leasemesh.node.stores.events.reading import status_name, status_number


def test_peek_lists_the_oldest_pending_events_and_changes_nothing(device):
    device.publish("a", "b", "c")
    device.reserve("a")
    with device.unchanged():
        assert [event.message_id for event in device.events.peek("mail", "inbox")] == ["b", "c"]
        assert [event.message_id for event in device.events.peek("mail", "inbox", limit=1)] == ["b"]


def test_peek_breaks_ties_of_time_by_id_on_every_device(pair):
    one, two = pair
    one.publish("a", "c")
    two.publish("b", "d")
    meet(one, two)
    assert one.events.peek("mail", "inbox") == two.events.peek("mail", "inbox")


@pytest.mark.parametrize("status", ["pending", "reserved", "unknown", "consumed", "skipped", "dead"])
def test_peek_lists_events_of_any_status(device, status):
    device.publish("pending", "reserved", "unknown", "consumed", "skipped", "dead")
    device.reserve("reserved")
    device.effect(device.reserve("unknown"))
    device.events.consume(device.reserve("consumed"))
    device.events.skip(device.reserve("skipped"))
    device.events.dead_letter(device.reserve("dead"))
    (event,) = device.events.peek("mail", "inbox", status=status)
    assert (event.message_id, event.status) == (status, status)


@pytest.mark.parametrize("limit", [0, -1, LIST_MAX + 1, "5", None, True, 1.0])
def test_a_limit_out_of_range_is_refused(device, limit):
    calls = [
        lambda: device.events.peek("mail", "inbox", limit=limit),
        lambda: device.events.duplicates(limit=limit),
        lambda: device.runs.by_session("s", limit=limit),
        lambda: device.runs.list("mail", limit=limit),
        lambda: device.mutations.due(0, limit=limit),
        lambda: device.mutations.unresolved(limit=limit),
        lambda: device.sessions.by_workflow("mail", limit=limit),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="limit"):
            call()


@pytest.mark.parametrize("status", ["open", "", None, 0, "PENDING "])
def test_an_unknown_status_is_refused(device, status):
    with pytest.raises(InvalidInput, match="is not one of pending, reserved"):
        device.events.peek("mail", "inbox", status=status)


def test_names_and_numbers_of_statuses_agree():
    assert [status_number(status_name(status)) for status in EventStatus] == list(EventStatus)


def test_what_is_absent_reads_as_nothing(device):
    events = device.events
    assert events.peek("mail", "inbox") == []
    assert events.get("0" * 32) is None
    assert events.get_by_message_id("mail", "inbox", "a") is None
    assert events.get_many("mail", "inbox", ["a"]) == []
    assert events.find("00000") is None
    assert events.reserved_by("0" * 32) == []
    assert events.counts("mail") == []
    assert events.explain("0" * 32) is None
    assert events.duplicates() == [] and events.count_duplicates() == 0
    assert events.reservation("0" * 32) is None
    assert events.find_run("0000") is None
    assert events.held_runs(own=True) == [] == events.held_runs(own=False)


def test_many_are_read_in_the_order_of_their_names_whatever_their_status(device):
    device.publish("a", "b", "c")
    device.events.consume(device.reserve("b"))
    names = ["c", "absent", "b", "a", "c"]
    found = device.events.get_many("mail", "inbox", names)
    assert [(event.message_id, event.status) for event in found] == [
        ("c", "pending"), ("b", "consumed"), ("a", "pending"), ("c", "pending"),
    ]  # fmt: skip


def test_one_message_id_in_two_topics_is_two_events(device):
    device.publish("a")
    device.publish("a", topic="archive")
    device.publish("a", workflow="other")
    device.reserve("a", topic="archive")
    assert (device.status("a"), device.status("a", "archive"), device.status("a", workflow="other")) == (
        "pending", "reserved", "pending",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("workflow", "topic", "names"),
    [
        ("mail", "inbox", "a"), ("mail", "inbox", [5]), ("mail", "inbox", None), (5, "inbox", ["a"]),
        ("mail", None, ["a"]), ("mail", "inbox", ["\ud800"]),
    ],
)  # fmt: skip
def test_names_that_are_no_texts_are_refused(device, workflow, topic, names):
    with pytest.raises(InvalidInput):
        device.events.get_many(workflow, topic, names)
    with pytest.raises(InvalidInput):
        device.events.reserve(device.runs.new_id(), workflow, [(topic, names)])


@pytest.mark.parametrize("wrong", ["", "abc", "A" * 32, None, 5, b"0" * 16])
def test_a_wrong_id_is_an_error_that_shows_it(device, wrong):
    for call in (
        device.events.get, device.events.explain, device.events.reserved_by, device.events.reservation,
        device.runs.get, device.runs.retry_chain, device.mutations.get, device.mutations.outcome,
        device.mutations.verdicts,
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match="32 lowercase hexadecimal"):
            call(wrong)


def test_an_event_is_found_by_the_beginning_of_its_id(device):
    device.publish("a")
    event = device.event("a")
    assert device.events.find(ids.short(event.id)) == event
    assert device.events.find(event.id[:4].upper()) == event
    assert device.events.find(event.id) == event


def test_a_beginning_that_fits_several_names_them(device):
    device.events.publish_many("mail", "inbox", (NewEvent(f"m{number}") for number in range(600)))
    starts = [event.id[:4] for event in device.events.peek("mail", "inbox", limit=600)]
    twice = next(start for start in starts if starts.count(start) > 1)
    with pytest.raises(Ambiguous, match=f"{twice} fits more than one event") as caught:
        device.events.find(twice)
    assert all(candidate.startswith(twice) for candidate in caught.value.candidates)


@pytest.mark.parametrize("prefix", ["", "abc", "wxyz", "0" * 33, "00%0", None, 5, "0x12"])
def test_what_is_no_beginning_of_an_id_is_refused(device, prefix):
    for find in (device.events.find, device.events.find_run):
        with pytest.raises(InvalidInput):
            find(prefix)


def test_a_run_is_found_by_the_beginning_of_its_id(device):
    device.publish("a")
    run = device.reserve("a")
    assert device.events.find_run(run[:20]) == run


def test_counts_are_by_topic_and_status(device):
    device.publish("a", "b", "c")
    device.publish("d", topic="archive")
    device.topics.get_or_create("mail", "empty")
    device.events.consume(device.reserve("a"))
    archive, empty, inbox = device.events.counts("mail")
    assert (inbox.topic, inbox.by_status, inbox.total) == ("inbox", {"pending": 2, "consumed": 1}, 3)
    assert (archive.topic, archive.by_status) == ("archive", {"pending": 1})
    assert (empty.topic, empty.by_status, empty.total) == ("empty", {}, 0)


def test_a_claim_that_arrives_before_its_event_shows_nothing_yet(pair):
    one, two = pair
    one.publish("a")
    run = one.reserve("a")
    rows = one.changes()
    late = [row for row in rows if row[0] == "publications"]
    two.absorb([row for row in rows if row not in late])
    assert two.events.reserved_by(run) == []
    assert two.event("a") is None
    assert two.events.reservation(run).claims == {event_of("a"): 1}
    two.absorb(late)
    assert two.status("a") == "reserved"
    assert [event.message_id for event in two.events.reserved_by(run)] == ["a"]


def test_an_explanation_tells_the_whole_story(pair):
    one, two = pair
    one.publish("a")
    first = one.reserve("a", handler="send")
    one.effect(first)
    one.mutations.mark_failed(first, {"error": "refused"})
    one.now_ms += 10
    one.events.release(first)
    merge(one, two)
    two.now_ms += 20
    second = two.reserve("a", handler="send again")
    two.events.consume(second)
    meet(one, two)
    story = one.events.explain(event_of("a"))
    assert story.claims == (
        ClaimInfo(first, one.node, "send", 1, NOW_MS, "released", "failed"),
        ClaimInfo(second, two.node, "send again", 2, NOW_MS + 20, "consumed", None),
    )
    assert (story.event.status, story.event.run, story.duplicate, story.conflicting) == (
        "consumed",
        second,
        False,
        False,
    )
    assert story.publications == (NOW_MS,)


def test_a_caller_s_changes_to_a_payload_stay_with_the_caller(device):
    device.events.publish("mail", "inbox", "a", payload={"list": [1]})
    device.event("a").payload["list"].append(2)
    assert device.event("a").payload == {"list": [1]}


def test_a_thread_may_drop_a_publication_from_memory_while_another_reads_it(device, monkeypatch):
    monkeypatch.setattr("leasemesh.node.stores.events.publications.CACHED_MAX", 1)
    device.publish("a", "b")
    first, second = (row[0] for row in device.query("SELECT publication FROM event_index ORDER BY at"))
    reader = PublicationReader(device.database)
    reader.take(first, 0)
    others = []

    class Interrupted(OrderedDict):
        """Between the look-up and its use another thread comes and reads something else."""

        def get(self, key, default=None):
            found = super().get(key, default)
            if not others:
                others.append(threading.Thread(target=reader.take, args=(second, 0)))
                others[0].start()
                others[0].join(0.1)
            return found

    reader._parsed = Interrupted(reader._parsed)
    assert reader.take(first, 0)[1]["message_id"] == "a"
    others[0].join()


def test_a_mark_of_what_is_pending_changes_with_it(device):
    empty = device.events.pending_mark("mail", "inbox")
    assert empty == (0, 0)
    assert not device.events.any_pending("mail", "inbox")
    device.publish("one", "two")
    both = device.events.pending_mark("mail", "inbox")
    assert both[0] == 2
    assert device.events.any_pending("mail", "inbox")
    run = device.reserve("one")
    assert device.events.pending_mark("mail", "inbox") not in (empty, both)
    device.events.release(run)
    assert device.events.pending_mark("mail", "inbox") == both
