"""One device: publishing, reserving and consuming, and peeking beside a million settled events."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, duration, folder, new_events, rate, timed
from benchmarks.raw import RawQueue
from node.database import Database
from node.stores import EventStore, HandlerRunStore

ROUNDS = 5
PUBLISH_NOTE = "one narrow replicated row per event, plain APSW"
SETTLE_NOTE = "replicated row per batch + status by hand, plain APSW"


def publish(batch: int, quick: bool) -> Iterator[Measurement]:
    """Publish in transactions of `batch` events."""
    per_round = max(batch, (200 if quick else 1000) * (1 if batch == 1 else 10))
    ours, raw = [], []
    with folder() as path, database(path / "ours.db") as opened:
        store, queue = EventStore(opened), RawQueue(path / "raw.db")
        for number in range(ROUNDS):
            firsts = range(number * per_round, (number + 1) * per_round, batch)
            raw.append(per_round / timed(partial(_for_each, queue.publish, [(first, batch) for first in firsts])))
            calls = [(WORKFLOW, TOPIC, new_events(first, batch)) for first in firsts]
            ours.append(per_round / timed(partial(_for_each, store.publish_many, calls)))
        queue.close()
    yield rate(f"publish_{batch}", "events/s", ours, raw, PUBLISH_NOTE)


def settle(batch: int, quick: bool) -> Iterator[Measurement]:
    """Reserve and consume `batch` events at a time: two transactions."""
    per_round = max(batch, (200 if quick else 1000) * (1 if batch == 1 else 10))
    ours, raw = [], []
    with folder() as path, database(path / "ours.db") as opened:
        queue = RawQueue(path / "raw.db")
        queue.make_pending(ROUNDS * per_round)
        _publish_all(opened, ROUNDS * per_round)
        batches = per_round // batch
        for _ in range(ROUNDS):
            raw.append(per_round / timed(partial(_for_each, queue.take_and_settle, [(batch,)] * batches)))
            ours.append(per_round / timed(partial(_settle_batches, opened, batch, batches)))
        queue.close()
    yield rate(f"settle_{batch}", "events/s", ours, raw, SETTLE_NOTE)


def settle_processes(processes: int, quick: bool) -> Iterator[Measurement]:
    """The same with several processes on one file, batches of 100."""
    batches = 10 if quick else 50
    total = processes * batches * 100
    with folder() as path:
        queue = RawQueue(path / "raw.db")
        queue.make_pending(total)
        queue.close()
        with database(path / "ours.db") as opened:
            _publish_all(opened, total)
        raw = total / _in_processes(processes, _raw_worker, path / "raw.db", batches)
        ours = total / _in_processes(processes, _our_worker, path / "ours.db", batches)
    yield rate(f"settle_100_{processes}proc", "events/s", [ours], [raw], SETTLE_NOTE + f", {processes} processes")


def peek_scale(quick: bool) -> Iterator[Measurement]:
    """Peek 100 of 1,000 pending events beside few and beside many settled ones."""
    few, many = (2_000, 50_000) if quick else (10_000, 1_000_000)
    with folder() as path, database(path / "few.db") as small, database(path / "many.db") as large:
        for opened, settled in ((small, few), (large, many)):
            _publish_all(opened, settled, chunk=20_000)
            _settle_batches(opened, 1000, settled // 1000)
            EventStore(opened).publish_many(WORKFLOW, TOPIC, new_events(0, 1000, "pending"))
        rounds = [(_peek_seconds(small), _peek_seconds(large)) for _ in range(9)]
    yield duration(
        "peek_scale",
        "ms",
        statistics.median(seconds for _, seconds in rounds) * 1000,
        statistics.median(seconds for seconds, _ in rounds) * 1000,
        f"peek with {few:,} settled events; the value is with {many:,}",
    )


def _peek_seconds(opened: Database) -> float:
    store = EventStore(opened)
    return timed(partial(_for_each, store.peek, [(WORKFLOW, TOPIC)] * 20)) / 20


def _for_each(work: Callable[..., object], calls: Sequence[tuple[object, ...]]) -> None:
    for arguments in calls:
        work(*arguments)


def _publish_all(opened: Database, count: int, chunk: int = 5_000) -> None:
    store = EventStore(opened)
    for first in range(0, count, chunk):
        store.publish_many(WORKFLOW, TOPIC, new_events(first, min(chunk, count - first)))


def _settle_batches(opened: Database, batch: int, batches: int) -> None:
    store, runs = EventStore(opened), HandlerRunStore(opened)
    for _ in range(batches):
        run = runs.new_id()
        if store.reserve_next(run, WORKFLOW, TOPIC, limit=batch):
            store.consume(run)


def _in_processes(count: int, worker: Callable[..., None], path: Path, batches: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    processes = [context.Process(target=worker, args=(path, batches, barrier)) for _ in range(count)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    assert all(process.exitcode == 0 for process in processes), "a worker failed; its message is above"
    return seconds


def _raw_worker(path: Path, batches: int, barrier: multiprocessing.synchronize.Barrier) -> None:
    queue = RawQueue(path)
    barrier.wait()
    for _ in range(batches):
        queue.take_and_settle(100)
    queue.close()


def _our_worker(path: Path, batches: int, barrier: multiprocessing.synchronize.Barrier) -> None:
    with database(path) as opened:
        barrier.wait()
        _settle_batches(opened, 100, batches)
