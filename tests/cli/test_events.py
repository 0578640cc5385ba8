import io
import json
from types import SimpleNamespace

import pytest
from cli_devices import meet

from leasemesh.node.node import Node


def test_an_event_that_is_published_can_be_peeked_at(leasemesh, database):
    published = leasemesh("publish", "mail/inbox", "--id", "m1", "--title", "Hello", "--payload", '{"n": [1]}')
    assert published.code == 0
    assert published.out.startswith("published mail/inbox/m1 as event ")
    (event,) = leasemesh("peek", "mail/inbox", "--json").document["events"]
    assert (event["message_id"], event["title"], event["payload"], event["status"]) == (
        "m1",
        "Hello",
        {"n": [1]},
        "pending",
    )


def test_publishing_again_changes_nothing_and_says_so(leasemesh, database):
    again = leasemesh("publish", "shop/orders", "--id", "order-3", "--title", "Other")
    assert again.code == 0
    assert "shop/orders has order-3 already" in again.out
    assert not leasemesh("publish", "shop/orders", "--id", "order-3", "--json").document["created"]
    assert leasemesh("peek", "shop/orders", "--json").document["events"][3]["title"] == "Order 3"


FILES = {
    "in.jsonl": '{"id": 1, "title": "One"}\n{"id": 2, "title": "Two"}\n',
    "in.csv": "id,title\n1,One\n2,Two\n",
    "in.mbox": "From a@b Thu Jan  1 10:00:00 2026\nMessage-ID: <1>\nSubject: One\n\nhi\n\n"
    "From a@b Thu Jan  1 10:00:00 2026\nMessage-ID: <2>\nSubject: Two\n\nho\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_published_whatever_its_format(leasemesh, database, folder, name):
    (folder / name).write_text(FILES[name])
    assert leasemesh("publish", "new/topic", name).out == "published 2 events to new/topic\n"
    events = leasemesh("peek", "new/topic", "--json").document["events"]
    assert [(event["message_id"], event["title"]) for event in events] == [("1", "One"), ("2", "Two")]
    assert leasemesh("publish", "new/topic", name).out == "published 0 events to new/topic; it had 2 already\n"


@pytest.mark.parametrize("name", FILES)
def test_standard_input_is_published_too(leasemesh, database, monkeypatch, name):
    buffer = io.BufferedReader(io.BytesIO(FILES[name].encode()))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=buffer))
    options = ["--format", "csv"] if name == "in.csv" else []
    published = leasemesh("publish", "new/topic", "-", "--json", *options)
    assert published.document == {"created": 2, "existing": 0, "left_out": 0, "problems": []}


def test_a_file_with_a_bad_record_is_not_published_at_all(leasemesh, database, folder):
    (folder / "in.jsonl").write_text('{"id": 1}\nnonsense\n{"id": 2}\n')
    failed = leasemesh("publish", "new/topic", "in.jsonl")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err == (
        "leasemesh: in.jsonl:2: is not JSON (Expecting value, column 1); nothing was published; "
        "--keep-going leaves out what is bad\n"
    )
    assert leasemesh("peek", "new/topic").code == 3


def test_bad_records_are_left_out_counted_and_listed_when_asked_for(leasemesh, database, folder):
    (folder / "in.jsonl").write_text('{"id": 1}\nnonsense\n{"id": 2}\n' + "x\n" * 150)
    published = leasemesh("publish", "new/topic", "in.jsonl", "--keep-going")
    assert published.code == 0
    lines = published.out.splitlines()
    assert lines[0] == "published 2 events to new/topic; left out 151 bad records:"
    assert lines[1] == "  in.jsonl:2: is not JSON (Expecting value, column 1)"
    assert lines[-1] == "  and 51 more"


def test_the_fields_for_id_and_title_can_be_chosen(leasemesh, database, folder):
    (folder / "in.csv").write_text("number,customer\n7,Ada\n")
    leasemesh("publish", "new/topic", "in.csv", "--id-field", "number", "--title-field", "customer")
    (event,) = leasemesh("peek", "new/topic", "--json").document["events"]
    assert (event["message_id"], event["title"]) == ("7", "Ada")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["shop"], 2, "'shop' is not of the form WORKFLOW/TOPIC"),
        (["shop/orders"], 2, "give either --id for one event or a FILE of events"),
        (["shop/orders", "x.jsonl", "--id", "1"], 2, "give either --id for one event or a FILE of events"),
        (["shop/orders", "x.jsonl", "--title", "T"], 2, "--title and --payload go with --id"),
        (["shop/orders", "--id", "1", "--payload", "{"], 2, "--payload: is not JSON"),
        (["shop/orders", "--id", "1" * 600], 2, "has 600 characters, the limit is 512"),
        (["shop/orders", "x.jsonl"], 3, "no such file: x.jsonl"),
        (["shop/orders", "notes.txt"], 2, "cannot tell the format of notes.txt; say --format jsonl, csv, mbox"),
        (["shop/orders", "notes.txt", "--format", "xml"], 2, "'xml' is not one of jsonl, csv, mbox"),
    ],
)
def test_what_cannot_be_published_ends_with_one_sentence(leasemesh, database, folder, arguments, code, said):
    (folder / "notes.txt").write_text("some notes")
    failed = leasemesh("publish", *arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err
    assert len(failed.err.splitlines()) == 1
    assert leasemesh("topics", "--json").document["topics"][0]["total"] == 10


def test_topics_are_listed_with_their_counts(leasemesh, database):
    leasemesh("reserve", "shop/orders", "--limit", "3")
    heading, row = leasemesh("topics").out.splitlines()
    assert heading.split() == ["topic", "pending", "reserved", "consumed", "skipped", "dead", "total"]
    assert row.split() == ["shop/orders", "7", "3", "0", "0", "0", "10"]
    assert leasemesh("topics", "shop", "--json").document == {
        "topics": [{"workflow": "shop", "topic": "orders", "total": 10, "by_status": {"pending": 7, "reserved": 3}}]
    }
    assert leasemesh("topics", "nope").code == 3


def test_peek_shows_the_oldest_and_says_when_there_may_be_more(leasemesh, database):
    shown = leasemesh("peek", "shop/orders", "--limit", "4").out.splitlines()
    assert [line.split()[1] for line in shown[1:5]] == ["order-0", "order-1", "order-2", "order-3"]
    assert shown[5] == "the oldest 4 are shown; --limit shows more"
    assert leasemesh("peek", "shop/orders", "--status", "dead").out == "no dead events in shop/orders\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["shop/nope"], 3), (["shop"], 2), (["shop/orders", "--status", "lost"], 2), (["shop/orders", "--limit", "0"], 2)],
)
def test_peek_at_what_is_not_there_says_so(leasemesh, database, arguments, code):
    assert leasemesh("peek", *arguments).code == code


def test_names_with_slashes_are_found(leasemesh, database):
    with Node.open(database) as node:
        node.publish("a/b", "c/d", "e/f", title="Deep")
    assert leasemesh("peek", "a/b/c/d", "--json").document["events"][0]["title"] == "Deep"
    assert leasemesh("why", "a/b/c/d/e/f", "--json").document["event"]["title"] == "Deep"


def test_control_characters_in_titles_do_not_reach_the_terminal(leasemesh, database):
    with Node.open(database) as node:
        node.publish("new", "topic", "m", title="\x1b]0;owned\x07 red\u202e [bold]x[/bold]\nnext")
    shown = leasemesh("peek", "new/topic").out
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "\ufffd]0;owned\ufffd red\ufffd [bold]x[/bold] next" in shown


def test_why_tells_the_story_in_order(leasemesh, database, other):
    run = leasemesh("reserve", "shop/orders", "--id", "order-3", "--handler", "packing", "--json").document["run"]
    meet(database, other)
    on_other = leasemesh("why", "shop/orders/order-3", "--db", other).out
    assert "may take it over in 75 s, if it stays silent: leasemesh take-over " in on_other
    held = leasemesh("why", "shop/orders/order-3").out
    assert f"this device holds it: leasemesh consume {run[:16]}, or release it" in held
    leasemesh("release", run)
    again = leasemesh("reserve", "shop/orders", "--id", "order-3", "--json").document["run"]
    leasemesh("consume", again)
    lines = leasemesh("why", "shop/orders/order-3").out.splitlines()
    assert lines[0] == "shop/orders/order-3  consumed"
    assert [line.rstrip().rpartition("  ")[2] for line in lines[5:8]] == [
        "published",
        f"claimed by run {run[:16]} for packing: released",
        f"claimed (epoch 2) by run {again[:16]} for manual: consumed",
    ]
    assert lines[-1] == "next: nothing; it is settled for ever"


def test_why_tells_of_duplicates_and_of_both_devices(leasemesh, database, other):
    for path in (database, other):
        with Node.open(path) as node:
            node.reserve("shop", "orders", message_ids=["order-1"]).consume()
    meet(database, other)
    story = leasemesh("why", "shop/orders/order-1", "--json").document
    assert story["duplicate"]
    assert [claim["state"] for claim in story["claims"]] == ["consumed", "consumed"]
    assert len({claim["node"] for claim in story["claims"]}) == 2
    assert "DUPLICATE" in leasemesh("why", "shop/orders/order-1").out
    assert leasemesh("status", "--json").document["duplicates"] == 1
    assert "done twice 1 event" in leasemesh("status").out


def test_why_takes_an_id_and_the_beginning_of_one(leasemesh, database):
    event = leasemesh("peek", "shop/orders", "--limit", "1", "--json").document["events"][0]
    for text in (event["id"], event["id"][:10], event["id"][:10].upper(), "shop/orders/order-0"):
        assert leasemesh("why", text, "--json").document["event"] == event
    assert leasemesh("why", event["id"]).out.splitlines()[-1] == (
        "next: it is free: leasemesh reserve shop/orders --id order-0"
    )


@pytest.mark.parametrize(("text", "code"), [("shop/orders/nope", 3), ("ffffffff", 3), ("xyz", 2), ("ab", 2)])
def test_why_says_when_there_is_no_such_event(leasemesh, database, text, code):
    failed = leasemesh("why", text)
    assert failed.code == code
    if code == 2:
        assert f"{text!r} is neither WORKFLOW/TOPIC/MESSAGE_ID nor the beginning of an id" in failed.err


def test_json_keeps_every_character(leasemesh, database):
    leasemesh("publish", "new/topic", "--id", "ü", "--title", "a\u2028b", "--payload", json.dumps("\x01\u202e"))
    (event,) = leasemesh("peek", "new/topic", "--json").document["events"]
    assert (event["message_id"], event["title"], event["payload"]) == ("ü", "a\u2028b", "\x01\u202e")


def test_nobody_publishes_to_a_topic_of_leasemesh_itself(leasemesh, database):
    refused = leasemesh("publish", "shop/~state", "--id", "1")
    assert refused.code != 0
    assert "names that begin with ~, such as '~state', are leasemesh's own" in refused.err
