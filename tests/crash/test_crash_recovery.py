"""Kills in the middle of what a start does about an earlier kill, and in the middle of finding out what happened.

However often the device's process dies, the effect happens once and the events end.
"""

from dataclasses import replace

import pytest
from counting_service import CountingService
from handled_child import SHORT
from scenes import Scene

SYNC_SOFT = {"asynchronous": False, "mode": "soft"}
ASYNC_CONFIRMED = {"asynchronous": True, "mode": "confirmed"}


def both_ways(*cases):
    """Each case in one of two ways: half of them with sync functions and without permits, half the other way round."""
    return [(ASYNC_CONFIRMED if number % 2 else SYNC_SOFT, *case) for number, case in enumerate(cases)]


@pytest.fixture
def scene(tmp_path, start):
    with CountingService() as service:
        scene = Scene(tmp_path, service, start)
        scene.create("a")
        yield scene


def check_done_once(scene, picture, *, looks):
    """The event was sent once, and is done; the service was asked so often what had become of it."""
    assert picture.events == {"a": "consumed"}
    assert picture.stages()[-1] == ("committed", "committed")
    assert {status for _, status in picture.stages()[:-1]} <= {"crashed", "superseded"}
    assert scene.service.texts() == {"a": 1}
    assert picture.sent["a"]["result"] == {"number": 1}
    assert picture.duplicates == ()
    assert len(scene.service.looks) == looks


@pytest.mark.parametrize(("way", "point"), both_ways(["end_earlier: COMMIT"], ["end_earlier: done"]))
def test_a_kill_while_a_reservation_is_released_leaves_it_to_the_next_start(scene, way, point):
    plan = scene.plan(**way)
    scene.kill(replace(plan, kill_at="mutate"))
    left = scene.kill(replace(plan, kill_at=point))
    released = point.endswith("done")
    assert left.events == {"a": "pending" if released else "reserved"}
    assert left.stages()[0][1] == (
        "crashed" if released else "active" if plan.mode == "soft" else "paused:confirmation"
    )
    found = scene.run(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    check_done_once(scene, found, looks=0)


@pytest.mark.parametrize(
    ("way", "point", "status", "entry"),
    both_ways(
        ("call_ended: COMMIT", "active", "in_flight"),
        ("call_ended: done", "paused:reconciliation", "needs_reconcile"),
        ("reconcile", "paused:reconciliation", "needs_reconcile"),
        ("found_applied: COMMIT", "paused:reconciliation", "needs_reconcile"),
        ("found_applied: done", "paused:reconciliation", "applied"),
        ("go_on: COMMIT", "paused:reconciliation", "applied"),
        ("go_on: done", "superseded", "applied"),
        ("next", "superseded", "applied"),
        ("commit: COMMIT", "superseded", "applied"),
    ),
)
def test_a_kill_while_an_effect_is_found_to_have_happened_leaves_the_rest_to_the_next_start(
    scene, way, point, status, entry
):
    plan = scene.plan(**way)
    scene.kill(replace(plan, kill_at="answered"))
    left = scene.kill(replace(plan, kill_at=point))
    assert (left.runs[0].status, left.effects()[0]) == (status, entry)
    assert left.events == {"a": "reserved" if entry == "applied" else "unknown"}
    assert left.sent == {}
    looks = len(scene.service.looks)
    found = scene.run(plan)
    check_done_once(scene, found, looks=looks if entry == "applied" else looks + 1)
    assert len(scene.service.calls) == 1
    began_to_go_on = status == "superseded"
    assert found.chain() == ([None, 0, 1] if began_to_go_on else [None, 0])
    assert found.effects() == ["applied", *[""] * (len(found.runs) - 1)]
    assert found.sent["a"]["prepared"] == found.runs[0].details["prepared"]


@pytest.mark.parametrize(("way", "point"), both_ways(["found_not_applied: COMMIT"], ["found_not_applied: done"]))
def test_a_kill_while_an_effect_is_found_not_to_have_happened_leaves_the_rest_to_the_next_start(scene, way, point):
    plan = scene.plan(**way)
    scene.kill(replace(plan, kill_at="call"))
    left = scene.kill(replace(plan, kill_at=point))
    released = point.endswith("done")
    assert left.effects()[0] == ("failed" if released else "needs_reconcile")
    assert released or (left.events, left.runs[0].status) == ({"a": "unknown"}, "paused:reconciliation")
    looks = len(scene.service.looks)
    found = scene.run(plan)
    check_done_once(scene, found, looks=looks + (not released))
    assert len(set(scene.service.calls)) == 1, "one key for one work"


def test_tries_to_find_out_are_counted_across_kills_until_a_person_must_decide(scene):
    plan = scene.plan(retry=replace(SHORT, tries=4), **SYNC_SOFT)
    scene.service.knows = False
    scene.kill(replace(plan, kill_at="answered"))
    for tried in (1, 2):
        left = scene.kill(replace(plan, kill_at="ask_again: done"))
        (entry,) = left.ledger.values()
        assert (entry.status, entry.reconcile_attempts) == ("needs_reconcile", tried)
    with scene.running(plan) as process:
        process.do("until_entry", "indeterminate")
    found = scene.picture(plan)
    assert len(scene.service.looks) == 4
    assert found.stages() == [("mutating", "paused:reconciliation")]
    assert found.events == {"a": "unknown"}
    assert len(scene.service.calls) == 1


def test_what_a_person_decides_while_an_effect_is_being_found_out_holds_after_a_kill(scene):
    plan = scene.plan(**ASYNC_CONFIRMED)
    scene.kill(replace(plan, kill_at="answered"))
    left = scene.kill(replace(plan, kill_at="reconcile"))
    (entry,) = left.ledger.values()
    with scene.opened() as node:
        node.mutations.resolve(entry.work, "happened", by="Ann", result={"number": 1})
    found = scene.run(plan)
    check_done_once(scene, found, looks=1)
    assert found.chain() == [None, 0]


# --- What the run itself learns of its effect -------------------------------------------------------------------------


def test_a_kill_while_a_run_finds_out_about_its_own_call_leaves_it_in_flight(scene):
    plan = scene.plan(asynchronous=True, effect_timeout_s=0.5)
    scene.service.hold = "after"
    left = scene.kill(replace(plan, kill_at="reconcile"))
    scene.service.go_on()
    assert (left.stages(), left.effects()) == ([("mutating", "active")], ["in_flight"])
    check_done_once(scene, scene.run(plan), looks=2)
    assert len(scene.service.calls) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("point", ["unknown: COMMIT", "unknown: done"])
def test_a_kill_around_the_record_that_nobody_knows_lets_the_next_start_find_out(scene, point, asynchronous):
    plan = scene.plan(asynchronous=asynchronous, effect_timeout_s=0.5)
    scene.service.hold = "after"
    scene.service.knows = False
    left = scene.kill(replace(plan, kill_at=point))
    scene.service.go_on()
    scene.service.knows = True
    recorded = point.endswith("done")
    assert left.stages() == [("mutating", "paused:reconciliation" if recorded else "active")]
    assert left.effects() == ["needs_reconcile" if recorded and asynchronous else "in_flight"]
    assert left.events == {"a": "unknown"}
    looks = len(scene.service.looks)
    assert looks == asynchronous, "while a thread still makes the call, it may happen after the service was asked"
    check_done_once(scene, scene.run(plan), looks=looks + 1)
    assert len(scene.service.calls) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("point", ["did_not_happen: COMMIT", "did_not_happen: done"])
def test_a_kill_around_the_record_that_an_effect_did_not_happen_repeats_it_under_its_key(scene, point, asynchronous):
    plan = scene.plan(asynchronous=asynchronous)
    scene.service.refuses = True
    left = scene.kill(replace(plan, kill_at=point))
    scene.service.refuses = False
    recorded = point.endswith("done")
    assert left.stages() == [("mutating", "paused:transient" if recorded else "active")]
    assert left.effects() == ["failed" if recorded else "in_flight"]
    assert left.events == {"a": "pending" if recorded else "unknown"}
    found = scene.run(plan)
    check_done_once(scene, found, looks=0 if recorded else 1)
    assert found.effects() == ["failed", "applied"]
    assert len(scene.service.calls) == 2
    assert len(set(scene.service.calls)) == 1
    if recorded:
        assert found.chain() == [None, 0]


# --- Several processes ------------------------------------------------------------------------------------------------


def test_one_process_at_a_time_runs_handlers_on_a_file_and_a_kill_makes_room(scene):
    plan = scene.plan(hold_at="mutate")
    holder = scene.start(plan)
    assert holder.do("run") is None
    holder.child.hear("reached")
    second = scene.start(replace(plan, hold_at=""))
    assert "another process runs handlers on" in second.do("run")
    left = scene.picture(plan)
    assert (left.stages(), left.events) == ([("prepared", "active")], {"a": "reserved"})
    holder.kill()
    assert second.do("run") is None
    second.do("until", "inbox", "consumed", 1)
    second.do("idle")
    second.stop()
    found = scene.picture(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    check_done_once(scene, found, looks=0)
