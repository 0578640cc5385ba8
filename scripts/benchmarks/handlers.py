"""One device with handlers: how many runs it gets done in a second, from pending events to committed runs.

The handlers are plain functions. Coroutines go through the event loop, and a run of one takes somewhat longer.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, folder, new_events, rate
from benchmarks.replay import Recording, recording
from leasemesh import Node, Run, Workflow, effect
from leasemesh.node.authoring.effects import EffectCall

ROUNDS = 3
NOTE = "the same statements, plain APSW"
CONSUMERS = 8
"""Consumers that work side by side, as many as may run at once by default."""


def runs(batch: int, quick: bool) -> Iterator[Measurement]:
    """Runs of a consumer without an effect, `batch` events in each."""
    yield _measure(f"runs_{batch}", partial(plain, batch), batch, quick)


def effect_runs(batch: int, quick: bool) -> Iterator[Measurement]:
    """Runs with an effect that does nothing: its intent is on the disk before it is performed."""
    yield _measure(f"effect_runs_{batch}", partial(with_effect, batch), batch, quick)


def runs_side_by_side(quick: bool) -> Iterator[Measurement]:
    """Runs of several consumers at once, one event in each."""
    yield _measure(f"runs_1_{CONSUMERS}consumers", side_by_side, 1, quick, consumers=CONSUMERS)


def plain(batch: int) -> Workflow:
    """A consumer without an effect."""
    workflow = Workflow(WORKFLOW)

    @workflow.consumer(workflow.topic(TOPIC), batch=batch)
    def handle(run: Run) -> None:
        assert run.events

    return workflow


@effect
def nothing(key: str, *, number: int) -> int:
    """The effect that does nothing."""
    return number


def with_effect(batch: int) -> Workflow:
    """A consumer that performs an effect for each batch of events, in soft mode: there is nobody to ask."""
    workflow = Workflow(WORKFLOW)
    handle = workflow.consumer(workflow.topic(TOPIC), name="handle", batch=batch, mode="soft")

    @handle.mutate
    def ask(run: Run) -> EffectCall:
        return nothing(number=len(run.events))

    return workflow


def side_by_side() -> Workflow:
    """Several consumers, each with a topic of its own."""
    workflow = Workflow(WORKFLOW)

    def handle(run: Run) -> None:
        assert run.events

    for number in range(CONSUMERS):
        workflow.consumer(workflow.topic(topic_name(number)), name=f"handle-{number}")(handle)
    return workflow


def topic_name(number: int) -> str:
    """Return the name of one of several topics; the first is the only one where there is one."""
    return TOPIC if number == 0 else f"{TOPIC}-{number}"


class Backlog:
    """A file with pending events, and what becomes of copies of it.

    Attributes:
        path: the file.
        runs: how many runs it takes to work it off.
    """

    def __init__(self, path: Path, workflow: Callable[[], Workflow], *, runs: int, batch: int, consumers: int = 1):
        """Publish the events for so many runs, evenly for so many topics. The folder `path` is made."""
        path.mkdir()
        self.runs = runs
        self._workflow = workflow
        self.path = path / "backlog.db"
        self._copies = 0
        with Node.open(self.path, workspace="bench", name="device") as node:
            for number in range(consumers):
                for first in range(0, runs * batch // consumers, 100):
                    count = min(100, runs * batch // consumers - first)
                    node.publish_many(WORKFLOW, topic_name(number), new_events(first, count))

    def ours(self) -> float:
        """Work a copy off by handlers; returns runs per second."""
        return self.runs / asyncio.run(work_off(self._copy(), self._workflow()))

    def limit(self) -> float:
        """Run the statements of that on a copy; returns runs per second."""
        return self.runs / self._recording.replay(self._copy())

    @cached_property
    def _recording(self) -> Recording:
        with recording() as recorded:
            asyncio.run(work_off(self._copy(), self._workflow(), recorded))
        return recorded

    def _copy(self) -> Path:
        self._copies += 1
        target = self.path.with_name(f"copy{self._copies}.db")
        shutil.copy(self.path, target)
        return target


async def work_off(path: Path, workflow: Workflow, recorded: Recording | None = None) -> float:
    """Run the handlers until nothing is pending, and return the seconds that it took once they were running."""
    with Node.open(path, workspace="bench", name="device") as node:
        async with node.running([workflow]) as runner:
            if recorded is not None:
                recorded.begin()
            began = time.perf_counter()
            await runner.idle()
            seconds = time.perf_counter() - began
            if recorded is not None:
                recorded.end()
        counts = node.events.counts(WORKFLOW)
        assert all(set(topic.by_status) == {"consumed"} for topic in counts), counts
    return seconds


def _measure(
    name: str,
    workflow: Callable[[], Workflow],
    batch: int,
    quick: bool,
    consumers: int = 1,
) -> Measurement:
    count = consumers * (5 if quick else {1: 2_000, 10: 1_000, 100: 300}[batch] // consumers)
    with folder() as path:
        waiting = Backlog(path / "backlog", workflow, runs=count, batch=batch, consumers=consumers)
        rounds = [(waiting.ours(), waiting.limit()) for _ in range(1 if quick else ROUNDS)]
    ours, limits = zip(*rounds, strict=True)
    return rate(name, "runs/s", list(ours), list(limits), NOTE)
