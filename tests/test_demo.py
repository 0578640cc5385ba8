"""The demo, with its real processes and services; and that each of its invariants can fail."""

import json
import mailbox
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demo_app.invariants import check
from demo_app.played import DEVICES, Played
from demo_app.records import read
from mail_handlers import EVERYBODY, SUBSCRIBER

from leasemesh.node.node import Node

EVENTS = 12
RUN_SECONDS_MAX = 100
ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "scripts", ROOT / "examples/mail")))}


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "demo_app", *map(str, arguments)]


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        command_line(*arguments), capture_output=True, text=True, timeout=RUN_SECONDS_MAX, env=ENVIRONMENT
    )


def write_input(path: Path, count: int) -> Path:
    lines = [json.dumps({"id": f"m{n}", "title": f"Event {n}", "payload": {"number": n}}) + "\n" for n in range(count)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A demo that was run once: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    finished = run_demo("--input", write_input(folder / "input.jsonl", EVENTS), "--keep", folder / "kept")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "kept", finished.stdout


@pytest.fixture
def copied(kept, tmp_path):
    """A copy of everything that it left, to tamper with."""
    return Path(shutil.copytree(kept[0], tmp_path / "copy"))


def violated(folder):
    invariants = check(read(folder, Played.read(folder / "demo.json")))
    return {invariant.name: " ".join(invariant.violations) for invariant in invariants if invariant.violations}


def change(folder, device, sql):
    """Change a database as no program of ours would."""
    with Node.open(folder / f"{device}.db") as node, node.transaction() as transaction:
        transaction.execute(sql)


def retell(folder, **changes):
    """Change what is said to have happened."""
    played = json.loads((folder / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps(played | changes))
    return played


def letters(folder, to):
    box = mailbox.Maildir(folder / "mailbox")
    return box, [key for key in box.iterkeys() if box[key]["To"] == to]


# What it tells


def test_it_tells_the_story_and_ends_with_two_tables_and_one_sentence(kept):
    lines = kept[1].splitlines()
    text = "\n".join(lines)
    for said in (
        "SMTP on 127.0.0.1:",
        "HTTP on 127.0.0.1:",
        "published 12 events, and the newest 8 as headlines",
        "is cut off, and begins to work",
        "desktop  had its entry made; SIGKILL before it can write it down",
        'laptop   waits for confirmation by hub: "Event 0"',
        'desktop  waits for confirmation by hub: "Event 0"',
        "laptop   had its letter accepted; SIGKILL before it can write it down",
        "somebody looks into the mailbox, and says: happened",
        "desktop comes back late",
    ):
        assert said in text
    assert lines[-2].startswith("Through a partition and 2 kills, 12 letters went out, each exactly once; ")
    assert "BAD" not in text


def test_the_services_counted_what_each_mode_promises(kept):
    lines = kept[1].splitlines()
    counted = {}
    for line in lines[lines.index(next(line for line in lines if line.startswith("service"))) + 1 :][:3]:
        *_, calls, events, keys, repeated, reported, doubled = line.replace(",", "").split()
        counted[line.partition(",")[0]] = [calls, events, keys, repeated, reported, doubled]
    assert counted["letters"] == ["12", "12", "12", "0", "0", "0"]
    assert counted["headlines"] == ["16", "8", "8", "8", "8", "8"]
    assert counted["entries"] == ["28", "20", "20", "8", "8", "0"]


def test_the_devices_share_the_work_and_end_with_the_same_content(kept):
    lines = kept[1].splitlines()
    heading = next(line for line in lines if line.startswith("device"))
    assert heading.split() == ["device", "reserved", "lost", "consumed", "duplicates", "digest"]
    rows = [line.split() for line in lines[lines.index(heading) + 1 :][: len(DEVICES)]]
    assert [row[0] for row in rows] == list(DEVICES)
    assert len({row[-1] for row in rows}) == 1
    consumed = {row[0]: int(row[3]) for row in rows}
    assert consumed["hub"] == 0
    assert sum(consumed.values()) == EVENTS + 8 + 2 * (EVENTS + 8) + 3 * 8
    assert [int(row[4]) for row in rows] == [0, 24, 24]


def test_what_was_kept_can_be_checked_again_and_told_to_programs(kept):
    finished = run_demo("--check", kept[0], "--json")
    assert finished.returncode == 0
    document = json.loads(finished.stdout)
    assert document["held"] is True
    assert document["services"][0] == {
        "name": "letters, mail",
        "mode": "confirmed",
        "calls": 12,
        "events": 12,
        "keys": 12,
        "repeated": 0,
        "reported": 0,
        "doubled": 0,
    }
    assert [device["device"] for device in document["devices"]] == list(DEVICES)


def test_a_broken_promise_ends_it_with_1_and_is_named(copied):
    box, found = letters(copied, SUBSCRIBER)
    box.add(box[found[0]])
    finished = run_demo("--check", copied)
    assert finished.returncode == 1
    assert "BAD confirmed: the mailbox holds every letter exactly once" in finished.stdout
    assert "is there 2 times" in finished.stdout
    assert "FAILED: 1 promise was broken" in finished.stdout


# What it takes


def test_one_event_is_enough_and_a_program_can_follow(tmp_path):
    finished = run_demo("--input", write_input(tmp_path / "one.jsonl", 1), "--json")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    documents = [json.loads(line) for line in finished.stdout.splitlines()]
    assert documents[-1]["held"] is True
    assert documents[-1]["services"][0]["calls"] == 1
    assert any("SIGKILL" in document.get("text", "") for document in documents)


def test_without_an_input_it_takes_the_newest_commits_of_a_checkout_even_a_shallow_one(tmp_path):
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgSign=false"]
    origin, shallow = tmp_path / "origin", tmp_path / "shallow"
    subprocess.run(["git", "init", "-q", origin], check=True)
    for number in range(6):
        commit = ["git", "-C", origin, *identity, "commit", "-q", "--allow-empty", "-m", f"Commit {number}"]
        subprocess.run(commit, check=True)
    subprocess.run(["git", "clone", "-q", "--depth=5", origin.as_uri(), shallow], check=True)
    finished = run_demo("--history", shallow, "--limit", 4)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "published 4 events, and the newest 4 as headlines" in finished.stdout


def test_a_file_that_comes_into_a_watched_folder_is_worked_on_too(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "first.txt").write_text("first")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command_line("--watch", folder), **pipes, text=True, env=ENVIRONMENT) as demo:
        told = []
        for line in demo.stdout:
            told.append(line)
            if "is cut off, and begins to work" in line:
                (folder / "second.txt").write_text("second")
        assert demo.wait(RUN_SECONDS_MAX) == 0, "".join(told) + demo.stderr.read()
    assert "2 letters went out, each exactly once" in told[-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no events; name another one"), ('{"id": 1}\nnonsense\n', "input.jsonl:2: is not JSON")],
)
def test_an_input_that_cannot_be_used_ends_it_with_one_sentence(tmp_path, content, said):
    (tmp_path / "input.jsonl").write_text(content)
    finished = run_demo("--input", tmp_path / "input.jsonl", "--keep", tmp_path / "kept")
    assert finished.returncode == 1
    assert said in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "kept").exists()


# Each invariant of the databases fails when what it is about is broken.


def test_a_missing_event_is_found(copied):
    change(copied, "desktop", "DELETE FROM event_index WHERE n = 7")
    assert "desktop lacks m6" in violated(copied)["every event, and all that follows from it, is on every device"]


def test_an_event_from_nowhere_is_found(copied):
    with Node.open(copied / "hub.db") as node:
        node.publish("demo", "entries", "stranger", title="Stranger")
    assert (
        "hub has in entries, from nowhere, Stranger"
        in violated(copied)["every event, and all that follows from it, is on every device"]
    )


def test_an_event_that_was_not_done_is_found(copied):
    change(copied, "laptop", "UPDATE event_index SET status = 1 WHERE n = 3")
    assert "on laptop: m2 (reserved)" in violated(copied)["every event ends consumed, on every device"]


def test_a_duplicate_that_is_not_reported_is_found(copied):
    for device in DEVICES:
        change(copied, device, "DELETE FROM duplicates WHERE event = (SELECT min(event) FROM duplicates)")
    found = violated(copied)
    assert "done 2 times and reports no duplicate" in found["an event is done once, or reported as a duplicate"]
    assert "headline" in found["exactly what both had finished while apart is reported as a duplicate"]
    assert "the mailbox saw 8 of headlines twice, hub reports 7" in found[SOFT]


def test_a_duplicate_without_reason_is_found(copied):
    change(copied, "hub", "INSERT INTO duplicates SELECT min(n) FROM event_index")
    assert "hub reports m0 without reason" in violated(copied)["an event is done once, or reported as a duplicate"]


def test_a_different_owner_is_found(copied):
    change(copied, "desktop", "UPDATE event_index SET run = (SELECT min(n) FROM run_index WHERE n <> run) WHERE n = 1")
    assert "hub and desktop differ about m0" in violated(copied)["every device names the same owner of every event"]


def test_a_loser_that_was_not_told_is_found(copied):
    change(copied, "hub", "UPDATE handler_runs SET ended = replace(ended, '3 lost', '0 crashed')")
    assert "with its claim lost and its status crashed" in violated(copied)[LOSERS]


def test_a_race_that_nobody_lost_is_found(copied):
    with Node.open(copied / "hub.db") as node:
        first, second = (event.id for event in node.peek("demo", "input", limit=3, status="consumed")[1:])
    retell(copied, contested={"laptop": first, "desktop": first})
    assert "knows of 0 that lost m1, which 2 held" in violated(copied)[LOSERS]
    retell(copied, contested={"laptop": first, "desktop": second})
    assert LOSERS not in violated(copied)


def test_an_effect_of_a_run_that_lost_is_found(copied):
    copied_run = lost_run(copied)
    change(
        copied,
        "laptop",
        f"INSERT INTO mutations (id, body, progress, outcome) SELECT unhex('{copied_run}'), body, progress, outcome "
        "FROM mutations WHERE outcome <> '' LIMIT 1",
    )
    assert f"run {copied_run} lost its lease, and yet had an effect" in violated(copied)[LOSERS]


def test_a_claim_that_was_never_ended_is_found(copied):
    change(copied, "desktop", "UPDATE reservations SET state = 'held' WHERE id = (SELECT min(id) FROM reservations)")
    assert "desktop has a claim that was never ended" in violated(copied)[OPEN]


def test_a_run_that_never_ended_is_found(copied):
    change(copied, "hub", "UPDATE handler_runs SET ended = '' WHERE id = (SELECT max(id) FROM handler_runs)")
    assert "hub has a run that never ended" in violated(copied)[OPEN]


def test_work_that_nobody_went_on_with_is_found(copied):
    run = killed_run(copied, "laptop")
    change(copied, "desktop", f"DELETE FROM handler_runs WHERE retry_of = '{run}'")
    assert "desktop says that laptop began send_mail" in violated(copied)[KILLED]
    assert "went on with it 0 times" in violated(copied)[KILLED]


def test_a_kill_that_was_not_between_effect_and_record_is_found(copied):
    played = retell(copied)
    retell(copied, killed=[played["killed"][0] | {"event": played["contested"]["laptop"], "device": "hub"}])
    assert "says that hub began enter" in violated(copied)[KILLED]


def test_an_outcome_that_nobody_knows_is_found(copied):
    letter = "SELECT min(id) FROM mutations WHERE body LIKE '%subscriber%'"
    change(copied, "hub", f"UPDATE mutations SET outcome = '' WHERE id = ({letter})")
    assert "hub does not know the outcome of" in violated(copied)[KILLED]


def test_a_different_digest_is_found(copied):
    change(copied, "laptop", "UPDATE workflows SET title = 'other'")
    assert "laptop" in violated(copied)["the digests of all devices are equal"]


def test_an_unsound_database_is_found(copied):
    change(copied, "hub", "UPDATE run_index SET at = at + 1")
    assert "hub: wrong" in violated(copied)["every database is sound"]


# Each invariant of the services, too.

LOSERS = "who lost a lease was told, and had no effect"
OPEN = "what was claimed was settled or given back, and every run has ended"
KILLED = "what a killed device had begun went on, and was not tried again"
LETTERS = "confirmed: the mailbox holds every letter exactly once"
PERMITS = "confirmed: every letter left with a permit of the hub"
SOFT = "soft: the headlines that came twice are the reported duplicates"
LEDGER = "idempotency key: the ledger saw the duplicates, and entered nothing twice"


def lost_run(folder):
    with Node.open(folder / "hub.db") as node:
        return node.query("SELECT lower(hex(id)) FROM handler_runs WHERE status = 'lost' LIMIT 1")[0][0]


def killed_run(folder, device):
    played = Played.read(folder / "demo.json")
    (killed,) = (one for one in played.killed if one.device == device)
    records = read(folder, played)
    hub = records.devices["hub"]
    (run,) = (r for r in hub.effects if killed.event in hub.events_of(r) and records.device_of(hub, r) == device)
    return run


def test_a_letter_that_never_came_is_found(copied):
    box, found = letters(copied, SUBSCRIBER)
    box.discard(found[0])
    assert "is there 0 times" in violated(copied)[LETTERS]


def test_a_letter_that_came_twice_is_found(copied):
    box, found = letters(copied, SUBSCRIBER)
    box.add(box[found[0]])
    assert "is there 2 times" in violated(copied)[LETTERS]


def test_a_letter_about_nothing_is_found(copied):
    box, found = letters(copied, SUBSCRIBER)
    letter = box[found[0]]
    letter.replace_header("X-Event", "0" * 32)
    box.add(letter)
    assert "no event of input" in violated(copied)[LETTERS]


def test_a_letter_without_a_permit_is_found(copied):
    change(copied, "laptop", "DELETE FROM permits")
    assert "laptop knows of no permit" in violated(copied)[PERMITS]


def test_a_headline_that_was_never_sent_is_found(copied):
    box, found = letters(copied, EVERYBODY)
    event = box[found[0]]["X-Event"]
    for key in found:
        if box[key]["X-Event"] == event:
            box.discard(key)
    assert "was never sent" in violated(copied)[SOFT]


def test_a_headline_whose_second_sending_is_not_reported_is_found(copied):
    box, found = letters(copied, EVERYBODY)
    box.discard(found[0])
    assert "the mailbox saw 7 of headlines twice, desktop reports 8" in violated(copied)[SOFT]


def change_calls(folder, change):
    path = folder / "ledger.jsonl"
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(call) + "\n" for call in change(calls)))


def test_an_entry_that_was_made_twice_is_found(copied):
    change_calls(copied, lambda calls: [call | {"repeated": False} for call in calls])
    assert "was made 2 times" in violated(copied)[LEDGER]


def test_an_entry_that_was_never_made_is_found(copied):
    change_calls(copied, lambda calls: calls[1:])
    assert "was made 0 times" in violated(copied)[LEDGER]


def test_a_repeated_call_that_is_not_reported_is_found(copied):
    change_calls(copied, lambda calls: calls + [calls[-1] | {"repeated": True}])
    assert "the ledger saw 9 of entries twice, hub reports 8" in violated(copied)[LEDGER]
