"""block, unblock, blocked, dead-letters and requeue."""

import pytest
from cli_devices import RETRY_AT_ONCE, meet, work_until
from shops import failing, packing

from leasemesh import Node, RetryRule


@pytest.fixture
def given_up(database):
    """./leasemesh.db, where order-9, the only free one, was given up after three failures."""
    with Node.open(database) as node:
        node.reserve("shop", "orders", limit=9).consume()
    work_until(database, failing(), lambda node: node.events.dead_letters())
    return database


def blocks(leasemesh, *options):
    return leasemesh("blocked", "--json", *options).document["blocked"]


def test_a_dead_event_is_listed_with_its_failure_and_what_to_do(leasemesh, given_up, other):
    meet(given_up, other)
    (found,) = leasemesh("dead-letters", "--json", "--db", other).document["dead_letters"]
    assert (found["event"]["message_id"], found["handler"], found["device"], found["error"]) == (
        "order-9", "pack", "laptop", "ValueError: nobody knows order-9",
    )  # fmt: skip
    text = leasemesh("dead-letters", "shop").out
    assert "shop/orders/order-9" in text and "pack on laptop" in text
    assert "leasemesh requeue EVENT has it done again" in text
    assert leasemesh("dead-letters", "mail").out == "there are no dead letters\n"
    assert "1 dead letter: leasemesh dead-letters" in leasemesh("status").out
    story = leasemesh("why", "shop/orders/order-9").out
    assert story.count("failed:logic: ValueError: nobody knows order-9; event released") == 2
    assert "failed:logic: ValueError: nobody knows order-9; event dead" in story
    assert f"to have it done again: leasemesh requeue {found['event']['id'][:10]}" in story


def test_a_dead_event_is_done_again_as_its_next_generation(leasemesh, given_up):
    first = leasemesh("dead-letters", "--json").document["dead_letters"][0]["event"]["id"]
    requeued = leasemesh("requeue", first[:10], "--by", "ann")
    second = leasemesh("why", "shop/orders/order-9", "--json").document["event"]
    assert (second["status"], second["generation"]) == ("pending", 1)
    assert requeued.out == f"shop/orders/order-9 is pending again as event {second['id'][:10]}, generation 1\n"
    assert leasemesh("dead-letters").out == "there are no dead letters\n"
    work_until(given_up, packing(), lambda node: not node.peek("shop", "orders"))
    lines = leasemesh("why", "shop/orders/order-9").out.splitlines()
    told = [line[20:].rstrip().split(None, 1) for line in lines if line.startswith("20")]
    assert told[0] == ["first", f"published as event {first[:10]}: dead"]
    assert told[1][1].rstrip() == "requeued as generation 1 by ann"
    assert lines[-1] == "next: nothing; it is settled for ever"
    before = leasemesh("why", first[:10]).out
    assert f"next: it was requeued; of its newest generation: leasemesh why {second['id'][:10]}" in before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["shop/orders/nope"], 3, "no such event"),
        (["xyz"], 2, "nor the beginning of an id"),
    ],
)
def test_what_cannot_be_requeued_ends_with_one_sentence(leasemesh, given_up, arguments, code, said):
    failed = leasemesh("requeue", *arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1


def test_only_what_is_settled_is_requeued(leasemesh, database):
    refused = leasemesh("requeue", "shop/orders/order-0")
    assert (refused.code, "only a settled event can be requeued" in refused.err) == (4, True)


def test_the_examples_of_requeue_work(leasemesh, database):
    leasemesh("publish", "shop/orders", "--id", "order-17")
    with Node.open(database) as node:
        node.reserve("shop", "orders").consume()
    event = leasemesh("why", "shop/orders/order-1", "--json").document["event"]["id"]
    examples = leasemesh("requeue", "--help").out.partition("Examples:")[2].splitlines()
    lines = [line.strip().replace("3f2a91c07b", event) for line in examples if line.strip()]
    assert len(lines) == 2
    for line in lines:
        assert leasemesh(*line.split()[1:]).code == 0


def test_a_blocked_handler_does_not_run_on_any_device_until_it_is_unblocked(leasemesh, database, other):
    with Node.open(database) as node:
        node.reserve("shop", "orders", limit=9).consume()
    blocked = leasemesh("block", "shop/pack", "--reason", "the printer is broken")
    assert blocked.out == "shop/pack does not run on any device any more\n"
    assert blocked.err == "no run of shop/pack is known here: is that its name?\n"
    meet(database, other)
    (found,) = blocks(leasemesh, "--db", other)
    assert (found["workflow"], found["handler"], found["device"], found["reason"]) == (
        "shop", "pack", None, "the printer is broken",
    )  # fmt: skip
    assert "1 handler blocked: leasemesh blocked" in leasemesh("status", "--db", other).out
    work_until(other, packing(), lambda node: True)
    assert leasemesh("runs", "--json", "--db", other).document["runs"] == []
    text = leasemesh("blocked", "--db", other).out
    assert "shop/pack" in text and "everywhere" in text and "the printer is broken" in text
    assert leasemesh("unblock", "shop/pack", "--db", other).out == "shop/pack may run again on any device\n"
    assert leasemesh("blocked", "--db", other).out == "no handler is blocked\n"
    work_until(other, packing(), lambda node: not node.peek("shop", "orders"))


def test_a_handler_is_blocked_on_this_device_alone(leasemesh, database, other):
    assert leasemesh("block", "shop/pack", "--here").out == "shop/pack does not run on laptop any more\n"
    meet(database, other)
    work_until(database, packing(), lambda node: True)
    work_until(other, packing(), lambda node: not node.peek("shop", "orders"))
    assert {run["device"] for run in leasemesh("runs", "--json", "--db", other).document["runs"]} == {"desktop"}
    kept = leasemesh("unblock", "shop/pack", "--here", "--db", other)
    assert kept.out == "shop/pack is not blocked here\nit stays blocked on laptop\n"
    assert leasemesh("unblock", "shop/pack", "--db", other).out == "shop/pack may run again on laptop\n"


def test_a_device_that_has_blocked_a_handler_itself_is_told_of_and_let_go_on(leasemesh, database):
    with Node.open(database) as node:
        node.reserve("shop", "orders", limit=8).consume()
    twice = RetryRule(first_ms=1, most_ms=1, tries=2)
    work_until(database, failing(), lambda node: node.handler_blocks.list(), retry=twice)
    (found,) = blocks(leasemesh)
    assert (found["device"], found["by"]) == ("laptop", "laptop")
    assert found["reason"].startswith("failed 2 times in a row; the last time: ")
    assert f"(run {found['run'][:16]})" in leasemesh("blocked").out
    pending = leasemesh("peek", "shop/orders", "--json").document["events"][0]["message_id"]
    assert "handler pack is blocked (failed 2 times in a row" in leasemesh("why", f"shop/orders/{pending}").out
    assert leasemesh("unblock", "shop/pack").out == "shop/pack may run again on laptop\n"
    work_until(database, packing(), lambda node: not node.peek("shop", "orders"), retry=RETRY_AT_ONCE)


@pytest.mark.parametrize("command", ["block", "unblock"])
def test_a_handler_is_named_with_its_workflow(leasemesh, database, command):
    failed = leasemesh(command, "pack")
    assert (failed.code, "'pack' is not of the form WORKFLOW/HANDLER" in failed.err) == (2, True)


def test_what_is_not_blocked_is_said_so(leasemesh, database):
    assert leasemesh("unblock", "shop/pack").out == "shop/pack is not blocked\n"
    assert leasemesh("blocked").out == "no handler is blocked\n"
