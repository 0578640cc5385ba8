"""Generations: a settled event done once more is a new event with the same message id; and the list of the dead."""

import pytest
from devices import NOW_MS, event_of, forged, meet, merge, publication_body, reservation_body

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, NotAvailable, NotFound
from leasemesh.node.stores import NewEvent

INBOX = ids.topic_id("mail", "inbox")


def generation_of(message_id, generation):
    return ids.event_id(INBOX, message_id, generation)


def dead_lettered(device, *message_ids):
    """Publish events and give them up."""
    device.publish(*message_ids)
    for message_id in message_ids:
        device.events.dead_letter(device.reserve(message_id))


def requeue_body(message_id, generation, **fields):
    return publication_body(message_ids=[message_id], at=(NOW_MS + generation) << 16) | {
        "ids": [generation_of(message_id, generation)],
        "generation": generation,
        "first": generation_of(message_id, 0),
        "requeued": generation_of(message_id, generation - 1),
        "by": "Ann",
        **fields,
    }


@pytest.mark.parametrize("settle", ["consume", "skip", "dead_letter"])
def test_a_requeued_event_is_new_work_with_the_same_message_id_and_content(device, settle):
    device.publish("a", "b")
    getattr(device.events, settle)(device.reserve("a"))
    old = device.event("a")
    device.now_ms += 5
    new = device.events.requeue(old.id, by="Ann")
    assert (new.id, new.generation, new.caused_by) == (generation_of("a", 1), 1, old.id)
    assert (new.workflow, new.topic, new.message_id, new.title, new.payload) == old[1:6]
    assert (new.status, new.epoch, new.created_at) == ("pending", 0, old.created_at + 5)
    assert device.events.get(old.id) == old
    assert device.pending() == ["b", "a"]


def test_a_message_id_means_the_newest_generation(device):
    dead_lettered(device, "a")
    device.publish("b")
    new = device.events.requeue(event_of("a"))
    assert device.event("a") == new
    assert [event.id for event in device.events.get_many("mail", "inbox", ["b", "a"])] == [event_of("b"), new.id]
    run = device.reserve("a", "b")
    assert [event.id for event in device.events.reserved_by(run)] == [event_of("b"), new.id]
    with pytest.raises(NotAvailable, match="inbox/a is reserved"):
        device.reserve("a")
    device.events.consume(run)
    assert device.event("a").status == "consumed"
    assert device.events.get(event_of("a")).status == "dead"


def test_publishing_the_message_id_again_changes_nothing_whatever_the_newest_generation_came_to(device):
    dead_lettered(device, "a")
    new = device.events.requeue(event_of("a"))
    device.events.skip(device.reserve("a"))
    with device.unchanged():
        published = device.events.publish("mail", "inbox", "a", title="Other")
        assert (published.created, published.event.id) == (False, new.id)
        assert device.events.publish_many("mail", "inbox", [NewEvent("a")]).existing == 1


def test_a_requeued_event_is_counted_and_listed_beside_the_old_one(device):
    dead_lettered(device, "a")
    device.events.requeue(event_of("a"))
    assert device.events.counts("mail")[0].by_status == {"pending": 1, "dead": 1}
    assert [event.generation for event in device.events.peek("mail", "inbox", status="dead")] == [0]
    assert device.query("SELECT generation, status FROM events ORDER BY generation") == [(0, "dead"), (1, "pending")]


@pytest.mark.parametrize("status", ["pending", "reserved", "unknown"])
def test_only_a_settled_event_is_requeued(device, status):
    device.publish("a")
    if status != "pending":
        run = device.reserve("a")
    if status == "unknown":
        device.effect(run)
    with device.unchanged(), pytest.raises(IllegalState, match=f"is {status}: only a settled event"):
        device.events.requeue(event_of("a"))


def test_an_old_generation_is_not_requeued_again(device):
    dead_lettered(device, "a")
    first = device.events.requeue(event_of("a"))
    with device.unchanged(), pytest.raises(IllegalState, match=f"requeued already: .* is event {first.id}"):
        device.events.requeue(event_of("a"))
    device.events.dead_letter(device.reserve("a"))
    second = device.events.requeue(first.id)
    assert (second.id, second.generation, second.caused_by) == (generation_of("a", 2), 2, first.id)


@pytest.mark.parametrize(
    ("event", "options", "error"),
    [
        ("0" * 32, {}, NotFound), ("no id", {}, InvalidInput), (None, {}, InvalidInput),
        (event_of("a"), {"by": 5}, InvalidInput),
    ],
)  # fmt: skip
def test_what_cannot_be_requeued_changes_nothing(device, event, options, error):
    dead_lettered(device, "a")
    with device.unchanged(), pytest.raises(error):
        device.events.requeue(event, **options)


def test_devices_that_requeue_the_same_event_apart_make_the_same_one(pair):
    one, two = pair
    dead_lettered(one, "a")
    merge(one, two)
    first = one.events.requeue(event_of("a"), by="Ann")
    two.now_ms += 1_000
    assert two.events.requeue(event_of("a"), by="Bob").id == first.id
    one.events.consume(one.reserve("a"))
    meet(one, two)
    for device in pair:
        assert device.event("a")[:-3] == first[:-3]
        assert device.status("a") == "consumed"
        story = device.events.explain(first.id)
        assert (len(story.publications), story.conflicting) == (2, False)
        assert [one.by for one in story.generations] == ["", "Ann"]
        assert rebuild(device.database).corrected == {}


def test_a_late_outcome_of_the_old_generation_leaves_the_new_one_alone(pair):
    one, two = pair
    one.publish("a")
    merge(one, two)
    late = two.reserve("a")
    one.events.dead_letter(one.reserve("a"))
    new = one.events.requeue(event_of("a"))
    two.events.consume(late)
    meet(one, two)
    for device in pair:
        assert device.events.get(event_of("a")).status == "consumed"
        assert device.event("a") == new
        assert [(known.generation, known.status) for known in device.events.explain(new.id).generations] == [
            (0, "consumed"), (1, "pending"),
        ]  # fmt: skip


def test_one_device_requeues_and_another_that_has_not_heard_of_it_works_on_the_old_generation_only(pair):
    one, two = pair
    dead_lettered(one, "a")
    merge(one, two)
    new = one.events.requeue(event_of("a"))
    with two.unchanged(), pytest.raises(NotAvailable, match="dead"):
        two.reserve("a")
    merge(one, two)
    assert [event.id for event in two.events.reserved_by(two.reserve("a"))] == [new.id]


def test_a_newer_generation_counts_where_the_older_ones_are_not_here(device):
    device.forge("publications", b"p" * 16, requeue_body("a", 2))
    assert device.event("a").id == generation_of("a", 2)
    assert [event.generation for event in device.events.get_many("mail", "inbox", ["a"])] == [2]
    assert not device.events.publish("mail", "inbox", "a").created
    device.events.consume(device.reserve("a"))
    assert device.events.requeue(generation_of("a", 2)).generation == 3
    assert [known.generation for known in device.events.explain(generation_of("a", 2)).generations] == [2, 3]


def test_an_effect_for_a_new_generation_is_new_work(device):
    dead_lettered(device, "a")
    old, new = event_of("a"), device.events.requeue(event_of("a")).id
    handler = ids.handler_id("mail", "send")
    assert ids.work_id(handler, [old]) != ids.work_id(handler, [new])


def test_a_deleted_topic_takes_all_generations_along(device):
    dead_lettered(device, "a")
    device.events.requeue(event_of("a"))
    device.delete()
    assert device.event("a") is None
    assert device.events.publish("mail", "inbox", "a").event.generation == 0


@pytest.mark.parametrize("generation", [0, -1, 1_000_001, 1.5, "1", True, [], None])
def test_a_generation_is_a_number_from_1_on(device, generation):
    assert not device.forge("publications", b"p" * 16, requeue_body("a", 1) | {"generation": generation})


@pytest.mark.parametrize("field", ["first", "requeued", "by", "generation", "ids"])
def test_what_requeues_says_of_which_event(device, field):
    body = requeue_body("a", 1)
    del body[field]
    assert not device.forge("publications", b"p" * 16, body)


# --- The dead ---------------------------------------------------------------------------------------------------------


def test_dead_events_are_listed_over_all_topics_the_newest_first(device):
    for number, (workflow, topic) in enumerate([("mail", "inbox"), ("shop", "orders"), ("mail", "archive")]):
        device.now_ms = NOW_MS + number
        device.publish("x", "y", topic=topic, workflow=workflow)
        device.events.dead_letter(device.reserve("x", topic=topic, workflow=workflow))
    assert [(event.workflow, event.topic) for event in device.events.dead_letters()] == [
        ("mail", "archive"), ("shop", "orders"), ("mail", "inbox"),
    ]  # fmt: skip
    assert [event.topic for event in device.events.dead_letters("mail")] == ["archive", "inbox"]
    assert [event.topic for event in device.events.dead_letters("mail", limit=1)] == ["archive"]
    assert [event.topic for event in device.events.dead_letters(limit=2)] == ["archive", "orders"]
    assert device.events.dead_letters("absent") == []


def test_what_was_requeued_is_not_listed_any_more_until_it_dies_again(device):
    dead_lettered(device, "a", "b")
    new = device.events.requeue(event_of("a"))
    for found in (device.events.dead_letters(), device.events.dead_letters("mail")):
        assert [event.id for event in found] == [event_of("b")]
    device.events.dead_letter(device.reserve("a"))
    for found in (device.events.dead_letters(), device.events.dead_letters("mail")):
        assert [event.id for event in found] == [new.id, event_of("b")]


def test_dead_events_of_the_runtimes_own_topics_are_not_listed(device):
    device.publish("token", topic="~state")
    device.events.dead_letter(device.reserve("token", topic="~state"))
    assert device.events.dead_letters() == device.events.dead_letters("mail") == []


def test_dead_events_without_content_are_not_listed(device):
    device.forge("reservations", b"r" * 16, reservation_body([(event_of("absent"), 1)]))
    device.absorb([forged("reservations", b"r" * 16, "settled 1 dead", column="state", version=2)])
    assert device.events.dead_letters() == []


@pytest.mark.parametrize("limit", [0, 10_001, None])
def test_the_list_of_the_dead_has_a_limit(device, limit):
    with pytest.raises(InvalidInput):
        device.events.dead_letters(limit=limit)
