"""The mistakes of earlier implementations of this model: one test for each, with the mistake as its name."""

import asyncio

import pytest
from handling import publish, run_of, statuses, to_end, until

from leasemesh import Applied, IllegalState, LeaseLost, Node, NotApplied, RetryRule, effect
from leasemesh.node.database.tables import TABLES
from leasemesh.node.execution import script


@pytest.fixture
def calls():
    return []


@pytest.fixture
def sending(mail, inbox, sent, calls):
    """Declares a consumer `send` whose effect does what `answer` does."""

    def declare(answer=None, *, reconcile=None):
        @effect(name="mail")
        async def send_mail(key, *, to):
            calls.append(key)
            if answer is not None:
                return await answer()
            return {"number": len(calls)}

        if reconcile is not None:
            send_mail.reconcile(reconcile)
        consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
        consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
        return consumer

    return declare


async def no_answer():
    raise ConnectionResetError("the line went dead")


async def test_an_unknown_outcome_released_its_events_so_the_effect_was_done_twice(
    open_node, mail, sending, calls, quick, within
):
    node = open_node("a")
    sending(no_answer)
    publish(node, "one")
    for _ in range(3):  # not by going on, not by starting again
        async with within(), node.running([mail], retry=quick) as runner:
            await runner.idle()
    assert len(calls) == 1
    assert statuses(node) == {"one": "unknown"}
    with pytest.raises(IllegalState, match="unknown"):
        node.events.release(run_of(node, "send").id)


async def test_a_retried_next_did_not_find_the_effects_result(open_node, mail, sending, calls, sent, quick, within):
    node, results = open_node("a"), []
    consumer = sending()

    @consumer.next
    def record(run):
        results.append((run.result, run.outcome))
        if len(results) == 1:
            raise ValueError("the disk of the service is full")
        run.publish(sent, "receipt", payload=run.result)

    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "committed":
            pass
    assert results == [({"number": 1}, "applied")] * 2
    assert node.peek("mail", "sent")[0].payload == {"number": 1}
    assert len(calls) == 1


async def test_an_in_flight_row_after_a_crash_was_never_picked_up_again(tmp_path, mail, sending, calls, hands, within):
    async def was_sent(key, *, to):
        return Applied({"found": True})

    consumer = sending(reconcile=was_sent)
    with Node.open(tmp_path / "a.db", workspace="team") as node:
        publish(node, "one")
        until(hands(node).consume(consumer), script.Perform)
        assert node.mutations.get(run_of(node, "send").id).status == "in_flight"
    with Node.open(tmp_path / "a.db") as node:
        async with within(), node.running([mail]) as runner:
            await runner.idle()
        assert statuses(node) == {"one": "consumed"}
        assert node.mutations.get(run_of(node, "send", 0).id).status == "applied"
    assert calls == []


async def test_the_reconcile_loop_existed_and_was_never_started(open_node, mail, sending, within):
    """Reconciliation is due in the file, and nothing else happens: no event, no run, no change."""
    node, asked = open_node("a"), asyncio.Event()

    async def was_sent(key, *, to):
        asked.set()
        return Applied()

    sending(no_answer, reconcile=was_sent)
    slow = RetryRule(first_ms=3_600_000, most_ms=3_600_000)
    asked_at_once = mail.consumers[0].effects["mail"].reconciler
    mail.consumers[0].effects["mail"].reconciler = cannot_tell
    publish(node, "one")
    async with within(), node.running([mail], retry=slow) as runner:
        await runner.idle()
    mail.consumers[0].effects["mail"].reconciler = asked_at_once
    (entry,) = node.mutations.unresolved()
    node.mutations.mark_needs_reconcile(entry.run, at=node.database.clock_ms())
    async with within(), node.running([mail], retry=slow):
        await asked.wait()


async def cannot_tell(key, *, to):
    raise ConnectionRefusedError


async def test_no_idempotency_key_was_ever_generated(open_node, mail, sending, calls, quick, within):
    """One work, one key: in the ledger, in the call, in reconciliation, and in the next try."""
    node, asked = open_node("a"), []

    async def was_sent(key, *, to):
        asked.append(key)
        return Applied() if len(asked) > 1 else NotApplied()

    sending(no_answer, reconcile=was_sent)
    publish(node, "one", "two")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while list(statuses(node).values()) != ["consumed", "consumed"]:
            await anext(observer)
    assert calls == asked
    assert calls[0] == calls[1] != calls[2]
    entries = [node.mutations.get(run.id) for run in reversed(node.handler_runs.list("mail", status="committed"))]
    assert [entry.work for entry in entries if entry] == calls[1:]


def test_a_commit_whose_events_had_gone_elsewhere_matched_zero_rows_and_succeeded(open_node, mail, inbox, sent, hands):
    node = open_node("a")
    consumer = mail.consumer(inbox, name="copy", publishes=[sent], stateful=True)

    @consumer.next
    async def copy(run):
        run.publish(sent, "copy")
        return "new state"

    publish(node, "one")
    by = hands(node)
    steps = by.consume(consumer)
    until(steps, script.AwaitFunction).awaitable.close()
    (attempt,) = by.manager.under_way()
    taker = node.handler_runs.new_id()
    node.events.take_over(taker, [event.id for event in attempt.events], handler="other")
    result = to_end(steps, "new state")
    assert (result.kind, run_of(node, "copy").status) == ("lost", "lost")
    assert node.peek("mail", "sent") == []
    assert node.handler_states.get("mail", "copy") is None
    assert node.events.get_by_message_id("mail", "inbox", "one").run == taker
    with pytest.raises((LeaseLost, IllegalState)):
        node.events.consume(attempt.run)


async def test_publish_overwrote_the_payload_of_consumed_events(open_node, mail, inbox, within):
    node, seen = open_node("a"), []
    polls = []

    @mail.producer(every_s=0.1, publishes=[inbox])
    async def poll(run, state):
        polls.append(run.id)
        run.publish(inbox, "message-1", title=f"poll {len(polls)}", payload={"poll": len(polls)})

    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.events[0].payload))
    async with within(), node.running([mail]) as runner:
        observer = runner.observe()
        while len(polls) < 3 or not seen:
            await anext(observer)
    event = node.events.get_by_message_id("mail", "inbox", "message-1")
    assert (event.payload, event.title, event.status) == ({"poll": 1}, "poll 1", "consumed")
    assert seen == [{"poll": 1}]


async def test_a_sweeper_that_freed_orphaned_reservations_freed_work_whose_effect_had_happened(
    tmp_path, mail, sending, calls, hands, within
):
    consumer = sending()
    with Node.open(tmp_path / "a.db", workspace="team") as node:
        publish(node, "one")
        by = hands(node)
        steps = by.consume(consumer)
        until(steps, script.Perform)
        (attempt,) = by.manager.under_way()
        by.manager.applied(attempt, {"number": 1})
        with pytest.raises(IllegalState, match="applied"):
            node.events.release(attempt.run)
    with Node.open(tmp_path / "a.db") as node:
        async with within(), node.running([mail]) as runner:
            await runner.idle()
        assert statuses(node) == {"one": "consumed"}
    assert calls == []


def test_wake_flags_were_set_only_by_local_publishes(device_lab, mail, inbox):
    seen = []
    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.events[0].message_id))
    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    lab.settle()
    publish(lab["hub"].node, "merged")
    lab.until(lambda: seen == ["merged"], within_s=2)


def test_start_up_recovery_marked_other_devices_live_runs_as_crashed(device_lab, mail, inbox):
    begun = []

    @mail.consumer(inbox)
    async def think(run):
        begun.append(run.id)
        await asyncio.sleep(30)

    lab = device_lab(devices=["a", "b"], workflows=[mail])
    publish(lab["b"].node, "one")
    lab.until(lambda: begun)
    lab.advance(1)
    (run,) = begun
    owner = lab["a"].node.handler_runs.get(run).node
    other = "a" if owner == lab["b"].node.site_id else "b"
    lab.crash(other)
    lab.restart(other)
    lab.advance(5)
    assert lab[other].node.handler_runs.get(run).status == "active"
    lab.settle()
    assert lab[other].node.handler_runs.get(run).status == "committed"
    assert begun == [run]


def test_store_tests_ran_on_plain_tables_so_a_schema_that_cr_sqlite_refuses_passed_them(open_node):
    """Every test here runs on the file that the product makes: its tables of facts are replicated ones."""
    node = open_node("a")
    assert set(node.database.replicated_tables()) == {table.name for table in TABLES if table.replicated}
    publish(node, "one")
