"""Copies of one file that go on apart: a backup that was restored beside the original, or instead of it.

Both are, to themselves, the only writer of their runs and ledger entries, and write the same cells. What was known on
either must be known wherever the two meet: an outcome is never lost, and nothing that ended begins again.
"""

import itertools
import json
from contextlib import ExitStack, closing

import apsw
import pytest
from devices import NOW_MS, Device, absorb_all, merge

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model.errors import IllegalState, LeaseLost, NotAvailable
from leasemesh.node.replication.identity import reidentify
from leasemesh.node.stores.phases import ENDED

NAIVE = "CREATE TABLE naive (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '{}')"
"""The design that is not ours: all that is known of a thing in one cell, which is written at each step."""


def copy_file(device, path):
    """Copy a database that is open, as a backup program does."""
    with closing(apsw.Connection(str(device.path))) as source, closing(apsw.Connection(str(path))) as target:
        with target.backup("main", source, "main") as backup:
            backup.step()


class Copies:
    """An original whose run has an effect in flight, a copy of its file from then, and devices that hear of both."""

    def __init__(self, folder, template):
        self.original = Device(folder / "original.db", seed=1, template=template)
        self.run, self.work = self.begin(self.original)
        copy_file(self.original, folder / "copy.db")
        self.copy = Device(folder / "copy.db", seed=2)  # a later start, which the file takes for the same device
        self.witnesses = [Device(folder / f"{n}.db", seed=n, template=template) for n in (3, 4)]

    def begin(self, device):
        with device.database.transaction() as transaction:
            transaction.execute(NAIVE)
            transaction.execute("SELECT crsql_as_crr('main', 'naive')")
        device.publish("a")
        run = device.reserve("a")
        device.runs.create("mail", "send", "consumer", run=run, phase="prepared", details={"prepared": 1})
        work = device.mutations.work_for(run)
        with device.database.transaction(durable=True):
            device.mutations.intend(run, work, tool="send")
            device.runs.advance(run, "mutating")
        write_naively(device, run, "in_flight", insert=True)
        write_naively(device, other_row(run), "active", insert=True)
        return run, work

    def devices(self):
        return [self.original, self.copy, *self.witnesses]

    def spread(self):
        """Everybody hears of everything: the witnesses in opposite orders."""
        first, second = self.witnesses
        for source in (self.original, self.copy):
            tell(source, first)
        for source in (self.copy, self.original):
            tell(source, second)
        tell(self.original, self.copy)
        tell(self.copy, self.original)

    def close(self):
        for device in self.devices():
            device.close()


def tell(source, target):
    """Merge what a device has of the model; the witnesses never had the naive table."""
    known = target.query("SELECT 1 FROM sqlite_schema WHERE name = 'naive'")
    assert target.absorb([row for row in source.changes() if known or row[0] != "naive"]) == []


def write_naively(device, run, word, *, insert=False, **fields):
    sql = (
        "INSERT INTO naive (body, id) VALUES (?, unhex(?))"
        if insert
        else "UPDATE naive SET body = ? WHERE id = unhex(?)"
    )
    with device.database.transaction() as transaction:
        transaction.execute(sql, (json.dumps({"status": word, **fields}), run))


def read_naively(device, run):
    return json.loads(device.query("SELECT body FROM naive WHERE id = unhex(?)", (run,))[0][0])["status"]


def other_row(run):
    """The row that stands for the run itself, beside that of its ledger entry."""
    return run[::-1]


@pytest.fixture(scope="module")
def copies(tmp_path_factory, template):
    copies = Copies(tmp_path_factory.mktemp("copies"), template)
    yield copies
    copies.close()


@pytest.fixture
def apart(copies):
    """The copies at the moment when they part; what is done to them is undone after the test."""
    with parted(copies):
        yield copies


def parted(copies):
    stack = ExitStack()
    for device in copies.devices():
        stack.enter_context(device.discarded())
    return stack


# --- The ledger -------------------------------------------------------------------------------------------------------

STEPS = {
    "applied": lambda store, run: store.mark_applied(run, {"sent": 1}),
    "failed": lambda store, run: store.mark_failed(run, "refused"),
    "asks later": lambda store, run: store.mark_needs_reconcile(run, at=NOW_MS),
    "asked": lambda store, run: store.schedule_reconcile(run, at=NOW_MS),
    "gives up": lambda store, run: store.mark_indeterminate(run, "time-out"),
}
LEDGERS = [
    (),
    ("applied",),
    ("failed",),
    ("failed", "applied"),
    ("gives up",),
    ("gives up", "applied"),
    ("asks later", "asked", "asked", "asked"),
    ("asks later", "asked", "asked", "asked", "gives up"),
    ("asks later", "asked", "asked", "asked", "applied"),
    ("asks later", "asked", "asked", "asked", "failed"),
]
UNKNOWN = {"in_flight", "needs_reconcile", "indeterminate"}


def keep_ledger(device, run, steps):
    for step in steps:
        entry = STEPS[step](device.mutations, run)
        write_naively(device, run, entry.status, attempts=entry.reconcile_attempts)


def truth_of_ledgers(*ledgers):
    """What is known when two histories of one entry meet."""
    said = {step for steps in ledgers for step in steps}
    return "applied" if "applied" in said else "failed" if "failed" in said else "unknown"


def status_of_entry(device, run):
    return device.mutations.get(run).status


def wrong_ledgers(copies, read, devices):
    """The pairs of histories after which some device says otherwise than the truth."""
    wrong = []
    for pair in itertools.product(LEDGERS, repeat=2):
        with parted(copies):
            for device, steps in zip((copies.original, copies.copy), pair, strict=True):
                keep_ledger(device, copies.run, steps)
            copies.spread()
            said = {read(device, copies.run) for device in devices}
            truth = truth_of_ledgers(*pair)
            if not (said <= UNKNOWN if truth == "unknown" else said == {truth}) or len(said) > 1:
                wrong.append(pair)
            for device in copies.devices() if read is status_of_entry else ():
                assert device.mutations.outcome(copies.work) == truth
                assert device.status("a") == ("unknown" if truth == "unknown" else "reserved")
                assert rebuild(device.database).corrected == {}
    return wrong


def test_of_two_histories_of_one_effect_the_outcome_is_known_wherever_they_meet(copies):
    assert wrong_ledgers(copies, status_of_entry, copies.devices()) == []


def test_one_cell_for_everything_would_lose_outcomes_both_by_a_tie_and_by_being_written_less_often(copies):
    wrong = wrong_ledgers(copies, read_naively, [copies.original, copies.copy])
    assert {(("applied",), ("gives up",)), (("gives up",), ("applied",))} <= {*wrong}, "a tie"
    assert (("applied",), LEDGERS[6]) in wrong and (LEDGERS[6], ("applied",)) in wrong, "written less often"


def test_progress_is_one_copy_s_and_never_a_mixture(apart):
    keep_ledger(apart.original, apart.run, LEDGERS[6])
    apart.copy.now_ms += 5
    keep_ledger(apart.copy, apart.run, LEDGERS[7])
    own = [device.mutations.get(apart.run) for device in (apart.original, apart.copy)]
    apart.spread()
    assert all(device.mutations.get(apart.run) == own[1] for device in apart.devices())


def test_the_result_goes_with_the_outcome(apart):
    apart.original.mutations.mark_applied(apart.run, {"id": 77})
    keep_ledger(apart.copy, apart.run, LEDGERS[9])
    apart.spread()
    for device in apart.devices():
        assert device.mutations.result_of(apart.work) == {"id": 77}
        assert device.mutations.get(apart.run).next_reconcile_at is None


def test_of_two_results_all_devices_take_the_same(apart):
    apart.original.mutations.mark_applied(apart.run, {"id": 1})
    apart.copy.mutations.mark_applied(apart.run, {"id": 2})
    apart.spread()
    assert {device.mutations.result_of(apart.work)["id"] for device in apart.devices()} == {2}


def test_what_the_copy_called_failed_can_still_turn_out_to_have_happened(apart):
    apart.copy.mutations.mark_failed(apart.run)
    tell(apart.copy, apart.original)
    apart.original.mutations.mark_applied(apart.run, "sent after all")
    apart.spread()
    assert {device.mutations.get(apart.run).result for device in apart.devices()} == {"sent after all"}


# --- Events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["consumed", "reserved"])
@pytest.mark.parametrize("steps", [(), ("failed",), LEDGERS[6], LEDGERS[9]])
def test_an_event_whose_effect_was_applied_is_not_reopened_by_the_copy(apart, steps, ending):
    apart.original.mutations.mark_applied(apart.run)
    if ending == "consumed":
        apart.original.events.consume(apart.run)
    keep_ledger(apart.copy, apart.run, steps)
    apart.spread()
    assert {device.status("a") for device in apart.devices()} == {ending}


def test_an_event_that_was_consumed_stays_so_whatever_the_copy_did_with_its_run(apart):
    apart.original.mutations.mark_applied(apart.run)
    apart.original.events.consume(apart.run)
    apart.copy.mutations.mark_failed(apart.run)
    apart.copy.events.release(apart.run)
    apart.spread()
    assert {device.status("a") for device in apart.devices()} == {"consumed"}


def test_a_copy_from_before_the_intent_never_begins_the_effect_and_hears_of_it(tmp_path, open_device, opened):
    original, witness = open_device(), open_device()
    original.publish("a")
    run = original.reserve("a")
    copy_file(original, tmp_path / "copy.db")
    copy = opened(Device(tmp_path / "copy.db", seed=9))
    work = original.mutations.work_for(run)
    original.mutations.intend(run, work, tool="send")
    with copy.unchanged(), pytest.raises(IllegalState, match=f"run {run} is of an earlier start of this node"):
        copy.mutations.intend(run, work, tool="send")
    copy.events.release(run)
    for source, target in ((copy, witness), (original, witness), (original, copy), (copy, original)):
        merge(source, target)
    assert {device.status("a") for device in (original, copy, witness)} == {"unknown"}
    original.mutations.mark_applied(run)
    original.events.consume(run, effect_happened=True)
    for target in (copy, witness):
        merge(original, target)
    assert {device.status("a") for device in (original, copy, witness)} == {"consumed"}


@pytest.fixture
def given_back(tmp_path, open_device, opened):
    """A run whose effect was done by the original, and whose events were given back by a copy from before that; the
    copy, which has heard of it, a device that has heard of neither, and the run."""
    original, witness = open_device(), open_device()
    original.publish("a", "b")
    run = original.reserve("a", "b")
    copy_file(original, tmp_path / "copy.db")
    copy = opened(Device(tmp_path / "copy.db", seed=9))
    copy.events.release(run)
    work = original.mutations.work_for(run)
    original.mutations.intend(run, work, tool="send")
    return original, copy, witness, run


def test_what_a_copy_gave_back_stays_with_the_run_whose_effect_happened(given_back):
    original, copy, witness, run = given_back
    original.mutations.mark_applied(run, "sent")
    for source, target in ((copy, witness), (original, witness), (original, copy), (copy, original)):
        merge(source, target)
    for device in (original, copy, witness):
        assert [device.event(name).run for name in "ab"] == [run, run]
        assert device.events.reservation(run).state == "held"
        assert rebuild(device.database).corrected == {}
        with device.unchanged(), pytest.raises(NotAvailable):
            device.reserve("a")
    assert original.events.held_runs(own=True) == witness.events.held_runs(own=False) == [run]
    with original.unchanged(), pytest.raises(IllegalState, match="is applied: run .* cannot be released"):
        original.events.release(run)
    assert original.events.consume(run) == 2
    assert {original.status(name) for name in "ab"} == {"consumed"}


def test_who_claimed_what_a_copy_gave_back_loses_it_to_the_run_whose_effect_happened(given_back):
    original, copy, witness, run = given_back
    merge(copy, witness)
    later = witness.reserve("b")
    original.mutations.mark_applied(run, "sent")
    merge(original, witness)
    with witness.unchanged(), pytest.raises(LeaseLost, match=run):
        witness.events.consume(later)
    assert witness.events.release(later) == 0
    taker = witness.runs.new_id()
    assert len(witness.events.take_over_run(taker, run, handler="send")) == 2
    assert witness.events.held_runs(own=False) == []
    witness.events.consume(taker)
    merge(witness, original)
    original.events.consume(run, effect_happened=True)
    merge(original, witness)
    assert {device.status(name) for device in (original, witness) for name in "ab"} == {"consumed"}
    assert witness.events.count_duplicates() == 0


def test_what_a_copy_gave_back_and_a_person_decided_to_skip_is_skipped(given_back):
    original, copy, witness, run = given_back
    merge(original, witness)
    merge(copy, witness)
    assert {witness.status(name) for name in "ab"} == {"unknown"}
    witness.mutations.resolve(witness.mutations.work_for(run), "skip", by="Ann")
    assert {witness.status(name) for name in "ab"} == {"reserved"}
    taker = witness.runs.new_id()
    assert len(witness.events.take_over_run(taker, run, handler="send")) == 2
    assert witness.events.skip(taker) == 2
    assert {witness.status(name) for name in "ab"} == {"skipped"}


def test_an_effect_that_was_entered_before_the_copy_was_made_is_not_begun_there(tmp_path, device):
    run = device.runs.new_id()
    device.mutations.create(run, "1" * 32, tool="send")
    copy_file(device, tmp_path / "copy.db")
    with closing(Device(tmp_path / "copy.db", seed=9)) as copy:
        with copy.unchanged(), pytest.raises(IllegalState, match="earlier start"):
            copy.mutations.mark_in_flight(run)
        with copy.unchanged(), pytest.raises(IllegalState, match="pending: it cannot become failed"):
            copy.mutations.mark_failed(run)
    assert device.mutations.mark_in_flight(run).status == "in_flight"


def test_a_copy_that_got_a_new_identity_passes_the_same_on(tmp_path, template):
    copies = Copies(tmp_path, template)
    with closing(copies):
        copies.copy.mutations.mark_failed(copies.run)
        copies.copy.events.release(copies.run)
        copies.copy.runs.set_status(copies.run, "crashed")
        copies.original.mutations.mark_applied(copies.run, "sent")
        copies.original.events.consume(copies.run)
        copies.original.runs.advance(copies.run, "mutated", "emitting", "committed")
        reidentify(copies.copy.database)
        absorb_all(copies.original, copies.copy)
        absorb_all(copies.copy, copies.original)
        for device in (copies.original, copies.copy):
            assert (device.status("a"), device.mutations.get(copies.run).result) == ("consumed", "sent")
            assert device.runs.get(copies.run).status == "committed"
        assert copies.original.facts() == copies.copy.facts()


# --- Runs -------------------------------------------------------------------------------------------------------------


def pause(store, run):
    """Pause once more, as a reconciliation does that is tried again and again."""
    pauses = store.get(run).details.get("pauses", 0)
    return store.set_status(run, "paused:reconciliation", details={"pauses": pauses + 1})


MOVES = {
    "mutated": lambda store, run: store.advance(run, "mutated", details={"result": 1}),
    "emitting": lambda store, run: store.advance(run, "emitting"),
    "committed": lambda store, run: store.advance(run, "committed", details={"cost": 5}),
    "paused": pause,
    **{
        status: lambda store, run, status=status: store.set_status(run, status, details={"error": "it failed"})
        for status in sorted(ENDED - {"committed"})
    },
}
LIVES = [
    (),
    ("mutated",),
    ("mutated", "emitting"),
    ("mutated", "emitting", "committed"),
    ("mutated", "emitting", "failed:logic"),
    ("failed:internal",),
    ("lost",),
]
PAUSED = ("paused",) * 6
TIED = ("paused", "mutated", "crashed")
LATER_LIVES = [(), ("crashed",), ("superseded",), PAUSED, (*PAUSED, "crashed"), ("mutated", "crashed"), TIED]
"""Of what a later start finds it makes nothing but an end, or a pause, or what a reconciliation told."""
STRENGTH = ["crashed", "failed:internal", "failed:logic", "lost", "superseded", "committed"]


def live(device, run, moves):
    for move in moves:
        found = MOVES[move](device.runs, run)
        write_naively(device, other_row(run), found.status, phase=found.phase, details=found.details)


def wrong_lives(copies, read, devices):
    wrong = []
    for pair in itertools.product(LIVES, LATER_LIVES):
        with parted(copies):
            for device, moves in zip((copies.original, copies.copy), pair, strict=True):
                live(device, copies.run, moves)
            own = [device.runs.get(copies.run) for device in (copies.original, copies.copy)]
            copies.spread()
            said = {read(device, copies.run) for device in devices}
            ends = [run.status for run in own if run.status in ENDED]
            truth = {max(ends, key=STRENGTH.index)} if ends else {run.status for run in own}
            if not said <= truth or len(said) > 1:
                wrong.append(pair)
            if read is status_of_run:
                check_whole_cells(copies, own, bool(ends))
    return wrong


def check_whole_cells(copies, own, ended):
    merged = [device.runs.get(copies.run) for device in copies.devices()]
    assert all(run == merged[0] for run in merged)
    assert merged[0].details["prepared"] == 1
    assert ended or merged[0] in own
    assert (merged[0].ended_at is not None) == ended == (merged[0].status in ENDED)
    assert (merged[0].phase == "committed") == (merged[0].status == "committed")
    assert [run.id for run in copies.original.runs.own_incomplete()] == ([] if ended else [copies.run])


def status_of_run(device, run):
    return device.runs.get(run).status


def read_run_naively(device, run):
    return read_naively(device, other_row(run))


def test_of_two_histories_of_one_run_the_end_is_known_wherever_they_meet_and_a_commit_before_all(copies):
    assert wrong_lives(copies, status_of_run, copies.devices()) == []


def test_one_cell_for_everything_would_lose_a_commit(copies):
    wrong = wrong_lives(copies, read_run_naively, [copies.original, copies.copy])
    committed = LIVES[3]
    assert {(committed, PAUSED), (committed, (*PAUSED, "crashed"))} <= {*wrong}, "written less often"
    assert (committed, TIED) in wrong, "a tie"


def test_a_later_start_does_not_move_a_run_on(apart):
    with apart.copy.unchanged():
        with pytest.raises(IllegalState, match=f"run {apart.run} is of an earlier start of this node"):
            apart.copy.runs.advance(apart.run, "mutated", "emitting")
    apart.copy.runs.advance(apart.run, "mutated")
    with apart.copy.unchanged(), pytest.raises(IllegalState, match="what is left to do is a new run's"):
        apart.copy.runs.advance(apart.run, "emitting")
