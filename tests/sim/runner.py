"""Running seeds: one, many in parallel, and a failing one with fewer and fewer steps until each of them is needed."""

from __future__ import annotations

import gc
import logging
import traceback
import unittest.mock
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from leasemesh.node.database.migrate import read_migrations
from leasemesh.node.execution.recovery import Recovery
from leasemesh.node.testing.files import temporary_folder
from sim.params import PRESETS, Params
from sim.schedule import Step, draw
from sim.world import World

INTERNAL = "internal error"
"""Stands in for an invariant's number when code raised what it should not."""

SHRINK_RUNS_MAX = 120

CHEAPER = {
    # The table of peers is for people who look.
    "leasemesh.node.replication.syncing.PEERS_WRITTEN_EVERY_S": 20.0,
    # The pages of these files lie in memory.
    "leasemesh.node.database.file.check_pages": lambda path: None,
    # Nobody takes over from a device that has just spoken.
    "leasemesh.sync.drivers.loop.HEARTBEATS_WRITTEN_EVERY_S": 2.0,
    # The same files, for each of a device's processes.
    "leasemesh.node.database.migrate.read_migrations": cache(read_migrations),
}
"""What costs much in a short run and finds nothing there."""


@dataclass(frozen=True)
class Job:
    """A run to be made."""

    seed: int
    preset: str = "lite"
    nodes: int | None = None
    steps: tuple[int, ...] | None = None

    @property
    def params(self) -> Params:
        params = PRESETS[self.preset](self.seed)
        return replace(params, nodes=self.nodes or params.nodes)

    @property
    def command(self) -> str:
        """The line that makes this run again."""
        words = [f"scripts/sim --seed {self.seed} --preset {self.preset} --nodes {self.params.nodes}"]
        if self.steps is not None:
            words.append(f"--steps {','.join(map(str, self.steps)) or 'none'}")
        return " ".join(words)

    def schedule(self) -> list[Step]:
        drawn = draw(self.seed, self.params)
        return drawn if self.steps is None else [step for step in drawn if step.index in self.steps]


@dataclass
class Report:
    """What came of a run."""

    job: Job
    violations: dict[str, str] = field(default_factory=dict)
    checked: Counter = field(default_factory=Counter)
    fired: Counter = field(default_factory=Counter)
    did: Counter = field(default_factory=Counter)
    closed: Counter = field(default_factory=Counter)
    events: int = 0
    world_ms: int = 0
    trace: str = ""
    log: list[str] = field(default_factory=list)


def run(job: Job, *, keep_log: bool = False) -> Report:
    """Make one run."""
    gc.freeze()
    gc.disable()
    try:
        return _run(job, keep_log)
    finally:
        gc.enable()
        gc.collect()


def _run(job: Job, keep_log: bool) -> Report:
    with ExitStack() as stack:
        # What the nodes log in a run is what the faults make them say.
        logger = logging.getLogger("leasemesh")
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        for name, value in CHEAPER.items():
            stack.enter_context(unittest.mock.patch(name, value))
        folder = stack.enter_context(temporary_folder())
        world = World(job.seed, job.params, Path(folder))
        if keep_log:
            world.log = []
        stack.enter_context(unittest.mock.patch.object(Recovery, "look", world.checks.watched(Recovery.look)))
        violations = world.checks.violations
        try:
            world.run(job.schedule())
        except Exception:
            violations[INTERNAL] = f"{world.now_ms} ms: {traceback.format_exc()}"
        for device, text, error in world.errors[:1]:
            violations.setdefault(INTERNAL, f"{device}: {text}: {''.join(traceback.format_exception(error))}")
        return Report(
            job, violations, Counter(world.checks.checked), world.fired, world.did, world.closes,
            world.scheduler.steps, world.now_ms, world.trace, world.log or [],
        )  # fmt: skip


def run_many(jobs: Iterable[Job], *, processes: int) -> Iterator[Report]:
    """Make runs in parallel; the reports come in the order of the jobs."""
    # Not forked: a child would share the parent's connections.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(run, jobs, chunksize=8)


def shrink(job: Job, invariants: Sequence[str]) -> Job:
    """Leave out steps as long as one of the invariants still fails: halves first, single steps in the end."""
    steps = [step.index for step in job.schedule()]
    runs, size = 0, max(1, len(steps) // 2)
    while steps:
        start, dropped = 0, False
        while start < len(steps) and runs < SHRINK_RUNS_MAX:
            fewer = steps[:start] + steps[start + size :]
            runs += 1
            if any(name in run(replace(job, steps=tuple(fewer))).violations for name in invariants):
                steps, dropped = fewer, True
            else:
                start += size
        if runs >= SHRINK_RUNS_MAX or (size == 1 and not dropped):
            break
        size = max(1, size // 2)
    return replace(job, steps=tuple(steps))
