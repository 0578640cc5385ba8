"""Two devices, each a process of its own, over a loopback websocket: catching up, merging both ways, live latency,
memory."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import raw
from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, duration, folder, new_events, timed
from node import Node
from node.stores import EventStore

COPY_NOTE = "select from crsql_changes, insert into another file, one process, no network"
MEMORY_LIMIT_MB = 150.0
WAIT_SECONDS_MAX = 300


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
                took, client_megabytes = _run(_catch_up_client, path / f"device{number}.db", url)
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
                seconds.append(_run(_catch_up_client, device, url)[0])
                stop()
    yield duration(
        "merge_10k", "s", statistics.median(seconds), statistics.median(raw_seconds), COPY_NOTE + ", both ways"
    )


def live(quick: bool) -> Iterator[Measurement]:
    """Publish single events on one device and see when each can be read on the other."""
    count = 100 if quick else 1_000
    with folder() as path:
        latencies = sorted(_live_latencies(path, count))
        limits = sorted(_raw_latencies(path, count))
    for name, share in (("live_p50", 0.5), ("live_p99", 0.99)):
        yield duration(
            name,
            "ms",
            latencies[int(share * (count - 1))],
            limits[int(share * (count - 1))],
            "insert, select from crsql_changes, insert elsewhere, no network",
        )


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


def _megabytes() -> float:
    """Return the peak memory of this process. Not from getrusage, whose value a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# --- Processes
# ----------------------------------------------------------------------------------------------------------


def _run(worker: Callable[..., None], *arguments: Any) -> Any:
    """Run `worker(pipe, *arguments)` in a process of its own and return what it sends."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join(WAIT_SECONDS_MAX)


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Serve a file from a process of its own; gives its address and a function that stops it and returns its
    megabytes."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_server, args=(theirs, path))
    process.start()
    theirs.close()
    stopped: list[float] = []

    def stop() -> float:
        if not stopped:
            mine.send("stop")
            stopped.append(mine.recv())
        return stopped[0]

    try:
        yield mine.recv(), stop
    finally:
        stop()
        process.join(WAIT_SECONDS_MAX)


def _server(pipe: Connection, path: Path) -> None:
    async def serve() -> None:
        with Node.open(path, workspace="bench", name="hub") as node:
            async with node.syncing(listen=("127.0.0.1", 0)) as sync:
                pipe.send(sync.url)
                await _readable(pipe)
        pipe.recv()
        pipe.send(_megabytes())

    asyncio.run(serve())


def _catch_up_client(pipe: Connection, path: Path, url: str) -> None:
    async def catch_up() -> None:
        importlib.import_module("node.syncing")  # Loaded when first used; that is no part of catching up.
        with Node.open(path, workspace="bench", name="device") as node:
            site, version = node.database.site_id, node.database.version()
            began = time.perf_counter()
            async with node.syncing(peers=[url]) as sync:
                # Both have what the other had at the start; what the merge itself made is no news to either.
                await sync.loop.until(
                    lambda: any(
                        peer.state == "open" and peer.behind == 0 and peer.knowledge.point(site).version >= version
                        for peer in sync.loop.peers()
                    )
                )
                seconds = time.perf_counter() - began
        pipe.send((seconds, _megabytes()))

    asyncio.run(catch_up())


def _finish(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pipe.fileno(), _finish, ready)
    try:
        await asyncio.wait_for(ready, WAIT_SECONDS_MAX)
    finally:
        loop.remove_reader(pipe.fileno())


# --- Latency
# ------------------------------------------------------------------------------------------------------------


def _live_latencies(path: Path, count: int) -> list[float]:
    """Return milliseconds from before each publish until the other process can read the event."""
    with _serving_reader(path / "reader.db", count) as (url, pipe):

        async def publish() -> list[float]:
            latencies = []
            with Node.open(path / "writer.db", workspace="bench", name="writer") as node:
                async with node.syncing(peers=[url]):
                    await node.caught_up()
                    for event in new_events(0, count):
                        began_ns = time.monotonic_ns()
                        node.publish_many(WORKFLOW, TOPIC, [event])
                        await _readable(pipe)
                        latencies.append((pipe.recv() - began_ns) / 1e6)
            return latencies

        return asyncio.run(publish())


@contextmanager
def _serving_reader(path: Path, count: int) -> Iterator[tuple[str, Connection]]:
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_reader, args=(theirs, path, count))
    process.start()
    theirs.close()
    yield mine.recv(), mine
    process.join(WAIT_SECONDS_MAX)


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
    with database(source) as opened, database(target):
        store = EventStore(opened)
        with raw.Copier(source, target) as copier:
            copier.copy()
            milliseconds = []
            for event in new_events(0, count):
                began = time.perf_counter()
                store.publish_many(WORKFLOW, TOPIC, [event])
                copier.copy()
                milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds
