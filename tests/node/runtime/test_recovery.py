"""What a start finds of earlier runs: the crash table. Each run is dropped at a step, as if its process had died there:
what is durable is in the file, and nothing else is left."""

import pytest
from handling import publish, run_of, runs, statuses, to_end, until

from leasemesh import Applied, IllegalState, Node, NotApplied, Workflow, effect
from leasemesh.node.execution import script
from leasemesh.node.execution.outcomes import Happened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.db"


@pytest.fixture
def die_at(path, hands):
    """Run a consumer's script up to a request in a process of its own, and die there."""

    def die(consumer, kind, *, message_ids=("one",), has_sync=False):
        with Node.open(path, workspace="team", name="a") as node:
            publish(node, *message_ids)
            steps = hands(node, has_sync=has_sync).consume(consumer)
            script.close_unstarted(until(steps, kind))
            return node.incarnation

    return die


async def after_restart(path, workflow, within, **options):
    """Start again, and run until nothing is left to do; returns the node."""
    node = Node.open(path, workspace="team", name="a")
    async with within(), node.running([workflow], **options) as runner:
        await runner.idle()
    return node


async def test_a_producer_that_was_cut_off_polls_again_from_its_old_state(path, mail, inbox, within, hands):
    states = []

    @mail.producer(every_s=3600, publishes=[inbox])
    async def poll(run, state):
        states.append(state)
        run.publish(inbox, "one")
        return "new state"

    with Node.open(path, workspace="team") as node:
        steps = hands(node).produce(poll)
        until(steps, script.AwaitFunction).awaitable.close()
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("poll", "executing", "crashed"), ("poll", "committed", "committed")]
        assert states == [None]
        assert statuses(node) == {"one": "pending"}


async def test_in_preparing_nothing_is_reserved_and_a_fresh_run_begins(path, mail, inbox, within, die_at):
    consumer = mail.consumer(inbox, name="send")

    @consumer.prepare
    async def choose(run):
        run.reserve(run.peek(inbox))

    die_at(consumer, script.AwaitFunction)
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("send", "preparing", "crashed"), ("send", "committed", "committed")]
        assert statuses(node) == {"one": "consumed"}


async def test_after_prepared_the_events_are_released_and_a_fresh_run_takes_them(path, mail, inbox, within, die_at):
    calls = []

    @effect
    async def send(key):
        calls.append(key)

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send())
    die_at(consumer, script.ReachPeers, has_sync=True)
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("send", "prepared", "crashed"), ("send", "committed", "committed")]
        assert len(calls) == 1
        event = node.events.get_by_message_id("mail", "inbox", "one")
        assert (event.status, event.epoch) == ("consumed", 2)


def sender(mail, inbox, sent, calls, *, reconcile=None):
    @effect(name="send")
    async def send(key, *, to):
        calls.append(key)
        return {"id": len(calls)}

    if reconcile is not None:
        send.reconcile(reconcile)
    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])

    @consumer.prepare
    def choose(run):
        run.reserve(run.peek(inbox, limit=1))
        return {"prepared": True}

    consumer.mutate(lambda run: send(to=run.events[0].message_id))
    consumer.next(lambda run: run.publish(sent, "receipt", payload=[run.prepared, run.result, run.outcome]))
    return consumer


async def test_with_the_intent_durable_and_no_answer_the_events_stay_reserved_until_a_person_decides(
    path, mail, inbox, sent, within, die_at
):
    calls = []
    die_at(sender(mail, inbox, sent, calls), script.Perform)
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("send", "mutating", "paused:reconciliation")]
        assert statuses(node) == {"one": "unknown"}
        (entry,) = node.mutations.unresolved()
        assert (entry.tool, entry.params, entry.status) == ("send", {"to": "one"}, "indeterminate")
        assert entry.result == "the process ended before the answer was seen"
    assert calls == []


@pytest.mark.parametrize("happened", [True, False])
async def test_with_the_intent_durable_and_no_answer_reconciliation_finds_out(
    path, mail, inbox, sent, within, die_at, happened, quick
):
    calls, asked = [], []

    async def was_sent(key, *, to):
        asked.append((key, to))
        return Applied({"found": True}) if happened else NotApplied()

    die_at(sender(mail, inbox, sent, calls, reconcile=was_sent), script.Perform)
    node = Node.open(path, workspace="team", name="a")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "committed":
            pass
    with node:
        assert len(asked) == 1
        assert statuses(node) == {"one": "consumed"}
        result = {"found": True} if happened else {"id": 1}
        assert node.peek("mail", "sent")[0].payload == [{"prepared": True}, result, "applied"]
        assert len(calls) == (0 if happened else 1)


async def test_with_the_outcome_written_a_new_run_goes_on_and_the_effect_is_not_repeated(
    path, mail, inbox, sent, within, hands
):
    calls = []
    consumer = sender(mail, inbox, sent, calls)
    with Node.open(path, workspace="team") as node:
        publish(node, "one")
        by = hands(node)
        steps = by.consume(consumer)
        until(steps, script.Perform)
        (attempt,) = by.manager.under_way()
        by.manager.applied(attempt, {"id": 17})  # and dies before next
    with Node.open(path, workspace="team", name="a") as node:
        async with within(), node.running([mail]) as runner:
            observer = runner.observe()
            told = [await anext(observer), await anext(observer)]
        assert runs(node) == [("send", "emitting", "superseded"), ("send", "committed", "committed")]
        assert node.peek("mail", "sent")[0].payload == [{"prepared": True}, {"id": 17}, "applied"]
        assert statuses(node) == {"one": "consumed"}
        assert [(one.kind, one.run) for one in told] == [
            ("continued", run_of(node, "send").id),
            ("committed", run_of(node, "send").id),
        ]
        assert told[0].text == "goes on beyond the effect on one"
    assert calls == []


async def test_during_next_nothing_is_half_published(path, mail, inbox, sent, within, hands):
    calls = []
    consumer = sender(mail, inbox, sent, calls)
    consumer.next_function = None

    @consumer.next
    async def record(run):
        run.publish(sent, "receipt", payload=[run.prepared, run.result, run.outcome])
        run.publish(sent, "copy")

    with Node.open(path, workspace="team") as node:
        publish(node, "one")
        steps = hands(node).consume(consumer)
        until(steps, script.Perform)
        until(steps, script.AwaitFunction, Happened({"id": 17})).awaitable.close()
    with Node.open(path, workspace="team") as node:
        assert node.peek("mail", "sent") == []
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("send", "emitting", "superseded"), ("send", "committed", "committed")]
        assert [event.message_id for event in node.peek("mail", "sent")] == ["receipt", "copy"]
        assert node.peek("mail", "sent")[0].payload == [{"prepared": True}, {"id": 17}, "applied"]


async def test_a_run_that_goes_on_may_be_cut_off_too(path, mail, inbox, sent, within, hands):
    consumer = sender(mail, inbox, sent, [])
    consumer.next_function = None
    consumer.next(ending := Ending(sent))
    with Node.open(path, workspace="team") as node:
        publish(node, "one")
        steps = hands(node).consume(consumer)
        until(steps, script.Perform)
        until(steps, script.AwaitFunction, Happened({"id": 17})).awaitable.close()
        first = run_of(node, "send").id
    for _ in range(2):
        with Node.open(path, workspace="team") as node:
            by = hands(node)
            steps = script.go_on(by, consumer, by.session(consumer), first, taken=False)
            until(steps, script.AwaitFunction).awaitable.close()
    with await after_restart(path, mail, within) as node:
        assert [status for _, _, status in runs(node)] == ["superseded", "superseded", "crashed", "committed"]
        assert len(node.handler_runs.retry_chain(first)) == 4
        assert statuses(node) == {"one": "consumed"}
    assert len(ending.seen) == 1


class Ending:
    def __init__(self, sent):
        self.sent = sent
        self.seen = []

    async def __call__(self, run):
        self.seen.append(run.result)
        run.publish(self.sent, "receipt")


async def test_after_commit_there_is_nothing_to_do(path, mail, inbox, within, hands):
    consumer = mail.consumer(inbox, name="count")
    consumer.next(lambda run: None)
    with Node.open(path, workspace="team", name="a") as node:
        publish(node, "one")
        assert to_end(hands(node).consume(consumer)).kind == "committed"
        version = node.database.version()
    with await after_restart(path, mail, within) as node:
        assert runs(node) == [("count", "committed", "committed")]
        assert node.database.version() == version + 1  # the session that the dead process left open is ended


async def test_what_people_and_apps_hold_by_hand_is_left_alone(open_node, mail, inbox, within):
    node = open_node("a")
    mail.consumer(inbox, name="count").next(lambda run: None)
    publish(node, "one", "two")
    by_hand = node.reserve("mail", "inbox", limit=1)
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        assert statuses(node) == {"one": "reserved", "two": "consumed"}
    assert by_hand.consume() == 1


async def test_runs_of_a_workflow_that_this_app_has_no_more_are_ended_all_the_same(path, mail, inbox, within, die_at):
    consumer = mail.consumer(inbox, name="old")
    consumer.next(lambda run: None)
    die_at(consumer, script.ReachPeers, has_sync=True)
    with await after_restart(path, Workflow("other"), within) as node:
        assert runs(node) == [("old", "prepared", "crashed")]
        assert statuses(node) == {"one": "pending"}


async def test_an_unknown_outcome_of_an_effect_that_this_app_has_no_more_waits_for_a_person(
    path, mail, inbox, sent, within, die_at
):
    async def was_sent(key, *, to):
        return Applied()

    die_at(sender(mail, inbox, sent, [], reconcile=was_sent), script.Perform)
    with await after_restart(path, Workflow("other"), within) as node:
        (entry,) = node.mutations.unresolved()
        assert entry.status == "indeterminate"
        node.mutations.resolve(entry.work, "happened", by="Ann", result={"id": 3})
    with await after_restart(path, mail, within) as node:
        assert statuses(node) == {"one": "consumed"}
        assert node.peek("mail", "sent")[0].payload == [{"prepared": True}, {"id": 3}, "applied"]


async def test_a_session_that_a_dead_process_left_open_is_ended(path, mail, inbox, within, die_at):
    consumer = mail.consumer(inbox, name="count")
    consumer.next(lambda run: None)
    die_at(consumer, script.ReachPeers, has_sync=True)
    with await after_restart(path, mail, within) as node:
        new, old = node.script_runs.by_workflow("mail")
        assert (old.error, new.error) == ("the process ended", "")
        assert old.ended_at
        assert new.ended_at


async def test_a_run_goes_on_only_in_the_process_that_began_it(path, mail, inbox, hands, die_at):
    consumer = mail.consumer(inbox, name="count")
    consumer.next(lambda run: None)
    first = die_at(consumer, script.ReachPeers, has_sync=True)
    with Node.open(path, workspace="team") as node:
        run = run_of(node, "count")
        assert run.incarnation == first != node.incarnation
        with pytest.raises(IllegalState, match="earlier start"):
            node.handler_runs.advance(run.id, "mutating")


@pytest.mark.parametrize("happened", [True, False])
async def test_a_call_that_a_restored_copy_knew_nothing_of_is_asked_about(path, mail, inbox, within, die_at, happened):
    """The copy of the file ended the run and released its events; then it learned that the effect had been begun."""
    asked = []

    @effect(name="mail")
    async def send_mail(key):
        return "again"

    @send_mail.reconcile
    async def was_sent(key):
        asked.append(key)
        return Applied("sent") if happened and len(asked) == 1 else NotApplied()

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())
    die_at(consumer, script.Perform)
    with Node.open(path, workspace="team", name="a") as node, node.database.transaction() as transaction:
        run = run_of(node, "send").id
        node.handler_runs.set_status(run, "crashed")
        transaction.execute("UPDATE reservations SET state = 'released'")
    with await after_restart(path, mail, within) as node:
        assert statuses(node) == {"one": "consumed"}
        assert len(asked) == 1
        assert node.mutations.get(run).status == ("applied" if happened else "failed")
        assert [one.result for one in map(node.mutations.get, [run_of(node, "send").id]) if one] == (
            [] if happened else ["again"]
        )
