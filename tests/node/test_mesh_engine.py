"""Engines and databases together, in meshes to which everything happens that can."""

import pytest
from engine_mesh import run_mesh

from leasemesh.sync import limits


@pytest.fixture(autouse=True)
def short_snapshots(monkeypatch):
    """Transfers of a few kilobytes begin anew as those of many megabytes do."""
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES", 2000)


@pytest.mark.parametrize("seed", range(6))
def test_random_meshes_of_engines_converge_and_claim_nothing_that_is_not_so(tmp_path, seed):
    fired = run_mesh(tmp_path, seed, rounds=40)
    assert fired["write"] and fired["link"] and fired["break_link"]


def test_each_fault_of_the_meshes_happens(tmp_path):
    fired = run_mesh(tmp_path, 1005, rounds=100)
    for fault in ("write_elsewhere", "crash", "restore", "clone", "new site id", "clone found"):
        assert fired[fault], fault
