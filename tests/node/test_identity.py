import shutil
from contextlib import closing

import pytest
from database_mesh import copy, run_mesh
from replicas import Replica, check_identity, converge, exchange, send

from leasemesh.node.database.file import DatabaseError
from leasemesh.sync.ports import ReadRequest
from leasemesh.sync.version_vector import Entry, VersionVector


@pytest.fixture
def make(tmp_path):
    replicas = []

    def make_one(path=None):
        replicas.append(Replica(path or tmp_path / f"{len(replicas)}.db", seed=len(replicas)))
        return replicas[-1]

    yield make_one
    for replica in replicas:
        replica.close()


def test_a_new_identity_keeps_the_content_and_what_the_old_one_wrote(make):
    one = make()
    one.note("a")
    old, before, tables = one.site, one.storage.state(), one.tables()
    state = one.storage.reidentify()
    assert state.site == one.site != old
    assert one.tables() == tables
    assert state.version == before.version
    assert state.vector == VersionVector(
        {old: before.vector.entry(old), state.site: Entry(1, one.database.incarnation)}
    )
    assert state.lineage.eras == ((0, one.database.incarnation),)
    with closing(one.storage.open_reader()) as reader:
        rows = reader.begin(ReadRequest(0, VersionVector(), 0), 1000).rows
    assert {row[6] for row in rows} == {old}
    one.note("b")
    with closing(one.storage.open_reader()) as reader:
        rows = reader.begin(ReadRequest(1, VersionVector(), 0), 1000).rows
    assert {row[6] for row in rows} == {state.site}


def test_a_new_identity_is_told_to_listeners_and_refused_inside_a_transaction(make):
    one = make()
    heartbeats = []
    one.database.on_commit(heartbeats.append)
    one.storage.reidentify()
    assert heartbeats == ["local"]
    site = one.site
    with one.database.transaction(), pytest.raises(DatabaseError, match="inside a transaction"):
        one.storage.reidentify()
    assert one.site == site


def test_a_failure_on_the_way_leaves_the_old_identity_and_an_open_database(make, monkeypatch):
    one = make()
    one.note("a")
    before = one.storage.state()

    def fail(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr("leasemesh.node.replication.identity.replicated_tables", fail)
    with pytest.raises(OSError, match="disk on fire"):
        one.storage.reidentify()
    monkeypatch.undo()
    assert one.storage.state() == before
    one.note("b")


def test_another_process_goes_on_under_the_new_identity(make):
    one = make()
    other_process = make(one.path)
    one.note("a")
    old = one.site
    one.storage.reidentify()
    other_process.note("b")
    assert other_process.site == one.site != old
    assert other_process.storage.state() == one.storage.state()
    writers = one.database.query("SELECT DISTINCT site_id FROM notes__crsql_clock ORDER BY 1")
    assert writers == [(0,), (1,)]


def test_peers_who_know_the_old_identity_are_sent_nothing_again(make):
    one, other, third = make(), make(), make()
    for replica in (one, other, third):
        replica.note(replica.path.name)
    exchange(one, other)
    one.note("later")
    exchange(one, other)
    one.storage.reidentify()
    assert send(one, other) == 0
    assert send(one, third) == 6
    converge(one, other, third)
    assert one.tables() == other.tables() == third.tables()


def test_a_restored_backup_gets_its_lost_future_back(make, tmp_path):
    one, other = make(), make()
    kept = one.note("before the backup")
    exchange(one, other)
    copy(one, tmp_path / "backup")
    one.note("lost future")
    one.write("UPDATE notes SET title = 'changed in the lost future' WHERE id = ?", (kept,))
    exchange(one, other)
    one.close()
    shutil.copy(tmp_path / "backup", one.path)
    one.open()
    one.note("written before anybody noticed")
    old = one.site
    check_identity(one, other)
    assert one.site != old
    converge(one, other)
    assert one.tables() == other.tables()
    assert one.titles() == ["changed in the lost future", "lost future", "written before anybody noticed"]


def test_a_restored_backup_is_found_out_even_after_it_wrote_itself_past_its_lost_future(make, tmp_path):
    one, other = make(), make()
    copy(one, tmp_path / "backup")
    one.note("lost future")
    exchange(one, other)
    one.close()
    shutil.copy(tmp_path / "backup", one.path)
    one.open()
    for number in range(5):
        one.note(f"new {number}")
    state = one.storage.state()
    known = other.storage.state().vector.entry(state.site)
    assert known.version < state.version
    assert not state.lineage.owns(known, state.version)
    converge(one, other)
    assert len(one.titles()) == 6
    assert one.tables() == other.tables()


def test_a_clone_and_its_original_converge_after_a_reset(make, tmp_path):
    one, other = make(), make()
    one.note("common")
    exchange(one, other)
    copy(one, tmp_path / "clone.db")
    clone = make(tmp_path / "clone.db")
    assert clone.site == one.site
    one.note("of the original")
    clone.note("of the clone")
    clone.storage.reidentify()
    converge(one, other, clone)
    assert one.titles() == ["common", "of the clone", "of the original"]
    assert one.tables() == other.tables() == clone.tables()


@pytest.mark.parametrize("seed", range(8))
def test_random_meshes_converge(tmp_path, seed):
    fired = run_mesh(tmp_path, seed)
    assert fired["transfer"] and fired["write"]


def test_each_fault_of_the_meshes_happens(tmp_path):
    fired = run_mesh(tmp_path, 1000, steps=150)
    for step in (
        "restart",
        "restore",
        "older copy found",
        "clone",
        "clone found",
        "upgrade",
        "quarantined before the upgrade",
    ):
        assert fired[step], step
