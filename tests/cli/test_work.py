import pytest
from cli_devices import meet

from leasemesh.node.node import Node


def statuses(leasemesh, *options):
    (topic,) = leasemesh("topics", "--json", *options).document["topics"]
    return topic["by_status"]


@pytest.mark.parametrize(("command", "status"), [("consume", "consumed"), ("skip", "skipped"), ("release", "pending")])
def test_what_is_reserved_can_be_settled(leasemesh, database, command, status):
    reserved = leasemesh("reserve", "shop/orders", "--limit", "4", "--json").document
    assert [event["message_id"] for event in reserved["events"]] == [f"order-{number}" for number in range(4)]
    assert statuses(leasemesh) == {"pending": 6, "reserved": 4}
    settled = leasemesh(command, reserved["run"][:16])
    assert (settled.code, settled.err) == (0, "")
    assert statuses(leasemesh).get(status) == (10 if status == "pending" else 4)
    again = leasemesh(command, reserved["run"])
    assert again.code == 0
    assert "had nothing left to be" in again.out


def test_reserve_says_what_to_do_next(leasemesh, database):
    lines = leasemesh("reserve", "shop/orders", "--limit", "1").out.splitlines()
    run = lines[0].split()[1]
    assert lines[0] == f"run {run} reserved 1 event:"
    assert lines[-1] == f"when the work is done: leasemesh consume {run}"
    assert leasemesh(*lines[-1].split()[-2:]).code == 0


def test_named_events_are_reserved_all_or_none(leasemesh, database):
    leasemesh("reserve", "shop/orders", "--id", "order-2")
    refused = leasemesh("reserve", "shop/orders", "--id", "order-1", "--id", "order-2")
    assert refused.code == 4
    assert "order-2 is reserved by run" in refused.err
    assert statuses(leasemesh) == {"pending": 9, "reserved": 1}
    partial = leasemesh("reserve", "shop/orders", "--id", "order-1", "--id", "order-2", "--partial", "--json")
    assert [event["message_id"] for event in partial.document["events"]] == ["order-1"]


def test_a_device_that_lost_its_lease_is_told_and_can_go_on(leasemesh, database, other):
    first = leasemesh("reserve", "shop/orders", "--limit", "2", "--json").document["run"]
    second = leasemesh("reserve", "shop/orders", "--limit", "3", "--json", "--db", other).document["run"]
    meet(database, other)
    lost = leasemesh("consume", second, "--db", other)
    assert lost.code == 4
    assert "lost its lease" in lost.err and len(lost.err.splitlines()) == 1
    assert leasemesh("release", second, "--db", other).out == f"released 1 event of run {second[:16]}\n"
    assert leasemesh("consume", first).code == 0
    meet(database, other)
    assert statuses(leasemesh, "--db", other) == {"pending": 8, "consumed": 2}


def test_what_was_done_is_recorded_although_the_lease_was_lost(leasemesh, database, other):
    leasemesh("reserve", "shop/orders", "--limit", "1")
    second = leasemesh("reserve", "shop/orders", "--limit", "1", "--json", "--db", other).document["run"]
    meet(database, other)
    assert leasemesh("consume", second, "--db", other).code == 4
    assert leasemesh("consume", second, "--db", other, "--effect-happened").code == 0
    assert statuses(leasemesh, "--db", other) == {"pending": 9, "consumed": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["reserve", "shop/orders", "--limit", "0"], 2, "limit: is 0"),
        (["reserve", "shop/orders", "--limit", "1", "--id", "order-1"], 2, "exclude each other"),
        (["reserve", "shop/orders", "--id", "nope"], 3, "no such event: orders/nope"),
        (["reserve", "shop/nope"], 3, "no such topic: shop/nope"),
        (["consume", "ffffffffffff"], 3, "no such run: ffffffffffff; `leasemesh status` lists"),
        (["consume", "zz"], 2, "is not the beginning of an id"),
        (["take-over", "shop/orders/order-1"], 4, "only a reserved event can be taken over"),
        (["take-over", "shop/orders/nope"], 3, "no such event"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(leasemesh, database, arguments, code, said):
    failed = leasemesh(*arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err
    assert len(failed.err.splitlines()) == 1


def test_reserving_from_a_topic_with_nothing_pending_says_so(leasemesh, database):
    leasemesh("reserve", "shop/orders", "--limit", "10")
    empty = leasemesh("reserve", "shop/orders")
    assert (empty.code, empty.err) == (4, "leasemesh: nothing is pending in shop/orders; nothing was reserved\n")


def test_a_settled_run_cannot_be_settled_otherwise(leasemesh, database):
    run = leasemesh("reserve", "shop/orders", "--json").document["run"]
    leasemesh("consume", run)
    assert leasemesh("skip", run).code == 4
    assert leasemesh("release", run).code == 4


def test_the_run_of_another_device_cannot_be_settled_here(leasemesh, database, other):
    run = leasemesh("reserve", "shop/orders", "--json").document["run"]
    meet(database, other)
    refused = leasemesh("consume", run, "--db", other)
    assert refused.code == 4
    assert "belongs to node" in refused.err


def test_a_run_of_a_silent_device_is_taken_over_by_force_and_not_before_its_time(leasemesh, database, other):
    run = leasemesh("reserve", "shop/orders", "--limit", "1", "--json").document["run"]
    meet(database, other)
    early = leasemesh("take-over", "shop/orders/order-0", "--db", other)
    assert early.code == 4
    assert "may not be taken over yet" in early.err and "--wait waits for it, --force does not" in early.err
    taken = leasemesh("take-over", "shop/orders/order-0", "--force", "--json", "--db", other).document
    assert [event["message_id"] for event in taken["events"]] == ["order-0"]
    assert leasemesh("consume", taken["run"], "--db", other).code == 0
    meet(database, other)
    assert leasemesh("consume", run).code == 4


def test_a_waiting_take_over_ends_when_the_holder_has_been_silent_for_long_enough(leasemesh, database, other):
    leasemesh("reserve", "shop/orders", "--limit", "1")
    meet(database, other)
    with Node.open(other) as node, node.database.transaction(replicated=False) as transaction:
        # Seventy-four and a half seconds ago: what remains is half a second.
        node.staleness.observe()
        transaction.execute("UPDATE claim_watches SET since_ms = since_ms - 74500")
        transaction.execute("UPDATE heartbeats SET monotonic_ms = monotonic_ms - 74500")
    taken = leasemesh("take-over", "shop/orders/order-0", "--wait", "--json", "--db", other)
    assert taken.code == 0, taken.err
    assert len(taken.document["events"]) == 1
