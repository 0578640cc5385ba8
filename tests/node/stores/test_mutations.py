import pytest
from devices import NOW_MS, deletion, meet, merge, mutation_body, verdict_body, work_of

from node import ids
from node.errors import IllegalState, InvalidInput, NotFound, NotOwner
from node.jsonvalue import PAYLOAD_BYTES_MAX
from node.stores.mutations import MUTATION_TRANSITIONS

MARKS = {
    "in_flight": lambda store, run: store.mark_in_flight(run),
    "applied": lambda store, run: store.mark_applied(run, {"sent": True}),
    "failed": lambda store, run: store.mark_failed(run, "refused"),
    "needs_reconcile": lambda store, run: store.mark_needs_reconcile(run, at=NOW_MS + 10),
    "indeterminate": lambda store, run: store.mark_indeterminate(run, "time-out"),
}
WAYS = {
    "pending": [],
    "in_flight": ["in_flight"],
    "applied": ["in_flight", "applied"],
    "failed": ["in_flight", "failed"],
    "needs_reconcile": ["in_flight", "needs_reconcile"],
    "indeterminate": ["in_flight", "indeterminate"],
}


def working(device, message_id="a", status="in_flight"):
    """Reserve an event for a run whose effect has that status; returns run and work."""
    device.publish(message_id)
    run = device.reserve(message_id)
    device.mutations.create(run, work_of(run), tool="send", params={"to": "Ann"})
    for mark in WAYS[status]:
        MARKS[mark](device.mutations, run)
    return run, work_of(run)


def test_an_effect_is_entered_once_for_a_run(device):
    run = device.runs.new_id()
    first = device.mutations.create(run, work_of(run), tool="send", params={"to": "Ann"})
    assert (first.run, first.work, first.tool, first.params, first.status) == (
        run,
        work_of(run),
        "send",
        {"to": "Ann"},
        "pending",
    )
    assert device.mutations.get(run) == first
    with device.unchanged():
        assert device.mutations.create(run, work_of("0" * 32), tool="other") == first


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"run": "me"}, "id"),
        ({"work": "work"}, "id"),
        ({"tool": ""}, "tool"),
        ({"params": object()}, "params"),
        ({"params": "x" * PAYLOAD_BYTES_MAX}, "params"),
    ],
)
def test_an_effect_that_cannot_be_entered_is_explained_and_nothing_is_written(device, change, name):
    arguments = {"run": "0" * 32, "work": "1" * 32, "tool": "send", "params": None} | change
    with device.unchanged(), pytest.raises(InvalidInput) as caught:
        device.mutations.create(**arguments)
    assert caught.value.name == name


@pytest.mark.parametrize("before", MUTATION_TRANSITIONS)
@pytest.mark.parametrize("after", MARKS)
def test_an_entry_changes_as_its_table_says_and_not_otherwise(device, before, after):
    run, _ = working(device, status=before)
    if after in MUTATION_TRANSITIONS[before]:
        assert MARKS[after](device.mutations, run).status == after
        assert device.mutations.get(run).status == after
    else:
        with device.unchanged(), pytest.raises(IllegalState, match=f"effect of run {run} is {before}"):
            MARKS[after](device.mutations, run)


def test_marking_an_unknown_effect_is_an_error_that_names_the_run(device):
    with device.unchanged():
        for mark in MARKS.values():
            with pytest.raises(NotFound, match="no such effect of run: 0{32}"):
                mark(device.mutations, "0" * 32)


def test_another_node_s_effect_is_left_alone(pair):
    one, two = pair
    run, _ = working(one)
    merge(one, two)
    with two.unchanged():
        for call in (
            *(lambda mark=mark: mark(two.mutations, run) for mark in MARKS.values()),
            lambda: two.mutations.schedule_reconcile(run, at=5),
            lambda: two.mutations.create(run, work_of(run), tool="send"),
        ):
            with pytest.raises(NotOwner, match=f"run {run} belongs to node {one.node}"):
                call()


@pytest.mark.parametrize("known_by", ["its reservation", "its handler run"])
def test_no_effect_is_entered_for_another_node_s_run(pair, known_by):
    one, two = pair
    one.publish("a")
    run = one.reserve("a") if known_by == "its reservation" else one.runs.create("mail", "send", "consumer").id
    merge(one, two)
    with two.unchanged(), pytest.raises(NotOwner, match=f"belongs to node {one.node}"):
        two.mutations.create(run, work_of(run), tool="send")


def test_an_outcome_is_never_refused_for_the_size_of_the_params(device):
    run = device.runs.new_id()
    device.mutations.create(run, work_of(run), tool="send", params="x" * (PAYLOAD_BYTES_MAX - 2))
    device.mutations.mark_in_flight(run)
    assert device.mutations.mark_applied(run, "y" * (PAYLOAD_BYTES_MAX - 2)).status == "applied"


@pytest.mark.parametrize("result", [object(), "x" * PAYLOAD_BYTES_MAX])
def test_a_result_that_cannot_be_kept_changes_nothing(device, result):
    run, work = working(device)
    with device.unchanged():
        for call in (device.mutations.mark_applied, device.mutations.mark_failed, device.mutations.mark_indeterminate):
            with pytest.raises(InvalidInput, match="result"):
                call(run, result)
        with pytest.raises(InvalidInput, match="result"):
            device.mutations.resolve(work, "happened", by="Ann", result=result)


@pytest.mark.parametrize("at", [-1, "soon", None, 2**53, 1.5])
def test_a_time_of_reconciliation_is_a_time(device, at):
    run, _ = working(device)
    with device.unchanged():
        for call in (device.mutations.mark_needs_reconcile, device.mutations.schedule_reconcile):
            with pytest.raises(InvalidInput, match="at"):
                call(run, at=at)


def test_an_effect_in_flight_keeps_its_events_whatever_its_claim_says(device):
    run, _ = working(device)
    assert device.status("a") == "unknown"
    device.forge("reservations", bytes.fromhex(run), "released", column="state", version=2)
    assert device.status("a") == "unknown"
    assert device.pending() == []


def test_an_effect_in_flight_keeps_its_events_on_other_devices_and_after_a_take_over_attempt(pair):
    one, two = pair
    run, _ = working(one)
    merge(one, two)
    assert two.status("a") == "unknown"
    assert two.event("a").run == run
    with pytest.raises(IllegalState, match="unknown"):
        two.events.take_over(two.runs.new_id(), [two.event("a").id])


@pytest.mark.parametrize("status", ["pending", "failed"])
def test_an_event_is_free_again_when_its_effect_did_not_happen(device, status):
    run, _ = working(device, status=status)
    assert device.events.release(run) == 1
    assert device.status("a") == "pending"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("in_flight", "is unknown"),
        ("needs_reconcile", "is unknown"),
        ("indeterminate", "is unknown"),
        ("applied", "is applied"),
    ],
)
def test_what_happened_or_may_have_is_not_released(device, status, reason):
    run, _ = working(device, status=status)
    with device.unchanged(), pytest.raises(IllegalState, match=reason):
        device.events.release(run)


def test_an_entry_in_flight_after_a_crash_is_unresolved_and_stays_so(device):
    run, work = working(device)
    device.database.reopen()
    (entry,) = device.mutations.unresolved()
    assert (entry.run, entry.node, entry.tool, entry.params, entry.created_at) == (
        run,
        device.node,
        "send",
        {"to": "Ann"},
        NOW_MS,
    )
    assert device.mutations.outcome(work) == "unknown"


def test_reconciliation_is_due_in_its_order_and_counts_its_attempts(device):
    first, _ = working(device, "a", "needs_reconcile")
    second, _ = working(device, "b")
    device.mutations.mark_needs_reconcile(second, at=NOW_MS + 5)
    assert device.mutations.due(NOW_MS + 4) == []
    assert [entry.run for entry in device.mutations.due(NOW_MS + 10)] == [second, first]
    again = device.mutations.schedule_reconcile(second, at=NOW_MS + 1000)
    assert (again.reconcile_attempts, again.next_reconcile_at) == (1, NOW_MS + 1000)
    assert [entry.run for entry in device.mutations.due(NOW_MS + 10)] == [first]
    assert [entry.run for entry in device.mutations.due(NOW_MS + 1000, limit=1)] == [first]
    device.mutations.mark_applied(first)
    device.mutations.mark_failed(second)
    assert device.mutations.due(NOW_MS + 10_000) == []


def test_only_the_own_node_s_reconciliation_is_due(pair):
    one, two = pair
    working(one, status="needs_reconcile")
    merge(one, two)
    assert two.mutations.due(NOW_MS + 10_000) == []
    assert len(two.mutations.unresolved()) == 1


@pytest.mark.parametrize("status", WAYS)
def test_the_outcome_of_one_run(device, status):
    _, work = working(device, status=status)
    outcomes = {"pending": "none", "applied": "applied", "failed": "failed"}
    assert device.mutations.outcome(work) == outcomes.get(status, "unknown")


def test_the_outcome_of_work_that_was_never_tried_is_none(device):
    assert device.mutations.outcome("0" * 32) == "none"


def test_the_outcome_is_folded_from_all_runs_of_the_work(pair):
    one, two = pair
    run, work = working(one)
    two.mutations.mark_applied(two.mutations.intend(two.runs.new_id(), work, tool="send").run)
    meet(one, two)
    assert one.mutations.outcome(work) == two.mutations.outcome(work) == "applied"
    assert one.mutations.unresolved() == []
    assert one.status("a") == "reserved"


@pytest.mark.parametrize(
    ("verdicts", "in_flight", "indeterminate"),
    [
        (["happened"], "applied", "applied"),
        (["skip"], "skipped", "skipped"),
        (["not_happened"], "unknown", "failed"),
        (["not_happened", "skip"], "skipped", "skipped"),
        (["skip", "happened"], "applied", "applied"),
        (["not_happened", "happened"], "applied", "applied"),
    ],
)
def test_verdicts_of_several_people_meet_by_precedence(trio, verdicts, in_flight, indeterminate):
    one, *others = trio
    run, work = working(one)
    for device, verdict in zip(others, verdicts, strict=False):
        merge(one, device)
        device.mutations.resolve(work, verdict, by="Ann")
    meet(*trio)
    assert {device.mutations.outcome(work) for device in trio} == {in_flight}
    one.mutations.mark_indeterminate(run)
    meet(*trio)
    assert {device.mutations.outcome(work) for device in trio} == {indeterminate}
    assert {device.status("a") for device in trio} == {"unknown" if indeterminate == "unknown" else "reserved"}


def test_not_happened_counts_only_after_the_holder_has_stopped(device):
    run, work = working(device)
    device.mutations.resolve(work, "not_happened", by="Ann")
    with device.unchanged(), pytest.raises(IllegalState, match="is unknown"):
        device.events.release(run)
    device.mutations.mark_indeterminate(run)
    device.events.release(run)
    assert device.status("a") == "pending"


def test_a_verdict_is_kept_with_who_gave_it_and_a_later_one_replaces_it(device):
    _, work = working(device, status="indeterminate")
    device.mutations.resolve(work, "skip", by="Ann")
    device.now_ms += 5
    given = device.mutations.resolve(work, "happened", by="Bob", result={"seen": True})
    assert device.mutations.verdicts(work) == [given]
    assert (given.by, given.verdict, given.node, given.at, given.result) == (
        "Bob",
        "happened",
        device.node,
        NOW_MS + 5,
        {"seen": True},
    )
    assert device.mutations.verdicts("0" * 32) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"verdict": "maybe"}, InvalidInput), ({"verdict": None}, InvalidInput), ({"by": ""}, InvalidInput),
        ({"work": "0" * 32}, NotFound),
    ],
)  # fmt: skip
def test_a_verdict_that_cannot_be_accepted_changes_nothing(device, change, error):
    _, work = working(device)
    arguments = {"work": work, "verdict": "happened", "by": "Ann"} | change
    with device.unchanged(), pytest.raises(error):
        device.mutations.resolve(arguments["work"], arguments["verdict"], by=arguments["by"])


def test_resolved_entries_of_a_lost_node_do_not_hide_the_unresolved(pair):
    one, two = pair
    resolved = [working(one, f"m{number}", "indeterminate")[1] for number in range(5)]
    _, open_work = working(one, "open", "indeterminate")
    merge(one, two)
    for work in resolved:
        two.mutations.resolve(work, "skip", by="Ann")
    assert [entry.work for entry in two.mutations.unresolved(limit=2)] == [open_work]


@pytest.mark.parametrize("table", ["mutations", "verdicts"])
def test_what_a_peer_deletes_or_empties_no_longer_counts(device, table):
    run, work = working(device, status="indeterminate")
    device.mutations.resolve(work, "happened", by="Ann")
    assert device.status("a") == "reserved"
    ((identifier,),) = device.query(f"SELECT id FROM {table}")
    with device.discarded():
        assert device.absorb([deletion(table, identifier)]) == []
        assert device.status("a") == ("unknown" if table == "verdicts" else "reserved")
    assert device.forge(table, identifier, "{}", version=9)
    assert device.status("a") == ("unknown" if table == "verdicts" else "reserved")


def test_an_entry_moved_to_other_work_counts_there(device):
    first, work = working(device, "a")
    second, other = working(device, "b", "pending")
    assert (device.status("a"), device.status("b")) == ("unknown", "reserved")
    assert device.forge("mutations", bytes.fromhex(first), mutation_body(other), version=9)
    assert (device.mutations.outcome(work), device.mutations.outcome(other)) == ("none", "unknown")
    assert (device.status("a"), device.status("b")) == ("unknown", "unknown")
    assert device.forge("mutations", bytes.fromhex(first), "{}", version=10)
    assert (device.status("a"), device.status("b")) == ("reserved", "reserved")


def test_a_verdict_moved_to_other_work_counts_there(device):
    _, work = working(device, "a")
    _, other = working(device, "b")
    device.mutations.resolve(work, "happened", by="Ann")
    ((identifier,),) = device.query("SELECT id FROM verdicts")
    assert device.forge("verdicts", identifier, verdict_body(other, "skip"), version=9)
    assert (device.status("a"), device.status("b")) == ("unknown", "reserved")
    assert (device.mutations.outcome(work), device.mutations.outcome(other)) == ("unknown", "skipped")


def test_a_later_run_of_the_same_work_finds_what_the_effect_returned(device):
    first = device.runs.create("mail", "send", "consumer").id
    device.mutations.create(first, work_of(first), tool="send")
    device.mutations.mark_in_flight(first)
    device.mutations.mark_applied(first, {"id": 77})
    device.runs.set_status(first, "crashed")
    retry = device.runs.create("mail", "send", "consumer", retry_of=first)
    results = [
        device.mutations.get(run.id).result for run in device.runs.retry_chain(retry.id) if device.mutations.get(run.id)
    ]
    assert results == [{"id": 77}]


def test_two_devices_offer_one_key_for_the_same_work(pair):
    one, two = pair
    one.publish("a", "b")
    merge(one, two)
    handler = ids.handler_id("mail", "send")
    keys = set()
    for device, names in ((one, ["a", "b"]), (two, ["b", "a"])):
        run = device.reserve(*names)
        claimed = device.events.reservation(run).claims
        keys.add(device.mutations.create(run, ids.work_id(handler, claimed), tool="send").work)
    assert len(keys) == 1
