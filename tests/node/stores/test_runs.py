import pytest
from devices import NOW_MS, meet, merge

from node.errors import IllegalState, InvalidInput, NotFound, NotOwner
from node.jsonvalue import PAYLOAD_BYTES_MAX
from node.stores.runs import ENDED, PHASES, STATUSES

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
    assert device.runs.incomplete("mail") == []
    assert device.runs.by_session("s1") == []
    assert device.runs.by_workflow("mail") == []
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
    assert (run in [one.id for one in device.runs.incomplete("mail")]) == (status not in ENDED)


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
    assert [(found.id, found.node) for found in two.runs.incomplete("mail")] == [(run, one.node)]


def test_lists_are_by_workflow_and_by_session_in_order_of_time(device):
    runs = []
    for number in range(4):
        device.now_ms += 1
        session = f"s{number % 2}"
        runs.append(device.runs.create("mail", "send", "consumer", session=session).id)
    device.runs.create("other", "send", "consumer")
    device.runs.set_status(runs[1], "crashed")
    listed = [run.id for run in device.runs.by_workflow("mail")]
    assert listed == runs[::-1]
    assert [run.id for run in device.runs.by_workflow("mail", limit=2)] == runs[:1:-1]
    assert [run.id for run in device.runs.by_session("s0")] == [runs[0], runs[2]]
    assert [run.id for run in device.runs.incomplete("mail")] == [runs[0], runs[2], runs[3]]
    assert [run.id for run in device.runs.incomplete("mail", limit=1)] == [runs[0]]


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
    assert device.runs.by_workflow("mail") == []


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
