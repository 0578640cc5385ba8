"""Permits: how long a device waits for one from its hub, and how many a hub gives in a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import raw
from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, folder, new_events, percentiles, rate
from benchmarks.processes import serving
from leasemesh import Node
from leasemesh.node.database.file import Database
from leasemesh.node.stores import AuthorityStore, EventStore, HandlerRunStore, PermitStore
from leasemesh.node.work.authority import Authority

LATENCY_NOTE = "reserve, ask, copy, decide, copy back: by the stores, two files, one process, no network"
RATE_NOTE = "reserve, ask and decide: by the stores, one file, no network"


def confirmed(quick: bool) -> Iterator[Measurement]:
    """Reserve one event at a time on a device and wait for the permit of the hub; then ask for many at once."""
    count = 50 if quick else 500
    with folder() as path:
        limits = _raw_latencies(path, count)
        many = [_raw_rate(path / f"raw{number}.db", count) for number in range(3)]
        latencies, rates = asyncio.run(_measure(path, count))
    yield from percentiles("confirmed", latencies, limits, LATENCY_NOTE)
    yield rate("permits_per_s", "permits/s", rates, many, RATE_NOTE)


async def _measure(path: Path, count: int) -> tuple[list[float], list[float]]:
    with database(path / "hub.db") as opened:
        _begin(opened, 4 * count)
    latencies, rates = [], []
    with serving(path / "hub.db") as (url, _):
        with Node.open(path / "device.db", workspace="bench", name="device") as node:
            async with node.syncing(peers=[url]):
                await node.caught_up()
                for _ in range(count):
                    began = time.perf_counter()
                    await node.permit(node.reserve(WORKFLOW, TOPIC, limit=1).run)
                    latencies.append(1000 * (time.perf_counter() - began))
                for _ in range(3):
                    rates.append(count / await _all_at_once(node, count))
    return latencies, rates


async def _all_at_once(node: Node, count: int) -> float:
    began = time.perf_counter()
    async with node.changes() as changes:
        for _ in range(count):
            node.permits.request(node.reserve(WORKFLOW, TOPIC, limit=1).run)
        while node.permits.waiting(limit=1):
            await anext(changes)
    return time.perf_counter() - began


def _begin(opened: Database, events: int) -> None:
    """Make a database whose node is the authority, with so many pending events."""
    AuthorityStore(opened).appoint(opened.site_id.hex(), by="bench")
    Authority(opened).tend()
    for first in range(0, events, 100):
        EventStore(opened).publish_many(WORKFLOW, TOPIC, new_events(first, min(100, events - first)))


def _ask(opened: Database) -> None:
    run = HandlerRunStore(opened).new_id()
    EventStore(opened).reserve_next(run, WORKFLOW, TOPIC, limit=1)
    PermitStore(opened).request(run)


def _raw_latencies(path: Path, count: int) -> list[float]:
    hub, device = path / "raw-hub.db", path / "raw-device.db"
    milliseconds = []
    with ExitStack() as stack:
        deciding, asking = stack.enter_context(database(hub)), stack.enter_context(database(device))
        _begin(deciding, count)
        there = stack.enter_context(raw.Copier(hub, device))
        back = stack.enter_context(raw.Copier(device, hub))
        there.copy()
        back.copy()
        for _ in range(count):
            began = time.perf_counter()
            _ask(asking)
            back.copy()
            Authority(deciding).tend()
            there.copy()
            milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds


def _raw_rate(path: Path, count: int) -> float:
    with database(path) as opened:
        _begin(opened, count)
        began = time.perf_counter()
        for _ in range(count):
            _ask(opened)
        Authority(opened).tend()
        return count / (time.perf_counter() - began)
