"""Each checker can fail: a rule is switched off, and that very checker, by number, finds it within a few seeds."""

from dataclasses import replace

import apsw
import pytest

from node import ids
from node.changes import ChangeReader, ChangeStorage
from node.stores import EventStore
from node.stores.base import Store
from node.stores.leasing import Leasing
from sim import files
from sim.runner import Job, run, shrink

SEEDS = range(1, 61)
"""Within these a checker has to find what is wrong."""

SEEDS_WITH_COPIES = (237, 238, 240, 260)
"""In these a restored or cloned file ends a run that its other self has settled."""


def first_violation(invariant):
    """The first seed whose run violates an invariant."""
    seen = {}
    for seed in SEEDS:
        report = run(Job(seed))
        seen.update(report.violations)
        if invariant in report.violations:
            return report
    raise AssertionError(f"nothing violates {invariant} in the seeds {SEEDS}, but {seen}")


@pytest.fixture
def altered_schema(monkeypatch):
    """Changes the schema that all devices are made with."""

    def alter(sql):
        make = files.new_file

        def make_altered(path, level, site):
            make(path, level, site)
            connection = apsw.Connection(str(path))
            connection.execute(sql).fetchall()
            connection.close()

        monkeypatch.setattr(files, "new_file", make_altered)

    return alter


def test_S1_finds_a_status_that_does_not_follow_from_the_facts(altered_schema):
    altered_schema("DROP TRIGGER reservations_settled")
    assert first_violation("S1")


def test_S2_finds_that_a_held_claim_reopens_a_settled_event(altered_schema):
    ((view,),) = rows_of_the_template("SELECT sql FROM sqlite_schema WHERE name = 'ranked_claims'")
    rule = "CASE WHEN r.state >= 3 THEN r.state WHEN r.unknown THEN 6 ELSE 7 END AS precedence"
    assert rule in view
    altered_schema(f"DROP VIEW ranked_claims; {view.replace(rule, '7 AS precedence')}")
    assert first_violation("S2")


def test_S2_finds_that_a_copy_releases_what_its_original_had_consumed(altered_schema, monkeypatch):
    """The outcomes' words must be greater than the others; these seeds failed when they were not."""
    plain = {"settled 3 consumed": "consumed", "settled 2 skipped": "skipped", "settled 1 dead": "dead"}
    triggers = rows_of_the_template(
        "SELECT name, sql FROM sqlite_schema WHERE name IN ('absorb_state', 'reservations_settled')"
        " AND type = 'trigger' ORDER BY name"
    )
    for name, sql in triggers:
        assert "settled 3 consumed" in sql
        for stored, word in plain.items():
            sql = sql.replace(stored, word)
        altered_schema(f"DROP TRIGGER {name}; {sql}")
    monkeypatch.setattr("node.stores.leasing._STORED_OUTCOMES", {})
    assert any("S2" in run(Job(seed)).violations for seed in SEEDS_WITH_COPIES)


def test_the_same_seeds_keep_all_invariants_as_it_is():
    assert [run(Job(seed)).violations for seed in SEEDS_WITH_COPIES] == [{}] * len(SEEDS_WITH_COPIES)


def rows_of_the_template(sql):
    connection = apsw.Connection(str(files.template(files.NEWEST)))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_S3_finds_that_outcomes_do_not_travel(monkeypatch):
    apply = ChangeStorage.apply

    def lose_outcomes(self, incoming):
        return apply(self, replace(incoming, rows=[row for row in incoming.rows if row[2] != "state"]))

    monkeypatch.setattr(ChangeStorage, "apply", lose_outcomes)
    assert first_violation("S3")


def test_S9_finds_a_claim_that_does_not_take_the_next_epoch(monkeypatch):
    claim = Leasing._claim

    def claim_again(self, transaction, run, workflow, handler, events, *rest):
        same = [event._replace(epoch=max(event.epoch - 1, 0)) for event in events]
        return claim(self, transaction, run, workflow, handler, same, *rest)

    monkeypatch.setattr(Leasing, "_claim", claim_again)
    assert first_violation("S9")


def test_S10_finds_that_devices_give_one_message_two_ids(monkeypatch):
    class ByChance:
        def __getattr__(self, name):
            return getattr(ids, name)

        def event_ids(self, topic, message_ids):
            self.count = getattr(self, "count", 0) + 1
            return ids.event_ids(topic, [f"{message}-{self.count}" for message in message_ids])

    monkeypatch.setattr("node.stores.events.ids", ByChance())
    assert first_violation("S10")


def test_S12_finds_that_recovery_ends_the_runs_of_others(monkeypatch):
    def all_held(self, *, own):
        rows = self._database.query("SELECT id FROM run_index WHERE state = 0 ORDER BY at, id")
        return [row[0].hex() for row in rows]

    monkeypatch.setattr(EventStore, "held_runs", all_held)
    monkeypatch.setattr(Store, "_refuse_other_writer", lambda self, run, node: None)
    assert first_violation("S12")


def test_S13_finds_a_reservation_of_only_some_of_the_events(monkeypatch):
    reserve = EventStore.reserve

    def reserve_some(self, run, workflow, wanted, *, partial=False, handler="manual"):
        return reserve(self, run, workflow, wanted, partial=True, handler=handler)

    monkeypatch.setattr(EventStore, "reserve", reserve_some)
    assert first_violation("S13")


def test_S14_finds_a_row_that_another_node_wrote(monkeypatch):
    monkeypatch.setattr(Store, "_refuse_other_writer", lambda self, run, node: None)
    assert first_violation("S14")


def test_S15_finds_that_a_part_of_a_transaction_shows(monkeypatch):
    next_piece = ChangeReader._next_piece
    monkeypatch.setattr(ChangeReader, "_next_piece", lambda self, size: (next_piece(self, size)[0], True))
    assert first_violation("S15")


def test_L1_finds_that_nobody_takes_over_from_the_dead(monkeypatch):
    monkeypatch.setattr("node.staleness.take_over_wait_ms", lambda **_: 10**9)
    assert first_violation("L1")


def test_L5_finds_that_presence_is_written_as_rows(monkeypatch):
    record_heard = ChangeStorage.record_heard

    def replicate(self, heard):
        record_heard(self, heard)
        with self._database.transaction() as transaction:
            transaction.execute("INSERT INTO notes (id, title) VALUES (randomblob(16), 'alive')")

    monkeypatch.setattr(ChangeStorage, "record_heard", replicate)
    assert first_violation("L5")


def test_convergence_fails_when_a_merge_loses_a_row_and_the_seed_shrinks_to_it(monkeypatch):
    apply = ChangeStorage.apply

    def lose_notes(self, incoming):
        return apply(self, replace(incoming, rows=[row for row in incoming.rows if row[0] != "notes"]))

    monkeypatch.setattr(ChangeStorage, "apply", lose_notes)
    failing = first_violation("convergence").job
    small = shrink(failing, ["convergence"])
    assert [step.kind for step in small.schedule()] == ["edit notes"]
    assert "convergence" in run(small).violations
    (number,) = small.steps
    assert small.command == f"scripts/sim --seed {failing.seed} --preset lite --nodes 3 --steps {number}"
