"""`scripts/bench [--only NAME] [--with-dbos] [--quick] [--json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import barrier, confirmed, handled, handlers, idle, local, network, peer, recovery
from benchmarks.measuring import Measurement
from leasemesh.node.cli.helping import Command

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
    "runs_1": lambda quick: handlers.runs(1, quick),
    "runs_10": lambda quick: handlers.runs(10, quick),
    "runs_100": lambda quick: handlers.runs(100, quick),
    "runs_1_8consumers": handlers.runs_side_by_side,
    "effect_runs_1": lambda quick: handlers.effect_runs(1, quick),
    "effect_runs_10": lambda quick: handlers.effect_runs(10, quick),
    "effect_runs_100": lambda quick: handlers.effect_runs(100, quick),
    "handled_p50": handled.handled,
    "recovery_10k": recovery.recovery,
    "idle_cpu": idle.idle,
}
WITH_DBOS: dict[str, Callable[[bool], Iterator[Measurement]]] = {peer.NAMES[0]: peer.dbos}
"""Only with --with-dbos, which installs it."""

YIELDS = {
    "catch_up_memory": "catch_up_100k",
    "live_p99": "live_p50",
    "barrier_p99": "barrier_p50",
    "confirmed_p99": "confirmed_p50",
    "permits_per_s": "confirmed_p50",
    "handled_p99": "handled_p50",
    "runs_memory": "recovery_10k",
    "idle_memory": "idle_cpu",
}
"""Measurements that come out of another one's run."""


def main(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure only this; may be given several times.")
    ] = None,
    with_dbos: Annotated[
        bool, typer.Option("--with-dbos", help="Also beside DBOS Transact on SQLite, which is installed for it.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small numbers: shows that it runs, not how fast.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per measurement, one a line.")] = False,
) -> None:
    """Measure leasemesh against what the machine can do at all. Ratios count; rates on a shared machine come and go."""
    benchmarks, source = dict(BENCHMARKS), {name: name for name in BENCHMARKS} | YIELDS
    if with_dbos:
        benchmarks |= WITH_DBOS
        source |= dict.fromkeys(peer.NAMES, peer.NAMES[0])
    wanted = only or list(source)
    unknown = [name for name in wanted if name not in source]
    if unknown:
        hint = "give --with-dbos for it" if unknown[0] in peer.NAMES else f"there are {', '.join(source)}"
        print(f"bench: no benchmark is called {unknown[0]}; {hint}", file=sys.stderr)
        raise typer.Exit(2)
    progress = Console(stderr=True)
    results: list[Measurement] = []
    for name, benchmark in benchmarks.items():
        if name not in {source[one] for one in wanted}:
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
    table.columns[0].no_wrap = True
    for column in table.columns[1:4]:
        column.justify = "right"
    for one in results:
        raw = "" if one.raw is None else f"{one.raw:,.2f}" if one.raw < 1000 else f"{one.raw:,.0f}"
        value = f"{one.value:,.2f}" if one.value < 1000 else f"{one.value:,.0f}"
        table.add_row(one.name, value, raw, "" if one.ratio is None else f"{one.ratio:.0%}", one.unit, one.note)
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(main)
    app(prog_name="scripts/bench")
