import os
import subprocess
import sys
import tracemalloc
from contextlib import closing
from dataclasses import replace
from random import Random

import apsw
import pytest
from replicas import NOTES, Replica, converge, exchange, incoming, pieces, request, send

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.doctor import examine
from leasemesh.node.machine.environment import boot_id
from leasemesh.node.replication import merging, quarantine, reading, staging, version_vectors
from leasemesh.node.replication.changes import change_bytes
from leasemesh.node.replication.clock_tables import ROWS_MAX, ClockTables
from leasemesh.node.replication.packed_keys import is_well_formed
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.node.replication.version_vectors import read_absorbed
from leasemesh.node.stores import TopicStore
from leasemesh.sync import limits
from leasemesh.sync.errors import RemoteProtocolError, StagingLost, StorageLimit
from leasemesh.sync.ports import Incoming, ReadRequest, TransferHeader
from leasemesh.sync.version_vector import FROM_START, START, Entry, VersionVector

TAGS = "CREATE TABLE tags (id TEXT PRIMARY KEY NOT NULL, name TEXT); SELECT crsql_as_crr('main', 'tags');"
COLOUR = (
    "SELECT crsql_begin_alter('main', 'notes'); ALTER TABLE notes ADD COLUMN colour TEXT NOT NULL DEFAULT 'white';"
    "SELECT crsql_commit_alter('main', 'notes');"
)


@pytest.fixture
def make(tmp_path):
    replicas = []

    def make_one(*app, name=None):
        replicas.append(Replica(tmp_path / f"{name or len(replicas)}.db", *app, seed=len(replicas)))
        return replicas[-1]

    yield make_one
    for replica in replicas:
        replica.close()


class TemporaryFiles(list):
    """The temporary files that SQLite has made, each with its size; no more can be written while `is_full`."""

    is_full = False


@pytest.fixture
def temporary_files():
    files = TemporaryFiles()
    ordinary = apsw.vfs_names()[0]

    class File(apsw.VFSFile):
        def __init__(self, name, flags):
            super().__init__(ordinary, name, flags)
            self.size, self.is_open, self.is_temporary = 0, True, name is None
            if self.is_temporary:
                files.append(self)

        def xWrite(self, data, offset):
            if self.is_temporary and files.is_full:
                raise apsw.FullError
            super().xWrite(data, offset)
            self.size = max(self.size, offset + len(data))

        def xClose(self):
            self.is_open = False
            super().xClose()

    class Disk(apsw.VFS):
        def xOpen(self, name, flags):
            return File(name, flags)

    disk = Disk("counting temporary files", base=ordinary, makedefault=True)
    yield files
    disk.unregister()


def change(table="notes", pk=b"\x01\x0c\x10" + b"k" * 16, cid="title", value="x", version=1, site=b"s" * 16, **others):
    return (table, pk, cid, value, others.get("col_version", 1), version, site, others.get("cl", 1), 0)


def piece(*rows, site=b"s" * 16, version=None, vector=None, **flags):
    version = max((row[5] for row in rows), default=1) if version is None else version
    entry = Entry(version, b"e")
    header = TransferHeader(entry, vector or VersionVector({site: entry}), len(rows))
    flags = {"first": True, "whole": True, "last": True} | flags
    return Incoming(site, header, rows=list(rows), upto=entry, **flags)


# --- Transfers -------------------------------------------------------------------------------------------------------


def test_a_transfer_brings_everything_and_the_next_one_nothing(make):
    one, other = make(), make()
    for number in range(10):
        one.note(f"note {number}")
    assert send(one, other) == 20
    assert other.titles() == one.titles()
    assert other.tables() == one.tables()
    assert send(one, other) == 0


def test_what_a_peer_sent_is_not_sent_back(make):
    one, other = make(), make()
    one.note("a")
    send(one, other)
    assert send(other, one) == 0
    other.note("b")
    assert send(other, one) == 2


def test_a_third_node_gets_everything_through_the_second(make):
    one, middle, other = make(), make(), make()
    one.note("a")
    send(one, middle)
    middle.note("b")
    send(middle, other)
    assert other.titles() == ["a", "b"]
    assert send(one, other) == 0
    (writer,) = other.database.query(
        "SELECT s.site_id FROM notes__crsql_clock c JOIN crsql_site_id s ON s.ordinal = c.site_id "
        "JOIN notes n ON n.title = 'a' JOIN notes__crsql_pks p ON p.id = n.id AND p.__crsql_key = c.key LIMIT 1"
    )
    assert writer == (one.site,)


def test_deletions_updates_and_rows_that_come_back_converge(make):
    one, other = make(), make()
    notes = [one.note(f"note {number}") for number in range(6)]
    exchange(one, other)
    one.write("DELETE FROM notes WHERE id = ?", (notes[0],))
    other.write("UPDATE notes SET stars = 5 WHERE id = ?", (notes[0],))
    one.write("UPDATE notes SET stars = 1 WHERE id = ?", (notes[1],))
    other.write("UPDATE notes SET title = 'new' WHERE id = ?", (notes[1],))
    other.write("DELETE FROM notes WHERE id = ?", (notes[2],))
    other.note("back again", notes[2])
    converge(one, other)
    assert one.tables() == other.tables()
    assert one.titles() == ["back again", "new", "note 3", "note 4", "note 5"]


def test_a_cut_transfer_goes_on_where_it_was_cut(make):
    one, other = make(), make()
    for number in range(30):
        one.note(f"note {number}")
    total = len(pieces(one, other, 500))
    assert total > 4
    send(one, other, rows_bytes_max=500, pieces_max=3)
    assert other.storage.state().vector.entry(one.site) == START
    resume = other.storage.resume_point(one.site)
    assert 0 < resume.version < 30
    assert request(one, other).after == resume.version
    assert len(pieces(one, other, 500)) == total - 3
    send(one, other)
    assert other.titles() == one.titles()
    assert other.storage.resume_point(one.site) == FROM_START
    assert other.storage.state().vector.entry(one.site) == one.storage.state().vector.entry(one.site)


def test_what_was_overwritten_during_a_cut_transfer_is_not_lost(make):
    one, middle, other = make(), make(), make()
    early = one.note("first title")
    for number in range(20):
        one.note(f"note {number}")
    results = pieces(one, middle, 500)
    for result in results[:2]:
        middle.storage.apply(incoming(one, result))
    one.write("UPDATE notes SET title = 'second title' WHERE id = ?", (early,))
    send(middle, other)
    converge(one, middle, other)
    assert "second title" in other.titles()
    assert one.tables() == middle.tables() == other.tables()


def test_a_transfer_shows_one_moment_and_its_header_belongs_to_it(make):
    one, other = make(), make()
    for number in range(20):
        one.note(f"note {number}")
    with closing(one.storage.open_reader()) as reader:
        result = reader.begin(request(one, other), 500)
        one.note("written meanwhile")
        rows = list(result.rows)
        while not result.last:
            result = reader.read(500)
            rows += result.rows
    assert result.header.entry.version == result.upto.version == 20
    assert "written meanwhile" not in [row[3] for row in rows]
    assert result.header.rows_estimate == len(rows) == 40


def test_the_estimate_leaves_out_what_the_peer_has(make):
    one, other = make(), make()
    one.note("a")
    send(one, other)
    other.note("b")
    assert pieces(other, one)[0].header.rows_estimate == 2


def test_a_reader_may_be_used_again_after_a_transfer_was_given_up(make):
    one, other = make(), make()
    for number in range(20):
        one.note(f"note {number}")
    with closing(one.storage.open_reader()) as reader:
        reader.begin(request(one, other), 300)
        reader.end()
        assert not reader._connection.in_transaction
        reader.begin(request(one, other), 300)
        assert reader.begin(request(one, other), 10**6).last
        assert not reader._connection.in_transaction


def test_an_empty_transfer_still_brings_version_vector(make):
    one, middle, other = make(), make(), make()
    one.note("a")
    send(one, middle)
    send(one, other)
    assert send(middle, other) == 0
    assert other.storage.state().vector.includes(middle.site, middle.storage.state().vector.entry(middle.site))


@pytest.mark.parametrize("transactions", [1, 4])
def test_a_few_long_values_are_not_all_in_memory_at_once(make, transactions):
    one, other, third = make(), make(), make()
    for number in range(transactions):  # what comes from others in between makes several ranges to be sent
        with one.database.transaction():
            for _ in range(8 // transactions):
                one.note("x" * limits.MIB)
        third.note(f"{number}")
        send(third, one)
        send(third, other)
    with closing(one.storage.open_reader()) as reader:
        tracemalloc.start()
        results = [reader.begin(request(one, other), limits.ROWS_BYTES_MAX)]
        assert tracemalloc.get_traced_memory()[1] < 4 * limits.MIB
        tracemalloc.stop()
        while not results[-1].last:
            results.append(reader.read(limits.ROWS_BYTES_MAX))
    for result in results:
        other.storage.apply(incoming(one, result))
    assert other.tables() == one.tables()


# --- Pieces, versions, atomicity -------------------------------------------------------------------------------------


def test_pieces_end_at_versions_borders_and_keep_about_to_the_size(make):
    one, other = make(), make()
    for _ in range(20):
        with one.database.transaction():
            for _ in range(3):
                one.note("x" * 50)
    results = pieces(one, other, 1500)
    assert len(results) > 5
    assert all(result.whole for result in results)
    versions = [{row[5] for row in result.rows} for result in results]
    assert sum(map(len, versions)) == len(set().union(*versions)) == 20
    assert all(sum(change_bytes(row) for row in result.rows) < 1500 + 200 for result in results)
    assert [result.upto.version for result in results] == [max(found) for found in versions]


def test_a_transaction_becomes_visible_as_a_whole_however_large_it_is(make):
    one, other = make(), make()
    one.note("before")
    with one.database.transaction():
        for number in range(100):
            one.note(f"{number:03}" + "x" * 50)
    one.note("after")
    results = pieces(one, other, 1000)
    assert [result.whole for result in results].count(False) > 5
    seen = set()
    for result in results:
        applied = other.storage.apply(incoming(one, result))
        assert applied.rows == 0 or result.whole
        seen.add(len(other.titles()))
    assert seen == {1, 102}
    assert other.tables() == one.tables()


def test_a_large_transaction_that_was_cut_is_sent_again_from_its_beginning(make):
    one, other = make(), make()
    with one.database.transaction():
        for number in range(100):
            one.note(f"{number:03}" + "x" * 50)
    send(one, other, pieces_max=4)
    assert other.titles() == []
    other.restart()
    send(one, other, pieces_max=3)
    assert other.storage.resume_point(one.site) == FROM_START
    send(one, other)
    assert other.tables() == one.tables()
    assert other.storage._staging._senders == {}
    assert other.database.query("SELECT version FROM version_vector") == [(1,)]


def test_two_senders_may_stage_at_once(make):
    one, two, other = make(), make(), make()
    for replica in (one, two):
        with replica.database.transaction():
            for number in range(30):
                replica.note(f"{number} of {replica.path.name}")
    for first, second in zip(pieces(one, other), pieces(two, other), strict=True):
        other.storage.apply(incoming(one, first))
        other.storage.apply(incoming(two, second))
    assert len(other.titles()) == 60


def test_staged_rows_are_bounded_and_a_refusal_keeps_nothing(make, monkeypatch):
    monkeypatch.setattr(staging, "STAGED_BYTES_MAX", 3000)
    one, other = make(), make()
    with one.database.transaction():
        for _ in range(100):
            one.note("x" * 50)
    with pytest.raises(StorageLimit, match=r"more than 3,000 bytes; write the data in several transactions"):
        send(one, other)
    assert other.titles() == []


def test_what_a_lost_peer_began_makes_room_for_others(make, monkeypatch):
    lost, busy, other = make(), make(), make()
    for node in (lost, busy):
        with node.database.transaction():
            for _ in range(80):
                node.note("x" * 50)
    staged = [row for piece in pieces(busy, other, rows_bytes_max=3000)[:-1] for row in piece.rows]
    monkeypatch.setattr(staging, "STAGED_BYTES_MAX", sum(map(change_bytes, staged)))
    began = [incoming(lost, piece) for piece in pieces(lost, other, rows_bytes_max=3000)]
    assert not began[0].whole and not began[1].whole
    other.storage.apply(began[0])
    send(busy, other, rows_bytes_max=3000)
    assert len(other.titles()) == 80
    with pytest.raises(StagingLost, match="send it again") as refused:
        other.storage.apply(began[1])
    assert refused.value.retryable
    send(lost, other, rows_bytes_max=3000)
    assert len(other.titles()) == 160


def test_what_is_staged_outlives_an_examination_of_the_file(make):
    one, other = make(), make()
    with one.database.transaction():
        for _ in range(100):
            one.note("x" * 50)
    first, *others = pieces(one, other)
    other.storage.apply(incoming(one, first))
    assert all(finding.healthy for finding in examine(other.database))
    for result in others:
        other.storage.apply(incoming(one, result))
    assert other.tables() == one.tables()


def test_what_is_staged_is_in_a_file_while_a_small_transaction_needs_none(make, temporary_files):
    one, other = make(), make()
    with one.database.transaction():
        for _ in range(50):
            one.note("x")
    send(one, other)
    assert temporary_files == []
    with one.database.transaction():
        for _ in range(50):
            one.note("x" * 50_000)
    began = pieces(one, other, rows_bytes_max=limits.MIB)[:2]
    for result in began:
        other.storage.apply(incoming(one, result))
    assert sum(file.size for file in temporary_files) > 1.5 * limits.MIB
    other.storage.reidentify()
    assert [file.is_open for file in temporary_files] == [False]
    with pytest.raises(StagingLost):
        other.storage.apply(incoming(one, pieces(one, other, rows_bytes_max=limits.MIB)[2]))


def test_no_more_transactions_wait_than_there_may_be_peers(make, monkeypatch):
    monkeypatch.setattr(staging, "STAGED_SENDERS_MAX", 2)
    other = make()
    began = [piece(change(), site=bytes([number]) * 16, whole=False, last=False) for number in range(3)]
    for first in began:
        other.storage.apply(first)
    assert list(other.storage._staging._senders) == [began[1].site, began[2].site]
    with pytest.raises(StagingLost):
        other.storage.apply(replace(began[0], first=False))


def test_without_room_for_temporary_files_a_large_transaction_is_refused_and_can_come_later(make, temporary_files):
    one, other = make(), make()
    with one.database.transaction():
        for _ in range(50):
            one.note("x" * 50_000)
    results = [incoming(one, result) for result in pieces(one, other, rows_bytes_max=limits.MIB)]
    temporary_files.is_full = True
    with pytest.raises(DatabaseError, match="free some space in the folder for temporary files"):
        for result in results:
            other.storage.apply(result)
    with pytest.raises(StagingLost):
        other.storage.apply(results[-1])
    temporary_files.is_full = False
    for result in results:
        other.storage.apply(result)
    assert other.tables() == one.tables()


def test_a_piece_is_merged_with_its_version_vector_or_not_at_all(make, monkeypatch):
    one, other = make(), make()
    one.note("a")
    (result,) = pieces(one, other)

    def fail(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(merging, "raise_vector", fail)
    before = other.storage.state()
    with pytest.raises(OSError, match="disk on fire"):
        other.storage.apply(incoming(one, result))
    assert other.storage.state() == before
    assert other.titles() == [] and read_absorbed(other.database.query, 0) == []


PAIRS = """
CREATE TABLE pairs (a TEXT NOT NULL, b INTEGER NOT NULL, PRIMARY KEY (b, a));
SELECT crsql_as_crr('main', 'pairs');
CREATE TABLE things (id BLOB PRIMARY KEY NOT NULL, thing ANY, size INTEGER AS (length(thing)) VIRTUAL);
SELECT crsql_as_crr('main', 'things');
"""


def write_at_random(replica, chance):
    key, value = bytes([chance.randrange(6)]), chance.choice(["x", 1.5, 7, b"z", None])
    with replica.database.transaction() as transaction:
        for _ in range(chance.randrange(1, 4)):
            transaction.execute(
                *chance.choice(
                    [
                        ("INSERT INTO notes (id, title) VALUES (?, 'n') ON CONFLICT DO NOTHING", (key,)),
                        ("UPDATE notes SET stars = stars + 1 WHERE id = ?", (key,)),
                        ("DELETE FROM notes WHERE id = ?", (key,)),
                        ("INSERT INTO pairs VALUES ('p', ?) ON CONFLICT DO NOTHING", (key[0],)),
                        ("DELETE FROM pairs WHERE b = ?", (key[0],)),
                        ("INSERT INTO things (id, thing) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, value)),
                        ("UPDATE things SET thing = ? WHERE id = ?", (value, key)),
                    ]
                )
            )


def test_the_short_way_reads_what_crsql_changes_shows(make):
    replicas = [make(NOTES, PAIRS), make(NOTES, PAIRS)]
    chance = Random(5)
    for _ in range(60):
        one, other = chance.sample(replicas, 2)
        write_at_random(one, chance)
        if chance.random() < 0.3:
            send(one, other)
    for one in replicas:
        compared = 0
        with closing(one.storage.open_reader()) as reader:
            for _ in range(150):
                start = chance.randrange(one.database.version())
                end = chance.randrange(start, one.database.version()) + 1
                tables = one.database.tables_changed_since(start)
                expected = reader._query(reading._SELECT, (start, end))
                found = ClockTables().read(reader._connection.execute, tables, start, end)
                assert (found is None) == (len(expected) > ROWS_MAX)
                if found is not None:
                    assert sorted(map(repr, found)) == sorted(map(repr, expected))
                    assert [(row[5], row[8]) for row in found] == [(row[5], row[8]) for row in expected]
                    compared += len(found)
        assert compared > 500


def test_own_changes_that_come_back_change_nothing(make):
    one, other = make(), make()
    one.note("a")
    send(one, other)
    rows = pieces(one, other, 10**6)
    with closing(other.storage.open_reader()) as reader:
        result = reader.begin(ReadRequest(0, VersionVector(), 0), 10**6)
    before = one.storage.state().version
    applied = one.storage.apply(incoming(other, result))
    assert (applied.rows, applied.tables, applied.state.version) == (2, frozenset(), before)
    assert rows[0].rows == []


def test_a_version_that_did_not_advance_loses_nothing(make):
    one, other = make(), make()
    note = one.note("a")
    one.write("UPDATE notes SET title = title")
    send(one, other)
    one.write("UPDATE notes SET title = 'changed' WHERE id = ?", (note,))
    send(one, other)
    assert other.titles() == ["changed"]


# --- The log of absorbed ranges --------------------------------------------------------------------------------------


def test_pieces_of_one_transfer_are_one_entry_of_the_log(make):
    one, other = make(), make()
    for number in range(30):
        one.note(f"note {number}")
    send(one, other, rows_bytes_max=300)
    (entry,) = read_absorbed(other.database.query, 0)
    assert (entry.first, entry.last) == (1, 30)
    assert entry.vector == one.storage.state().vector


def test_the_log_is_bounded_and_a_dropped_entry_costs_duplicates_only(make, monkeypatch):
    monkeypatch.setattr(version_vectors, "ABSORBED_ENTRIES_MAX", 3)
    monkeypatch.setattr(version_vectors, "_PRUNE_VERSIONS", 1)
    one, other = make(), make()
    for number in range(6):
        one.note(f"note {number}")
        send(one, other)
    assert len(read_absorbed(other.database.query, 0)) == 3
    assert send(other, one) == 6
    assert one.tables() == other.tables()


def test_what_a_merge_changes_by_itself_is_passed_on(make):
    """A node with an older schema deletes a row and writes it again, without the column that it does not know."""
    colour, plain, late = make(NOTES, COLOUR), make(NOTES), make(NOTES, COLOUR)
    note = colour.note("a")
    colour.write("UPDATE notes SET colour = 'red'")
    exchange(colour, plain)
    plain.write("DELETE FROM notes")
    exchange(plain, late)
    plain.note("a", note)
    for replica in (late, colour):
        exchange(plain, replica)
    converge(colour, late)
    assert colour.tables() == late.tables()
    shown = [replica.database.query("SELECT title, colour FROM notes") for replica in (colour, late)]
    assert shown[0] == shown[1]


# --- Schema ----------------------------------------------------------------------------------------------------------


def test_a_reader_sees_tables_that_became_replicated_after_it_was_opened(make):
    one = make()
    one.note("a")
    with closing(one.storage.open_reader()) as reader:
        assert len(reader.begin(ReadRequest(0, VersionVector(), 0), 10**6).rows) == 2
        one.upgrade(NOTES, TAGS)
        one.write("INSERT INTO tags VALUES ('t', 'urgent')")
        rows = reader.begin(ReadRequest(0, VersionVector(), 0), 10**6).rows
    assert {row[0] for row in rows} == {"notes", "tags"}


def test_rows_of_unknown_tables_and_columns_are_quarantined_and_come_back_with_the_migration(make):
    newer, older = make(NOTES, TAGS, COLOUR), make(NOTES)
    newer.write("INSERT INTO tags VALUES ('t', 'urgent')")
    newer.write("INSERT INTO notes (id, title, colour) VALUES (x'01', 'a', 'red')")
    (result,) = pieces(newer, older)
    applied = older.storage.apply(incoming(newer, result))
    assert (applied.rows, applied.quarantined, applied.tables) == (4, 2, {"notes"})
    assert older.titles() == ["a"]
    reasons = [(count.reason, count.rows) for count in quarantine.count_quarantined(older.database.query)]
    assert reasons == [("unknown column notes.colour", 1), ("unknown table tags", 1)]
    older.upgrade(NOTES, TAGS, COLOUR)
    assert older.storage.retry_quarantined() == {"notes", "tags"}
    assert older.quarantined() == 0
    assert older.tables() == newer.tables()


def test_quarantined_rows_come_back_with_the_next_piece_after_another_process_has_migrated(make):
    newer, older = make(NOTES, TAGS), make(NOTES)
    newer.write("INSERT INTO tags VALUES ('t', 'urgent')")
    send(newer, older)
    process = Replica(older.path, NOTES, TAGS)
    process.close()
    newer.note("a")
    (result,) = pieces(newer, older)
    applied = older.storage.apply(incoming(newer, result))
    assert applied.tables == {"notes", "tags"}, "whoever waits for tags is told"
    assert older.tables() == newer.tables()
    # They are no part of what that piece's sender knew, so they are sent on to everybody.
    third = make(NOTES, TAGS)
    send(older, third)
    assert third.tables() == newer.tables()


def test_quarantined_rows_pass_through_a_node_that_cannot_use_them(make):
    newer, older, third = make(NOTES, TAGS), make(NOTES), make(NOTES, TAGS)
    newer.write("INSERT INTO tags VALUES ('t', 'urgent'), ('u', 'later')")
    newer.note("a")
    send(newer, older)
    assert older.quarantined() == 2
    send(older, third)
    assert third.tables() == newer.tables()
    assert send(newer, third) == 0


def test_a_node_that_only_quarantined_so_far_claims_nothing(make):
    newer, older, third = make(NOTES, TAGS), make(NOTES), make(NOTES, TAGS)
    newer.write("INSERT INTO tags VALUES ('t', 'urgent')")
    send(newer, older)
    assert send(older, third) == 0
    assert third.storage.state().vector.entry(newer.site) == START
    older.note("a")
    send(older, third)
    send(newer, third)
    assert third.database.query("SELECT name FROM tags") == [("urgent",)]


def test_many_quarantined_rows_come_in_pieces_that_can_each_be_merged(make):
    newer, older, third = make(NOTES, TAGS), make(NOTES), make(NOTES, TAGS)
    with newer.database.transaction() as transaction:
        for number in range(100):
            transaction.execute("INSERT INTO tags VALUES (?, 'x')", (f"tag {number}",))
    newer.note("a")
    send(newer, older)
    results = pieces(older, third, 500)
    assert len(results) > 5 and all(result.whole for result in results)
    for result in results:
        third.storage.apply(incoming(older, result))
    assert third.tables() == newer.tables()


def test_quarantined_rows_are_sent_once_in_a_session(make):
    newer, older, third = make(NOTES, TAGS), make(NOTES), make(NOTES)
    newer.write("INSERT INTO tags VALUES ('t', 'urgent')")
    send(newer, older)
    older.note("a")
    with closing(older.storage.open_reader()) as reader:
        first = reader.begin(ReadRequest(0, VersionVector(), 0), 10**6)
        assert len(first.rows) == 3 and first.quarantined_upto > 0
        again = reader.begin(ReadRequest(0, VersionVector(), first.quarantined_upto), 10**6)
        assert len(again.rows) == 2 and again.quarantined_upto == first.quarantined_upto
    for _ in range(2):
        third.storage.apply(incoming(older, first))
    assert third.quarantined() == 1


def test_a_newer_edit_of_a_quarantined_cell_takes_its_place(make):
    newer, older = make(NOTES, TAGS), make(NOTES)
    newer.write("INSERT INTO tags VALUES ('t', 'first')")
    (early,) = pieces(newer, older)
    newer.write("UPDATE tags SET name = 'second'")
    send(newer, older)
    older.storage.apply(incoming(newer, early))
    assert older.database.query("SELECT val FROM quarantined") == [("second",)]


def test_quarantined_rows_are_bounded_and_a_refusal_keeps_nothing(make, monkeypatch):
    monkeypatch.setattr(quarantine, "QUARANTINED_ROWS_MAX", 5)
    newer, older = make(NOTES, TAGS), make(NOTES)
    newer.note("a")
    newer.write(
        "INSERT INTO tags SELECT value, 'x' FROM generate_series(1, 6)".replace(
            "generate_series(1, 6)", "json_each('[1, 2, 3, 4, 5, 6]')"
        )
    )
    with pytest.raises(StorageLimit, match="cannot apply would be quarantined; upgrade"):
        send(newer, older)
    assert (older.quarantined(), older.titles()) == (0, [])
    assert older.storage.state().vector.entry(newer.site) == START


def test_another_primary_key_is_a_difference_of_schema(make):
    one = make()
    key = b"\x02\x0c\x10" + b"k" * 16 + b"\x09\x01"
    assert one.storage.apply(piece(change(pk=key))).quarantined == 1
    assert one.database.query("SELECT reason FROM quarantined") == [("table notes has another primary key here",)]


def test_generated_columns_are_not_known_columns(make):
    doubled = (
        "CREATE TABLE d (id BLOB PRIMARY KEY NOT NULL, a INT, b INT AS (a * 2)); SELECT crsql_as_crr('main', 'd');"
    )
    one, other = make(doubled), make(doubled)
    one.write("INSERT INTO d (id, a) VALUES (x'01', 4)")
    send(one, other)
    assert other.database.query("SELECT b FROM d") == [(8,)]
    assert other.storage.apply(piece(change("d", cid="b", value=1))).quarantined == 1


# --- Poison ----------------------------------------------------------------------------------------------------------

SMALL = """
CREATE TABLE small (id BLOB PRIMARY KEY NOT NULL, a INT DEFAULT 0 CHECK (a < 100), b TEXT);
SELECT crsql_as_crr('main', 'small');
"""


def test_a_row_that_some_constraint_refuses_is_quarantined_alone_and_blocks_nothing(make):
    one, other = make(SMALL.replace("CHECK (a < 100)", "")), make(SMALL)
    for number in (1, 50, 100, 2, 300):
        one.write("INSERT INTO small VALUES (?, ?, 'x')", (bytes([number % 256]), number))
    (result,) = pieces(one, other)
    applied = other.storage.apply(incoming(one, result))
    assert (applied.rows, applied.quarantined) == (10, 2)
    assert other.database.query("SELECT a FROM small WHERE a ORDER BY a") == [(1,), (2,), (50,)]
    reasons = {reason for (reason,) in other.database.query("SELECT reason FROM quarantined")}
    assert reasons == {"refused by table small: constraint failed"}
    assert applied.state.vector.entry(one.site) == one.storage.state().vector.entry(one.site)


def test_poison_rows_pass_through_a_third_node(make):
    one, middle, other = make(SMALL.replace("CHECK (a < 100)", "")), make(SMALL), make(SMALL.replace("100", "1000"))
    one.write("INSERT INTO small VALUES (x'01', 500, 'x')")
    send(one, middle)
    send(middle, other)
    assert other.database.query("SELECT a, b FROM small") == [(500, "x")]


def test_poison_is_tried_again_only_after_the_schema_has_changed(make, monkeypatch):
    one, other = make(SMALL.replace("CHECK (a < 100)", "")), make(SMALL)
    one.write("INSERT INTO small VALUES (x'01', 500, 'x')")
    send(one, other)
    tried = []
    insert = merging._insert_carefully
    monkeypatch.setattr(merging, "_insert_carefully", lambda *args: tried.append(args) or insert(*args))
    one.write("INSERT INTO small VALUES (x'02', 1, 'x')")
    send(one, other)
    assert tried == []
    other.upgrade(SMALL, "CREATE TABLE unrelated (a)")
    one.write("INSERT INTO small VALUES (x'03', 1, 'x')")
    send(one, other)
    assert len(tried) == 1
    assert other.quarantined() == 1


HALVES = [r"\ud800", r"\uDC00x", r"\uDE00\uD83D", r"\\\ud83d \ud83d\ude00"]


@pytest.mark.parametrize("half", HALVES)
def test_text_of_a_fact_that_no_query_could_return_is_quarantined(make, half):
    other = make()
    fine = r'{"workflow":"mail","name":"\ud83d\ude00 \\ud800","created_at":1}'
    rows = [
        change(
            "topics",
            cid="body",
            pk=b"\x01\x0c\x10" + b"b" * 16,
            value=f'{{"workflow":"mail","name":"{half}","created_at":1}}',
        ),
        change("topics", cid="body", pk=b"\x01\x0c\x10" + b"g" * 16, value=fine),
        change("handler_runs", cid="progress", value=f'{{"phase":"{half}","status":"active","details":{{}}}}'),
        change("handler_runs", cid="ended", value=f'5 committed {{"at":1,"details":{{"{half}":1}}}}'),
        change("notes", cid="title", value=f"an app may write about {half}"),
    ]
    applied = other.storage.apply(piece(*rows))
    assert (applied.quarantined, applied.tables) == (3, {"topics", "notes"})
    assert [topic.name for topic in TopicStore(other.database).list("mail")] == [r"😀 \ud800"]
    reasons = {row for (row,) in other.database.query("SELECT DISTINCT reason FROM quarantined")}
    assert reasons == {f"refused by table {table}: text that is no Unicode" for table in ("topics", "handler_runs")}


def test_an_error_of_the_disk_is_no_poison(make):
    one, other = make(), make()
    for _ in range(100):
        one.note("x" * 4000)
    writer = other.database._writer
    writer.pragma("max_page_count", writer.pragma("page_count"))
    with pytest.raises(Exception, match="disk is full"):
        send(one, other, rows_bytes_max=10**6)
    assert (other.quarantined(), other.titles()) == (0, [])


# --- Hostile pieces --------------------------------------------------------------------------------------------------

MALFORMED_KEYS = [
    b"",
    b"\x00",
    b"\x01",
    b"\x01\x71" + b"\x01" * 14,
    b"\x01\x09",
    b"\x01\x05",
    b"\x01\x06",
    b"\x01\x0b\x01\xff",
]


@pytest.mark.parametrize("key", MALFORMED_KEYS, ids=bytes.hex)
def test_a_malformed_key_is_refused_and_changes_nothing(make, key):
    one = make()
    before = one.storage.state()
    with pytest.raises(RemoteProtocolError, match="malformed primary key"):
        one.storage.apply(piece(change(), change(pk=key)))
    with pytest.raises(RemoteProtocolError, match="malformed primary key"):
        one.storage.apply(piece(change(), change(pk=key), whole=False, last=False))
    assert one.storage.state() == before


def test_a_malformed_key_would_kill_the_process_that_gives_it_to_the_extension(tmp_path):
    script = (
        "import sys; from pathlib import Path; from leasemesh.node.database.connection import connect\n"
        "c = connect(Path(sys.argv[1])); c.execute('CREATE TABLE t (id PRIMARY KEY NOT NULL, a)')\n"
        "c.execute(\"SELECT crsql_as_crr('main', 't')\").fetchall()\n"
        "row = ('t', b'', 'a', 1, 1, 1, b's' * 16, 1, 0)\n"
        "c.execute('INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)', row)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.db"], cwd=os.getcwd(), stderr=subprocess.DEVNULL
    )
    assert result.returncode < 0


def test_every_key_that_the_extension_packs_is_well_formed(make):
    one = make()
    values = ["NULL IS NULL", "0", "-1", "255", "65536", "9223372036854775807", "-9223372036854775808", "1.5", "''",
              "'ä€'", "x''", "zeroblob(300)", "zeroblob(70000)"]  # fmt: skip
    for value in values:
        ((key,),) = one.database._writer.execute(f"SELECT crsql_pack_columns({value}, 'x')").fetchall()
        assert is_well_formed(key)
        assert not is_well_formed(key[:-1]) and not is_well_formed(key + b"\0")


@pytest.mark.parametrize(
    ("row_version", "version"), [(2, 1), (2**53 + 1, 2**53 + 1), (2**63 - 1, 2**63 - 1), (2**45, 2**45)]
)
def test_a_version_out_of_bounds_is_refused_and_inflates_nothing(make, row_version, version):
    one = make()
    with pytest.raises(RemoteProtocolError, match="version"):
        one.storage.apply(piece(change(version=row_version), version=version))
    one.note("a")
    assert one.database.version() == 1


@pytest.mark.parametrize(
    "row",
    [
        change(cid="-1", value=None, col_version=0, cl=1),
        change(cid="-1", value=None, col_version=3, cl=2),
        change(cl=2),
    ],
    ids=["mark of a row that was never made", "mark with two lengths", "cell of a deleted row"],
)
def test_a_change_that_cr_sqlite_never_makes_is_refused_and_changes_nothing(make, row):
    one = make()
    before = one.storage.state()
    with pytest.raises(RemoteProtocolError, match="causal length"):
        one.storage.apply(piece(change(pk=b"\x01\x0c\x10" + b"j" * 16), row))
    assert one.storage.state() == before
    assert one.titles() == []


# --- Digest, presence ------------------------------------------------------------------------------------------------


def test_the_digest_names_every_table_and_differs_with_each_kind_of_difference(make):
    one = make(NOTES, TAGS)
    digests = [one.tables()["notes"]]
    note = one.note("a")
    for sql in ("UPDATE notes SET title = 'b'", "UPDATE notes SET title = 'a'", "DELETE FROM notes"):
        digests.append(one.tables()["notes"])
        one.write(sql)
    one.note("a", note)
    digests.append(one.tables()["notes"])
    assert len(set(digests)) == len(digests)
    assert one.tables()["tags"].cells == 0
    assert one.storage.digest().vector == one.storage.state().vector


def test_the_digest_does_not_depend_on_the_way_that_changes_came(make):
    one, two, three = make(), make(), make()
    one.note("a")
    two.note("b")
    exchange(one, three)
    exchange(two, three)
    exchange(two, one)
    assert one.tables() == two.tables() == three.tables()
    assert one.tables()["notes"].cells == 4


def test_values_of_every_type_survive(make):
    table = "CREATE TABLE v (id INTEGER PRIMARY KEY NOT NULL, a ANY) STRICT; SELECT crsql_as_crr('main', 'v');"
    one, other = make(table), make(table)
    values = [None, 0, -(2**63), 2**63 - 1, 0.0, -0.0, 1.5, float("inf"), "", "ä\0€", b"", b"\0\xff", 1, 1.0, "1"]
    for number, value in enumerate(values):
        one.write("INSERT INTO v VALUES (?, ?)", (number, value))
    send(one, other)
    assert [value for (value,) in other.database.query("SELECT a FROM v ORDER BY id")] == values
    assert other.tables() == one.tables()


def test_text_that_is_not_utf8_is_named_and_the_reader_lives_on(make):
    one, other = make(), make()
    note = one.note("fine")
    one.write("UPDATE notes SET title = CAST(x'66ff' AS TEXT)")
    with closing(one.storage.open_reader()) as reader:
        with pytest.raises(DatabaseError, match=f"notes.title of the row with the key 010c10{note.hex()} holds text"):
            reader.begin(request(one, other), 1000)
        with pytest.raises(DatabaseError, match="holds text that is not UTF-8; write that value anew"):
            one.storage.digest()
        one.write("UPDATE notes SET title = 'repaired'")
        other.storage.apply(incoming(one, reader.begin(request(one, other), 1000)))
    assert other.titles() == ["repaired"]


def test_integer_and_text_keys_of_every_length_survive(make):
    table = (
        "CREATE TABLE k (i INTEGER NOT NULL, t TEXT NOT NULL, a, PRIMARY KEY (i, t)); SELECT crsql_as_crr('main', 'k');"
    )
    one, other = make(table), make(table)
    numbers = [sign * (2**bits + step) for bits in range(1, 63, 7) for step in (-1, 0) for sign in (1, -1)]
    keys = [(number, "x" * (index * 11 % 300)) for index, number in enumerate([*numbers, 127, 128, 200, 255, -(2**63)])]
    with one.database.transaction() as transaction:
        transaction.execute_many("INSERT OR IGNORE INTO k VALUES (?, ?, 1)", keys)
    send(one, other, rows_bytes_max=10**6)
    assert other.database.query("SELECT i, t FROM k ORDER BY i, t") == sorted(set(keys))
    assert other.tables() == one.tables()


def test_heard_nodes_are_remembered_with_the_boot_whose_clock_told_the_time(make):
    one = make()
    storage = ChangeStorage(one.database, boot="a boot")
    storage.record_heartbeats({b"s" * 16: (b"i", 5), b"t" * 16: (b"j", 6)})
    storage.record_heartbeats({b"s" * 16: (b"k", 7)})
    one.storage.record_heartbeats({b"u" * 16: (b"l", 8)})
    assert one.database.query("SELECT site, incarnation, boot, monotonic_ms FROM heartbeats ORDER BY site") == [
        (b"s" * 16, b"k", "a boot", 7),
        (b"t" * 16, b"j", "a boot", 6),
        (b"u" * 16, b"l", boot_id(), 8),
    ]


def test_changes_are_looked_up_by_an_index_in_the_order_of_versions(make):
    """The virtual table's own query, as cr-sqlite composes it; a change of it would show in the speed of every poll."""
    one = make(NOTES, TAGS)
    with closing(one.storage.open_reader()) as reader:
        statements = []
        reader._connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
        reader.begin(ReadRequest(0, VersionVector(), 0), 1000)
        for _ in range(ROWS_MAX):
            one.note("a")
        reader.begin(ReadRequest(0, VersionVector(), 0), 1000)
        reader._connection.trace_v2(0)
        (sql, *_) = (sql for sql in statements if "UNION ALL" in sql and "crsql_pack_columns" in sql)
        plan = [row[3] for row in reader._connection.execute(f"EXPLAIN QUERY PLAN {sql}", (0, 9)).fetchall()]
        (sql, *_) = (sql for sql in statements if sql.startswith("SELECT 'notes', crsql_pack_columns"))
        short = [row[3] for row in reader._connection.execute(f"EXPLAIN QUERY PLAN {sql}", (0, 9)).fetchall()]
    assert any("crsql_clock_dbv_idx (db_version>? AND db_version<?)" in line for line in short)
    assert not any(line.startswith("SCAN") for line in short)
    assert "MERGE (UNION ALL)" in plan
    assert sum("crsql_clock_dbv_idx (db_version>? AND db_version<?)" in line for line in plan) == len(
        one.database.replicated_tables()
    )
