"""Beside DBOS Transact on SQLite: the parts that both have, measured in turns in the same run.

DBOS runs in an environment and a process of its own (`dbos_worker.py`), which is made when it is first asked for. A
start there is an event published here: from then on the work is durable and will be done. A run there is a call, which
starts the workflow durably and does it; so a run here takes as long as publishing one event and handling it, one after
the other. A run with a step that does nothing there is a run with an effect that does nothing here, with the difference
that here the intent is on the disk before the effect is performed; a run without a step is a run without an effect.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.handlers import Backlog, plain, with_effect
from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, folder, new_events, rate, timed
from leasemesh import Node

ENVIRONMENT = Path(sys.prefix) / "dbos"
"""Inside of the project's own, so that it goes with it and no tool takes it for a part of the project."""

LOCK = Path(__file__).with_name("requirements.txt")
WORKER = Path(__file__).with_name("dbos_worker.py")
ROUNDS = 3
JOURNALS = {
    "wal": "write-ahead log, synchronous=NORMAL, as leasemesh has it for all but intents of effects",
    "durable": "write-ahead log, synchronous=FULL, as leasemesh has it for intents of effects",
    "shipped": "rollback journal, synchronous=FULL, as it is shipped",
}
PARTS = {
    "starts": "workflows enqueued; the value: events published one by one",
    "runs_without_step": "workflows without a step; the value: publishing an event and a run without an effect",
    "runs": "workflows with one step that does nothing; the value: publishing an event and a run with such an effect",
}
NAMES = [f"dbos_{part}_{journal}" for part in PARTS for journal in JOURNALS]


def dbos(quick: bool) -> Iterator[Measurement]:
    """Start work, and run it with and without something to be done in it."""
    count = 20 if quick else 1_000
    python = environment()
    theirs: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    ours: defaultdict[str, list[float]] = defaultdict(list)
    with folder() as path:
        without = Backlog(path / "without", partial(plain, 1), runs=count, batch=1)
        effects = Backlog(path / "effects", partial(with_effect, 1), runs=count, batch=1)
        for number in range(1 if quick else ROUNDS):
            for journal in JOURNALS:
                for part, value in _measure(python, path / f"{journal}{number}.db", journal, count).items():
                    theirs[part, journal].append(value)
            starts = _starts(path / f"starts{number}.db", count)
            ours["starts"].append(starts)
            ours["runs_without_step"].append(_one_after_the_other(starts, without.ours()))
            ours["runs"].append(_one_after_the_other(starts, effects.ours()))
    for part, what in PARTS.items():
        for journal, how in JOURNALS.items():
            unit = "starts/s" if part == "starts" else "runs/s"
            yield rate(f"dbos_{part}_{journal}", unit, ours[part], theirs[part, journal], f"DBOS: {what}; {how}")


def environment() -> Path:
    """Return the Python of DBOS's environment; it is made, or made anew, when it is not as the lock file says."""
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    if not ready.exists() or ready.read_bytes() != LOCK.read_bytes():
        print("bench: installing DBOS for the comparison ...", file=sys.stderr, flush=True)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        venv.create(ENVIRONMENT, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(LOCK)]
        environment = os.environ | {"PIP_ROOT_USER_ACTION": "ignore"}
        if subprocess.run(command, stdout=sys.stderr, env=environment).returncode != 0:
            sys.exit("bench: DBOS could not be installed, see above; without --with-dbos it is not needed.")
        ready.write_bytes(LOCK.read_bytes())
    return python


def _measure(python: Path, path: Path, journal: str, count: int) -> dict[str, float]:
    command = [str(python), "-P", str(WORKER), str(path), journal, str(count)]
    rates: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return rates


def _starts(path: Path, count: int) -> float:
    with Node.open(path, workspace="bench", name="device") as node:
        calls = [new_events(number, 1) for number in range(count)]
        return count / timed(lambda: [node.publish_many(WORKFLOW, TOPIC, one) for one in calls])


def _one_after_the_other(first: float, second: float) -> float:
    """Return the rate of doing both, of their rates."""
    return 1 / (1 / first + 1 / second)
