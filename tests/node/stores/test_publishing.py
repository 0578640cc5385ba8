import json

import pytest
from devices import NOW_MS, event_of, forged, meet, merge, publication_body

from leasemesh.node.model.clock import DRIFT_MS_MAX
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.stores import NewEvent, PublishCounts
from leasemesh.node.stores.events.publications import BYTES_TARGET, EVENTS_MAX

DAY_MS = 24 * 3600 * 1000


def sizes(device):
    """Events of each publication, in order."""
    return [
        n for (n,) in device.query("SELECT json_array_length(body, '$.ids') FROM publications ORDER BY body ->> '$.at'")
    ]


def test_publishing_returns_the_event_and_that_it_is_new(device):
    published = device.events.publish(
        "mail", "inbox", "m1", title="Hello", payload={"from": "Zoë 🦊", "n": [1, None, 2.5]}
    )
    event = published.event
    assert published.created
    assert (event.workflow, event.topic, event.message_id, event.title) == ("mail", "inbox", "m1", "Hello")
    assert event.payload == {"from": "Zoë 🦊", "n": [1, None, 2.5]}
    assert (event.status, event.epoch, event.run) == ("pending", 0, None)
    assert event.id == event_of("m1")
    assert event.created_at == NOW_MS
    assert device.events.get(event.id) == event


def test_publishing_again_changes_nothing(device):
    device.events.publish("mail", "inbox", "m1", title="first")
    with device.unchanged():
        again = device.events.publish("mail", "inbox", "m1", title="second", payload=5)
        assert not again.created
        assert again.event.title == "first"


@pytest.mark.parametrize("settle", ["consume", "skip", "dead_letter"])
def test_publishing_does_not_touch_what_is_settled(device, settle):
    device.publish("m1")
    getattr(device.events, settle)(device.reserve("m1"))
    before = device.event("m1")
    with device.unchanged():
        assert device.events.publish("mail", "inbox", "m1", title="new").event == before


def test_who_published_and_why_is_kept(device):
    run = device.runs.new_id()
    cause = event_of("earlier")
    event = device.events.publish("mail", "inbox", "m1", created_by_run=run, caused_by=cause).event
    assert (event.created_by_run, event.caused_by) == (run, cause)


def test_counts_tell_new_from_known_also_within_one_call(device):
    device.publish("b")
    events = [NewEvent("a", "first"), NewEvent("b"), NewEvent("c"), NewEvent("a", "second")]
    assert device.events.publish_many("mail", "inbox", events) == PublishCounts(created=2, existing=2)
    assert device.event("a").title == "first"
    assert device.events.publish_many("mail", "inbox", []) == PublishCounts(0, 0)


def test_a_message_id_that_comes_again_thousands_later_is_known(device):
    events = [NewEvent(f"m{number % 1500}") for number in range(3000)]
    assert device.events.publish_many("mail", "inbox", iter(events)) == PublishCounts(1500, 1500)


def test_events_of_one_call_keep_their_order(device):
    names = [f"m{number * 37 % 400}" for number in range(400)]
    device.events.publish_many("mail", "inbox", (NewEvent(name) for name in names))
    assert device.pending() == names


def test_a_publication_holds_at_most_128_events(device):
    device.events.publish_many("mail", "inbox", (NewEvent(f"m{number}") for number in range(2 * EVENTS_MAX + 1)))
    assert sizes(device) == [128, 128, 1]


def test_a_publication_is_cut_at_64_kib(device):
    third = "x" * (BYTES_TARGET // 3)
    device.events.publish_many("mail", "inbox", (NewEvent(f"m{number}", payload=third) for number in range(7)))
    assert sizes(device) == [2, 2, 2, 1]


def test_the_cut_counts_bytes_and_not_letters(device):
    third = "ä" * (BYTES_TARGET // 3 // 2)
    device.events.publish_many("mail", "inbox", (NewEvent(f"m{number}", payload=third) for number in range(4)))
    assert sizes(device) == [2, 2]


def test_a_payload_of_one_mebibyte_travels_alone(pair):
    one, two = pair
    largest = "x" * (1024 * 1024 - 2)
    one.events.publish_many("mail", "inbox", [NewEvent("a"), NewEvent("b", payload=largest), NewEvent("c")])
    assert sizes(one) == [1, 1, 1]
    meet(one, two)
    assert two.event("b").payload == largest
    assert two.pending() == ["a", "b", "c"]


def test_letters_of_all_languages_survive(pair):
    one, two = pair
    text = "Grüße, 世界 🦊 \u2028 \u200f \x1f \" \\ '"
    one.events.publish(text[:-1], text, text, title=text, payload={text: [text]})
    meet(one, two)
    event = two.event(text, topic=text, workflow=text[:-1])
    assert (event.title, event.payload, event.topic) == (text, {text: [text]}, text)


def test_the_view_for_sql_shells_shows_the_same(device):
    device.events.publish("mail", "inbox", "m1", title="Zoë", payload={"a": [1]})
    ((identifier, workflow, topic, message_id, title, payload, created_at, status),) = device.query(
        "SELECT id, workflow, topic, message_id, title, payload, created_at, status FROM events"
    )
    assert (workflow, topic, message_id, title, status) == ("mail", "inbox", "m1", "Zoë", "pending")
    assert (identifier, json.loads(payload), created_at) == (event_of("m1"), {"a": [1]}, NOW_MS)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"workflow": ""}, "workflow"),
        ({"workflow": 5}, "workflow"),
        ({"topic": None}, "topic"),
        ({"topic": "x" * 513}, "topic"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": 5}, "message_id"),
        ({"message_id": "\ud800"}, "message_id"),
        ({"title": None}, "title of m1"),
        ({"title": "x" * 1001}, "title of m1"),
        ({"payload": object()}, "payload of m1"),
        ({"payload": float("nan")}, "payload of m1"),
        ({"payload": "x" * 1024 * 1024}, "payload of m1"),
        ({"created_by_run": "nobody"}, "id"),
        ({"caused_by": 5}, "id"),
    ],
)
def test_what_cannot_be_published_is_named_and_nothing_is_written(device, change, name):
    arguments = {"workflow": "mail", "topic": "inbox", "message_id": "m1"} | change
    with device.unchanged(), pytest.raises(InvalidInput) as caught:
        device.events.publish(**arguments)
    assert caught.value.name == name


def test_one_bad_event_leaves_nothing_of_its_call(device):
    def events():
        yield from (NewEvent(f"m{number}") for number in range(1500))
        yield NewEvent("bad", payload={1, 2})

    with device.unchanged(), pytest.raises(InvalidInput, match="payload of bad"):
        device.events.publish_many("mail", "inbox", events())


def test_an_error_of_the_caller_s_iterator_leaves_nothing(device):
    def events():
        yield from (NewEvent(f"m{number}") for number in range(1500))
        raise ZeroDivisionError

    with device.unchanged(), pytest.raises(ZeroDivisionError):
        device.events.publish_many("mail", "inbox", events())


def test_something_else_than_a_new_event_is_refused(device):
    with device.unchanged(), pytest.raises(InvalidInput, match="must be a NewEvent, not tuple"):
        device.events.publish_many("mail", "inbox", [("m1", "title")])


def test_the_first_publication_wins_on_every_device(trio):
    one, two, three = trio
    two.now_ms -= 5
    one.events.publish("mail", "inbox", "m1", title="later")
    two.events.publish("mail", "inbox", "m1", title="earlier")
    merge(one, three)
    assert three.event("m1").title == "later"
    merge(two, three)
    assert three.event("m1").title == "earlier"
    meet(*trio)
    for device in trio:
        story = device.events.explain(event_of("m1"))
        assert story.event.title == "earlier"
        assert story.publications == (NOW_MS - 5, NOW_MS)
        assert story.conflicting
        assert device.query("SELECT count(*) FROM event_copies") == [(2,)]


def test_equal_publications_are_copies_and_no_conflict(pair):
    one, two = pair
    for device in pair:
        device.events.publish("mail", "inbox", "m1", title="same", payload=[1])
    meet(one, two)
    story = one.events.explain(event_of("m1"))
    assert story.publications == (NOW_MS, NOW_MS)
    assert not story.conflicting


def test_a_publication_that_arrives_does_not_reopen_or_rename_what_is_consumed(pair):
    one, two = pair
    one.publish("m1")
    one.events.consume(one.reserve("m1"))
    two.now_ms += 5
    two.events.publish("mail", "inbox", "m1", title="later")
    meet(one, two)
    assert two.event("m1").status == "consumed"
    assert two.event("m1").title == "Title of m1"


def test_events_of_several_devices_are_in_the_order_of_time(pair):
    one, two = pair
    for number in range(6):
        device = pair[number % 2]
        device.now_ms = NOW_MS + number
        device.publish(f"m{number}")
    meet(one, two)
    assert one.pending() == two.pending() == [f"m{number}" for number in range(6)]


def test_what_was_published_after_hearing_of_something_is_later_whatever_the_clock_says(pair):
    one, two = pair
    one.publish("cause")
    merge(one, two)
    two.now_ms -= 3_600_000
    two.publish("effect")
    meet(one, two)
    assert one.pending() == ["cause", "effect"]


def test_a_device_that_is_new_or_was_away_learns_the_time_from_its_peers(pair):
    one, two = pair
    for ago_days in (300, 30, 0):
        one.now_ms = NOW_MS - ago_days * DAY_MS
        one.publish(f"{ago_days} days ago")
    merge(one, two)
    two.now_ms = NOW_MS - 3_600_000
    two.publish("effect")
    assert two.pending()[-1] == "effect"


def test_time_does_not_go_back_with_the_wall_clock(device):
    device.publish("a")
    device.now_ms -= DAY_MS * 400
    device.publish("b")
    assert device.pending() == ["a", "b"]


def test_a_peer_s_clock_far_ahead_does_not_drag_ours(pair):
    one, two = pair
    one.now_ms = NOW_MS + DRIFT_MS_MAX + 5 * DAY_MS
    one.publish("from the future")
    merge(one, two)
    two.publish("now")
    assert two.event("now").created_at == NOW_MS
    two.now_ms = one.now_ms
    two.publish("then")
    assert two.pending() == ["now", "from the future", "then"]


def test_a_peer_s_clock_a_little_ahead_is_followed(pair):
    one, two = pair
    one.now_ms = NOW_MS + DAY_MS
    one.publish("ahead")
    merge(one, two)
    two.publish("after")
    assert two.pending() == ["ahead", "after"]


def test_one_incredible_time_does_not_hide_the_credible_ones(device):
    bodies = [
        publication_body(message_ids=[name], at=(NOW_MS + days * DAY_MS) << 16) for name, days in (("a", 3), ("b", 900))
    ]
    for number, body in enumerate(bodies, 1):
        assert device.forge("publications", bytes([number]) * 16, body)
    device.publish("mine")
    assert device.pending() == ["a", "mine", "b"]


def test_a_clock_beyond_all_reason_is_named_and_nothing_is_written(device):
    device.now_ms = 1 << 50
    with device.unchanged(), pytest.raises(InvalidInput, match="wall clock"):
        device.publish("a")


def test_publishing_is_kept_or_undone_together_with_the_app_s_own_writes(device):
    with device.database.transaction() as transaction:
        transaction.execute("CREATE TABLE app (text TEXT)")
    with device.unchanged(), pytest.raises(ZeroDivisionError), device.database.transaction() as transaction:
        transaction.execute("INSERT INTO app VALUES ('mail is read')")
        device.publish("a")
        assert device.pending() == ["a"]
        raise ZeroDivisionError
    with device.database.transaction() as transaction:
        transaction.execute("INSERT INTO app VALUES ('mail is read')")
        device.publish("a")
    assert device.pending() == ["a"]
    assert device.query("SELECT text FROM app") == [("mail is read",)]


def test_a_failing_call_inside_a_transaction_leaves_the_transaction_usable_and_itself_without_trace(device):
    with device.database.transaction():
        device.publish("a")
        with pytest.raises(InvalidInput):
            device.events.publish_many("mail", "other", [NewEvent("b"), NewEvent("c", payload=object())])
        device.publish("d")
    assert device.pending() == ["a", "d"]
    assert [topic.name for topic in device.topics.list("mail")] == ["inbox"]


def test_an_event_read_inside_an_undone_transaction_is_not_remembered(device):
    with pytest.raises(ZeroDivisionError), device.database.transaction():
        device.events.publish("mail", "inbox", "a", title="undone")
        assert device.event("a").title == "undone"
        raise ZeroDivisionError
    device.events.publish("mail", "inbox", "a", title="kept")
    assert device.event("a").title == "kept"


def test_titles_that_a_peer_made_no_text_read_as_empty(device):
    body = publication_body(message_ids=["a", "b"], run=5)
    body["events"] = [{"message_id": 5, "title": [], "payload": 1}, "no object"]
    assert device.absorb([forged("publications", b"p" * 16, body)]) == []
    first, second = device.events.peek("mail", "inbox")
    assert (first.message_id, first.title, first.payload, first.created_by_run) == ("", "", 1, None)
    assert (second.message_id, second.payload) == ("", None)


def test_a_publication_that_python_cannot_read_hides_no_other_event(device):
    deep = "[" * 990 + "]" * 990
    for number, payload in enumerate((deep, "9" * 5000), 1):
        body = json.dumps(publication_body(message_ids=[f"m{number}"], at=(NOW_MS << 16) + number))
        assert device.forge(
            "publications", bytes([number]) * 16, body.replace('"payload": null', f'"payload": {payload}')
        )
    device.publish("mine")
    assert [event.message_id for event in device.events.peek("mail", "inbox")][-1] == "mine"
