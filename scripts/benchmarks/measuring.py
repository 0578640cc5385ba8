"""What the benchmarks share: measurements, rounds that take turns, databases, and event content of a realistic size."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import own_migrations, upgrade
from leasemesh.node.stores import NewEvent

WORKFLOW, TOPIC = "bench", "mail"
PAYLOAD = {"from": "ann@example.com", "subject": "s" * 80, "size": 5120, "body": "lorem ipsum dolor " * 6}
"""About 300 bytes of JSON: the size of a mail's headers."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the result.

    Attributes:
        name, value, unit: what was measured; rates are medians over rounds.
        raw: the limit measured in the same run, in the same unit; None when there is none.
        ratio: how much of the limit is reached: value / raw for rates, raw / value for times; None without a limit.
        note: what the limit is.
    """

    name: str
    value: float
    unit: str
    raw: float | None
    ratio: float | None
    note: str

    def as_json(self) -> dict[str, object]:
        """Return the line for programs."""
        return asdict(self)


def rate(name: str, unit: str, ours: list[float], raw: list[float], note: str) -> Measurement:
    """Return a measurement of rates (more is better) from rounds that took turns."""
    value, limit = statistics.median(ours), statistics.median(raw)
    return Measurement(name, value, unit, limit, value / limit, note)


def duration(name: str, unit: str, ours: float, raw: float | None, note: str) -> Measurement:
    """Return a measurement of a time (less is better)."""
    return Measurement(name, ours, unit, raw, raw / ours if raw is not None else None, note)


def percentiles(name: str, ours: list[float], raw: list[float], note: str) -> Iterator[Measurement]:
    """Yield the median and the 99th percentile of times in milliseconds; both lists are equally long."""
    ours, raw = sorted(ours), sorted(raw)
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        place = int(share * (len(ours) - 1))
        yield duration(f"{name}_{label}", "ms", ours[place], raw[place], note)


def timed(work: Callable[[], object]) -> float:
    """Run `work` and return its seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def folder() -> Iterator[Path]:
    """Give a temporary folder on a real file system."""
    path = Path(tempfile.mkdtemp(prefix="leasemesh-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def database(path: Path) -> Iterator[Database]:
    """Open a node's database with the real schema."""
    opened = Database.open(path, clock_ms=lambda: time.time_ns() // 1_000_000)
    try:
        upgrade(opened, [own_migrations()])
        yield opened
    finally:
        opened.close()


def new_events(first: int, count: int, prefix: str = "message") -> list[NewEvent]:
    """Return events with consecutive message ids."""
    return [NewEvent(f"<{prefix}-{n}@example.com>", f"Message {n}", PAYLOAD) for n in range(first, first + count)]
