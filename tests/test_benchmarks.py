"""The benchmarks run and measure what they say; how fast they are is nobody's business here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = (
    "publish_1 publish_10 publish_100 settle_1 settle_10 settle_100 settle_100_4proc "
    "catch_up_100k catch_up_memory merge_10k live_p50 live_p99 "
    "barrier_p50 barrier_p99 confirmed_p50 confirmed_p99 permits_per_s peek_scale "
    "runs_1 runs_10 runs_100 runs_1_8consumers effect_runs_1 effect_runs_10 effect_runs_100 "
    "handled_p50 handled_p99 recovery_10k runs_memory idle_cpu idle_memory"
).split()


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_every_benchmark_gives_one_json_line_with_its_limit_and_ratio() -> None:
    done = bench("--quick", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["name"] for line in lines) == sorted(NAMES)
    for line in lines:
        assert line["value"] > 0 and line["raw"] > 0 and line["ratio"] > 0, line


def test_an_unknown_benchmark_is_named_with_those_there_are() -> None:
    done = bench("--only", "warp_speed")
    assert done.returncode == 2
    assert "warp_speed" in done.stderr and "catch_up_100k" in done.stderr


def test_the_comparison_with_dbos_has_to_be_asked_for() -> None:
    done = bench("--only", "dbos_runs_wal")
    assert done.returncode == 2
    assert "give --with-dbos for it" in done.stderr
