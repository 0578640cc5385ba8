"""Runs simulated worlds by hand; see `scripts/sim --help`."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sim.params import PRESETS
from sim.runner import INTERNAL, Job, Report, run, run_many, shrink

FAILURES_SHOWN_MAX = 5
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)


@app.command()
def main(
    seed: Annotated[int | None, typer.Option(help="Run this seed.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Run these seeds, A..B (B included).")] = None,
    nodes: Annotated[int | None, typer.Option(min=2, max=12, help="Devices at the start.")] = None,
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "lite",
    steps: Annotated[str | None, typer.Option(help="Only these steps of the schedule: 3,8,9, or none.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one for each processor, if not given.")] = None,
    log: Annotated[bool, typer.Option(help="Print everything that happens (with --seed).")] = False,
) -> None:
    """Run simulated worlds: faults first, then everything must converge. Ends with 1 when an invariant fails."""
    if (seed is None) == (seeds is None):
        raise typer.BadParameter("give one of --seed and --seeds")
    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset} is none of {', '.join(PRESETS)}", param_hint="--preset")
    chosen = None if steps is None else _numbers(steps)
    options = {"preset": preset, "nodes": nodes, "steps": chosen}
    begin = time.monotonic()
    if seed is not None:
        reports = [run(Job(seed, **options), keep_log=log)]
        console.print("\n".join(reports[0].log), markup=False, end="\n" if log else "")
        console.print(f"trace {reports[0].trace}")
    else:
        first, last = _range(seeds or "")
        wanted = [Job(number, **options) for number in range(first, last + 1)]
        reports = _run_all(wanted, jobs or os.cpu_count() or 1)
    show(reports, time.monotonic() - begin)
    failed = [report for report in reports if report.violations]
    for report in failed[:FAILURES_SHOWN_MAX]:
        show_failure(report)
    raise typer.Exit(bool(failed))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text} is not like 3,8,9", param_hint="--steps") from error


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("..")
    try:
        return int(first), int(last)
    except ValueError as error:
        raise typer.BadParameter(f"{text} is not like 1..500", param_hint="--seeds") from error


def _run_all(wanted: list[Job], processes: int) -> list[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    reports, failed = [], 0
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=len(wanted))
        for report in run_many(wanted, processes=processes):
            reports.append(report)
            failed += bool(report.violations)
            progress.update(task, advance=1, description=f"seeds, {failed} failed")
    return reports


def show(reports: list[Report], seconds: float) -> None:
    """Print the table of a series of runs."""
    table = Table(title=f"{len(reports)} seeds in {seconds:.0f} s", show_header=False)
    events, world_ms = sum(report.events for report in reports), sum(report.world_ms for report in reports)
    failed = [report for report in reports if report.violations]
    table.add_row("events", f"{events:,} in {world_ms / 3_600_000:.1f} simulated hours")
    table.add_row("faults fired", _counts(report.fired for report in reports))
    table.add_row("work done", _counts(report.did for report in reports))
    table.add_row("links closed", _counts(report.closed for report in reports))
    table.add_row("invariants looked at", _counts(report.checked for report in reports))
    table.add_row("failed seeds", str(len(failed)))
    console.print(table)


def _counts(counters) -> str:
    total: Counter = Counter()
    for counter in counters:
        total.update(counter)
    return ", ".join(f"{name} {count:,}" for name, count in sorted(total.items()) if count) or "none"


def show_failure(report: Report) -> None:
    """Print what failed, and the shortest schedule found that fails like it."""
    for invariant, text in report.violations.items():
        console.print(f"[red]seed {report.job.seed} violates {invariant}[/red]")
        console.print(text if invariant == INTERNAL else text[:500], markup=False)
    job = shrink(report.job, list(report.violations))
    console.print(f"{len(job.schedule())} of {len(replace(job, steps=None).schedule())} steps are needed:")
    for step in job.schedule():
        console.print(f"  {step}", markup=False)
    console.print(f"replay: {job.command}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
