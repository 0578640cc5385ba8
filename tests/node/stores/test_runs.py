import itertools

import pytest
from devices import NOW_MS, Device, meet, merge, run_body, work_of

from leasemesh.node.model.errors import Ambiguous, IllegalState, InvalidInput, NotFound, NotOwner
from leasemesh.node.model.jsonvalue import PAYLOAD_BYTES_MAX
from leasemesh.node.stores.phases import ENDED, PHASES, STATUSES

ROUTES = {
    "producer": [["executing", "committed"]],
    "consumer": [
        ["preparing", "prepared", "mutating", "mutated", "emitting", "committed"],
        ["preparing", "prepared", "emitting", "committed"],
    ],
}
ALL_PHASES = sorted({phase for phases in PHASES.values() for phase in phases})


def test_a_run_begins_pending_and_active(device):
    session = device.sessions.create("s1", "mail").id
    run = device.runs.create("mail", "send", "consumer", session=session, details={"why": "event"})
    assert device.runs.get(run.id) == run
    assert (run.phase, run.status, run.node) == ("pending", "active", device.node)
    assert run.incarnation == device.database.incarnation.hex()
    assert (run.started_at, run.ended_at, run.details) == (NOW_MS, None, {"why": "event"})


def test_what_is_absent_reads_as_nothing(device):
    assert device.runs.get("0" * 32) is None
    assert device.runs.own_incomplete() == []
    assert device.runs.by_session("s1") == []
    assert device.runs.list("mail") == []
    assert device.runs.retry_chain("0" * 32) == []


@pytest.mark.parametrize(("kind", "route"), [(kind, route) for kind, routes in ROUTES.items() for route in routes])
def test_a_run_goes_through_its_phases_to_the_commit(device, kind, route):
    run = device.runs.create("mail", "handler", kind)
    for number, phase in enumerate(route):
        device.now_ms += 1
        moved = device.runs.advance(run.id, phase, details={phase: number})
        assert (moved.phase, moved.status) == (phase, "committed" if phase == "committed" else "active")
        assert device.runs.get(run.id) == moved
    assert moved.ended_at == device.now_ms
    assert moved.details == {phase: number for number, phase in enumerate(route)}


@pytest.mark.parametrize("kind", PHASES)
def test_every_other_transition_is_refused(device, kind):
    for route in ROUTES[kind]:
        run = device.runs.create("mail", "handler", kind)
        for phase in ["pending", *route]:
            if phase != "pending":
                run = device.runs.advance(run.id, phase)
            with device.unchanged():
                for other in set(ALL_PHASES) - set(PHASES[kind][phase]) | {"nowhere"}:
                    with pytest.raises(IllegalState, match=phase):
                        device.runs.advance(run.id, other)


def test_phases_only_go_forward():
    for phases in PHASES.values():
        order = list(phases)
        assert all(order.index(after) > order.index(before) for before in phases for after in phases[before])
        assert set(order) == {phase for route in phases.values() for phase in route} | {"pending"}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_says_why_a_run_does_not_move(device, status):
    run = device.runs.create("mail", "send", "consumer").id
    if status == "committed":
        with device.unchanged(), pytest.raises(IllegalState, match="cannot become committed"):
            device.runs.set_status(run, status)
        return
    device.now_ms += 1
    changed = device.runs.set_status(run, status, details={"error": "no network"})
    assert (changed.status, changed.phase, changed.details) == (status, "pending", {"error": "no network"})
    assert changed.ended_at == (device.now_ms if status in ENDED else None)
    assert (run in [one.id for one in device.runs.own_incomplete()]) == (status not in ENDED)


@pytest.mark.parametrize("status", sorted(ENDED - {"committed"}))
def test_an_ended_run_never_moves_again(device, status):
    run = device.runs.create("mail", "send", "consumer").id
    device.runs.set_status(run, status)
    with device.unchanged():
        with pytest.raises(IllegalState, match="a retry is a new run"):
            device.runs.advance(run, "preparing")
        with pytest.raises(IllegalState, match=status):
            device.runs.set_status(run, "active")


def test_a_committed_run_never_moves_again(device):
    run = device.runs.create("mail", "poll", "producer").id
    device.runs.advance(run, "executing")
    device.runs.advance(run, "committed")
    with device.unchanged():
        for call in (
            lambda: device.runs.advance(run, "executing"),
            lambda: device.runs.set_status(run, "crashed"),
        ):
            with pytest.raises(IllegalState, match="committed"):
                call()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"workflow": ""}, "workflow"),
        ({"handler": None}, "handler"),
        ({"kind": "watcher"}, "kind"),
        ({"kind": None}, "kind"),
        ({"session": 5}, "session"),
        ({"session": ""}, "session"),
        ({"retry_of": "nobody"}, "id"),
        ({"details": ["list"]}, "details"),
        ({"details": {"a": object()}}, "details"),
        ({"details": {"a": "x" * PAYLOAD_BYTES_MAX}}, "details"),
    ],
)
def test_a_run_that_cannot_be_created_is_explained_and_nothing_is_written(device, change, name):
    arguments = {"workflow": "mail", "handler": "send", "kind": "consumer"} | change
    with device.unchanged(), pytest.raises(InvalidInput) as caught:
        device.runs.create(**arguments)
    assert caught.value.name == name


def test_retrying_an_unknown_run_is_an_error(device):
    with device.unchanged(), pytest.raises(NotFound, match="no such run: 0{32}"):
        device.runs.create("mail", "send", "consumer", retry_of="0" * 32)


def test_moving_an_unknown_run_is_an_error_that_names_it(device):
    with device.unchanged():
        for call in (device.runs.advance, device.runs.set_status):
            with pytest.raises(NotFound, match="no such run: 0{32}"):
                call("0" * 32, "preparing" if call == device.runs.advance else "crashed")


def test_an_unknown_status_is_refused(device):
    run = device.runs.create("mail", "send", "consumer").id
    with device.unchanged(), pytest.raises(InvalidInput, match="'asleep' is not one of active"):
        device.runs.set_status(run, "asleep")


@pytest.mark.parametrize("details", [["list"], {"a": {1, 2}}, {"a": "x" * PAYLOAD_BYTES_MAX}])
def test_details_that_cannot_be_kept_change_nothing(device, details):
    run = device.runs.create("mail", "send", "consumer").id
    with device.unchanged():
        with pytest.raises(InvalidInput, match="details"):
            device.runs.advance(run, "preparing", details=details)
        with pytest.raises(InvalidInput, match="details"):
            device.runs.set_status(run, "crashed", details=details)


def test_a_run_full_of_details_can_still_end(device):
    details = {"a": "x" * (PAYLOAD_BYTES_MAX - 8)}
    run = device.runs.create("mail", "poll", "producer", details=details).id
    device.runs.advance(run, "executing")
    with device.unchanged(), pytest.raises(InvalidInput, match="details"):
        device.runs.advance(run, "committed", details={"b": 1})
    assert device.runs.set_status(run, "failed:internal").details == details


def test_another_node_s_run_is_left_alone(pair):
    one, two = pair
    run = one.runs.create("mail", "send", "consumer").id
    merge(one, two)
    with two.unchanged():
        with pytest.raises(NotOwner, match=f"run {run} belongs to node {one.node}"):
            two.runs.advance(run, "preparing")
        with pytest.raises(NotOwner):
            two.runs.set_status(run, "crashed")
    assert [(found.id, found.node) for found in two.runs.list("mail")] == [(run, one.node)]


def test_lists_are_by_workflow_and_by_session_in_order_of_time(device):
    runs = []
    for number in range(4):
        device.now_ms += 1
        session = f"s{number % 2}"
        runs.append(device.runs.create("mail", "send", "consumer", session=session).id)
    device.runs.create("other", "send", "consumer")
    device.runs.set_status(runs[1], "crashed")
    listed = [run.id for run in device.runs.list("mail")]
    assert listed == runs[::-1]
    assert [run.id for run in device.runs.list("mail", limit=2)] == runs[:1:-1]
    assert [run.id for run in device.runs.by_session("s0")] == [runs[0], runs[2]]


def test_a_chain_of_retries_is_found_from_every_link(device):
    chain = [device.runs.create("mail", "send", "consumer").id]
    for _ in range(4):
        device.runs.set_status(chain[-1], "crashed")
        device.now_ms += 1
        chain.append(device.runs.create("mail", "send", "consumer", retry_of=chain[-1]).id)
    device.runs.create("mail", "send", "consumer")
    for run in chain:
        assert [link.id for link in device.runs.retry_chain(run)] == chain


def test_a_long_chain_of_retries_is_cut_at_a_hundred(device):
    run = device.runs.create("mail", "send", "consumer").id
    for _ in range(120):
        run = device.runs.create("mail", "send", "consumer", retry_of=run).id
    assert len(device.runs.retry_chain(run)) == 100


def test_runs_that_claim_to_retry_each_other_are_listed_once(pair):
    one, two = pair
    first = one.runs.create("mail", "send", "consumer").id
    second = one.runs.create("mail", "send", "consumer", retry_of=first).id
    ((body,),) = one.query(
        "SELECT json_set(body, '$.retry_of', ?) FROM handler_runs WHERE id = unhex(?)", (second, first)
    )
    merge(one, two)
    assert two.forge("handler_runs", bytes.fromhex(first), body, version=9)
    assert sorted(run.id for run in two.runs.retry_chain(first)) == sorted([first, second])


def test_fields_of_a_later_version_are_read_over_and_kept(device):
    run = device.runs.create("mail", "send", "consumer").id
    ((body, progress),) = device.query(
        "SELECT json_set(body, '$.priority', 5), json_set(progress, '$.status', 'dreaming') FROM handler_runs"
    )
    assert device.forge("handler_runs", bytes.fromhex(run), body, version=9)
    assert device.forge("handler_runs", bytes.fromhex(run), progress, column="progress", version=9)
    assert device.runs.get(run).status == "dreaming"
    device.runs.advance(run, "preparing")
    assert device.query("SELECT body ->> '$.priority' FROM handler_runs") == [(5,)]


def test_a_run_without_a_body_counts_as_absent(device):
    assert device.forge("handler_runs", b"r" * 16, None, column="-1")
    assert device.query("SELECT body FROM handler_runs") == [("{}",)]
    assert device.runs.get((b"r" * 16).hex()) is None
    assert device.runs.list("mail") == []


def test_run_ids_of_one_node_sort_by_time(device):
    first = device.runs.new_id()
    device.now_ms += 1
    assert first < device.runs.new_id()


def test_runs_reach_other_devices(pair):
    one, two = pair
    run = one.runs.create("mail", "send", "consumer", details={"Grüße": "🦊"})
    one.runs.advance(run.id, "preparing")
    meet(one, two)
    assert two.runs.get(run.id) == one.runs.get(run.id)


# --- Beginning elsewhere than at the beginning, several steps at a time -----------------------------------------------


def begun(device, phases, *, entry=None):
    """A consumer's run that came so far; with an `entry`, its effect has that status. Returns the run."""
    run = device.runs.create("mail", "send", "consumer").id
    if entry:
        device.mutations.intend(run, work_of(run), tool="send")
        if entry != "in_flight":
            getattr(device.mutations, f"mark_{entry}")(run)
    if phases:
        device.runs.advance(run, *phases)
    return run


TO_MUTATED = ("preparing", "prepared", "mutating", "mutated")


@pytest.mark.parametrize(
    ("kind", "phase"),
    [("producer", "executing"), ("consumer", "preparing"), ("consumer", "prepared"), ("consumer", "pending")],
)
def test_a_run_may_begin_in_a_later_phase_and_pause_there(device, kind, phase):
    name = device.runs.new_id()
    run = device.runs.create(
        "mail", "send", kind, run=name, phase=phase, status="paused:confirmation", details={"a": 1}
    )
    assert (run.id, run.phase, run.status, run.details) == (name, phase, "paused:confirmation", {"a": 1})
    assert device.runs.get(name) == run


@pytest.mark.parametrize(
    ("kind", "phase"),
    [("producer", "preparing"), ("consumer", "executing"), ("consumer", "mutating"), ("consumer", "emitting"),
     ("consumer", "committed"), ("producer", "emitting"), ("consumer", "nowhere")],
)  # fmt: skip
def test_a_new_run_begins_in_no_other_phase(device, kind, phase):
    with device.unchanged(), pytest.raises(InvalidInput, match="a .* run that is new does not begin in"):
        device.runs.create("mail", "send", kind, phase=phase)


@pytest.mark.parametrize("status", [*sorted(ENDED), "asleep"])
def test_a_run_does_not_begin_ended(device, status):
    with device.unchanged(), pytest.raises(InvalidInput, match="status"):
        device.runs.create("mail", "send", "consumer", status=status)


def test_a_run_begins_once(pair):
    one, two = pair
    run = one.runs.create("mail", "send", "consumer").id
    with one.unchanged(), pytest.raises(IllegalState, match="a run begins once"):
        one.runs.create("mail", "send", "consumer", run=run)
    one.publish("a")
    reserved = one.reserve("a")
    merge(one, two)
    with two.unchanged(), pytest.raises(NotOwner):
        two.runs.create("mail", "send", "consumer", run=reserved)
    assert one.runs.create("mail", "send", "consumer", run=reserved).id == reserved


@pytest.mark.parametrize(
    ("phases", "entry", "allowed"),
    [
        ((), None, False),
        (TO_MUTATED[:2], None, False),
        (TO_MUTATED[:3], None, False),
        (TO_MUTATED, None, True),
        (("preparing", "prepared", "emitting"), None, True),
        (TO_MUTATED[:3], "in_flight", False),
        (TO_MUTATED[:3], "indeterminate", False),
        (TO_MUTATED[:3], "applied", True),
        (TO_MUTATED, "applied", True),
        (TO_MUTATED[:3], "failed", False),
        (TO_MUTATED, "failed", False),
        ((*TO_MUTATED, "emitting", "committed"), "applied", False),
        ((*TO_MUTATED, "emitting", "committed"), None, False),
    ],
)
def test_a_run_goes_on_with_another_one_s_work_only_beyond_the_effect(device, phases, entry, allowed):
    before = begun(device, phases, entry=entry)
    if not allowed:
        with device.unchanged(), pytest.raises(IllegalState, match="must begin from the beginning"):
            device.runs.create("mail", "send", "consumer", retry_of=before, phase="emitting")
        return
    run = device.runs.create("mail", "send", "consumer", retry_of=before, phase="emitting")
    assert (run.phase, run.retry_of) == ("emitting", before)
    again = device.runs.create("mail", "send", "consumer", retry_of=run.id, phase="emitting")
    assert device.runs.advance(again.id, "committed").status == "committed"


def test_a_verdict_lets_a_run_go_on_with_another_device_s_work(pair):
    one, two = pair
    before = begun(one, TO_MUTATED[:3], entry="indeterminate")
    merge(one, two)
    two.mutations.resolve(work_of(before), "happened", by="Ann")
    assert two.runs.create("mail", "send", "consumer", retry_of=before, phase="emitting").node == two.node


def test_several_steps_are_one_write(device):
    run = device.runs.create("mail", "send", "consumer", phase="preparing").id
    version = device.database.version()
    moved = device.runs.advance(run, "prepared", "emitting", "committed", details={"cost": 5})
    assert (moved.phase, moved.status, moved.ended_at, moved.details) == ("committed", "committed", NOW_MS, {"cost": 5})
    assert device.runs.get(run) == moved
    written = [row[2] for row in device.changes() if row[5] > version]
    assert written == ["ended"]


def test_several_steps_are_taken_together_or_not_at_all(device):
    run = device.runs.create("mail", "send", "consumer").id
    with device.unchanged():
        with pytest.raises(IllegalState, match="next comes mutating or emitting, not mutated"):
            device.runs.advance(run, "preparing", "prepared", "mutated")
        with pytest.raises(InvalidInput, match="name at least one"):
            device.runs.advance(run)


def test_what_moves_is_active_unless_it_is_said_otherwise(device):
    run = device.runs.create("mail", "send", "consumer").id
    assert (
        device.runs.advance(run, "preparing", "prepared", status="paused:confirmation").status == "paused:confirmation"
    )
    assert device.runs.advance(run, "mutating").status == "active"
    ended = device.runs.advance(run, "mutated", status="failed:logic", details={"error": "no"})
    assert (ended.phase, ended.status, ended.details) == ("mutated", "failed:logic", {"error": "no"})
    assert device.runs.get(run) == ended


@pytest.mark.parametrize(
    ("phase", "status"), [("preparing", "committed"), ("preparing", "asleep"), ("committed", "crashed")]
)
def test_a_phase_and_a_status_that_contradict_each_other_are_refused(device, phase, status):
    run = device.runs.create("mail", "send", "consumer").id
    with device.unchanged(), pytest.raises(InvalidInput, match="status"):
        device.runs.advance(run, phase, status=status)


def test_a_run_keeps_its_details_in_all_its_cells(device):
    run = device.runs.create("mail", "send", "consumer", details={"a": 1, "b": 1}).id
    device.runs.advance(run, "preparing", details={"b": 2, "c": 2})
    ended = device.runs.set_status(run, "failed:logic", details={"c": 3})
    assert ended.details == device.runs.get(run).details == {"a": 1, "b": 2, "c": 3}


# --- Lists for a runtime and for people -------------------------------------------------------------------------------


def test_what_has_not_ended_of_this_node_is_found_whichever_process_began_it(pair, opened):
    one, two = pair
    theirs = two.runs.create("mail", "send", "consumer").id
    merge(two, one)
    runs = [one.runs.create(workflow, "send", "consumer").id for workflow in ("mail", "mail", "other")]
    one.runs.set_status(runs[0], "superseded")
    one.close()
    again = opened(Device(one.path, seed=9))
    own = [again.runs.create("mail", "poll", "producer").id]
    assert [run.id for run in again.runs.own_incomplete()] == sorted(runs[1:] + own)
    assert theirs in [run.id for run in again.runs.list("mail", status="active")]


def test_the_newest_runs_of_a_handler_come_first(pair):
    one, two = pair
    runs = []
    for number in range(4):
        for device in pair:
            device.now_ms += 1
        device = pair[number % 2]
        runs.append(device.runs.create("mail", "send", "consumer").id)
        device.runs.create("mail", "other", "consumer")
    meet(one, two)
    assert [run.id for run in one.runs.recent("mail", "send")] == runs[::-1]
    assert [run.id for run in one.runs.recent("mail", "send", limit=2)] == runs[:1:-1]
    assert [run.id for run in one.runs.recent("mail", "send", node=two.node)] == [runs[3], runs[1]]
    assert one.runs.recent("mail", "nobody") == []


def test_runs_are_listed_by_whatever_is_asked_for(device):
    runs = {}
    for number, (workflow, handler, status) in enumerate(
        itertools.product(["mail", "news"], ["poll", "send"], ["active", "crashed", "lost"])
    ):
        device.now_ms = NOW_MS + number
        runs[workflow, handler, status] = device.runs.create(workflow, handler, "consumer").id
        if status != "active":
            device.runs.set_status(runs[workflow, handler, status], status)
    choices = [[None, "mail", "none"], [None, "send", "none"], [None, "crashed", "active"]]
    for workflow, handler, status in itertools.product(*choices):
        expected = [
            run
            for key, run in reversed(runs.items())
            if all(wanted in (None, is_) for wanted, is_ in zip((workflow, handler, status), key, strict=True))
        ]
        found = device.runs.list(workflow, handler, status)
        assert [run.id for run in found] == expected
        assert device.runs.list(workflow, handler, status, limit=2) == found[:2]


def test_a_run_is_found_by_the_beginning_of_its_id(device):
    run = device.runs.create("mail", "send", "consumer")
    device.now_ms += 10**12
    device.runs.create("mail", "send", "consumer")
    assert device.runs.find(run.id[:10].upper()) == run
    assert device.runs.find("ffff") is None
    with pytest.raises(InvalidInput, match="beginning of an id"):
        device.runs.find("xyz1")
    other = run.id[:20] + "0" * 12
    assert device.forge("handler_runs", bytes.fromhex(other), run_body())
    with pytest.raises(Ambiguous):
        device.runs.find(run.id[:20])


@pytest.mark.parametrize("limit", [0, -1, 10**9, "ten"])
def test_a_limit_is_a_limit(device, limit):
    for call in (
        lambda: device.runs.recent("mail", "send", limit=limit),
        lambda: device.runs.list(limit=limit),
    ):
        with pytest.raises(InvalidInput, match="limit"):
            call()


# --- Polls ------------------------------------------------------------------------------------------------------------


def test_a_poll_is_no_run_until_it_is_recorded(device):
    run = device.runs.new_id()
    before = device.database.version()
    device.runs.begin_poll("mail", "poll", run=run, session="s1")
    assert (device.runs.polls(), device.runs.list(), device.database.version()) == ({run: device.node}, [], before)
    device.now_ms += 1_000
    recorded = device.runs.record_poll(run)
    assert device.runs.get(run) == recorded
    assert (recorded.kind, recorded.phase, recorded.status) == ("producer", "executing", "active")
    assert (recorded.started_at, recorded.session, recorded.retry_of) == (NOW_MS, "s1", None)
    assert recorded.incarnation == device.database.incarnation.hex()
    assert (device.runs.polls(), device.runs.record_poll(run)) == ({}, None)
    assert device.runs.advance(run, "committed").ended_at == NOW_MS + 1_000


def test_a_poll_that_is_forgotten_was_never_there(device):
    run = device.runs.new_id()
    device.runs.begin_poll("mail", "poll", run=run, session="s1")
    device.runs.forget_poll(run)
    assert (device.runs.polls(), device.runs.record_poll(run), device.runs.list()) == ({}, None, [])


def test_a_poll_needs_names(device):
    with pytest.raises(InvalidInput, match="handler"):
        device.runs.begin_poll("mail", "", run=device.runs.new_id(), session="s1")
    assert device.runs.polls() == {}
