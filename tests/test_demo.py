"""The demo, with its real processes; and that each of its invariants can fail."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from node.demo.invariants import judge
from node.demo.scenario import DESKTOP, DEVICES, LAPTOP, Plan, Played
from node.service import Node

EVENTS = 40


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "node.demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def write_input(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": f"m{n}", "title": f"Event {n}"}) + "\n" for n in range(count)))
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
    """A copy of its databases to tamper with."""
    return Path(shutil.copytree(kept[0], tmp_path / "copy"))


def violated(folder):
    verdict = judge(folder, Played.read(folder / "demo.json"))
    return {invariant.name: " ".join(invariant.violations) for invariant in verdict.violated}


def change(folder, device, sql):
    """Change a database as no program of ours would."""
    with Node.open(folder / f"{device}.db") as node, node.transaction() as transaction:
        transaction.execute(sql)


def test_it_tells_what_happens_and_ends_with_the_table_and_one_sentence(kept):
    lines = kept[1].splitlines()
    text = "\n".join(lines)
    for said in (
        "listening on ws://127.0.0.1:",
        "published 40 events",
        "is offline",
        "LeaseLost: 6 events",
        "gives up",
    ):
        assert said in text
    assert lines[-2].startswith("All 40 events were consumed; 6 of them on both sides")
    heading = next(line for line in lines if line.startswith("device"))
    assert heading.split() == ["device", "reserved", "kept", "lost", "consumed", "duplicates", "digest"]
    rows = [line.split() for line in lines[lines.index(heading) + 1 :][: len(DEVICES)]]
    assert [row[0] for row in rows] == list(DEVICES)
    assert len({row[-1] for row in rows}) == 1
    by_device = {row[0]: list(map(int, row[1:6])) for row in rows}
    assert by_device["hub"] == [0, 0, 0, 0, 0]
    assert sum(row[3] for row in by_device.values()) == EVENTS + 6
    assert sorted(row[2] for row in by_device.values()) == [0, 0, 12]


def test_what_was_kept_can_be_checked_again(kept):
    finished = run_demo("--check", kept[0])
    assert finished.returncode == 0
    assert "All 40 events were consumed" in finished.stdout


def test_a_broken_promise_ends_it_with_1_and_is_named(copied):
    change(copied, "hub", "UPDATE event_index SET status = 0, run = NULL WHERE n = 5")
    finished = run_demo("--check", copied)
    assert finished.returncode == 1
    assert "BAD every event ends consumed, on every device" in finished.stdout
    assert "on hub: m4 (pending)" in finished.stdout
    assert "FAILED: 3 promises were broken" in finished.stdout


@pytest.mark.parametrize("count", [1, 5])
def test_a_handful_of_events_is_enough(tmp_path, count):
    finished = run_demo("--input", write_input(tmp_path / "few.jsonl", count))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "was told that it had lost its lease" in finished.stdout


def test_without_an_input_it_takes_the_history_of_a_checkout_even_a_shallow_one(tmp_path):
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgSign=false"]
    origin, shallow = tmp_path / "origin", tmp_path / "shallow"
    subprocess.run(["git", "init", "-q", origin], check=True)
    for number in range(12):
        commit = ["git", "-C", origin, *identity, "commit", "-q", "--allow-empty", "-m", f"Commit {number}"]
        subprocess.run(commit, check=True)
    subprocess.run(["git", "clone", "-q", "--depth=10", origin.as_uri(), shallow], check=True)
    finished = run_demo("--history", shallow)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "published 10 events to demo/commits" in finished.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no events; name another file"), ('{"id": 1}\nnonsense\n', "input.jsonl:2: is not JSON")],
)
def test_an_input_that_cannot_be_used_ends_it_with_one_sentence(tmp_path, content, said):
    (tmp_path / "input.jsonl").write_text(content)
    finished = run_demo("--input", tmp_path / "input.jsonl", "--keep", tmp_path / "kept")
    assert finished.returncode == 1
    assert said in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "kept").exists()


# Each invariant fails when what it is about is broken.


def test_a_missing_event_is_found(copied):
    change(copied, "desktop", "DELETE FROM event_index WHERE n = 7")
    assert "desktop lacks m6" in violated(copied)["every event of the input is on every device"]


def test_an_event_that_was_not_done_is_found(copied):
    change(copied, "laptop", "UPDATE event_index SET status = 1 WHERE n = 3")
    assert "on laptop: m2 (reserved)" in violated(copied)["every event ends consumed, on every device"]


def test_a_duplicate_that_is_not_reported_is_found(copied):
    for device in DEVICES:
        change(copied, device, "DELETE FROM duplicates WHERE event = (SELECT max(event) FROM duplicates)")
    found = violated(copied)
    assert "consumed 2 times and reports no duplicate" in found["an event is consumed once, or reported as a duplicate"]
    assert "exactly what both finished offline is reported as a duplicate" in found


def test_a_duplicate_without_reason_is_found(copied):
    change(copied, "hub", "INSERT INTO duplicates SELECT max(n) FROM event_index")
    assert "without reason" in violated(copied)["an event is consumed once, or reported as a duplicate"]


def test_a_different_owner_is_found(copied):
    change(copied, "desktop", "UPDATE event_index SET run = (SELECT min(n) FROM run_index WHERE n <> run) WHERE n = 1")
    assert "hub and desktop differ about m0" in violated(copied)["every device names the same owner of every event"]


def test_a_loss_that_nobody_was_told_of_is_found(copied):
    played = json.loads((copied / "demo.json").read_text())
    (copied / "demo.json").write_text(json.dumps(played | {"told_lost": {}}))
    found = violated(copied)["a device that lost events was told LeaseLost"]
    assert "6 events were contested, and 0 devices were told" in found
    assert "it was not told" in found


def test_a_claim_that_was_not_given_back_is_found(copied):
    played = json.loads((copied / "demo.json").read_text())
    with Node.open(copied / "hub.db") as node:
        kept = node.query("SELECT lower(hex(id)) FROM run_index WHERE state = 3 LIMIT 1")[0][0]
    (copied / "demo.json").write_text(json.dumps(played | {"given_back": [kept]}))
    found = violated(copied)
    assert f"desktop has no lost run {kept}" in found["what was lost before its work began was given back"]


def test_a_claim_that_was_given_back_without_saying_so_is_found(copied):
    played = json.loads((copied / "demo.json").read_text())
    (lost,) = played["told_lost"].values()
    (copied / "demo.json").write_text(json.dumps(played | {"told_lost": {}, "contested": [], "given_back": []}))
    assert f"run {lost} of" in violated(copied)["a device that lost events was told LeaseLost"]


def test_a_different_digest_is_found(copied):
    change(copied, "laptop", "UPDATE workflows SET title = 'other'")
    assert "laptop" in violated(copied)["the digests of all devices are equal"]


def test_an_unsound_database_is_found(copied):
    change(copied, "hub", "UPDATE run_index SET at = at + 1")
    assert "hub: wrong" in violated(copied)["every database is sound"]


# The plan


@pytest.mark.parametrize("count", range(1, 40))
def test_both_devices_reach_for_some_of_the_same_events_however_few_there_are(count):
    message_ids = [str(number) for number in range(count)]
    plan = Plan.of(message_ids)
    assert plan.contested
    for device in (LAPTOP, DESKTOP):
        assert not set(plan.finished[device]) & set(plan.started[LAPTOP] + plan.started[DESKTOP])
    assert (len(plan.done_twice) > 0) == (count > 1)
