"""Throws mutated inputs at everything that reads what a peer sends, for as long as one likes.

    scripts/fuzz --seconds 300                         all targets, one after the other
    scripts/fuzz --target merge --seconds 60 --seed 7
    scripts/fuzz --target decode --replay 9203cd012c   one input again

An input is what a well-behaved peer would send, changed: bytes flipped, cut, doubled and spliced, and values within the
message replaced (also in the messages that lie packed within its blobs), so that the checks behind the first one are
reached as well. An input with an outcome that was not seen before joins those to be changed: outcomes are the distinct
sentences of refusals, and what was accepted. What counts as a failure is said by the targets (fuzz_targets.py).

Each target runs in a process of its own, because a fault in an extension of SQLite ends the process. Failing inputs
are saved as hexadecimal text, beside the command that replays them.
"""

import argparse
import multiprocessing
import re
import sys
import time
import traceback
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgpack
from fuzz_targets import TARGETS

CORPUS_MAX = 2_000
INPUT_BYTES_MAX = 64 * 1024
FOUND = 3  # The exit code of a process that found a failure; 1 is that of an error in the fuzzer.

BYTES = (0x00, 0x01, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC4, 0xC6, 0xCB, 0xCF, 0xD9, 0xDC, 0xDD, 0xFF)
VALUES = (
    None, True, False, 0, 1, 2, 3, -1, 127, 128, 255, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**64 - 1,
    -(2**63), 0.0, -0.0, 1.5, float("inf"), float("nan"), "", "a", "sync", "-1", "{}", "[]", "\0", "é", "x" * 300,
    "null", '{"a":1}', b"", b"\0", b"\xff" * 8, b"s" * 16, b"s" * 17, bytes(32), [], [[]], [0], [b"s" * 16, 1, b""],
)  # fmt: skip


@dataclass
class Report:
    """What came of a run.

    Attributes:
        executions: inputs that were tried.
        seconds: how long that took.
        outcomes: the distinct outcomes, each with its first input.
        failures: inputs that failed, with the traceback.
    """

    executions: int = 0
    seconds: float = 0.0
    outcomes: dict[str, bytes] = field(default_factory=dict)
    failures: list[tuple[bytes, str]] = field(default_factory=list)


def fuzz(target, *, seed, seconds, executions_max=2**62, before=lambda data: None):
    """Try mutated inputs until the time is over, or `executions_max` of them; stops at the first failure.

    `before` is called with each input.
    """
    random, report = Random(seed), Report()
    corpus = list(target.seeds)
    begin = time.monotonic()
    waiting = list(corpus)
    while report.executions < executions_max and (report.seconds < seconds or waiting):
        data = waiting.pop() if waiting else mutate(random, corpus, target.is_structured)
        before(data)
        outcome, failure = try_one(target, data)
        report.executions += 1
        if failure:
            report.failures.append((data, failure))
            break
        if outcome not in report.outcomes:
            report.outcomes[outcome] = data
            if len(corpus) < CORPUS_MAX:
                corpus.append(data)
        report.seconds = time.monotonic() - begin
    return report


def try_one(target, data):
    """Return the outcome, with its numbers left out, and the traceback if it is a failure."""
    try:
        return re.sub(r"\d+", "#", target(data)), ""
    except Exception:
        return "failure", traceback.format_exc()


# --- Mutation ---------------------------------------------------------------------------------------------------------


def mutate(random, corpus, is_structured):
    """Return a changed input; one that is structured stays a msgpack value."""
    data = random.choice(corpus)
    kinds = (change_value,) if is_structured else (change_value, change_value, change_value, change_bytes)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = random.choice(kinds)(random, data, corpus)
    return data[:INPUT_BYTES_MAX]


def change_bytes(random, data, corpus):
    changed = bytearray(data)
    start = random.randrange(len(changed) + 1)
    end = min(len(changed), start + random.choice((1, 2, 4, 16, 64)))
    match random.randrange(7):
        case 0:
            changed[start:end] = b""
        case 1:
            changed[start:start] = changed[start:end]
        case 2:
            changed[start:end] = random.randbytes(end - start)
        case 3:
            del changed[start:]
        case 4:
            other = random.choice(corpus)
            changed[start:] = other[random.randrange(len(other) + 1) :]
        case 5 if start < end:
            changed[start] ^= 1 << random.randrange(8)
        case _:
            changed[start : start + 1] = bytes([random.choice(BYTES)])
    return bytes(changed)


def change_value(random, data, corpus):
    """Change one value inside of the message; or bytes, when it is not one any more."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
        return msgpack.packb(replaced(random, value))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return change_bytes(random, data, corpus)


def replaced(random, value):
    """Return a value in which something was replaced, somewhere below."""
    if isinstance(value, list) and value and random.random() < 0.9:
        changed, index = list(value), random.randrange(len(value))
        match random.randrange(12):
            case 0:
                del changed[index]
            case 1:
                changed.insert(index, random.choice(value))
            case 2:
                changed[index], changed[0] = changed[0], changed[index]
            case _:
                changed[index] = replaced(random, value[index])
        return changed
    if isinstance(value, bytes) and value and random.random() < 0.8:
        try:
            return msgpack.packb(replaced(random, msgpack.unpackb(value)))
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
            return change_bytes(random, value, [value])
    if isinstance(value, str) and value and random.random() < 0.7:
        return change_bytes(random, value.encode(), [value.encode()]).decode(errors="replace")
    if type(value) is int and random.random() < 0.5:
        return min(max(value + random.choice((-2, -1, 1, 2, 7, 2**20)), -(2**63)), 2**64 - 1)
    return random.choice(VALUES)


# --- Command ----------------------------------------------------------------------------------------------------------


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all of them")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="default: another one each time")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    parser.add_argument("--replay", metavar="HEX", help="try one input of one target again")
    options = parser.parse_args(arguments)
    names = options.target or sorted(TARGETS)
    if options.replay is not None:
        if len(names) != 1:
            parser.error("--replay needs --target")
        with closing(TARGETS[names[0]]()) as target:
            outcome, failure = try_one(target, bytes.fromhex(options.replay))
        say(failure or outcome)
        return 1 if failure else 0
    say(f"seed {options.seed}")
    results = [run_apart(name, options.seed, options.seconds / len(names), options.failures) for name in names]
    return 0 if all(results) else 1


def run_apart(name, seed, seconds, folder):
    """Fuzz one target in another process; return whether nothing failed."""
    folder.mkdir(exist_ok=True)
    last = folder / f"{name}-last"
    process = multiprocessing.get_context("spawn").Process(target=run, args=(name, seed, seconds, folder, last))
    process.start()
    process.join()
    if process.exitcode not in (0, FOUND):
        save(folder, name, last.read_bytes() if last.exists() else b"", f"the process ended with {process.exitcode}")
    last.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    return process.exitcode == 0


def run(name, seed, seconds, folder, last):
    with last.open("wb", buffering=0) as file:

        def remember(data):
            file.truncate(file.seek(0))
            file.write(data)

        with closing(TARGETS[name]()) as target:
            report = fuzz(target, seed=seed, seconds=seconds, before=remember)
    rate = report.executions / max(report.seconds, 0.001)
    say(
        f"{name}: {report.executions:,} executions in {report.seconds:.0f} s ({rate:,.0f}/s), "
        f"{len(report.outcomes)} different outcomes, {len(report.failures)} failures"
    )
    for data, failure in report.failures:
        save(folder, name, data, failure)
    sys.exit(FOUND if report.failures else 0)


def save(folder, name, data, failure):
    path = folder / f"{name}-{zlib.crc32(data):08x}.txt"
    path.write_text(f"scripts/fuzz --target {name} --replay {data.hex()}\n\n{failure}\n")
    say(f"{name} FAILED: {failure.strip().splitlines()[-1]}\nsaved with the command to replay it: {path}")


def say(text):
    print(text, flush=True)  # noqa: T201 - a command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
