"""Measures DBOS Transact on a new SQLite file, in a process and an environment of its own.

    python -P dbos_worker.py FILE wal|durable|shipped COUNT

Prints one JSON object, rates per second:

* `starts`: workflows enqueued, which is DBOS's fastest durable start; nothing takes them from their queue meanwhile.
* `runs_without_step`, `runs`: workflows called one after the other, without a step and with one that does nothing. A
  call starts the workflow durably, too. Starting them all and waiting then, and the async functions of DBOS, measured
  slower.

`wal` is the write-ahead log with `synchronous=NORMAL`, as leasemesh has it but for intents of effects; `durable` the
same with `synchronous=FULL`, as it has it for these; `shipped` leaves SQLite's defaults, as DBOS does. What this uses
of DBOS is in its documentation; only `dbos` and the standard library can be imported here.
"""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

WARM_UP = 50
SYNCHRONOUS = {"wal": "NORMAL", "durable": "FULL"}


def main(path: str, journal: str, count: int) -> None:
    if journal in SYNCHRONOUS:
        write_ahead(path, SYNCHRONOUS[journal])
    dbos: Any = importlib.import_module("dbos").DBOS
    step = dbos.step()(lambda number: number)
    without_step = dbos.workflow(name="without_step")(lambda number: number)
    with_step = dbos.workflow(name="with_step")(lambda number: step(number))
    dbos(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{path}",
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    dbos.launch()
    queue = dbos.register_queue("bench", polling_interval_sec=3600)
    for call in (without_step, with_step):
        for number in range(WARM_UP):
            call(number)
    rates = {
        "runs_without_step": rate(without_step, count),
        "runs": rate(with_step, count),
        "starts": rate(lambda number: queue.enqueue(without_step, number), count),
    }
    print(json.dumps(rates), flush=True)
    dbos.destroy(workflow_completion_timeout_sec=0)


def write_ahead(path: str, synchronous: str) -> None:
    """The log's mode stays with the file; how often the disk is awaited is set in each connection."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    engines: Any = importlib.import_module("sqlalchemy.engine").Engine
    listen: Any = importlib.import_module("sqlalchemy.event").listen
    listen(engines, "connect", lambda connection, _: connection.execute(f"PRAGMA synchronous = {synchronous}"))


def rate(work: Callable[[int], object], count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        work(number)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
