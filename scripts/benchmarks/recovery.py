"""After SIGKILL: how long until everything that was under way is done, with many runs in the file and with none."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.handlers import CONSUMERS, Backlog, side_by_side, topic_name, work_off
from benchmarks.measuring import WORKFLOW, Measurement, duration, folder, new_events
from benchmarks.processes import child, megabytes, run_in_child
from leasemesh import Node, Run, Workflow

ROUNDS = 3
MEMORY_LIMIT_MB = 150.0


def recovery(quick: bool) -> Iterator[Measurement]:
    """Kill a process in the middle of eight runs, and start another; also the memory of the one that made the runs."""
    count = 80 if quick else 10_000
    with folder() as path:
        backlog = Backlog(path / "many", side_by_side, runs=count, batch=1, consumers=CONSUMERS)
        many, none = backlog.path, path / "none.db"
        memory = run_in_child(_work_off, many)
        with Node.open(none, workspace="bench", name="device"):
            pass
        rounds = [
            (_seconds(many, path / f"many{number}.db"), _seconds(none, path / f"none{number}.db"))
            for number in range(1 if quick else ROUNDS)
        ]
    yield duration(
        "recovery_10k",
        "s",
        statistics.median(seconds for seconds, _ in rounds),
        statistics.median(seconds for _, seconds in rounds),
        f"the same without the {count:,} runs; from opening the file until {CONSUMERS} runs that were cut off are done",
    )
    yield duration("runs_memory", "MB", memory, MEMORY_LIMIT_MB, f"the limit that is set; after {count:,} runs")


def _work_off(pipe: Connection, path: Path) -> None:
    asyncio.run(work_off(path, side_by_side()))
    pipe.send(megabytes())


def _seconds(source: Path, path: Path) -> float:
    shutil.copy(source, path)
    with child(_hang, path) as (pipe, process):
        assert pipe.recv() == "hanging"
        process.kill()
        process.join()
    seconds: float = run_in_child(_recover, path)
    return seconds


def _hang(pipe: Connection, path: Path) -> None:
    """Begin a run of each consumer, tell so, and never end."""
    begun = 0
    forever = asyncio.Event()
    workflow = Workflow(WORKFLOW)

    async def handle(run: Run) -> None:
        nonlocal begun
        begun += 1
        if begun == CONSUMERS:
            pipe.send("hanging")
        await forever.wait()

    async def hang() -> None:
        with Node.open(path, workspace="bench", name="device") as node:
            for number in range(CONSUMERS):
                workflow.consumer(workflow.topic(topic_name(number)), name=f"handle-{number}")(handle)
                node.publish_many(WORKFLOW, topic_name(number), new_events(0, 1, "cut-off"))
            async with node.running([workflow]):
                await forever.wait()

    asyncio.run(hang())


def _recover(pipe: Connection, path: Path) -> None:
    began = time.perf_counter()
    asyncio.run(work_off(path, side_by_side()))
    pipe.send(time.perf_counter() - began)
