"""Polls: most runs of a producer find nothing, and leave no row that all devices would have to keep."""

import asyncio
from dataclasses import dataclass

import pytest
from handling import run_of, runs, statuses, to_end, until

from leasemesh import Node
from leasemesh.node.execution import script
from leasemesh.node.execution.recovery import Recovery

LOOKED, FAILED = ("poll", "committed", "committed"), ("poll", "executing", "failed:logic")


@dataclass
class Begun:
    steps: object
    manager: object
    told_of: tuple


class Outside:
    """What a producer finds, and does then."""

    def __init__(self):
        self.messages = []
        self.lines = []
        self.cost = 0
        self.error = None
        self.new_state = None


@pytest.fixture
def outside():
    return Outside()


@pytest.fixture
def poll(mail, inbox, outside):
    @mail.producer(every_s=60, publishes=[inbox])
    def poll(run, state):
        for message_id in outside.messages:
            run.publish(inbox, message_id)
        for line in outside.lines:
            run.log(line)
        run.cost(outside.cost)
        if outside.error is not None:
            raise outside.error
        return outside.new_state

    return poll


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.db"


@pytest.fixture
def node(path, opened):
    return opened(Node.open(path, workspace="team", name="a"))


@pytest.fixture
def look(node, hands, poll):
    """Let the producer look once; returns the result."""
    by = hands(node)
    return lambda: to_end(by.produce(poll))


@pytest.fixture
def begin(node, hands, mail, inbox):
    """Begin a second run of a producer, which waits: a poll."""
    commits = []
    node.database.on_commit(commits.append)

    @mail.producer(every_s=60, publishes=[inbox])
    async def slow(run, state):
        return None

    def begin_it():
        by = hands(node)
        first = by.produce(slow)
        until(first, script.AwaitFunction).awaitable.close()
        to_end(first)
        commits.clear()
        second = by.produce(slow)
        until(second, script.AwaitFunction).awaitable.close()
        return Begun(second, by.manager, tuple(commits))

    return begin_it


def slow_runs(node):
    return [(phase, status) for _, phase, status in runs(node, "slow")]


def sessions(node):
    return sorted((one.handler_run_count, one.cost, one.logs) for one in node.script_runs.by_workflow("mail"))


def recover(node, hands):
    """What another process of this device does when it starts."""
    return Recovery(hands(node).manager, {}).look().notifications


# --- What a poll leaves -----------------------------------------------------------------------------------------------


def test_the_first_look_is_a_run_and_others_are_when_they_find_something(node, outside, look):
    for _ in range(3):
        assert look().kind == "committed"
    assert runs(node, "poll") == [LOOKED]
    outside.messages = ["one", "two"]
    look()
    assert runs(node, "poll") == [LOOKED, LOOKED]
    assert statuses(node) == {"one": "pending", "two": "pending"}
    found = run_of(node, "poll")
    assert {event.created_by_run for event in node.peek("mail", "inbox")} == {found.id}
    assert (found.node, found.incarnation, found.session is None) == (node.site_id, node.incarnation, False)
    assert sessions(node) == [(1, 0, ""), (1, 0, "")]


def test_a_poll_that_finds_nothing_writes_one_cell_that_replicates(node, look):
    look()
    version, before = node.database.version(), node.handler_states.get("mail", "poll")
    look()
    after = node.handler_states.get("mail", "poll")
    assert node.database.version() == version + 1
    assert (after.version, after.at >= before.at) == (before.version + 1, True)
    assert node.handler_runs.get(after.run) is None
    assert node.handler_runs.polls() == {}


def test_a_new_state_alone_is_kept_and_makes_no_run(node, outside, look):
    look()
    outside.new_state = {"seen": 7}
    look()
    assert runs(node, "poll") == [LOOKED]
    assert node.handler_states.get("mail", "poll").state == {"seen": 7}


@pytest.mark.parametrize(("lines", "cost"), [(["there was a lot"], 0), ([], 7)], ids=["logs", "cost"])
def test_what_a_poll_tells_makes_it_a_run(node, outside, look, lines, cost):
    look()
    outside.lines, outside.cost = lines, cost
    look()
    assert runs(node, "poll") == [LOOKED, LOOKED]
    told = run_of(node, "poll").details
    assert (told.get("logs", []), told.get("cost", 0)) == (lines, cost)
    assert sessions(node)[-1][1:] == (cost, "".join(f"{line}\n" for line in lines))


def test_what_is_known_already_is_nothing_new(node, outside, look):
    outside.messages = ["one"]
    assert [look().attempt.found_nothing for _ in range(3)] == [False, True, True]
    assert runs(node, "poll") == [LOOKED]
    outside.messages = ["one", "two"]
    look()
    assert runs(node, "poll") == [LOOKED, LOOKED]


async def test_a_session_that_a_poll_brought_is_ended_and_one_of_nothing_is_not_there(node, mail, within):
    looks, finds = [], asyncio.Event()

    @mail.producer(every_s=0.1)
    async def watch(run, state):
        looks.append(run.id)
        if len(looks) == 4:
            run.log("found it")
            finds.set()

    for enough in (lambda: looks, lambda: len(looks) >= 3, finds.is_set):
        async with within(), node.running([mail]), node.changes() as changes:
            while not enough():
                await anext(changes)
    runs_kept = node.handler_runs.list("mail", "watch")
    assert {run.id for run in runs_kept} == {looks[0], looks[3]}
    sessions_kept = node.script_runs.by_workflow("mail")
    assert {session.id for session in sessions_kept} == {run.session for run in runs_kept}
    assert all(session.ended_at and not session.error for session in sessions_kept)


def test_a_poll_that_fails_is_a_run_and_so_is_the_next(node, outside, look):
    look()
    outside.error = ValueError("the list is empty")
    assert look().kind == "failed"
    assert runs(node, "poll") == [LOOKED, FAILED]
    assert run_of(node, "poll").details["error"] == "ValueError: the list is empty"
    outside.error = None
    for _ in range(3):
        look()
    assert runs(node, "poll") == [LOOKED, FAILED, LOOKED], "that it is well again is to be seen"
    assert node.handler_runs.polls() == {}


def test_what_cannot_be_committed_is_a_failed_run_and_nothing_is_published(node, outside, look):
    look()
    outside.messages, outside.new_state = ["one"], {1, 2}
    assert look().kind == "failed"
    assert (runs(node, "poll"), statuses(node)) == ([LOOKED, FAILED], {})
    assert node.handler_runs.polls() == {}


def test_a_poll_that_lost_against_another_device_is_a_run(node, begin):
    begun = begin()
    state = node.handler_states.get("mail", "slow")
    node.handler_states.set("mail", "slow", "another's", run="another", expected_version=state.version)
    assert to_end(begun.steps).kind == "lost"
    assert slow_runs(node) == [("committed", "committed"), ("executing", "lost")]
    assert node.handler_states.get("mail", "slow").state == "another's"


# --- Polls that do not end --------------------------------------------------------------------------------------------


def test_while_it_looks_nobody_is_told(node, begin):
    begun = begin()
    assert slow_runs(node) == [("committed", "committed")]
    assert list(node.handler_runs.polls().values()) == [node.site_id]
    assert begun.told_of == (), "nobody is woken to send nothing"


def test_a_poll_whose_process_ended_is_a_crashed_run(node, begin, hands):
    begin()
    ((run, _),) = node.handler_runs.polls().items()
    ((kind, handler, told, _),) = recover(node, hands)
    assert (kind, handler, told) == ("released", ("mail", "slow"), run)
    assert slow_runs(node) == [("committed", "committed"), ("executing", "crashed")]
    found = run_of(node, "slow")
    assert (found.id, found.incarnation) == (run, node.incarnation)
    assert found.details["ended_because"] == "the process that ran it ended"
    (session,) = [one for one in node.script_runs.by_workflow("mail") if one.id == found.session]
    assert (session.handler_run_count, session.error) == (1, "the process that ran it ended")
    assert session.ended_at
    assert recover(node, hands) == ()


def test_a_poll_under_way_is_not_taken_for_a_dead_one(node, begin):
    begun = begin()
    assert Recovery(begun.manager, {}).look().notifications == ()
    assert to_end(begun.steps).kind == "committed"
    assert (slow_runs(node), node.handler_runs.polls()) == ([("committed", "committed")], {})


def test_a_node_that_stops_ends_a_poll_as_a_run(node, begin):
    begun = begin()
    with pytest.raises(StopIteration) as stop:
        begun.steps.throw(script.Stopped())
    assert stop.value.value.kind == "stopped"
    assert slow_runs(node) == [("committed", "committed"), ("executing", "crashed")]
    assert node.handler_runs.polls() == {}


def test_a_copy_of_the_file_knows_nothing_of_the_polls_of_its_original(node, begin, hands):
    begin()
    node.reset_identity()
    assert recover(node, hands) == ()
    assert (slow_runs(node), node.handler_runs.polls()) == ([("committed", "committed")], {})


def test_what_a_restored_copy_hears_that_its_lost_future_found_it_does_not_end(node, begin, hands):
    begin()
    ((run, _),) = node.handler_runs.polls().items()
    heartbeats = node.handler_runs.create("mail", "slow", "producer", run=run, phase="executing")
    node.handler_runs.advance(heartbeats.id, "committed")
    assert recover(node, hands) == ()
    assert (node.handler_runs.get(run).status, node.handler_runs.polls()) == ("committed", {})


def test_a_row_whose_body_has_not_arrived_is_there(node, begin, hands):
    begin()
    ((run, _),) = node.handler_runs.polls().items()
    with node.transaction() as transaction:
        transaction.execute("INSERT INTO handler_runs (id) VALUES (unhex(?))", (run,))
    assert recover(node, hands) == ()
    assert node.handler_runs.polls() == {}


def test_a_device_that_gets_a_new_identity_while_it_looks_tells_of_it_as_the_new_one(node, begin):
    begun = begin()
    begun.manager.under_way()[0].told.logs.append("found it")
    node.reset_identity()
    assert to_end(begun.steps).kind == "committed"
    found = run_of(node, "slow")
    assert (found.status, found.node, found.details["logs"]) == ("committed", node.site_id, ["found it"])
