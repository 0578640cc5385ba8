"""`scripts/bench [--only NAME] [--quick] [--json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import barrier, confirmed, local, network
from benchmarks.measuring import Measurement

BENCHMARKS: dict[str, Callable[[bool], Iterator[Measurement]]] = {
    "publish_1": lambda quick: local.publish(1, quick),
    "publish_10": lambda quick: local.publish(10, quick),
    "publish_100": lambda quick: local.publish(100, quick),
    "settle_1": lambda quick: local.settle(1, quick),
    "settle_10": lambda quick: local.settle(10, quick),
    "settle_100": lambda quick: local.settle(100, quick),
    "settle_100_4proc": lambda quick: local.settle_processes(4, quick),
    "catch_up_100k": network.catch_up,
    "merge_10k": network.merge,
    "live_p50": network.live,
    "barrier_p50": barrier.barrier,
    "confirmed_p50": confirmed.confirmed,
    "peek_scale": local.peek_scale,
}
YIELDS = {
    "catch_up_memory": "catch_up_100k",
    "live_p99": "live_p50",
    "barrier_p99": "barrier_p50",
    "confirmed_p99": "confirmed_p50",
    "permits_per_s": "confirmed_p50",
}
"""Measurements that come out of another one's run."""


def main(
    only: Annotated[list[str] | None, typer.Option(help="Measure only this; may be given several times.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small numbers: shows that it runs, not how fast.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per measurement, one a line.")] = False,
) -> None:
    """Measure leasemesh against what the machine can do at all. Ratios count; rates on a shared machine come and go."""
    wanted = only or [*BENCHMARKS, *YIELDS]
    unknown = [name for name in wanted if name not in BENCHMARKS and name not in YIELDS]
    if unknown:
        print(
            f"bench: no benchmark is called {unknown[0]}; there are {', '.join([*BENCHMARKS, *YIELDS])}",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    progress = Console(stderr=True)
    results: list[Measurement] = []
    for name, benchmark in BENCHMARKS.items():
        if name not in {YIELDS.get(one, one) for one in wanted}:
            continue
        with progress.status(f"measuring {name}"):
            for result in benchmark(quick):
                if result.name in wanted:
                    results.append(result)
                    if as_json:
                        print(json.dumps(result.as_json()), flush=True)
    if not as_json:
        Console().print(_table(results))


def _table(results: list[Measurement]) -> Table:
    table = Table("name", "value", "limit", "ratio", "unit", "the limit is", title="leasemesh against the limit")
    for column in table.columns[1:4]:
        column.justify = "right"
    for one in results:
        raw = "" if one.raw is None else f"{one.raw:,.2f}" if one.raw < 1000 else f"{one.raw:,.0f}"
        value = f"{one.value:,.2f}" if one.value < 1000 else f"{one.value:,.0f}"
        table.add_row(one.name, value, raw, "" if one.ratio is None else f"{one.ratio:.0%}", one.unit, one.note)
    return table


if __name__ == "__main__":
    typer.run(main)
