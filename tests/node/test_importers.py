import io
import json
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from leasemesh.node.importers import Fields, ImportFailed, Problem, check, guess_format, read, read_git_history
from leasemesh.node.importers.mail import MAIL_BYTES_MAX
from leasemesh.node.importers.records import LINE_BYTES_MAX, SPOOL_MEMORY_BYTES_MAX
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.model.jsonvalue import PAYLOAD_BYTES_MAX
from leasemesh.node.stores.events.publications import NewEvent


def records(content, source_format, **fields):
    raw = content.encode() if isinstance(content, str) else content
    return list(read(io.BytesIO(raw), source_format, "input", Fields(**fields)))


def problems(content, source_format, **fields):
    return [str(record) for record in records(content, source_format, **fields) if isinstance(record, Problem)]


# JSON Lines


def test_a_line_with_the_fields_of_an_event_is_that_event():
    content = '{"message_id": "a", "title": "First", "payload": [1, null]}\n'
    assert records(content, "jsonl") == [NewEvent("a", "First", [1, None])]


def test_any_other_object_is_the_payload_and_names_the_event_by_its_id_and_subject():
    content = '{"id": 7, "subject": "Häuser", "rooms": 3}'
    assert records(content, "jsonl") == [NewEvent("7", "Häuser", {"id": 7, "subject": "Häuser", "rooms": 3})]


def test_the_fields_for_id_and_title_can_be_chosen():
    (event,) = records('{"sku": "x1", "id": "other", "label": "Chair"}', "jsonl", id="sku", title="label")
    assert (event.message_id, event.title) == ("x1", "Chair")


def test_a_record_without_id_gets_the_same_id_each_time_and_another_one_for_other_content():
    first, again, other = records('{"a": 1, "b": 2}\n{"b": 2, "a": 1}\n{"a": 1, "b": 3}\n', "jsonl")
    assert first.message_id == again.message_id != other.message_id


def test_empty_lines_and_a_byte_order_mark_are_passed_over():
    assert len(records(b'\xef\xbb\xbf{"id": "a"}\r\n\r\n  \n{"id": "b"}', "jsonl")) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": "a"', "is not JSON"),
        (b"[1]", "is a list, not a JSON object"),
        (b"null", "is null, not a JSON object"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        (b'{"id": "a", "x": NaN}', "payload of a: is not JSON"),
        (b'{"id": "a", "x": 1e999}', "payload of a: is not JSON"),
        (b'{"id": "a", "x": "\\ud800"}', "not valid Unicode"),
        (b'{"id": "a", "x": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"id": [1]}', "'id' must be text or a whole number"),
        (b'{"id": true}', "'id' must be text or a whole number"),
        (b'{"id": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"id": "' + b"a" * 600 + b'"}', "message_id: has 600 characters, the limit is 512"),
        (b'{"id": "a", "title": "' + b"t" * 1001 + b'"}', "title of a: has 1,001 characters"),
        (b'{"id": "a", "x": "' + b"x" * PAYLOAD_BYTES_MAX + b'"}', "the limit is 1,048,576"),
        (b'{"id": "a", "x": "' + b"x" * LINE_BYTES_MAX + b'"}', "the line has 8,388,629 bytes, the limit is 8,388,608"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_the_next_one_is_read(line, said):
    good = b'{"id": "good"}\n'
    before, problem, after = records(good + line + b"\n" + good, "jsonl")
    assert before == after == NewEvent("good", "", {"id": "good"})
    assert str(problem).startswith("input:2: ")
    assert said in problem.text


def test_a_chosen_id_must_be_there():
    assert problems('{"id": "a"}\n{"sku": ""}\n', "jsonl", id="sku") == [
        "input:1: has no 'sku'",
        "input:2: has no 'sku'",
    ]


# CSV


def test_a_row_is_an_event_with_all_columns_as_text():
    content = 'id,title,amount\n1,Rent,900\n2,"Food, drink\nand more","1,5"\n'
    assert records(content, "csv") == [
        NewEvent("1", "Rent", {"id": "1", "title": "Rent", "amount": "900"}),
        NewEvent("2", "Food, drink\nand more", {"id": "2", "title": "Food, drink\nand more", "amount": "1,5"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_first_line_tells_what_separates_columns(delimiter):
    (event,) = records(f"\ufeffid{delimiter}name\r\n5{delimiter}Ada\r\n", "csv")
    assert event == NewEvent("5", "Ada", {"id": "5", "name": "Ada"})


def test_a_bad_row_is_named_with_the_line_it_begins_on_and_the_next_one_is_read():
    content = b'id,name\n1,"two\nlines"\n2\n3,x,y\n4,\xff\n\n5,fine\n'
    found = records(content, "csv")
    assert [str(record) for record in found if isinstance(record, Problem)] == [
        "input:4: has 1 fields, the first row has 2",
        "input:5: has 3 fields, the first row has 2",
        "input:6: title of 4: is not valid Unicode text",
    ]
    assert [record.message_id for record in found if isinstance(record, NewEvent)] == ["1", "5"]


def test_a_quote_that_never_ends_is_found():
    assert problems('id,name\n1,fine\n2,"open\n3,swallowed\n', "csv") == [
        "input:3: is not CSV (unexpected end of data)"
    ]


def test_a_row_that_is_too_long_is_found_and_the_next_one_is_read():
    found = records(b"id\n1\n" + b"x" * (LINE_BYTES_MAX + 10) + b"\n2\n", "csv")
    assert "input:3: is not CSV (the line has" in str(found[1])
    assert found[2].message_id == "2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "input:1: the first row has no column 'sku'; it has a, b"),
        ("sku,a,a\n1,2,3\n", "input:1: the first row names the column 'a' twice"),
        ('sku,"a\n', "input:1: is not CSV (unexpected end of data)"),
    ],
)
def test_a_first_row_that_cannot_be_used_ends_the_reading(content, said):
    assert problems(content, "csv", id="sku") == [said]


@pytest.mark.parametrize("source_format", ["jsonl", "csv", "mbox"])
def test_an_empty_file_holds_nothing(source_format):
    assert records("", source_format) == []


# mbox

MBOX = b"""From ada@example.org Thu Jan  1 10:00:00 2026
From: =?utf-8?q?Ad=C3=A1?= <ada@example.org>
To: team@example.org
Subject: =?utf-8?b?w5ZmZmVu?=
 again
Message-ID: <one@example.org>
Date: Thu, 1 Jan 2026 10:00:00 +0000
Content-Type: multipart/mixed; boundary=B

--B
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: 8bit

Gr\xfc\xdfe

From the beginning
>From escaped
--B
Content-Type: application/pdf
Content-Disposition: attachment; filename=plan.pdf
Content-Transfer-Encoding: base64

AAAA
--B--

From bob@example.org Thu Jan  1 11:00:00 2026
Subject: no id \xff
Content-Type: text/plain; charset=unheard-of

plain
"""


def test_a_mail_is_an_event_with_its_headers_and_its_text():
    first, second = records(MBOX, "mbox")
    assert (first.message_id, first.title) == ("one@example.org", "Öffen again")
    assert first.payload == {
        "from": "Adá <ada@example.org>",
        "to": "team@example.org",
        "date": "Thu, 1 Jan 2026 10:00:00 +0000",
        "subject": "Öffen again",
        "text": "Grüße\n\nFrom the beginning\nFrom escaped",
        "attachments": ["plan.pdf"],
    }
    assert len(second.message_id) == 32
    assert second.payload["text"] == "plain\n"


def test_a_file_that_is_no_mbox_is_refused_at_its_first_line():
    assert problems(b"Dear all,\n\n" + MBOX, "mbox") == ['input:1: an mbox file begins with a line "From ADDRESS DATE"']


def test_a_mail_that_is_too_large_is_named_and_the_next_one_is_read():
    head = b"From a@b Thu Jan  1 10:00:00 2026\n"
    large = head + b"\n" + (b"x" * 1_000_000 + b"\n") * (MAIL_BYTES_MAX // 1_000_000 + 1)
    found = records(large + b"\n" + head + b"Message-ID: <next>\n\nhi\n", "mbox")
    assert str(found[0]).startswith("input:1: the mail has 68,")
    assert found[1].message_id == "next"


# git


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada ü", "-c", "user.email=ada@example.org", "-c", "commit.gpgSign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q")
    for number in range(5):
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", f"Commit {number}\n\nBody\x1f of\n\n{number}")
    return tmp_path


def test_each_commit_is_an_event_the_oldest_first(checkout):
    events = list(read_git_history(checkout))
    assert [event.title for event in events] == [f"Commit {number}" for number in range(5)]
    assert events[1].payload["parents"] == [events[0].message_id]
    assert events[1].payload["author"] == "Ada ü"
    assert events[1].payload["body"] == "Body\x1f of\n\n1"


def test_a_limit_takes_the_newest_commits(checkout):
    assert [event.title for event in read_git_history(checkout, limit=2)] == ["Commit 3", "Commit 4"]


def test_a_shallow_clone_can_be_read(checkout, tmp_path_factory):
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "-q", "--depth=1", checkout.as_uri(), ".")
    assert [event.title for event in read_git_history(clone)] == ["Commit 4"]


def test_a_folder_without_a_history_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(LeasemeshError, match=r"git finds no history in .*not a git repository.*name a file"):
        list(read_git_history(tmp_path))
    git(tmp_path, "init", "-q")
    with pytest.raises(LeasemeshError, match=r"does not have any commits yet"):
        list(read_git_history(tmp_path))


def test_a_machine_without_git_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LeasemeshError, match=r"cannot run git \(No such file or directory\); install it"):
        list(read_git_history(tmp_path))


# Checking before publishing


def test_a_source_with_a_bad_record_fails_as_a_whole_and_names_the_first():
    content = '{"id": "a"}\nx\n{"id": "b"}\n' + "y\n" * 200
    with pytest.raises(ImportFailed) as caught:
        check(records(content, "jsonl"))
    expected = "input:2: is not JSON (Expecting value, column 1) (and 200 more); nothing was published"
    assert str(caught.value) == expected
    assert (caught.value.count, len(caught.value.problems)) == (201, 100)


def test_bad_records_are_left_out_counted_and_listed_when_asked_for():
    checked = check(records('{"id": "a"}\nx\n{"id": "b"}\n', "jsonl"), keep_going=True)
    assert [event.message_id for event in checked.events()] == ["a", "b"]
    assert [event.message_id for event in checked.events()] == ["a", "b"]
    assert (checked.count, checked.problem_count, checked.problems[0].line) == (2, 1, 2)
    checked.close()


def test_a_large_source_is_kept_on_disk_and_not_in_memory(tmp_path):
    payload = {"text": "x" * 100_000}
    count = 4 * SPOOL_MEMORY_BYTES_MAX // 100_000
    tracemalloc.start()
    checked = check((NewEvent(str(number), "", payload) for number in range(count)), folder=tmp_path)
    assert sum(1 for _ in checked.events()) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    checked.close()
    assert peak < 2 * SPOOL_MEMORY_BYTES_MAX


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.JSONL", b"", "jsonl"),
        ("a.tsv", b"", "csv"),
        ("archive.mbox", b"", "mbox"),
        ("-", b"From a@b", "mbox"),
        ("-", b' \n{"id"', "jsonl"),
        ("notes.txt", b"id,name", None),
    ],
)
def test_the_format_is_told_by_the_name_or_the_first_bytes(name, head, expected):
    assert guess_format(name, head) == expected


def test_what_is_read_is_what_was_written():
    events = [NewEvent(f"{number}", f"Title {number}", {"n": number, "s": "ü\n"}) for number in range(1000)]
    lines = (json.dumps({"message_id": e.message_id, "title": e.title, "payload": e.payload}) for e in events)
    assert records("\n".join(lines), "jsonl") == events
