"""Effects: what is durable before the call, how its outcome is judged, and how an unknown one becomes known."""

import asyncio
import threading

import pytest
from handling import publish, run_of, runs, statuses, to_end, until

from leasemesh import Applied, DidNotHappen, NotApplied, Retry, RetryRule, effect
from leasemesh.node.execution import script
from leasemesh.node.execution.outcomes import Happened
from leasemesh.node.execution.recovery import Recovery


class Service:
    """An outside service: keeps what was asked of it, by key."""

    def __init__(self):
        self.calls = []
        self.answer = None
        self.known = None

    async def __call__(self, key, to):
        self.calls.append((key, to))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def sending(mail, inbox, service, *, reconcile=None, timeout_s=30.0, mode="soft", publishes=()):
    """A consumer `send` that sends a mail for each event by a service; its effect is called `mail`."""

    @effect(name="mail", timeout_s=timeout_s)
    async def send_mail(key, *, to):
        return await service(key, to)

    if reconcile is not None:
        send_mail.reconcile(reconcile)
    consumer = mail.consumer(inbox, name="send", mode=mode, publishes=publishes)
    consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    return consumer


async def test_an_effect_happens_once_and_next_sees_its_result(open_node, mail, inbox, sent, within):
    node, service = open_node("a"), Service()
    service.answer = {"id": (1, 2)}
    consumer = sending(mail, inbox, service, publishes=[sent])
    consumer.next(lambda run: run.publish(sent, "receipt", payload=[run.outcome, run.result]))
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    ((key, to),) = service.calls
    assert to == "one"
    entry = node.mutations.get(run_of(node, "send").id)
    assert (entry.work, entry.tool, entry.params, entry.status) == (key, "mail", {"to": "one"}, "applied")
    assert node.peek("mail", "sent")[0].payload == ["applied", {"id": [1, 2]}]
    assert statuses(node) == {"one": "consumed"}


async def test_mutate_may_ask_for_no_effect(open_node, mail, inbox, within):
    node, outcomes, service = open_node("a"), [], Service()

    @effect
    def call(key):
        service.calls.append(key)

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: call() if run.events[0].message_id == "yes" else None)
    consumer.next(lambda run: outcomes.append(run.outcome))
    publish(node, "no", "yes")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert outcomes == ["none", "applied"]
    assert len(service.calls) == 1
    assert set(statuses(node).values()) == {"consumed"}


def test_the_intent_is_durable_before_the_call(open_node, mail, inbox, hands):
    node = open_node("a")
    consumer = sending(mail, inbox, Service())
    publish(node, "one")
    steps = hands(node).consume(consumer)
    request = until(steps, script.Perform)
    entry = node.mutations.get(request.run)
    assert (entry.status, entry.work) == ("in_flight", request.key)
    assert node.handler_runs.get(request.run).phase == "mutating"
    assert statuses(node) == {"one": "unknown"}
    assert to_end(steps, Happened({"id": 1})).kind == "committed"


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("text", "mutate returns one effect to perform, or None, not str"),
        ("effect", "mutate returned the effect mail itself; return what calling it gives"),
        ("other", "send does not declare other"),
    ],
)
async def test_what_mutate_must_not_return_is_a_failure_and_nothing_is_called(
    open_node, mail, inbox, within, what, rule
):
    node, service = open_node("a"), Service()

    @effect(name="mail")
    async def declared(key):
        service.calls.append(key)

    other = effect(name="other")(lambda key: service.calls.append(key))
    returned = {"text": "a text", "effect": declared, "other": other()}[what]
    consumer = mail.consumer(inbox, name="send", mode="soft", effects=[declared])
    consumer.mutate(lambda run: returned)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert rule in run_of(node, "send").details["error"]
    assert service.calls == []
    assert statuses(node) == {"one": "pending"}


# --- How an outcome is judged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "event", "entry"),
    [
        (DidNotHappen("no such mailbox"), "failed:logic", "pending", "failed"),
        (DidNotHappen("busy", transient=True), "paused:transient", "pending", "failed"),
        (ConnectionResetError("gone"), "paused:reconciliation", "unknown", "indeterminate"),
        (ValueError("unclassified"), "paused:reconciliation", "unknown", "indeterminate"),
        (asyncio.CancelledError(), "paused:reconciliation", "unknown", "indeterminate"),
    ],
)
async def test_only_the_author_says_that_an_effect_did_not_happen(
    open_node, mail, inbox, within, answer, status, event, entry
):
    node, service = open_node("a"), Service()
    service.answer = answer
    sending(mail, inbox, service)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    run = run_of(node, "send")
    assert (run.status, statuses(node)["one"]) == (status, event)
    assert node.mutations.get(run.id).status == entry
    assert len(service.calls) == 1


async def test_a_call_that_takes_too_long_is_unknown(open_node, mail, inbox, within):
    node = open_node("a")

    async def hang(key, to):
        await asyncio.Event().wait()

    sending(mail, inbox, hang, timeout_s=0.01)
    publish(node, "one", "two")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    (first, second) = node.mutations.unresolved()
    assert first.result == second.result == "no answer within 0.01 s"
    assert set(statuses(node).values()) == {"unknown"}


async def test_a_result_that_is_not_json_does_not_undo_what_happened(open_node, mail, inbox, within):
    node, service = open_node("a"), Service()
    service.answer = object()
    sending(mail, inbox, service)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    run = run_of(node, "send")
    assert (run.status, node.mutations.get(run.id).result) == ("committed", None)
    assert "result of effect mail: is not JSON" in run.details["logs"][0]


async def test_a_stop_during_the_call_leaves_its_outcome_unknown(open_node, mail, inbox, within):
    node, begun = open_node("a"), asyncio.Event()

    async def hang(key, to):
        begun.set()
        await asyncio.Event().wait()

    sending(mail, inbox, hang)
    publish(node, "one")
    async with within(), node.running([mail], drain_s=0):
        await begun.wait()
    assert statuses(node) == {"one": "unknown"}
    assert node.mutations.unresolved()[0].result == "the node stopped during the call"


# --- Finding out ------------------------------------------------------------------------------------------------------


async def test_an_unknown_outcome_is_found_out_at_once_by_the_same_key_and_parameters(
    open_node, mail, inbox, sent, within
):
    node, service, asked = open_node("a"), Service(), []
    service.answer = TimeoutError()

    async def was_sent(key, *, to):
        asked.append((key, to))
        return Applied({"found": True})

    consumer = sending(mail, inbox, service, reconcile=was_sent, publishes=[sent])
    consumer.next(lambda run: run.publish(sent, "receipt", payload=run.result))
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert asked == service.calls
    assert node.peek("mail", "sent")[0].payload == {"found": True}
    assert runs(node) == [("send", "committed", "committed")]


async def test_what_did_not_happen_is_done_again_under_the_same_key(open_node, mail, inbox, within, quick):
    node, service = open_node("a"), Service()
    service.answer = TimeoutError()

    async def was_sent(key, *, to):
        service.answer = {"id": 1}
        return NotApplied()

    sending(mail, inbox, service, reconcile=was_sent)
    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "committed":
            pass
    first, second = service.calls
    assert first == second
    assert runs(node) == [("send", "mutating", "superseded"), ("send", "committed", "committed")]
    assert run_of(node, "send").retry_of == run_of(node, "send", 0).id


@pytest.mark.parametrize("answer", [Retry("not yet"), ValueError("down"), "nonsense"])
async def test_reconciliation_goes_on_in_the_background_until_a_person_must_decide(
    open_node, mail, inbox, within, answer
):
    node, service, asked = open_node("a"), Service(), []
    service.answer = TimeoutError()

    def was_sent(key, *, to):
        asked.append(key)
        if isinstance(answer, Exception):
            raise answer
        return answer

    sending(mail, inbox, service, reconcile=was_sent)
    publish(node, "one")
    async with within(), node.running([mail], retry=RetryRule(first_ms=1, most_ms=1, tries=3)) as runner:
        observer = runner.observe()
        while "a person must decide" not in (await anext(observer)).text:
            pass
    assert len(asked) == 1 + 3
    entry = node.mutations.unresolved()[0]
    assert (entry.status, entry.reconcile_attempts) == ("indeterminate", 2)
    assert statuses(node) == {"one": "unknown"}
    assert len(service.calls) == 1


async def test_what_the_background_finds_out_is_gone_on_with(open_node, mail, inbox, sent, within, quick):
    node, service, answers = open_node("a"), Service(), [Retry(), Retry(), Applied({"late": True})]
    service.answer = TimeoutError()

    async def was_sent(key, *, to):
        return answers.pop(0)

    consumer = sending(mail, inbox, service, reconcile=was_sent, publishes=[sent])
    consumer.next(lambda run: run.publish(sent, "receipt", payload=[run.outcome, run.result]))
    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "committed":
            pass
    assert runs(node) == [("send", "mutated", "superseded"), ("send", "committed", "committed")]
    assert node.peek("mail", "sent")[0].payload == ["applied", {"late": True}]
    assert statuses(node) == {"one": "consumed"}
    assert len(service.calls) == 1


async def test_a_thread_that_still_makes_the_call_is_believed_before_reconciliation_is_asked(
    open_node, mail, inbox, within, quick
):
    node, go_on, asked = open_node("a"), threading.Event(), []

    @effect(timeout_s=0.01, name="mail")
    def slow(key):
        go_on.wait()
        return {"slow": True}

    @slow.reconcile
    def ask(key):
        asked.append(key)
        return NotApplied()

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: slow())
    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "unknown":
            pass
        await runner.idle()
        assert statuses(node) == {"one": "unknown"}
        go_on.set()
        while (await anext(observer)).kind != "committed":
            pass
    assert asked == []
    assert node.mutations.result_of(node.mutations.get(run_of(node, "send", 0).id).work) == {"slow": True}


async def test_a_sync_effect_does_not_hold_up_the_event_loop(open_node, mail, inbox, within):
    node, go_on = open_node("a"), threading.Event()

    @effect(name="mail")
    def slow(key):
        return go_on.wait(10)

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: slow())
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "started":
            pass
        go_on.set()  # which would come too late if the call held up this loop
        await runner.idle()
    assert statuses(node) == {"one": "consumed"}
    assert node.mutations.get(run_of(node, "send", 0).id).result is True


# --- Verdicts ---------------------------------------------------------------------------------------------------------


async def unknown(node, mail, inbox, service, consumer_next=None, **options):
    """Leave an effect on event "one" indeterminate; returns its work."""
    service.answer = TimeoutError()
    consumer = sending(mail, inbox, service, **options)
    if consumer_next:
        consumer.next(consumer_next)
    publish(node, "one")
    async with node.running([mail]) as runner:
        await runner.idle()
    service.answer = {"second": True}
    return node.mutations.unresolved()[0].work


async def test_the_verdict_that_it_happened_is_gone_on_with(open_node, mail, inbox, sent, within):
    node, service = open_node("a"), Service()
    async with within():
        work = await unknown(
            node,
            mail,
            inbox,
            service,
            lambda run: run.publish(sent, "receipt", payload=run.result),
            publishes=[sent],
        )
        async with node.running([mail]) as runner:
            observer = runner.observe()
            node.mutations.resolve(work, "happened", by="Ann", result={"told": "by Ann"})
            while (await anext(observer)).kind != "committed":
                pass
    assert node.peek("mail", "sent")[0].payload == {"told": "by Ann"}
    assert len(service.calls) == 1
    assert runs(node) == [("send", "mutating", "superseded"), ("send", "committed", "committed")]


async def test_the_verdict_that_it_did_not_happen_lets_it_be_done_with_another_key(open_node, mail, inbox, within):
    node, service = open_node("a"), Service()
    async with within():
        work = await unknown(node, mail, inbox, service)
        async with node.running([mail]) as runner:
            node.mutations.resolve(work, "not_happened", by="Ann")
            observer = runner.observe()
            while (await anext(observer)).kind != "committed":
                pass
    (first, _), (second, _) = service.calls
    assert first == work != second
    assert statuses(node) == {"one": "consumed"}


async def test_the_verdict_to_skip_settles_the_events(open_node, mail, inbox, within):
    node, service = open_node("a"), Service()
    async with within():
        work = await unknown(node, mail, inbox, service)
        node.mutations.resolve(work, "skip", by="Ann")
        async with node.running([mail]) as runner:
            await runner.idle()
    assert statuses(node) == {"one": "skipped"}
    assert runs(node) == [("send", "mutating", "superseded")]
    assert len(service.calls) == 1


async def test_a_verdict_stops_the_background_from_asking(open_node, mail, inbox, within, quick):
    node, service, asked = open_node("a"), Service(), []

    async def was_sent(key, *, to):
        asked.append(key)
        return Retry()

    slow = RetryRule(first_ms=3_600_000, most_ms=3_600_000)
    service.answer = TimeoutError()
    sending(mail, inbox, service, reconcile=was_sent)
    publish(node, "one")
    async with within():
        async with node.running([mail], retry=slow) as runner:
            await runner.idle()
        (entry,) = node.mutations.unresolved()
        node.mutations.resolve(entry.work, "skip", by="Ann")
        async with node.running([mail], retry=quick) as runner:
            await runner.idle()
    assert len(asked) == 1
    assert statuses(node) == {"one": "skipped"}


# --- Beyond the boundary ----------------------------------------------------------------------------------------------


async def test_a_failed_next_is_tried_again_without_the_effect_and_with_the_same_results(
    open_node, mail, inbox, sent, within, quick
):
    node, service, seen = open_node("a"), Service(), []
    service.answer = {"id": 17}
    consumer = sending(mail, inbox, service, publishes=[sent])

    @consumer.prepare
    def choose(run):
        run.reserve(run.peek(inbox, limit=1))
        return {"prepared": len(seen)}

    @consumer.next
    def record(run):
        seen.append((run.prepared, run.result, run.outcome, [event.message_id for event in run.events]))
        run.publish(sent, "receipt")
        if len(seen) < 3:
            raise ValueError("not yet")

    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "committed":
            pass
    assert seen == [({"prepared": 0}, {"id": 17}, "applied", ["one"])] * 3
    assert len(service.calls) == 1
    assert [status for _, _, status in runs(node)] == ["failed:logic", "failed:logic", "committed"]
    assert len(node.handler_runs.retry_chain(run_of(node, "send").id)) == 3
    assert len(node.peek("mail", "sent")) == 1
    assert statuses(node) == {"one": "consumed"}


async def test_what_is_beyond_the_boundary_waits_for_a_blocked_handler(open_node, mail, inbox, within):
    node, service, broken = open_node("a"), Service(), [True]
    consumer = sending(mail, inbox, service)

    @consumer.next
    def record(run):
        if broken[0]:
            raise ValueError("broken")

    publish(node, "one")
    async with within(), node.running([mail], retry=RetryRule(first_ms=1, most_ms=1, tries=2)) as runner:
        observer = runner.observe()
        while (await anext(observer)).kind != "blocked":
            pass
        await runner.idle()
        assert statuses(node) == {"one": "reserved"}
        broken[0] = False
        node.handler_blocks.unblock("mail", "send", node=node.site_id, by="Ann")
        while (await anext(observer)).kind != "committed":
            pass
    assert len(service.calls) == 1
    assert statuses(node) == {"one": "consumed"}


# --- Words that turn out to be wrong ----------------------------------------------------------------------------------


def said_not_to_have_happened(node, by, consumer):
    """A call whose outcome nobody knows, and a person who says that it did not happen; returns its run."""
    steps = by.consume(consumer)
    until(steps, script.Perform)
    (attempt,) = by.manager.under_way()
    by.manager.unknown(attempt, "no answer", reconcile_at=0, still_called=False)
    steps.close()
    node.mutations.resolve(attempt.work, "not_happened", by="Ann")
    recovery = Recovery(by.manager, {("mail", "send"): consumer})
    assert recovery.look().continuations == ()
    assert statuses(node) == {"one": "pending"}
    return node.handler_runs.get(attempt.run)


def test_what_happened_against_a_persons_word_takes_its_events_back_from_a_run_that_has_not_begun_its_own_effect(
    open_node, mail, inbox, sent, hands
):
    node = open_node("a")
    node.authorities.appoint(node.site_id, by="Ann")
    consumer = sending(mail, inbox, Service(), mode="confirmed", publishes=[sent])
    consumer.next(lambda run: run.publish(sent, "receipt", payload=run.result))
    publish(node, "one")
    by = hands(node)
    node.modes.set("mail", "soft", handler="send")
    first = said_not_to_have_happened(node, by, consumer)
    node.modes.set("mail", "confirmed", handler="send")
    steps = by.consume(consumer)
    until(steps, script.AwaitPermit)
    node.authority.tend()
    by.manager.found_applied(first, {"told": "late"})
    assert to_end(steps).kind == "lost"
    (found,) = Recovery(by.manager, {("mail", "send"): consumer}).look().continuations
    assert (found.of.id, found.taken) == (first.id, False)
    rest = script.go_on(by, consumer, by.session(consumer), found.of.id, taken=False)
    assert to_end(rest).kind == "committed"
    assert statuses(node) == {"one": "consumed"}
    assert node.peek("mail", "sent")[0].payload == {"told": "late"}
    assert node.events.count_duplicates() == 0


def test_what_happened_against_a_persons_word_and_once_more_shows_as_a_duplicate(open_node, mail, inbox, hands):
    node = open_node("a")
    consumer = sending(mail, inbox, Service())
    publish(node, "one")
    by = hands(node)
    first = said_not_to_have_happened(node, by, consumer)
    steps = by.consume(consumer)
    second = until(steps, script.Perform)
    assert second.key != node.mutations.get(first.id).work
    by.manager.found_applied(first, {"told": "late"})
    assert to_end(steps, Happened({"number": 2})).kind == "committed"
    assert statuses(node) == {"one": "consumed"}
    assert [event.message_id for event in node.events.duplicates()] == ["one"]
