"""The simulator itself: equal runs, faults that happen, and a series of seeds."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sim.faults import STEPS
from sim.params import FAULT_KINDS, HANDLED_FAULT_KINDS, lite
from sim.runner import Job, run_many

ROOT = Path(__file__).parent.parent.parent
SERIES = 2000
"""Lite seeds that every check runs, beginning at 1; more by hand: `scripts/sim --seeds 2001..9000`."""

COPIES = 80
"""Seeds of the preset copies, likewise."""

MUST_FIRE = sorted(
    {
        *FAULT_KINDS,
        *HANDLED_FAULT_KINDS,
        "cut mid-batch",
        *(f"crash {moment} {step}" for step in STEPS for moment in ("before", "after")),
        "quarantined by an older schema",
        "new site id",
    }
)


@pytest.fixture(scope="module")
def series():
    return list(run_many([Job(seed) for seed in range(1, SERIES + 1)], processes=os.cpu_count() or 1))


def test_every_seed_of_the_series_keeps_all_invariants(series):
    failed = {report.job.command: report.violations for report in series if report.violations}
    assert failed == {}


def test_no_effect_is_lost_or_repeated_where_files_are_restored_and_copied():
    jobs = [Job(seed, preset="copies") for seed in range(1, COPIES + 1)]
    reports = list(run_many(jobs, processes=os.cpu_count() or 1))
    assert {report.job.command: report.violations for report in reports if report.violations} == {}
    fired = sum((report.fired for report in reports), Counter())
    assert [fault for fault in ("restore", "clone started", "new site id", "lying service") if not fired[fault]] == []


def test_every_fault_makes_a_difference_somewhere_in_the_series(series):
    fired = sum((report.fired for report in series), Counter())
    assert [fault for fault in MUST_FIRE if not fired[fault]] == []


def test_every_kind_of_work_succeeds_somewhere_in_the_series(series):
    did = sum((report.did for report in series), Counter())
    wanted = (
        "publish: new", "publish: known", "reserve: got", "reserve: NotAvailable", "settle: done", "settle: lost",
        "release: done", "take over: got", "write foreign: NotOwner", "edit notes: done", "write batch: done",
        "delete topic: done", "recover",
        "other process: done", "publish: no room on the disk",
        "start: done", "start: lost some to others", "move authority: moved", "handled to the end",
        "call: is lost", "call: happens and is not answered", "reconcile: a lie", "reconcile: nothing",
    )  # fmt: skip
    assert [work for work in wanted if not did[work]] == []
    assert not did["write foreign: written"]


def test_every_invariant_is_looked_at_in_the_series(series):
    checked = sum((report.checked for report in series), Counter())
    wanted = (*(f"S{number}" for number in range(1, 16)), *(f"L{number}" for number in range(1, 6)), "convergence")
    assert [invariant for invariant in wanted if not checked[invariant]] == []


def test_a_seed_gives_the_same_trace_in_two_processes_that_hash_differently():
    seeds = (3, 12, 16)
    assert lite(16).handled
    script = f"from sim.runner import *; print(*[run(Job(seed)).trace for seed in {seeds}])"
    traces = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0] == traces[1]
    assert len(set(traces[0].split())) == 3
