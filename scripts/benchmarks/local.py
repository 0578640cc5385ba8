"""One device: publishing, reserving and consuming, and peeking beside a million settled events."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.measuring import TOPIC, WORKFLOW, Measurement, database, duration, folder, new_events, rate, timed
from benchmarks.raw import Handmade, Statements
from leasemesh.node.database.file import Database
from leasemesh.node.stores import EventStore, HandlerRunStore

ROUNDS = 5
NOTE = "the same statements on the same schema, plain APSW"


def publish(batch: int, quick: bool) -> Iterator[Measurement]:
    """Publish in transactions of `batch` events."""
    per_round = _events_per_round(batch, quick)
    ours, raw, handmade = [], [], []
    with folder() as path, database(path / "ours.db") as opened, _limits(path) as (statements, by_hand):
        store = EventStore(opened)
        for number in range(ROUNDS):
            firsts = range(number * per_round, (number + 1) * per_round, batch)
            calls = [(first, batch) for first in firsts]
            handmade.append(per_round / timed(partial(_for_each, by_hand.publish, calls)))
            raw.append(per_round / timed(partial(_for_each, statements.publish, calls)))
            events = [(WORKFLOW, TOPIC, new_events(first, batch)) for first in firsts]
            ours.append(per_round / timed(partial(_for_each, store.publish_many, events)))
    yield rate(f"publish_{batch}", "events/s", ours, raw, _note("one narrow replicated row per event", handmade))


def settle(batch: int, quick: bool) -> Iterator[Measurement]:
    """Reserve and consume `batch` events at a time: two transactions."""
    per_round = _events_per_round(batch, quick)
    ours, raw, handmade = [], [], []
    with folder() as path, database(path / "ours.db") as opened, _limits(path) as (statements, by_hand):
        _publish_all(opened, ROUNDS * per_round)
        statements.publish(0, ROUNDS * per_round)
        by_hand.make_pending(ROUNDS * per_round)
        batches = per_round // batch
        for _ in range(ROUNDS):
            handmade.append(per_round / timed(partial(_for_each, by_hand.take_and_settle, [(batch,)] * batches)))
            raw.append(per_round / timed(partial(_for_each, statements.take_and_settle, [(batch,)] * batches)))
            ours.append(per_round / timed(partial(_settle_batches, opened, batch, batches)))
    yield rate(f"settle_{batch}", "events/s", ours, raw, _note("status without claims", handmade))


def settle_processes(processes: int, quick: bool) -> Iterator[Measurement]:
    """The same with several processes on one file, batches of 100."""
    batches = 10 if quick else 50
    total = processes * batches * 100
    with folder() as path:
        with closing(Statements(path / "raw.db")) as statements:
            statements.publish(0, total)
            topic = statements.topic
        with database(path / "ours.db") as opened:
            _publish_all(opened, total)
        raw = total / _in_processes(processes, _raw_worker, path / "raw.db", topic, batches)
        ours = total / _in_processes(processes, _our_worker, path / "ours.db", None, batches)
    yield rate(f"settle_100_{processes}proc", "events/s", [ours], [raw], f"{NOTE}, {processes} processes")


def _events_per_round(batch: int, quick: bool) -> int:
    return max(batch, (200 if quick else 1000) * (1 if batch == 1 else 10))


@contextmanager
def _limits(path: Path) -> Iterator[tuple[Statements, Handmade]]:
    with closing(Statements(path / "raw.db")) as statements, closing(Handmade(path / "handmade.db")) as handmade:
        yield statements, handmade


def _note(what: str, rates: list[float]) -> str:
    return f"{NOTE}; {what}, by hand: {statistics.median(rates):,.0f}"


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


def _in_processes(count: int, worker: Callable[..., None], path: Path, topic: bytes | None, batches: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    processes = [context.Process(target=worker, args=(path, topic, batches, barrier)) for _ in range(count)]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    assert all(process.exitcode == 0 for process in processes), "a worker failed; its message is above"
    return seconds


def _raw_worker(path: Path, topic: bytes, batches: int, barrier: Barrier) -> None:
    with closing(Statements(path, topic)) as statements:
        barrier.wait()
        for _ in range(batches):
            statements.take_and_settle(100)


def _our_worker(path: Path, _: None, batches: int, barrier: Barrier) -> None:
    with database(path) as opened:
        barrier.wait()
        _settle_batches(opened, 100, batches)
