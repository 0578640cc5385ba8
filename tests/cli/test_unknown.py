"""unknown and resolve, and what status and why tell about effects of unknown outcome."""

import json
import shlex

import pytest
from cli_devices import meet, work_until
from shops import Retry, charging

from leasemesh import Node, RetryRule

HUNG_UP = ConnectionResetError("the service hung up")


def unknown_charge(path, **options):
    """Let the one free order, order-9, be charged with an unknown outcome."""
    with Node.open(path) as node:
        node.reserve("shop", "orders", limit=9).consume()
    work_until(path, charging(iter([HUNG_UP]), mode="soft", **options), lambda node: node.mutations.unresolved())


@pytest.fixture
def charged(database):
    """./leasemesh.db, where nobody knows whether order-9 was charged."""
    unknown_charge(database)
    return database


def unknown_in(leasemesh, *options):
    return leasemesh("unknown", "--json", *options).document


def go_on(path, outcomes=(), **options):
    """Run the app until no order is left."""
    work_until(
        path,
        charging(iter(outcomes), mode="soft", **options),
        lambda node: (
            not any(node.peek("shop", "orders", status=status) for status in ("pending", "reserved", "unknown"))
        ),
    )


def test_an_unknown_effect_is_listed_with_all_that_a_person_needs(leasemesh, charged, other):
    meet(charged, other)
    (found,) = unknown_in(leasemesh, "--db", other)["unknown"]
    assert (found["tool"], found["params"]) == ("charge", {"order": "order-9", "amount": 9})
    assert (found["device"], found["workflow"], found["handler"]) == ("laptop", "shop", "charge")
    assert (found["status"], found["reconcile_attempts"]) == ("indeterminate", 0)
    assert found["events"] == ["shop/orders/order-9"]
    assert found["resolve"] == [
        f"leasemesh resolve {found['work'][:10]} {verdict}" for verdict in ("happened", "not-happened", "skip")
    ]
    text = leasemesh("unknown", "--db", other).out
    assert text.startswith("charge of shop/charge on laptop, begun 20")
    for said in (
        "nobody knows whether it happened: ConnectionResetError: the service hung up; only a person can tell",
        'params  {"order": "order-9", "amount": 9}',
        f"work    {found['work']}, run {found['run'][:16]}",
        f"leasemesh resolve {found['work'][:10]} not-happened  # it is done again",
    ):
        assert said in text


def test_what_was_tried_and_when_it_is_tried_again_is_told(leasemesh, database):
    with Node.open(database) as node:
        node.reserve("shop", "orders", limit=9).consume()
    asked = iter([Retry("busy"), Retry("still busy")])
    work_until(
        database,
        charging(iter([HUNG_UP]), mode="soft", reconciled=asked),
        lambda node: node.mutations.unresolved() and node.mutations.unresolved()[0].status == "needs_reconcile",
        retry=RetryRule(first_ms=60_000, most_ms=60_000),
    )
    (found,) = unknown_in(leasemesh)["unknown"]
    assert found["next_reconcile_at"] > found["updated_at"]
    text = leasemesh("unknown").out
    assert "nobody knows whether it happened: busy; asks in " in text
    story = leasemesh("why", "shop/orders/order-9").out
    assert "charge: busy; asks in " in story and "next: laptop asks what became of it" in story


def test_status_and_why_lead_to_what_is_to_be_decided(leasemesh, charged):
    assert leasemesh("status", "--json").document["unknown"] == 1
    assert "1 effect of which nobody knows whether it happened: leasemesh unknown" in leasemesh("status").out
    work = unknown_in(leasemesh)["unknown"][0]["work"][:10]
    story = leasemesh("why", "shop/orders/order-9").out
    assert f"next: ask the service, then: leasemesh resolve {work} happened (or not-happened, or skip)" in story


def test_nothing_unknown_is_said_so(leasemesh, database):
    assert leasemesh("unknown").out == "no effect is of unknown outcome\n"


def test_what_happened_by_a_persons_word_goes_on_with_its_result(leasemesh, charged):
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    resolved = leasemesh("resolve", work[:6], "happened", "--result", '{"receipt": 17}', "--by", "ann")
    assert resolved.out.splitlines() == [
        f'work {work[:10]}: ann said: it happened, result {{"receipt": 17}}',
        "the work goes on after the effect, on its own device or on one that takes over",
    ]
    assert unknown_in(leasemesh)["unknown"] == []
    receipts = []
    go_on(charged, receipts=receipts)
    assert receipts == [{"receipt": 17}]
    lines = [line for line in leasemesh("why", "shop/orders/order-9").out.splitlines() if line.startswith("20")]
    told = [line[20:].split(None, 1)[1].rstrip() for line in lines]
    run = leasemesh("runs", "--limit", "1", "--json").document["runs"][0]["run"][:16]
    assert told[-4] == 'ann said: it happened, result {"receipt": 17}'
    assert told[-1] == f"run {run} committed; event consumed"


def test_what_did_not_happen_is_done_again_under_another_key(leasemesh, charged):
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    assert "given back and done again" in leasemesh("resolve", work[:10], "not-happened").out
    keys = []
    go_on(charged, [None], keys=keys)
    assert len(keys) == 1 and keys[0] != work
    assert leasemesh("why", "shop/orders/order-9", "--json").document["event"]["status"] == "consumed"


def test_what_is_skipped_is_settled_and_not_done(leasemesh, charged):
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    assert leasemesh("resolve", work[:10], "skip").code == 0
    go_on(charged)
    assert leasemesh("why", "shop/orders/order-9", "--json").document["event"]["status"] == "skipped"


def test_of_two_persons_verdicts_the_one_that_counts_is_told(leasemesh, charged, other):
    meet(charged, other)
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    leasemesh("resolve", work, "happened", "--by", "ann")
    meet(charged, other)
    second = leasemesh("resolve", work, "not-happened", "--by", "bob", "--db", other)
    assert second.out.splitlines()[1] == "it does not count: ann said that it happened, which comes first"
    document = leasemesh("resolve", work, "skip", "--by", "bob", "--json", "--db", other).document
    assert document["outcome"] == "applied"
    assert [(one["by"], one["verdict"], one["device"]) for one in document["verdicts"]] == [
        ("ann", "happened", "laptop"), ("bob", "skip", "desktop"),
    ]  # fmt: skip


def test_a_verdict_on_a_call_that_is_under_way_waits_for_it(leasemesh, database):
    with Node.open(database) as node:
        run = node.reserve("shop", "orders", limit=1).run
        work = node.mutations.work_for(run)
        node.mutations.intend(run, work, tool="charge", params={})
    assert unknown_in(leasemesh)["unknown"][0]["status"] == "in_flight"
    assert "1 call under way, or cut off: leasemesh unknown" in leasemesh("status").out
    assert leasemesh("resolve", work[:8], "not-happened").out.splitlines()[1] == (
        "it counts when laptop has stopped calling and says so; until then the events wait"
    )
    assert len(unknown_in(leasemesh)["unknown"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ffff", "happened"], 3, "no such work: ffff; `leasemesh unknown` lists"),
        (["f" * 32, "happened"], 3, "no such work"),
        (["xyz", "happened"], 2, "is not the beginning of an id"),
        (["WORK", "maybe"], 2, "'maybe' is not one of happened, skip, not-happened"),
        (["WORK", "skip", "--result", "1"], 2, "--result goes with happened"),
        (["WORK", "happened", "--result", "{"], 2, "--result is not JSON"),
        (["WORK", "happened", "--by", ""], 2, "by: must not be empty"),
    ],
)
def test_a_verdict_that_cannot_be_accepted_changes_nothing(leasemesh, charged, arguments, code, said):
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    failed = leasemesh("resolve", *(argument.replace("WORK", work) for argument in arguments))
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1
    assert unknown_in(leasemesh)["unknown"][0]["verdicts"] == []


def test_the_examples_of_resolve_work(leasemesh, charged):
    work = unknown_in(leasemesh)["unknown"][0]["work"]
    examples = leasemesh("resolve", "--help").out.partition("Examples:")[2].splitlines()
    lines = [line.strip().replace("77b0c2d4e1", work) for line in examples if line.strip()]
    assert len(lines) == 4
    for line in lines:
        assert leasemesh(*shlex.split(line)[1:]).code == 0


# --- Permits of silent devices ----------------------------------------------------------------------------------------


@pytest.fixture
def silent(leasemesh, database, other):
    """./leasemesh.db is the authority; ./other.db, desktop, got its permit for order-0 and was not heard of since."""
    leasemesh("authority", "set")
    meet(database, other)
    run = leasemesh("reserve", "shop/orders", "--limit", "1", "--json", "--db", other).document["run"]
    with Node.open(other) as node:
        node.permits.request(run)
    meet(database, other)
    with Node.open(database) as node:
        node.authority.tend()
    meet(database, other)
    assert leasemesh("permit", run, "--db", other).code == 0
    assert unknown_in(leasemesh)["silent_permits"] == []
    let_time_pass(database, 80_000)
    return run


def let_time_pass(path, milliseconds):
    with Node.open(path) as node, node.database.transaction(replicated=False) as transaction:
        node.staleness.observe()
        transaction.execute("UPDATE claim_watches SET since_ms = since_ms - ?", (milliseconds,))
        transaction.execute("UPDATE heartbeats SET monotonic_ms = monotonic_ms - ?", (milliseconds,))


def test_a_permit_whose_holder_fell_silent_is_listed(leasemesh, database, silent):
    (found,) = unknown_in(leasemesh)["silent_permits"]
    assert (found["run"], found["device"], found["events"]) == (silent, "desktop", ["shop/orders/order-0"])
    text = leasemesh("unknown").out
    assert text.startswith("permit of shop/manual on desktop, granted 20")
    assert "desktop has fallen silent; whether it has begun its effect is not known here" in text
    assert "1 permit of a silent device: leasemesh unknown" in leasemesh("status").out
    assert "desktop has a permit and fell silent" in leasemesh("why", "shop/orders/order-0").out


def test_a_person_ends_the_permit_of_a_device_that_did_nothing(leasemesh, database, silent):
    work = unknown_in(leasemesh)["silent_permits"][0]["work"]
    assert leasemesh("take-over", "shop/orders/order-0").code == 4
    resolved = leasemesh("resolve", work[:8], "not-happened")
    assert resolved.out.splitlines()[1] == "the permit of desktop is void: others may do the work"
    assert unknown_in(leasemesh)["silent_permits"] == []
    assert leasemesh("take-over", "shop/orders/order-0").code == 0


def test_a_person_keeps_others_from_doing_what_a_silent_device_has_done(leasemesh, database, silent):
    work = unknown_in(leasemesh)["silent_permits"][0]["work"]
    resolved = leasemesh("resolve", work[:8], "happened")
    follows = "the work goes on after the effect, on desktop or on a device that takes over"
    assert resolved.out.splitlines()[1] == follows
    assert unknown_in(leasemesh)["silent_permits"] == []
    taken = leasemesh("take-over", "shop/orders/order-0")
    assert "its effect happened; when what follows is done: leasemesh consume " in taken.out
    run = taken.out.split()[1]
    assert leasemesh("release", run).code == 4
    assert leasemesh("consume", run).code == 0


def test_a_silent_permit_is_listed_although_another_run_owns_the_events(leasemesh, database, silent):
    """An earlier claim of a third device became known later; while the permit stands its run can do nothing."""
    with Node.open(database) as node:
        permit = node.permits.get(silent)
        body = {
            "node": "ee" * 16, "incarnation": "00", "workflow": "shop", "handler": "manual", "at": 1,
            "events": [f"{event}@1" for event in permit.events], "mode": "confirmed",
        }  # fmt: skip
        with node.database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO reservations (id, body) VALUES (?, ?)", (bytes.fromhex("dd" * 16), json.dumps(body))
            )
        assert node.events.get(permit.events[0]).run == "dd" * 16
    (found,) = unknown_in(leasemesh)["silent_permits"]
    assert found["run"] == silent
    assert leasemesh("resolve", found["work"], "not-happened").code == 0
    assert unknown_in(leasemesh)["silent_permits"] == []


@pytest.mark.parametrize("verdict", ["happened", "skip"])
def test_what_is_decided_of_a_silent_devices_run_can_be_finished_by_hand(leasemesh, charged, other, verdict):
    meet(charged, other)
    (found,) = unknown_in(leasemesh, "--db", other)["unknown"]
    assert leasemesh("resolve", found["work"], verdict, "--db", other).code == 0
    why = leasemesh("why", "shop/orders/order-9", "--db", other).out
    assert ("laptop skips it, as a person decided" if verdict == "skip" else "laptop goes on after the effect") in why
    taken = leasemesh("take-over", "shop/orders/order-9", "--force", "--json", "--db", other).document
    ending = "skip" if verdict == "skip" else "consume"
    assert f"leasemesh {ending}" in leasemesh("why", "shop/orders/order-9", "--db", other).out
    assert leasemesh("release", taken["run"], "--db", other).code != 0
    assert leasemesh(ending, taken["run"], "--db", other).code == 0
    status = leasemesh("why", "shop/orders/order-9", "--json", "--db", other).document["event"]["status"]
    assert status == ("skipped" if verdict == "skip" else "consumed")
    again = leasemesh("take-over", "shop/orders/order-9", "--force", "--db", other)
    assert (again.code, "only a reserved event can be taken over" in again.err) == (4, True)


def test_a_device_does_not_take_over_from_itself_what_is_decided(leasemesh, charged):
    (found,) = unknown_in(leasemesh)["unknown"]
    assert leasemesh("resolve", found["work"], "happened").code == 0
    taken = leasemesh("take-over", "shop/orders/order-9", "--force")
    assert (taken.code, "is this node's own: end it instead" in taken.err) == (4, True)
