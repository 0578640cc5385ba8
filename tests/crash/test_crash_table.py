"""The crash table: a process that runs handlers is killed at every point of a run, and the next start of its device
does what is right for that point.

Each row of the table is a test here. Who is killed is a real process, at a point that it names itself or, when the
kill is to fall into a call, while the service that it calls holds back its answer. The service counts.
"""

from dataclasses import replace
from itertools import count, cycle

import pytest
from counting_service import CountingService
from scenes import Scene

WAYS = {
    f"{'async' if asynchronous else 'sync'} {mode}": {"asynchronous": asynchronous, "mode": mode}
    for asynchronous in (False, True)
    for mode in ("soft", "confirmed")
}
"""Sync and async functions, with and without a permit."""

ONE_STEP_IN = 29
STEPS_LEAST = 150

OPPOSITE_WAYS = ("sync soft", "async confirmed")


def at(functions=(), steps=()):
    """Kill in each of these functions in every way, and at each of these steps, where it is all the same, in one of two
    opposite ways."""
    cases = [(point, way) for point in functions for way in WAYS]
    cases += zip(steps, cycle(OPPOSITE_WAYS))
    return pytest.mark.parametrize(("point", "way"), [pytest.param(*case, id=" ".join(case)) for case in cases])


@pytest.fixture
def scene(tmp_path, start):
    with CountingService() as service:
        scene = Scene(tmp_path, service, start)
        scene.create("a")
        yield scene


def plan_of(scene, way, **choices):
    """Half of the ways keep a state, too."""
    return scene.plan(stateful=WAYS[way]["asynchronous"], **WAYS[way], **choices)


def paused(way):
    """How a run stands that holds its events and has not begun its effect."""
    return "paused:confirmation" if WAYS[way]["mode"] == "confirmed" else "active"


def check_done_once(scene, plan, picture, *, calls=1, by_person=False):
    """The event was sent once, what follows was published once, and nothing is left open."""
    assert picture.events == {"a": "consumed"}
    assert scene.service.texts() == {"a": 1}
    assert len(scene.service.calls) == calls
    assert picture.stages()[-1] == ("committed", "committed")
    assert picture.sent.keys() == {"a"}
    assert picture.sent["a"]["result"] == ({"number": "as Ann says"} if by_person else {"number": 1})
    assert picture.state == ((1, 1) if plan.stateful else None)
    assert picture.duplicates == ()
    assert all(session.ended_at for session in picture.sessions)


def check_went_on(picture):
    """The last run began beyond the effect of the first one, with what that one had prepared."""
    *dead, last = picture.runs
    assert (last.phase, last.status, last.retry_of) == ("committed", "committed", dead[-1].id)
    assert last.id not in picture.ledger
    assert "prepared" not in last.details.get("logs", [])
    assert {run.status for run in dead} == {"superseded"}
    assert picture.sent["a"]["prepared"] == dead[0].details["prepared"] == last.details["prepared"]


# --- Consumers, up to the boundary ------------------------------------------------------------------------------------


@at(steps=["prepare", "prepare", "begin_preparing: done", "prepared: UPDATE handler_runs SET"])
def test_a_kill_in_preparing_leaves_nothing_reserved_and_a_fresh_run_begins(scene, point, way):
    plan = plan_of(scene, way, kill_at=point)
    left = scene.kill(plan)
    assert left.stages() == [("preparing", "active")]
    assert left.events == {"a": "pending"}
    assert left.effects() == [""]
    assert scene.service.calls == []
    found = scene.run(plan)
    assert found.stages() == [("preparing", "crashed"), ("committed", "committed")]
    assert found.chain() == [None, None]
    check_done_once(scene, plan, found)


@at(steps=["mutate", "mutate", "prepared: done", "intend: INSERT INTO mutations", "intend: write log"])
def test_a_kill_between_prepared_and_the_intent_leaves_a_reservation_that_is_released(scene, point, way):
    plan = plan_of(scene, way, kill_at=point)
    left = scene.kill(plan)
    assert left.stages() == [("prepared", paused(way))]
    assert left.events == {"a": "reserved"}
    assert left.effects() == [""]
    assert scene.service.calls == []
    found = scene.run(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    assert found.chain() == [None, None]
    check_done_once(scene, plan, found)


@pytest.mark.parametrize("way", OPPOSITE_WAYS)
def test_a_kill_while_the_oldest_events_are_taken_leaves_no_run_or_one_that_is_released(scene, way):
    plan = plan_of(scene, way, kill_at="begin: COMMIT", prepare=False)
    left = scene.kill(plan)
    assert (left.stages(), left.events) == ([], {"a": "pending"})
    left = scene.kill(replace(plan, kill_at="begin: done"))
    assert (left.stages(), left.events) == ([("prepared", paused(way))], {"a": "reserved"})
    found = scene.run(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    check_done_once(scene, plan, found)


# --- The call ---------------------------------------------------------------------------------------------------------


AFTER_IT_HAPPENED = ("held after", "answered", "applied: UPDATE handler_runs SET")


def kill_around_the_call(scene, plan, point):
    """Kill a process that has begun its effect and not recorded what came of it."""
    if point.startswith("held"):
        left = scene.kill_during_call(plan, point.removeprefix("held "))
    else:
        left = scene.kill(replace(plan, kill_at=point))
    assert left.stages() == [("mutating", "active")]
    assert left.events == {"a": "unknown"}
    assert left.effects() == ["in_flight"]
    assert left.sent == {}
    (entry,) = left.ledger.values()
    assert set(scene.service.calls) <= {entry.work}, "the key of the call is the work"
    assert len(scene.service.performed) == (point in AFTER_IT_HAPPENED)
    return left


@at(functions=["held before"], steps=["intend: sync log", "call"])
def test_a_call_that_was_cut_off_before_it_happened_is_found_out_and_made_again_under_the_same_key(scene, point, way):
    plan = plan_of(scene, way)
    left = kill_around_the_call(scene, plan, point)
    calls = len(scene.service.calls)
    found = scene.run(plan)
    assert found.stages() == [("mutating", "superseded"), ("committed", "committed")]
    assert found.effects() == ["failed", "applied"]
    (entry,) = left.ledger.values()
    assert scene.service.looks == [entry.work]
    assert set(scene.service.calls) == {entry.work}
    check_done_once(scene, plan, found, calls=calls + 1)


@at(functions=["held after"], steps=["answered", "applied: UPDATE handler_runs SET"])
def test_an_effect_whose_answer_was_not_written_is_found_out_and_not_repeated(scene, point, way):
    plan = plan_of(scene, way)
    left = kill_around_the_call(scene, plan, point)
    found = scene.run(plan)
    assert found.stages() == [("mutated", "superseded"), ("committed", "committed")]
    assert found.effects() == ["applied", ""]
    (entry,) = left.ledger.values()
    assert scene.service.looks == [entry.work]
    check_went_on(found)
    check_done_once(scene, plan, found)


@at(functions=["held after"], steps=["held before", "intend: done"])
def test_without_reconcile_an_unknown_outcome_holds_its_events_until_a_person_decides(scene, point, way):
    plan = plan_of(scene, way, reconcile=False)
    left = kill_around_the_call(scene, plan, point)
    (entry,) = left.ledger.values()
    calls = len(scene.service.calls)
    with scene.running(plan) as process:
        process.do("idle")
        waiting = scene.picture(plan)
        assert waiting.stages() == [("mutating", "paused:reconciliation")]
        assert waiting.effects() == ["indeterminate"]
        assert waiting.events == {"a": "unknown"}
        assert len(scene.service.calls) == calls
        happened = point in AFTER_IT_HAPPENED
        with scene.opened() as node:
            result = {"number": "as Ann says"} if happened else None
            node.mutations.resolve(entry.work, "happened" if happened else "not_happened", by="Ann", result=result)
        process.do("until", "inbox", "consumed", 1)
    found = scene.picture(plan)
    check_done_once(scene, plan, found, calls=calls + (not happened), by_person=happened)
    if happened:
        check_went_on(found)
    else:
        assert found.stages() == [("mutating", "superseded"), ("committed", "committed")]
        assert scene.service.calls[-1] != entry.work, "a call with the old key may still arrive"
    assert scene.service.looks == []


@pytest.mark.parametrize("way", OPPOSITE_WAYS)
def test_a_person_may_let_events_of_unknown_outcome_be_skipped(scene, way):
    plan = plan_of(scene, way, reconcile=False)
    left = kill_around_the_call(scene, plan, "call")
    (entry,) = left.ledger.values()
    with scene.opened() as node:
        node.mutations.resolve(entry.work, "skip", by="Ann")
    found = scene.run(plan, "skipped")
    assert found.stages() == [("mutating", "superseded")]
    assert (found.events, found.sent, scene.service.calls) == ({"a": "skipped"}, {}, [])


# --- Beyond the boundary ----------------------------------------------------------------------------------------------


@at(functions=["next"], steps=["applied: done", "commit: UPDATE script_runs SET", "commit: write log"])
def test_a_kill_beyond_the_effect_lets_another_run_go_on_with_its_results(scene, point, way):
    plan = plan_of(scene, way, kill_at=point, reconcile=point == "next")
    left = scene.kill(plan)
    assert left.stages() == [("emitting", "active")]
    assert left.events == {"a": "reserved"}
    assert left.effects() == ["applied"]
    assert (left.sent, left.state) == ({}, None)
    found = scene.run(plan)
    assert len(found.runs) == 2
    check_went_on(found)
    check_done_once(scene, plan, found)
    assert scene.service.looks == []


@pytest.mark.parametrize("way", OPPOSITE_WAYS)
def test_a_kill_after_the_commit_leaves_nothing_to_do(scene, way):
    plan = plan_of(scene, way, kill_at="commit: done")
    left = scene.kill(plan)
    assert left.stages() == [("committed", "committed")]
    found = scene.run(plan)
    assert (found.runs, found.events, found.sent, found.state) == (left.runs, left.events, left.sent, left.state)
    check_done_once(scene, plan, found)


@pytest.mark.parametrize("way", OPPOSITE_WAYS)
def test_without_a_next_phase_the_record_of_the_effect_ends_the_run(scene, way):
    plan = scene.plan(**WAYS[way], has_next=False)
    left = scene.kill(replace(plan, kill_at="applied_and_committed: COMMIT"))
    assert (left.stages(), left.effects(), left.events) == ([("mutating", "active")], ["in_flight"], {"a": "unknown"})
    left = scene.kill(replace(plan, kill_at="commit: done"))
    assert left.stages() == [("mutated", "superseded"), ("committed", "committed")]
    found = scene.run(plan)
    assert (found.runs, found.events) == (left.runs, {"a": "consumed"})
    assert scene.service.texts() == {"a": 1}


# --- Without an effect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "asynchronous"),
    [("begin: done", False), ("next", False), ("next", True), ("commit: UPDATE script_runs SET", True)],
)
def test_a_consumer_without_an_effect_begins_afresh_until_it_has_committed(scene, asynchronous, point):
    plan = scene.plan(handler="count", prepare=False, asynchronous=asynchronous, stateful=True, kill_at=point)
    left = scene.kill(plan)
    assert (left.stages(), left.events, left.sent) == ([("prepared", "active")], {"a": "reserved"}, {})
    found = scene.run(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    assert (found.events, found.state) == ({"a": "consumed"}, (1, 1))
    assert found.sent == {"a": {"prepared": None, "result": None, "outcome": "none"}}


# --- Producers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "asynchronous"),
    [("begin_producing: done", False), ("polled", False), ("polled", True), ("commit: UPDATE script_runs SET", True)],
)
def test_a_producer_that_was_killed_has_published_nothing_and_polls_again_from_its_old_state(
    scene, asynchronous, point
):
    plan = scene.plan(handler="poll", asynchronous=asynchronous, kill_at=point)
    scene.service.messages = ["a", "b", "c"]
    left = scene.kill(plan)
    assert (left.stages(), left.events, left.state) == ([("executing", "active")], {"a": "pending"}, None)
    polls = len(scene.service.polls)
    found = scene.run(plan, "pending", 3)
    assert found.stages() == [("executing", "crashed"), ("committed", "committed")]
    assert scene.service.polls == [None] * (polls + 1)
    assert (found.events, found.state) == (dict.fromkeys("abc", "pending"), (1, 1))
    with scene.opened() as node:
        runs = {event.message_id: event.created_by_run for event in node.peek("mail", "inbox")}
    assert runs == {"a": None, "b": found.runs[-1].id, "c": found.runs[-1].id}, "what was there is left as it was"


@pytest.mark.parametrize(
    ("point", "asynchronous"),
    [
        ("begin_producing: done", False), ("polled", True), ("commit: DELETE FROM polls", False),
        ("commit: INSERT INTO handler_runs", True), ("commit: COMMIT", False),
    ],
)  # fmt: skip
def test_a_poll_that_was_killed_is_known_to_have_been_and_polls_again(scene, asynchronous, point):
    with scene.opened() as node:  # An earlier run was well, so that nobody is told of this one.
        earlier = node.handler_runs.create("mail", "poll", "producer", phase="executing")
        node.handler_runs.advance(earlier.id, "committed")
    plan = scene.plan(handler="poll", asynchronous=asynchronous, kill_at=point)
    scene.service.messages = ["a", "b"]
    left = scene.kill(plan)
    assert (left.stages(), left.events, left.state) == ([("committed", "committed")], {"a": "pending"}, None)
    polls = len(scene.service.polls)
    found = scene.run(plan, "pending", 2)
    assert found.stages() == [("committed", "committed"), ("executing", "crashed"), ("committed", "committed")]
    assert scene.service.polls == [None] * (polls + 1)
    assert (found.events, found.state) == ({"a": "pending", "b": "pending"}, (1, 1))
    with scene.opened() as node:
        assert node.handler_runs.polls() == {}
        assert {one.created_by_run for one in node.peek("mail", "inbox")} == {None, found.runs[-1].id}


def test_a_producer_that_was_killed_after_its_commit_does_not_poll_before_its_time(scene):
    plan = scene.plan(handler="poll", kill_at="commit: done")
    scene.service.messages = ["a", "b"]
    left = scene.kill(plan)
    found = scene.run(plan, "pending", 2)
    assert found.runs == left.runs
    assert (found.state, scene.service.polls) == ((1, 1), [None])


# --- Anywhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "first"), [("sync soft", 1), ("async confirmed", 15)])
def test_a_kill_at_any_step_of_the_file_lets_the_next_start_end_the_work_once(tmp_path, start, way, first):
    """At one step in so many; all of them take a minute, and hold no surprise that the other tests do not name."""
    killed = True
    for number in count(first, ONE_STEP_IN):
        if not killed:
            break
        folder = tmp_path / str(number)
        folder.mkdir()
        with CountingService() as service:
            scene = Scene(folder, service, start)
            scene.create("a")
            plan = plan_of(scene, way)
            killed = scene.run_to_the_end_unless_killed(replace(plan, kill_at=number))
            found = scene.run(plan)
            statuses = [status for _, status in found.stages()]
            assert statuses.count("committed") == 1
            assert set(statuses) <= {"committed", "crashed", "superseded"}
            check_done_once(scene, plan, found, calls=len(service.calls))
    assert number > STEPS_LEAST
