"""A short run of the fuzzer on every target, and that it finds what it is there to find. Long runs: scripts/fuzz."""

import subprocess
import sys
from contextlib import closing

import fuzzing
import msgpack
import pytest
from fuzz_targets import TARGETS, DecodeTarget, SessionTarget

from leasemesh.sync import wire
from leasemesh.sync.errors import RemoteProtocolError

STOPPED = "4012: closed by the peer: node-2 is being stopped"


@pytest.mark.parametrize(
    ("name", "executions", "outcomes"), [("decode", 30_000, 120), ("session", 1_000, 50), ("merge", 2_500, 80)]
)
def test_no_input_does_harm(name, executions, outcomes):
    with closing(TARGETS[name]()) as target:
        report = fuzzing.fuzz(target, seed=1, seconds=600, executions_max=executions)
    assert report.failures == []
    assert report.executions == executions
    assert len(report.outcomes) >= outcomes


def test_undamaged_inputs_pass_to_the_end():
    with closing(TARGETS["merge"]()) as merge:
        outcomes = [merge(seed) for seed in merge.seeds]
    assert all(outcome.startswith("merged into") for outcome in outcomes)
    assert sum("into []" not in outcome for outcome in outcomes) >= 6  # not the rows that both have alike
    session = SessionTarget()
    assert [session(seed) for seed in session.seeds[2:]] == ["still open"] * 3
    assert [session(seed) for seed in session.seeds[:2]] == [STOPPED, "still open"]
    decode = DecodeTarget()
    kinds = {"Greeting", "Hello", "Changes", "Ack", "Presence", "DigestRequest", "Digest", "Goodbye"}
    kinds |= {"Barrier", "BarrierReply"}
    assert {decode(seed) for seed in decode.seeds} == kinds


def test_every_truncation_of_every_message_is_refused_and_stores_nothing():
    decode, session = DecodeTarget(), SessionTarget()
    for seed in session.seeds[:2]:
        dialed, *messages = msgpack.unpackb(seed)
        for number, message in enumerate(messages):
            for length in range(len(message)):
                with pytest.raises(RemoteProtocolError):
                    wire.decode(message[:length])
            # In its place in the conversation: cut at the ends and in the middle.
            for length in {0, 1, 2, len(message) // 2, len(message) - 1}:
                outcome = session(msgpack.packb([dialed, *messages[:number], message[:length]]))
                assert outcome.startswith("4000: "), outcome
    assert decode(b"") == "not a leasemesh message"


def test_a_fault_is_found_and_saved_with_its_replay(tmp_path, monkeypatch):
    def decode_with_a_fault(data):
        message = wire.decode(data)
        assert not (type(message).__name__ == "Ack" and message.messages > 1_000), "a planted fault"
        return message

    monkeypatch.setattr(DecodeTarget, "__call__", lambda _, data: str(decode_with_a_fault(data)))
    monkeypatch.setattr(fuzzing, "try_one", refusing(fuzzing.try_one))
    with closing(DecodeTarget()) as target:
        report = fuzzing.fuzz(target, seed=1, seconds=600, executions_max=200_000)
    ((data, failure),) = report.failures
    fuzzing.save(tmp_path, "decode", data, failure)
    (saved,) = tmp_path.iterdir()
    assert saved.read_text().startswith(f"scripts/fuzz --target decode --replay {data.hex()}\n")
    assert "a planted fault" in saved.read_text()


def refusing(try_one):
    """Refusals are outcomes for the target that was replaced, too."""

    def try_it(target, data):
        try:
            wire.decode(data)
        except RemoteProtocolError as error:
            return str(error)[:20], ""
        return try_one(target, data)

    return try_it


def test_the_command_runs_each_target_apart_and_replays(tmp_path):
    def run(*arguments):
        command = [sys.executable, fuzzing.__file__, "--failures", str(tmp_path / "failures"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    result = run("--seconds", "0.6", "--seed", "7")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("seed 7\n") and result.stdout.count("0 failures") == len(TARGETS)
    assert list(tmp_path.iterdir()) == []
    assert run("--target", "decode", "--replay", "9203cd012c").stdout == "Ack\n"
