"""The barrier: how long a device waits until everybody behind its hub has heard of a claim."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import raw
from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, folder, new_events, percentiles
from benchmarks.processes import child, serving
from leasemesh import Node
from leasemesh.node.stores import EventStore, HandlerRunStore

NOTE = "reserve, by the store, copy to a hub, copy from there to a device: three files, one process, no network"


def barrier(quick: bool) -> Iterator[Measurement]:
    """Begin work on one event at a time, with a hub and another device behind it; each is a process of its own."""
    count = 50 if quick else 500
    with folder() as path:
        limits = _raw_latencies(path, count)
        latencies = asyncio.run(_latencies(path, count))
    yield from percentiles("barrier", latencies, limits, NOTE)


async def _latencies(path: Path, count: int) -> list[float]:
    """Return milliseconds from before each claim until its work may begin."""
    _publish(path / "hub.db", count)
    milliseconds = []
    with serving(path / "hub.db") as (url, _), _other_device(path / "other.db", url):
        with Node.open(path / "device.db", workspace="bench", name="device") as node:
            async with node.syncing(peers=[url]):
                await node.caught_up()
                for _ in range(count):
                    began = time.perf_counter()
                    async with node.start(WORKFLOW, TOPIC, limit=1) as work:
                        milliseconds.append(1000 * (time.perf_counter() - began))
                        work.consume()
    return milliseconds


def _publish(path: Path, count: int) -> None:
    with database(path) as opened:
        for first in range(0, count, 100):
            EventStore(opened).publish_many(WORKFLOW, TOPIC, new_events(first, min(100, count - first)))


@contextmanager
def _other_device(path: Path, url: str) -> Iterator[None]:
    with child(_follow, path, url) as (pipe, _):
        pipe.recv()
        try:
            yield
        finally:
            pipe.send("stop")


def _follow(pipe: Connection, path: Path, url: str) -> None:
    async def follow() -> None:
        with Node.open(path, workspace="bench", name="other") as node:
            async with node.syncing(peers=[url]):
                await node.caught_up()
                pipe.send("ready")
                await asyncio.to_thread(pipe.recv)

    asyncio.run(follow())


def _raw_latencies(path: Path, count: int) -> list[float]:
    device, hub, other = (path / f"raw-{name}.db" for name in ("device", "hub", "other"))
    _publish(device, count)
    milliseconds = []
    with ExitStack() as stack:
        opened = stack.enter_context(database(device))
        stack.enter_context(database(hub))
        stack.enter_context(database(other))
        to_hub, to_other = (stack.enter_context(raw.Copier(*ends)) for ends in ((device, hub), (hub, other)))
        to_hub.copy()
        to_other.copy()
        for _ in range(count):
            began = time.perf_counter()
            run = HandlerRunStore(opened).new_id()
            EventStore(opened).reserve_next(run, WORKFLOW, TOPIC, limit=1)
            to_hub.copy()
            to_other.copy()
            milliseconds.append(1000 * (time.perf_counter() - began))
            EventStore(opened).consume(run)
    return milliseconds
