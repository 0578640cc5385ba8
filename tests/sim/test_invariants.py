"""Each checker can fail: a rule is switched off, and that very checker, by number, finds it within a few seeds."""

from contextlib import nullcontext
from dataclasses import replace

import apsw
import pytest

from leasemesh.node.authoring.workflow import Consumer
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.recovery import Recovery
from leasemesh.node.model import ids
from leasemesh.node.replication.reading import ChangeReader
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.node.runtime.performing import perform
from leasemesh.node.runtime.runner import Runner
from leasemesh.node.stores import MutationStore
from leasemesh.node.stores.base import Store
from leasemesh.node.stores.events.claiming import Claims
from leasemesh.node.stores.events.effects_behind import EffectsBehind
from leasemesh.node.stores.events.reservations import Reservations
from leasemesh.node.stores.events.settling import Settlements
from leasemesh.node.work.authority import Authority
from leasemesh.sync.drivers.loop import SyncLoop
from sim import files
from sim.params import PRESETS, lite
from sim.runner import Job, run, shrink

SEEDS = range(1, 61)
"""Within these a checker has to find what is wrong."""

MORE_PRESETS = {
    "apps": {"handled": False},
    "handlers": {"handled": True},
    "copies": {"fault_kinds": ("back up", "back up", "restore", "clone"), "fault_steps": 8, "handled": False},
    "deaths": {"fault_kinds": ("kill",), "nodes": 3, "handled": False},
    "apart": {
        "fault_kinds": ("partition", "pause"), "fault_steps": 10, "nodes": 3, "handled": False, "work_steps": 40,
        "faulty_ms": 40_000,
    },
    "split": {"fault_kinds": ("partition",), "nodes": 3, "handled": True, "work_steps": 30},
}  # fmt: skip
"""For what is rare in lite runs: the knobs that are set otherwise."""


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    for name, knobs in MORE_PRESETS.items():
        monkeypatch.setitem(PRESETS, name, lambda seed, knobs=knobs: replace(lite(seed), **knobs))


def first_violation(invariant, seeds=SEEDS, *, preset="apps"):
    """The first seed whose run violates an invariant."""
    seen = {}
    for seed in seeds:
        report = run(Job(seed, preset))
        seen.update(report.violations)
        if invariant in report.violations:
            return report
    raise AssertionError(f"nothing violates {invariant} in the seeds {seeds}, but {seen}")


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
    rule = "WHEN r.state >= 3 THEN r.state"
    assert rule in view
    altered_schema(f"DROP VIEW ranked_claims; {view.replace(rule, 'WHEN r.state >= 3 THEN 8')}")
    assert first_violation("S2")


def test_S2_finds_that_a_copy_releases_what_its_original_had_consumed(altered_schema, monkeypatch):
    """The outcomes' words must be greater than the others, because of two copies that changed one cell the greater
    value wins."""
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
    monkeypatch.setattr("leasemesh.node.stores.events.settling._STORED_OUTCOMES", {})
    assert first_violation("S2", preset="copies")


@pytest.mark.parametrize("preset", ["apart", "copies", "deaths", "split"])
def test_as_it_is_the_same_seeds_keep_all_invariants(preset):
    assert [run(Job(seed, preset)).violations for seed in range(1, 7)] == [{}] * 6


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


def test_S4_finds_that_a_run_begins_an_effect_for_events_that_it_has_lost(monkeypatch):
    monkeypatch.setattr(Reservations, "require_owned", lambda self, run: None)
    assert first_violation("S4", preset="handlers")


def test_S5_finds_that_work_is_begun_before_everybody_has_received_the_claim(monkeypatch):
    async def begin_at_once(self):
        pass

    monkeypatch.setattr(SyncLoop, "barrier", begin_at_once)
    assert first_violation("S5")


def test_S6_finds_that_confirmed_work_is_begun_without_a_permit(monkeypatch):
    monkeypatch.setattr(Consumer, "default_mode", "soft")
    assert first_violation("S6", preset="split")


def test_S7_finds_a_call_whose_intent_is_not_written_down(monkeypatch):
    monkeypatch.setattr(MutationStore, "intend", MutationStore.create)
    assert first_violation("S7", preset="handlers")


def test_S8_finds_that_work_of_unknown_outcome_is_begun_again(altered_schema, monkeypatch):
    ((view,),) = rows_of_the_template("SELECT sql FROM sqlite_schema WHERE name = 'ranked_claims'")
    assert "r.effect = 1" in view
    altered_schema(f"DROP VIEW ranked_claims; {view.replace('r.effect = 1', '0')}")
    monkeypatch.setattr(EffectsBehind, "effect_behind", lambda self, run: None)
    monkeypatch.setattr(MutationStore, "_refuse_to_begin", lambda self, run, work: None)
    assert first_violation("S8", preset="handlers")


def test_S8_finds_a_call_that_is_made_twice(monkeypatch):
    async def perform_twice(effect, begin, *, under_way):
        await perform(effect, begin, under_way=nullcontext())
        return await perform(effect, begin, under_way=under_way)

    monkeypatch.setattr("leasemesh.node.runtime.driving.perform", perform_twice)
    assert first_violation("S8", preset="handlers")


def test_S9_finds_a_claim_that_does_not_take_the_next_epoch(monkeypatch):
    claim = Claims.claim

    def claim_again(self, transaction, run, workflow, handler, events, *rest):
        same = [event._replace(epoch=max(event.epoch - 1, 0)) for event in events]
        return claim(self, transaction, run, workflow, handler, same, *rest)

    monkeypatch.setattr(Claims, "claim", claim_again)
    assert first_violation("S9")


@pytest.mark.parametrize(("invariant", "text"), [("S9", "and had seen @"), ("S13", "which run ")])
def test_S9_and_S13_find_that_a_run_settles_what_it_has_lost(monkeypatch, invariant, text):
    settle = Settlements._settle
    monkeypatch.setattr(Settlements, "_settle", lambda self, run, outcome, _: settle(self, run, outcome, True))
    assert text in first_violation(invariant, preset="apart").violations[invariant]


def test_S10_finds_that_devices_give_one_message_two_ids(monkeypatch):
    class ByChance:
        def __getattr__(self, name):
            return getattr(ids, name)

        def event_ids(self, topic, message_ids):
            self.count = getattr(self, "count", 0) + 1
            return ids.event_ids(topic, [f"{message}-{self.count}" for message in message_ids])

    monkeypatch.setattr("leasemesh.node.stores.events.publishing.ids", ByChance())
    assert first_violation("S10")


def test_S11_finds_that_a_phase_goes_back(monkeypatch):
    over = Manager.over

    def begin_anew(self, attempt):
        over(self, attempt)
        if self.node.database.closed:  # A generator of a dead process was collected.
            return
        with self.node.transaction() as transaction:
            sql = (
                "UPDATE handler_runs SET progress = json_set(progress, '$.phase', 'preparing'), ended = '' WHERE id = ?"
            )
            transaction.execute(sql, (bytes.fromhex(attempt.run),))

    monkeypatch.setattr(Manager, "over", begin_anew)
    assert first_violation("S11", preset="handlers")


def test_S11_finds_a_committed_run_whose_events_have_another_outcome(monkeypatch):
    monkeypatch.setattr(Settlements, "consume", lambda self, run, *, effect_happened=False: self.skip(run))
    assert "is committed" in first_violation("S11", preset="handlers").violations["S11"]


def test_S12_finds_that_recovery_ends_the_runs_of_others(monkeypatch):
    def all_held(self, *, own):
        rows = self._database.query("SELECT id FROM run_index WHERE state = 0 ORDER BY at, id")
        return [row[0].hex() for row in rows]

    monkeypatch.setattr(Reservations, "held_runs", all_held)
    monkeypatch.setattr(Store, "_refuse_other_writer", lambda self, run, node: None)
    assert first_violation("S12")


def test_S12_finds_that_the_runtime_ends_a_run_of_another_node(monkeypatch):
    def all_that_is_held(self):
        return [run for one in self._node.events.held_runs(own=False) if (run := self._node.handler_runs.get(one))]

    monkeypatch.setattr(Recovery, "_left_behind", all_that_is_held)
    monkeypatch.setattr(Store, "_refuse_other_writer", lambda self, run, node: None)
    assert first_violation("S12", preset="handlers")


def test_S13_finds_a_reservation_of_only_some_of_the_events(monkeypatch):
    reserve = Claims.reserve

    def reserve_some(self, run, workflow, wanted, *, partial=False, handler="manual"):
        return reserve(self, run, workflow, wanted, partial=True, handler=handler)

    monkeypatch.setattr(Claims, "reserve", reserve_some)
    assert first_violation("S13")


def test_S14_finds_a_row_that_another_node_wrote(monkeypatch):
    monkeypatch.setattr(Store, "_refuse_other_writer", lambda self, run, node: None)
    assert first_violation("S14")


def test_S15_finds_that_a_part_of_a_transaction_shows(monkeypatch):
    next_piece = ChangeReader._next_piece
    monkeypatch.setattr(ChangeReader, "_next_piece", lambda self, size: (next_piece(self, size)[0], True))
    assert first_violation("S15")


def test_L1_finds_that_nobody_takes_over_from_the_dead(monkeypatch):
    monkeypatch.setattr("leasemesh.node.work.staleness.take_over_wait_ms", lambda **_: 10**9)
    assert first_violation("L1", preset="deaths")


def test_L2_finds_that_the_ledger_does_not_say_what_was_called_with_what(monkeypatch):
    enter = MutationStore._enter
    monkeypatch.setattr(
        MutationStore, "_enter", lambda self, run, work, tool, params, status: enter(self, run, work, tool, {}, status)
    )
    assert first_violation("L2", preset="handlers")


def test_L2_finds_that_the_ledger_does_not_say_who_began(monkeypatch):
    unresolved = MutationStore.unresolved
    monkeypatch.setattr(
        MutationStore,
        "unresolved",
        lambda self, **options: [replace(one, node=one.run) for one in unresolved(self, **options)],
    )
    assert first_violation("L2", preset="handlers")


def test_L3_finds_that_what_peers_send_wakes_nobody(monkeypatch):
    changed = Runner._changed

    async def hear_only_of_this_device(self, change):
        if change.source == "local":
            await changed(self, change)

    monkeypatch.setattr(Runner, "_changed", hear_only_of_this_device)
    assert first_violation("L3", preset="handlers")


def test_L3_finds_a_run_that_has_lost_its_claim_and_goes_on(monkeypatch):
    monkeypatch.setattr(Manager, "lose", lambda self, attempt, reason: None)
    monkeypatch.setattr(Recovery, "_end_without_events", lambda self, run: None)
    assert "has open runs" in first_violation("L3", preset="handlers").violations["L3"]


def test_L4_finds_that_confirmed_work_does_not_wait_for_the_authority(monkeypatch):
    monkeypatch.setattr(Consumer, "default_mode", "soft")
    assert first_violation("L4", preset="handlers")


def test_L4_finds_that_soft_work_waits_for_the_authority(monkeypatch):
    monkeypatch.setattr(Consumer, "default_mode", "confirmed")
    assert "did no soft work" in first_violation("L4", preset="handlers").violations["L4"]


def test_L4_finds_that_confirmed_work_does_not_go_on_when_the_authority_is_back(monkeypatch):
    tend = Authority.tend
    begun = {}

    def tend_only_once_on_each_device(self):
        first = begun.setdefault(self._permits._database.path, self)
        return tend(self) if first is self else False

    monkeypatch.setattr(Authority, "tend", tend_only_once_on_each_device)
    assert first_violation("L4", preset="handlers")


def test_L5_finds_that_presence_is_written_as_rows(monkeypatch):
    record_heartbeats = ChangeStorage.record_heartbeats

    def replicate(self, heartbeats):
        record_heartbeats(self, heartbeats)
        with self._database.transaction() as transaction:
            transaction.execute("INSERT INTO notes (id, title) VALUES (randomblob(16), 'alive')")

    monkeypatch.setattr(ChangeStorage, "record_heartbeats", replicate)
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
    nodes = failing.params.nodes
    assert small.command == f"scripts/sim --seed {failing.seed} --preset apps --nodes {nodes} --steps {number}"
