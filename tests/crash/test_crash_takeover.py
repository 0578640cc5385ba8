"""The crash table when the process that was killed never comes back: another device takes over, as far as it may.

Two devices, real sockets. The first is killed, when the second has heard of all that it did. The second, which is also
the authority, runs its handlers only then, and waits for less than half a second. At last the first comes back: nothing
reopens, and nothing is done twice.
"""

from dataclasses import replace

import pytest
from counting_service import CountingService
from scenes import Scene

WAYS = {"sync soft": (False, "soft"), "async confirmed": (True, "confirmed"), "sync confirmed": (False, "confirmed")}


class TwoDevices(Scene):
    """The first device has an event to work on, and the second has heard of it."""

    def __init__(self, folder, service, start, asynchronous, mode):
        super().__init__(folder, service, start)
        self.create("a", authority=False)
        self.first = self.plan(asynchronous=asynchronous, mode=mode, tells_peers=True)
        self.mode = mode

    def start_second(self, **choices):
        """Start the second device, which anybody may dial, as far as its handlers, and let it be the authority."""
        self.second = self.start(replace(self.first, name="second", listen=True, tells_peers=False, **choices))
        self.url = self.second.do("sync")
        self.second.do("appoint")

    def connect_first(self, **choices):
        process = self.start(replace(self.first, **choices))
        process.do("sync", self.url)
        return process

    def kill_first(self, point, **choices):
        """Let the first device run its handlers until it is killed at a point, or during its call."""
        self.first = replace(self.first, **choices)
        if point.startswith("held"):
            self.service.hold = point.removeprefix("held ")
            first = self.connect_first()
            first.tell("run")
            assert self.service.reached.wait(30)
            first.child.hear("run")
            first.do("caught_up")
            first.kill()
            self.service.go_on()
        else:
            first = self.connect_first(kill_at=point)
            first.tell("run")
            first.is_killed()
        return self.at("second")

    def at(self, name):
        return self.picture(replace(self.first, name=name))

    def take_over(self, status="consumed"):
        """Let the second device run its handlers for so long that it would take over, and until the event has a status.
        Returns its picture."""
        assert self.second.do("run") is None
        self.second.do("until", "inbox", status, 1)
        self.second.do("outwait" if status in ("unknown", "reserved") else "idle")
        return self.at("second")

    def restart_first(self):
        """Start the first device again, while the second one runs no handlers, until its work is done. Returns its
        picture."""
        first = self.connect_first()
        assert first.do("run") is None
        first.do("until", "inbox", "consumed", 1)
        first.do("idle")
        first.stop()
        self.second.stop()
        return self.at("first")

    def come_back(self, status="consumed"):
        """Let the first device come back late; both then agree, and have nothing to do. Returns the picture."""
        self.second.do("be_patient")
        first = self.connect_first()
        assert first.do("run") is None
        for process in (first, self.second):
            process.do("until", "inbox", status, 1)
        for process in (first, self.second, first):
            process.do("idle")
            process.do("caught_up")
        for process in (first, self.second):
            process.do("stop_handlers")
        for process in (first, self.second):
            process.do("caught_up")
        first.stop()
        self.second.stop()
        with self.opened("first") as one, self.opened("second") as other:
            assert one.digest().tables == other.digest().tables
        return self.at("first")


@pytest.fixture
def start_two(tmp_path, start):
    with CountingService() as service:

        def start_them(way, **choices):
            two = TwoDevices(tmp_path, service, start, *WAYS[way])
            two.start_second(**choices)
            return two

        yield start_them


def check_done_once(two, picture, *, calls=1, result=None):
    """The event was sent once, what follows was published once, and nothing was done twice."""
    assert picture.events == {"a": "consumed"}
    assert two.service.texts() == {"a": 1}
    assert len(two.service.calls) == calls
    prepared = [run.details["prepared"]["texts"] for run in picture.runs if run.status == "committed"]
    assert [texts for texts in prepared if texts] == [["a"]], "who came too late has found nothing to do"
    assert picture.sent.keys() == {"a"}
    assert picture.sent["a"]["result"] == (result or {"number": 1})
    assert picture.duplicates == ()


# --- Rows of the table ------------------------------------------------------------------------------------------------


def test_what_was_being_prepared_is_free_for_the_second_device_at_once(start_two):
    two = start_two("async confirmed")
    assert two.kill_first("prepare").events == {"a": "pending"}
    found = two.take_over()
    assert found.stages() == [("preparing", "active"), ("committed", "committed")], "another device's run is its own"
    check_done_once(two, found)
    check_done_once(two, two.come_back())


def test_a_reservation_without_an_effect_is_taken_over_and_released(start_two):
    two = start_two("sync soft")
    left = two.kill_first("mutate")
    assert (left.stages(), left.events) == ([("prepared", "active")], {"a": "reserved"})
    found = two.take_over()
    assert found.stages() == [("prepared", "active"), ("pending", "superseded"), ("committed", "committed")]
    check_done_once(two, found)
    found = two.come_back()
    assert found.stages()[0] == ("prepared", "crashed")
    check_done_once(two, found)


@pytest.mark.parametrize(
    ("way", "point"),
    [
        ("sync soft", "held before"),
        ("sync soft", "held after"),
        ("async confirmed", "call"),
        ("async confirmed", "held after"),
    ],
)
def test_an_unknown_outcome_is_left_alone_until_its_device_comes_back_and_finds_out(start_two, way, point):
    two = start_two(way)
    left = two.kill_first(point)
    assert (left.stages(), left.effects(), left.events) == ([("mutating", "active")], ["in_flight"], {"a": "unknown"})
    calls = len(two.service.calls)
    found = two.take_over("unknown")
    assert (found.stages(), found.effects()) == (left.stages(), left.effects())
    assert len(two.service.calls) == calls
    assert two.service.looks == [], "only its own device asks"
    found = two.come_back()
    happened = point == "held after"
    assert found.effects()[0] == ("applied" if happened else "failed")
    check_done_once(two, found, calls=calls if happened else calls + 1)
    assert len(set(two.service.calls)) == 1


@pytest.mark.parametrize(("way", "point"), [("sync soft", "applied: done"), ("async confirmed", "next")])
def test_beyond_the_effect_the_second_device_goes_on_with_its_results(start_two, way, point):
    two = start_two(way)
    left = two.kill_first(point)
    assert (left.stages(), left.effects()) == ([("emitting", "active")], ["applied"])
    found = two.take_over()
    assert found.stages() == [("emitting", "active"), ("committed", "committed")]
    assert (found.chain(), found.effects()) == ([None, 0], ["applied", ""])
    assert found.sent["a"]["prepared"] == left.runs[0].details["prepared"]
    check_done_once(two, found)
    found = two.come_back()
    assert found.stages() == [("emitting", "superseded"), ("committed", "committed")]
    check_done_once(two, found)


def test_after_the_commit_there_is_nothing_to_take_over(start_two):
    two = start_two("sync soft")
    left = two.kill_first("commit: done")
    found = two.take_over()
    assert found.runs == left.runs
    assert two.come_back().runs == left.runs
    check_done_once(two, found)


@pytest.mark.parametrize(
    ("way", "point", "tells_peers"),
    [
        ("sync confirmed", "prepared: done", False),
        ("async confirmed", "prepare", True),
        ("sync confirmed", "mutate", True),
        ("async confirmed", "held before", True),
        ("sync confirmed", "held after", True),
        ("async confirmed", "applied: done", True),
        ("sync confirmed", "next", True),
        ("async confirmed", "commit: done", True),
    ],
)
def test_with_the_authority_on_a_hub_the_next_start_of_the_same_device_does_what_the_table_says(
    start_two, way, point, tells_peers
):
    two = start_two(way)
    two.kill_first(point, tells_peers=tells_peers)
    found = two.restart_first()
    released = point in ("prepare", "prepared: done", "mutate")
    assert [status for _, status in found.stages()] == [
        *([] if point == "commit: done" else ["crashed"] if released else ["superseded"]),
        "committed",
    ]
    check_done_once(two, found, calls=2 if point == "held before" else 1)
    assert len(set(two.service.calls)) == 1


# --- What only a person can decide ------------------------------------------------------------------------------------


def test_what_a_dead_device_has_a_permit_for_waits_until_it_comes_back(start_two):
    two = start_two("async confirmed")
    left = two.kill_first("mutate")
    assert (left.stages(), left.events) == ([("prepared", "paused:confirmation")], {"a": "reserved"})
    found = two.take_over("reserved")
    assert found.stages() == left.stages()
    assert two.service.calls == []
    found = two.come_back()
    assert found.stages()[0] == ("prepared", "crashed")
    check_done_once(two, found)


def test_what_a_dead_device_has_a_permit_for_is_taken_over_when_a_person_says_that_it_never_will(start_two):
    two = start_two("async confirmed")
    two.kill_first("mutate")
    two.take_over("reserved")
    with two.opened("second") as node:
        (event,) = node.peek("mail", "inbox", status="reserved")
        work = node.mutations.work_for(event.run)
        node.mutations.resolve(work, "not_happened", by="Ann")
    two.second.do("until", "inbox", "consumed", 1)
    assert two.service.calls != [work], "the old permit is worth nothing, and its key neither"
    check_done_once(two, two.at("second"))
    check_done_once(two, two.come_back())


def test_an_effect_that_a_person_says_happened_is_gone_on_with_while_its_device_is_dead(start_two):
    two = start_two("async confirmed")
    left = two.kill_first("held after", reconcile=False)
    (entry,) = left.ledger.values()
    two.take_over("unknown")
    two.second.do("resolve", entry.work, "happened", {"number": "as Ann says"})
    two.second.do("until", "inbox", "consumed", 1)
    found = two.at("second")
    assert found.chain() == [None, 0]
    assert found.sent["a"]["prepared"] == left.runs[0].details["prepared"]
    check_done_once(two, found, result={"number": "as Ann says"})
    found = two.come_back()
    assert len(found.runs) == 2
    check_done_once(two, found, result={"number": "as Ann says"})


def test_an_effect_that_a_person_says_did_not_happen_is_repeated_only_when_its_device_has_stopped(start_two):
    two = start_two("async confirmed")
    left = two.kill_first("call", reconcile=False)
    (entry,) = left.ledger.values()
    two.take_over("unknown")
    two.second.do("resolve", entry.work, "not_happened", None)
    two.second.do("outwait")
    assert two.at("second").events == {"a": "unknown"}, "the call may still be on its way"
    found = two.come_back()
    assert two.service.calls != [entry.work]
    check_done_once(two, found)


@pytest.mark.parametrize("way", ["sync soft", "async confirmed"])
def test_what_a_person_skips_while_its_device_is_dead_is_never_done(start_two, way):
    two = start_two(way)
    left = two.kill_first("call", reconcile=False)
    (entry,) = left.ledger.values()
    two.take_over("unknown")
    two.second.do("resolve", entry.work, "skip", None)
    two.second.do("until", "inbox", "skipped", 1)
    found = two.come_back("skipped")
    assert (found.sent, two.service.calls, found.duplicates) == ({}, [], ())


def test_what_a_dead_home_alone_may_do_waits_until_it_comes_back(start_two):
    two = start_two("sync soft")
    with two.opened("first") as node:
        node.modes.set("mail", "home", topic="inbox")
    left = two.kill_first("mutate")
    found = two.take_over("reserved")
    assert found.stages() == left.stages() == [("prepared", "active")]
    found = two.come_back()
    assert found.stages() == [("prepared", "crashed"), ("committed", "committed")], "nobody else even tried"
    check_done_once(two, found)


# --- The second device is killed, too ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "of_second"),
    [
        ("mutate", "take_over_to_free: COMMIT"),
        ("mutate", "take_over_to_free: done"),
        ("next", "take_over_to_go_on: COMMIT"),
        ("next", "take_over_to_go_on: done"),
        ("next", "commit: COMMIT"),
    ],
)
def test_a_kill_during_the_take_over_leaves_the_rest_to_the_next_start(start_two, point, of_second):
    two = start_two("sync soft", kill_at=of_second)
    two.kill_first(point)
    two.second.tell("run")
    two.second.is_killed()
    two.start_second(kill_at="")
    found = two.take_over()
    check_done_once(two, found)
    check_done_once(two, two.come_back())


# --- What the second device has not heard of --------------------------------------------------------------------------


def work_unrecorded(two):
    """Let the first device begin its work while it is connected, perform the effect while it is not, and die."""
    first = two.connect_first(tells_peers=False, hold_at="mutate", kill_at="applied: done")
    assert first.do("run") is None
    first.child.hear("reached")
    first.do("caught_up")
    first.do("stop_sync")
    first.tell("go on")
    first.is_killed()
    assert two.at("second").effects() == [""]


def test_in_soft_mode_an_effect_that_was_not_heard_of_is_repeated_and_told_as_a_duplicate(start_two):
    two = start_two("sync soft")
    work_unrecorded(two)
    assert two.take_over().duplicates == ()
    assert two.service.texts() == {"a": 2}
    assert len(set(two.service.calls)) == 1, "the service is offered one key for both"
    found = two.come_back()
    assert (found.events, found.duplicates) == ({"a": "consumed"}, ("a",))
    assert two.service.texts() == {"a": 2}


def test_in_confirmed_mode_an_effect_that_was_not_heard_of_is_waited_for(start_two):
    two = start_two("sync confirmed")
    work_unrecorded(two)
    two.take_over("reserved")
    check_done_once(two, two.come_back())
