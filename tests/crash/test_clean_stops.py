"""A process that runs handlers is told to stop (SIGTERM) in each phase of a run.

What can end in time ends. What cannot is given up: before the effect its events are free at once, a call under way is
of unknown outcome, and beyond it the next start goes on.
"""

from dataclasses import replace

import pytest
from counting_service import CountingService
from scenes import Scene

NO_TIME_S = 0.05


@pytest.fixture
def scene(tmp_path, start):
    with CountingService() as service:
        yield Scene(tmp_path, service, start)


def terminate(scene, plan, *, go_on):
    """Send SIGTERM to a process that is in the function that its plan names; let it go on afterwards, or never.

    Returns the picture that it leaves.
    """
    process = scene.start(plan)
    assert process.do("run") is None
    process.child.hear("reached")
    process.terminate()
    if go_on:
        process.child.hear("stopping")
        process.tell("go on")
    process.has_stopped()
    return scene.picture(plan)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("phase", ["prepare", "mutate", "call", "next"])
def test_what_ends_in_time_ends(scene, phase, asynchronous):
    scene.create("a", "b")
    mode = "confirmed" if asynchronous and phase != "prepare" else "soft"  # who has no permit yet does not wait for one
    plan = scene.plan(hold_at=phase, asynchronous=asynchronous, mode=mode, stateful=True)
    left = terminate(scene, plan, go_on=True)
    assert left.stages() == [("committed", "committed")]
    assert left.events == {"a": "consumed", "b": "pending"}, "nothing new is begun"
    assert scene.service.texts() == {"a": 1}
    assert left.sent["a"]["result"] == {"number": 1}
    assert left.state == (1, 1)
    assert all(session.ended_at for session in left.sessions)


def test_a_producer_that_ends_in_time_has_published(scene):
    scene.create()
    scene.service.messages = ["a"]
    plan = scene.plan(handler="poll", hold_at="poll", asynchronous=True)
    left = terminate(scene, plan, go_on=True)
    assert (left.stages(), left.events, left.state) == ([("committed", "committed")], {"a": "pending"}, (1, 1))


@pytest.mark.parametrize("phase", ["prepare", "mutate"])
@pytest.mark.parametrize("mode", ["soft", "confirmed"])
def test_what_cannot_end_before_its_effect_is_free_at_once(scene, phase, mode):
    scene.create("a")
    plan = scene.plan(hold_at=phase, asynchronous=True, mode=mode, drain_s=NO_TIME_S)
    left = terminate(scene, plan, go_on=False)
    assert left.stages() == [("preparing" if phase == "prepare" else "prepared", "crashed")]
    assert left.events == {"a": "pending"}
    assert scene.service.calls == []
    found = scene.run(replace(plan, hold_at=""))
    assert found.stages() == [*left.stages(), ("committed", "committed")]
    assert scene.service.texts() == {"a": 1}


def test_what_waits_for_a_permit_is_free_at_once(scene):
    scene.create("a", authority=False)
    plan = scene.plan(mode="confirmed")
    process = scene.start(plan)
    process.do("run")
    process.do("until", "inbox", "reserved", 1)
    process.terminate()
    process.has_stopped()
    left = scene.picture(plan)
    assert left.stages() == [("prepared", "crashed")]
    assert left.events == {"a": "pending"}
    with scene.opened() as node:
        assert node.permits.waiting() == []
        node.authorities.appoint(node.site_id, by="Ann")
    found = scene.run(plan)
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")]
    assert scene.service.texts() == {"a": 1}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_cannot_end_is_of_unknown_outcome_and_found_out_by_the_next_start(scene, asynchronous):
    scene.create("a")
    plan = scene.plan(asynchronous=asynchronous, mode="confirmed", drain_s=NO_TIME_S)
    scene.service.hold = "after"
    process = scene.start(plan)
    process.do("run")
    assert scene.service.reached.wait(30)
    process.terminate()
    process.has_stopped()
    left = scene.picture(plan)
    assert left.stages() == [("mutating", "paused:reconciliation")]
    assert left.effects() == ["needs_reconcile" if asynchronous else "in_flight"], "a thread cannot be cut off"
    assert left.events == {"a": "unknown"}
    scene.service.go_on()
    found = scene.run(plan)
    assert found.stages() == [("mutated", "superseded"), ("committed", "committed")]
    assert scene.service.texts() == {"a": 1}
    assert found.sent["a"]["result"] == {"number": 1}


def test_beyond_the_effect_what_cannot_end_waits_for_the_next_start(scene):
    scene.create("a")
    plan = scene.plan(hold_at="next", asynchronous=True, mode="confirmed", drain_s=NO_TIME_S)
    left = terminate(scene, plan, go_on=False)
    assert left.stages() == [("emitting", "crashed")]
    assert left.effects() == ["applied"]
    assert (left.events, left.sent) == ({"a": "reserved"}, {})
    found = scene.run(replace(plan, hold_at=""))
    assert found.stages() == [("emitting", "crashed"), ("committed", "committed")]
    assert found.chain() == [None, 0]
    assert scene.service.texts() == {"a": 1}
    assert found.sent["a"] == {
        "prepared": left.runs[0].details["prepared"],
        "result": {"number": 1},
        "outcome": "applied",
    }


def test_finding_out_what_happened_is_taken_up_again_after_a_stop(scene):
    scene.create("a")
    plan = scene.plan(asynchronous=True, drain_s=NO_TIME_S)
    scene.kill(replace(plan, kill_at="answered"))
    left = terminate(scene, replace(plan, hold_at="reconcile"), go_on=False)
    assert left.stages() == [("mutating", "paused:reconciliation")]
    assert left.effects() == ["needs_reconcile"]
    found = scene.run(plan)
    assert found.stages() == [("mutated", "superseded"), ("committed", "committed")]
    assert scene.service.texts() == {"a": 1}


def test_a_producer_that_cannot_end_has_published_nothing(scene):
    scene.create()
    scene.service.messages = ["a"]
    plan = scene.plan(handler="poll", hold_at="poll", asynchronous=True, drain_s=NO_TIME_S)
    left = terminate(scene, plan, go_on=False)
    assert (left.stages(), left.events, left.state) == ([("executing", "crashed")], {}, None)
    found = scene.run(replace(plan, hold_at=""), "pending")
    assert (found.stages()[-1], found.state) == (("committed", "committed"), (1, 1))
