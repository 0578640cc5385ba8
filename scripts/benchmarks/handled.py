"""From one device to work that is done on another: publish here, a consumer there, until its run is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import raw
from benchmarks.handlers import plain
from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, folder, new_events, percentiles
from benchmarks.network import latencies_of
from benchmarks.processes import readable
from leasemesh import Node
from leasemesh.node.database.file import CommitSource
from leasemesh.node.runtime.loops import PEER_EVENTS_LATER_S
from leasemesh.node.stores import EventStore, HandlerRunStore

NOTE = (
    "publish, copy, reserve, copy back, consume: by the stores, two files, one process, no network; the value includes "
    f"a random wait of up to {1000 * PEER_EVENTS_LATER_S:.0f} ms, by which devices seldom claim the same"
)


def handled(quick: bool) -> Iterator[Measurement]:
    """Publish single events on one device; each is handled by the other, a process of its own, once it is its owner."""
    count = 20 if quick else 500
    with folder() as path:
        latencies = latencies_of(_handle, path, count)
        limits = _raw_latencies(path, count)
    yield from percentiles("handled", latencies, limits, NOTE)


def _handle(pipe: Connection, path: Path, count: int) -> None:
    async def handle() -> None:
        waiting = iter(new_events(0, count))
        expected = next(waiting, None)
        with Node.open(path, workspace="bench", name="handling") as node:

            def committed(_: CommitSource) -> None:
                nonlocal expected
                if expected is None:
                    return
                now_ns = time.monotonic_ns()
                event = node.events.get_by_message_id(WORKFLOW, TOPIC, expected.message_id)
                if event is not None and event.status == "consumed":
                    expected = next(waiting, None)
                    pipe.send(now_ns)

            async with node.syncing(listen=("127.0.0.1", 0)) as sync, node.running([plain(1)]):
                node.database.on_commit(committed)
                pipe.send(sync.url)
                await readable(pipe)

    asyncio.run(handle())


def _raw_latencies(path: Path, count: int) -> list[float]:
    publishing, handling = path / "raw-publishing.db", path / "raw-handling.db"
    milliseconds = []
    with ExitStack() as stack:
        here, there = stack.enter_context(database(publishing)), stack.enter_context(database(handling))
        over = stack.enter_context(raw.Copier(publishing, handling))
        back = stack.enter_context(raw.Copier(handling, publishing))
        over.copy()
        back.copy()
        for event in new_events(0, count):
            began = time.perf_counter()
            EventStore(here).publish_many(WORKFLOW, TOPIC, [event])
            over.copy()
            run = HandlerRunStore(there).new_id()
            EventStore(there).reserve_next(run, WORKFLOW, TOPIC, limit=1)
            back.copy()
            EventStore(there).consume(run)
            milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds
