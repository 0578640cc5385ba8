"""Two devices, each a process of its own, over a loopback websocket: catching up, merging both ways, live latency,
memory."""

from __future__ import annotations

import asyncio
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import raw
from benchmarks.measuring import (
    TOPIC,
    WORKFLOW,
    Measurement,
    database,
    duration,
    folder,
    new_events,
    percentiles,
    timed,
)
from benchmarks.processes import child, megabytes, readable, run_in_child, serving
from leasemesh import Node
from leasemesh.node.stores import EventStore

COPY_NOTE = "select from crsql_changes, insert into another file, one process, no network"
MEMORY_LIMIT_MB = 150.0


def catch_up(quick: bool) -> Iterator[Measurement]:
    """Bring an empty device up to date; also the memory of both processes."""
    count = 5_000 if quick else 100_000
    with folder() as path:
        _fill(path / "hub.db", count, "hub")
        seconds, megabytes = [], []
        raw_seconds = []
        for number in range(3):
            raw_seconds.append(_copy_seconds(path / "hub.db", path / f"raw{number}.db"))
            with serving(path / "hub.db") as (url, stop):
                took, client_megabytes = run_in_child(_catch_up_client, path / f"device{number}.db", url)
                seconds.append(took)
                megabytes.append(max(client_megabytes, stop()))
    yield duration("catch_up_100k", "s", statistics.median(seconds), statistics.median(raw_seconds), COPY_NOTE)
    yield duration(
        "catch_up_memory", "MB", max(megabytes), MEMORY_LIMIT_MB, "the limit that is set; the larger of both processes"
    )


def merge(quick: bool) -> Iterator[Measurement]:
    """Two devices that each published 10,000 events meet."""
    count = 1_000 if quick else 10_000
    seconds, raw_seconds = [], []
    with folder() as path:
        for number in range(3):
            hub, device = path / f"hub{number}.db", path / f"device{number}.db"
            for file, prefix in ((hub, "hub"), (device, "device")):
                _fill(file, count, prefix)
            raw_seconds.append(_raw_merge_seconds(path / f"raw{number}", count))
            with serving(hub) as (url, stop):
                seconds.append(run_in_child(_catch_up_client, device, url)[0])
                stop()
    yield duration(
        "merge_10k", "s", statistics.median(seconds), statistics.median(raw_seconds), COPY_NOTE + ", both ways"
    )


def live(quick: bool) -> Iterator[Measurement]:
    """Publish single events on one device and see when each can be read on the other."""
    count = 100 if quick else 1_000
    with folder() as path:
        latencies = latencies_of(_reader, path, count)
        limits = _raw_latencies(path, count)
    yield from percentiles("live", latencies, limits, "insert, select from crsql_changes, insert elsewhere, no network")


def _fill(path: Path, count: int, prefix: str) -> None:
    with database(path) as opened:
        store = EventStore(opened)
        for first in range(0, count, 100):
            store.publish_many(WORKFLOW, TOPIC, new_events(first, min(100, count - first), prefix))


def _copy_seconds(source: Path, target: Path) -> float:
    with database(target):
        pass  # The schema is made, and made durable, before the clock starts.
    return timed(lambda: raw.copy_changes(source, target))


def _raw_merge_seconds(path: Path, count: int) -> float:
    files = [path.with_suffix(f".{prefix}.db") for prefix in ("hub", "device")]
    for file in files:
        _fill(file, count, file.suffixes[0])

    def both_ways() -> None:
        raw.copy_changes(files[0], files[1])
        raw.copy_changes(files[1], files[0])

    return timed(both_ways)


def _catch_up_client(pipe: Connection, path: Path, url: str) -> None:
    async def catch_up() -> None:
        importlib.import_module(
            "leasemesh.node.replication.syncing"
        )  # Loaded when first used; that is no part of catching up.
        with Node.open(path, workspace="bench", name="device") as node:
            site, version = node.database.site_id, node.database.version()
            began = time.perf_counter()
            async with node.syncing(peers=[url]) as sync:
                # Both have what the other had at the start; what the merge itself made is no news to either.
                await sync.loop.until(
                    lambda: any(
                        peer.state == "open" and peer.behind == 0 and peer.vector.entry(site).version >= version
                        for peer in sync.loop.peers()
                    )
                )
                seconds = time.perf_counter() - began
        pipe.send((seconds, megabytes()))

    asyncio.run(catch_up())


def latencies_of(worker: Callable[[Connection, Path, int], None], path: Path, count: int) -> list[float]:
    """Return milliseconds from before each of `count` single events is published here until a worker is done with it.

    The worker is a process of its own with its own file. It sends its address, and then for each event in order the
    monotonic nanoseconds at which it was done. The other end of its pipe is closed when there are no more.
    """
    with child(worker, path / "worker.db", count) as (pipe, _):
        url = pipe.recv()

        async def publish() -> list[float]:
            latencies = []
            with Node.open(path / "publisher.db", workspace="bench", name="publisher") as node:
                async with node.syncing(peers=[url]):
                    await node.caught_up()
                    for event in new_events(0, count):
                        began_ns = time.monotonic_ns()
                        node.publish_many(WORKFLOW, TOPIC, [event])
                        await readable(pipe)
                        latencies.append((pipe.recv() - began_ns) / 1e6)
            return latencies

        return asyncio.run(publish())


def _reader(pipe: Connection, path: Path, count: int) -> None:
    async def read() -> None:
        events = iter(new_events(0, count))
        with Node.open(path, workspace="bench", name="reader") as node:
            async with node.syncing(listen=("127.0.0.1", 0)) as sync:
                changes = node.changes()
                pipe.send(sync.url)
                waiting = next(events)
                async for _ in changes:
                    if node.events.get_by_message_id(WORKFLOW, TOPIC, waiting.message_id) is not None:
                        pipe.send(time.monotonic_ns())
                        following = next(events, None)
                        if following is None:
                            return
                        waiting = following

    asyncio.run(read())


def _raw_latencies(path: Path, count: int) -> list[float]:
    source, target = path / "raw-source.db", path / "raw-target.db"
    with database(target):
        pass
    milliseconds = []
    with closing(raw.Statements(source)) as statements, raw.Copier(source, target) as copier:
        copier.copy()
        for number in range(count):
            began = time.perf_counter()
            statements.publish(number, 1)
            copier.copy()
            milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds
