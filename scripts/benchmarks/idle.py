"""A node that has nothing to do: what it costs that it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measuring import WORKFLOW, Measurement, duration, folder
from benchmarks.processes import child, megabytes, serving
from leasemesh import Node, Run, Workflow

CONSUMERS = 20
MEMORY_LIMIT_MB = 100.0


def idle(quick: bool) -> Iterator[Measurement]:
    """Two nodes stay connected to a hub for a minute, one with 20 consumers and one with none."""
    seconds = 1 if quick else 60
    with folder() as path, serving(path / "hub.db") as (url, _), ExitStack() as stack:
        pipes = [
            stack.enter_context(child(_stay, path / f"device{consumers}.db", url, consumers, seconds))[0]
            for consumers in (CONSUMERS, 0)
        ]
        (busy, memory), (limit, _) = [pipe.recv() for pipe in pipes]
    note = f"the same without handlers; {CONSUMERS} consumers, connected to a hub, for {seconds} s"
    yield duration("idle_cpu", "% of a core", busy, limit, note)
    yield duration("idle_memory", "MB", memory, MEMORY_LIMIT_MB, f"the limit that is set; {CONSUMERS} consumers")


def _stay(pipe: Connection, path: Path, url: str, consumers: int, seconds: int) -> None:
    async def stay() -> None:
        with Node.open(path, workspace="bench", name=path.stem) as node:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(node.syncing(peers=[url]))
                await node.caught_up()
                if consumers:
                    runner = await stack.enter_async_context(node.running([_workflow(consumers)]))
                    await runner.idle()
                began, began_cpu = time.monotonic(), time.process_time()
                await asyncio.sleep(seconds)
                used, passed = time.process_time() - began_cpu, time.monotonic() - began
        pipe.send((100 * used / passed, megabytes()))

    asyncio.run(stay())


def _workflow(consumers: int) -> Workflow:
    workflow = Workflow(WORKFLOW)

    async def handle(run: Run) -> None:
        assert run.events

    for number in range(consumers):
        workflow.consumer(workflow.topic(f"topic-{number}"), name=f"handle-{number}")(handle)
    return workflow
