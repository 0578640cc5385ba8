from contextlib import closing

import pytest
from devices import NOW_MS, Device, deletion, meet, merge, mutation_body, reservation_body, verdict_body, work_of

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, NotFound, NotOwner, PermitRefused
from leasemesh.node.model.jsonvalue import PAYLOAD_BYTES_MAX
from leasemesh.node.stores.mutations import MUTATION_TRANSITIONS

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
    for call in (two.mutations.create, two.mutations.intend):
        with two.unchanged(), pytest.raises(NotOwner, match=f"belongs to node {one.node}"):
            call(run, work_of(run), tool="send")


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


# --- Intent -----------------------------------------------------------------------------------------------------------


def test_an_intent_is_entered_and_in_flight_in_one_write(device):
    device.publish("a")
    run = device.reserve("a")
    version = device.database.version()
    entry = device.mutations.intend(run, work_of(run), tool="send", params={"to": "Ann"})
    assert (entry.status, entry.params) == ("in_flight", {"to": "Ann"})
    assert device.mutations.get(run) == entry
    assert device.database.version() == version + 1
    assert device.status("a") == "unknown"


@pytest.mark.parametrize("call", ["intend", "mark_in_flight"])
def test_an_intent_is_durable_or_refused(device, call):
    run = device.runs.new_id()
    device.mutations.create(run, work_of(run), tool="send")

    def begin():
        if call == "intend":
            return device.mutations.intend(run, work_of(run), tool="send")
        return device.mutations.mark_in_flight(run)

    with device.unchanged(), pytest.raises(DatabaseError, match="durable=True"), device.database.transaction():
        begin()
    with device.database.transaction(durable=True):
        assert begin().status == "in_flight"


@pytest.mark.parametrize(("work", "tool"), [("1" * 32, "send"), (None, "call")])
def test_a_run_has_one_effect(device, work, tool):
    run = device.runs.new_id()
    device.mutations.create(run, work_of(run), tool="send")
    with device.unchanged(), pytest.raises(IllegalState, match="it has one"):
        device.mutations.intend(run, work or work_of(run), tool=tool)


def test_an_effect_in_flight_is_not_intended_again(device):
    run, work = working(device)
    with device.unchanged(), pytest.raises(IllegalState, match="in_flight"):
        device.mutations.intend(run, work, tool="send")


@pytest.mark.parametrize(("status", "allowed"), [(status, status in ("pending", "failed")) for status in WAYS])
def test_what_another_run_did_or_may_have_done_is_not_begun_once_more(device, status, allowed):
    _, work = working(device, status=status)
    again = device.runs.new_id()
    if allowed:
        assert device.mutations.intend(again, work, tool="send").status == "in_flight"
        return
    with device.unchanged(), pytest.raises(IllegalState, match=f"work {work} is (applied|unknown)"):
        device.mutations.intend(again, work, tool="send")


@pytest.mark.parametrize(("verdict", "allowed"), [("happened", False), ("skip", False), ("not_happened", True)])
def test_what_a_person_said_of_a_work_decides_whether_it_is_begun_again(device, verdict, allowed):
    _, work = working(device, status="indeterminate")
    device.mutations.resolve(work, verdict, by="Ann")
    again = device.runs.new_id()
    if allowed:
        assert device.mutations.intend(again, work, tool="send").status == "in_flight"
        return
    with device.unchanged(), pytest.raises(IllegalState, match="its effect is not begun once more"):
        device.mutations.intend(again, work, tool="send")


@pytest.mark.parametrize("known_by", ["its reservation", "its handler run"])
def test_a_later_start_does_not_begin_the_effect_of_an_earlier_run(device, known_by):
    device.publish("a")
    run = device.reserve("a") if known_by == "its reservation" else device.runs.create("mail", "send", "consumer").id
    device.close()
    with closing(Device(device.path, seed=9)) as again:
        with again.unchanged(), pytest.raises(IllegalState, match=f"run {run} is of an earlier start of this node"):
            again.mutations.intend(run, work_of(run), tool="send")
        with again.unchanged(), pytest.raises(IllegalState, match="begin a new run for its effect"):
            again.mutations.create(run, work_of(run), tool="send")


def test_a_later_start_tells_what_became_of_an_effect_in_flight(device):
    run, work = working(device)
    device.close()
    with closing(Device(device.path, seed=9)) as again:
        again.mutations.mark_needs_reconcile(run, at=NOW_MS)
        assert again.mutations.mark_applied(run, "sent").status == "applied"
        assert again.mutations.outcome(work) == "applied"


def test_an_entry_whose_progress_has_not_come_yet_may_be_in_flight(device):
    assert device.forge("mutations", b"r" * 16, mutation_body("1" * 32))
    entry = device.mutations.get((b"r" * 16).hex())
    assert (entry.status, entry.reconcile_attempts, entry.updated_at) == ("in_flight", 0, NOW_MS)
    assert device.mutations.outcome("1" * 32) == "unknown"


def test_an_outcome_is_one_cell_and_leaves_the_others_alone(device):
    run, _ = working(device, status="needs_reconcile")
    version = device.database.version()
    device.mutations.mark_applied(run, {"id": 5})
    assert [row[2] for row in device.changes() if row[5] > version] == ["outcome"]


# --- Which work a run does, and what came of it -----------------------------------------------------------------------


def test_the_work_of_a_run_is_made_of_its_handler_and_all_its_events(device):
    device.publish("a", "b")
    run = device.reserve("a", "b", handler="send")
    events = [device.event(name).id for name in ("b", "a")]
    assert device.mutations.work_for(run) == ids.work_id(ids.handler_id("mail", "send"), events)


def test_a_run_without_a_reservation_has_no_work(device):
    with pytest.raises(NotFound, match="no such reservation of run: 0{32}"):
        device.mutations.work_for("0" * 32)


def test_the_work_of_a_run_stays_what_its_entry_says(device):
    run, work = working(device)
    assert device.mutations.work_for(run) == work


@pytest.mark.parametrize(
    ("before", "verdict", "generation"),
    [
        ("failed", None, 0),
        ("indeterminate", "not_happened", 1),
        ("in_flight", "not_happened", 0),
        ("indeterminate", "happened", 0),
        ("indeterminate", "skip", 0),
    ],
)
def test_the_next_generation_of_a_work_comes_after_a_verdict_that_counts(device, before, verdict, generation):
    device.publish("a")
    run = device.reserve("a")
    work = device.mutations.work_for(run)
    device.mutations.create(run, work, tool="send")
    for mark in WAYS[before]:
        MARKS[mark](device.mutations, run)
    if verdict:
        device.mutations.resolve(work, verdict, by="Ann")
    # As an event that is free again would be claimed.
    again = device.runs.new_id()
    claims = [(device.event("a").id, 2)]
    body = reservation_body(claims, node=device.node, handler="manual", incarnation=device.database.incarnation.hex())
    assert device.forge("reservations", bytes.fromhex(again), body)
    expected = ids.work_id(ids.handler_id("mail", "manual"), [device.event("a").id], generation)
    assert device.mutations.work_for(again) == expected


def test_a_verdict_that_others_contradict_ends_no_generation(pair):
    one, two = pair
    one.publish("a")
    run = one.reserve("a")
    work = one.mutations.work_for(run)
    one.mutations.intend(run, work, tool="send")
    one.mutations.mark_indeterminate(run)
    merge(one, two)
    one.mutations.resolve(work, "not_happened", by="Ann")
    two.mutations.resolve(work, "happened", by="Bob", result=7)
    meet(one, two)
    assert {device.mutations.outcome(work) for device in pair} == {"applied"}
    again = b"s" * 16
    assert one.forge("reservations", again, reservation_body([(one.event("a").id, 2)], handler="manual"))
    assert one.mutations.work_for(again.hex()) == work
    assert one.mutations.result_of(work) == 7


def test_the_result_of_a_work_is_that_of_the_run_that_did_it_before_any_person_s(device):
    run, work = working(device, status="indeterminate")
    assert device.mutations.result_of(work) is None
    device.mutations.resolve(work, "skip", by="Ann", result="skipped")
    assert device.mutations.result_of(work) is None
    device.mutations.resolve(work, "happened", by="Ann", result="as Ann says")
    assert device.mutations.result_of(work) == "as Ann says"
    device.mutations.mark_applied(run, "as it was")
    assert device.mutations.result_of(work) == "as it was"
    assert device.mutations.result_of("0" * 32) is None


def test_a_person_s_word_counts_on_work_of_which_only_a_permit_is_known(device):
    device.publish("a")
    device.authorities.appoint(device.node, by="Ann")
    device.authorities.step()
    run = device.reserve("a")
    work = device.permits.request(run).work
    device.permits.decide_pending()
    assert device.mutations.outcome(work) == "none"
    for verdict, outcome in (("not_happened", "failed"), ("skip", "skipped"), ("happened", "applied")):
        device.mutations.resolve(work, verdict, by="Ann")
        assert device.mutations.outcome(work) == outcome


def test_an_effect_is_begun_for_the_work_that_was_permitted(device):
    device.publish("a")
    device.authorities.appoint(device.node, by="Ann")
    device.authorities.step()
    run = device.reserve("a")
    work = device.permits.request(run).work
    device.permits.decide_pending()
    with device.unchanged(), pytest.raises(PermitRefused, match=f"it is for work {work}, not for 1{{32}}"):
        device.mutations.intend(run, "1" * 32, tool="send")
    assert device.mutations.intend(run, work, tool="send").status == "in_flight"


def test_the_next_reconciliation_of_this_node_is_known(pair):
    one, two = pair
    assert one.mutations.next_due_at() is None
    first, _ = working(one, "a")
    second, _ = working(one, "b")
    one.mutations.mark_needs_reconcile(first, at=NOW_MS + 50)
    one.mutations.mark_needs_reconcile(second, at=NOW_MS + 20)
    assert one.mutations.next_due_at() == NOW_MS + 20
    one.mutations.mark_applied(second)
    assert one.mutations.next_due_at() == NOW_MS + 50
    merge(one, two)
    assert two.mutations.next_due_at() is None


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
