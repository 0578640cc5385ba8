"""What comes at the worst moment: verdicts during a call, take-overs during a sleep, permits of the dead."""

import asyncio
import threading

import pytest
from handling import publish, run_of, runs, statuses, to_end, until

from leasemesh import DidNotHappen, NotApplied, Retry, RetryRule, Transient, Workflow, effect
from leasemesh.node.execution import script
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.outcomes import DidNot, Happened
from leasemesh.node.execution.recovery import Recovery


@pytest.fixture
def calls():
    return []


@pytest.fixture
def sending(mail, inbox, sent, calls):
    @effect(name="mail")
    async def send_mail(key, *, to):
        calls.append((key, to))
        return len(calls)

    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    consumer.next(lambda run: run.publish(sent, f"re-{run.events[0].message_id}", payload=run.result))
    return consumer


async def told_of(observer, kind):
    async for told in observer:
        if told.kind == kind:
            return


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "status", "published"), [("skip", "skipped", {}), ("happened", "consumed", {"re-one": "pending"})]
)
async def test_a_verdict_on_what_the_call_itself_denies_counts_and_nothing_is_stuck(
    open_node, mail, inbox, sent, sending, calls, within, quick, hands, verdict, status, published
):
    node = open_node("laptop")
    publish(node, "one")
    run = hands(node).consume(sending)
    perform = until(run, script.Perform)
    work = perform.key
    assert to_end(run, DidNot(DidNotHappen("refused", transient=True))).kind == "failed"
    node.mutations.resolve(work, verdict, by="Ann")  # it was given elsewhere during the call, and arrives now
    async with within(), node.running([mail], retry=quick) as runner:
        if verdict == "happened":  # to skip is done before the runner has begun
            await told_of(runner.observe(), "committed")
        await runner.idle()
    assert statuses(node) == {"one": status}
    assert statuses(node, "sent") == published
    assert calls == []


async def test_the_word_that_it_did_not_happen_counts_only_when_the_thread_has_ended_that_makes_the_call(
    open_node, mail, inbox, within
):
    release, keys = threading.Event(), []

    @effect(name="mail", timeout_s=0.1)
    def send_mail(key, *, to):
        keys.append(key)
        if len(keys) == 1:
            release.wait(20)
        return "sent"

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    node = open_node("laptop")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        told = runner.observe()
        await told_of(told, "unknown")
        node.mutations.resolve(keys[0], "not_happened", by="Ann")
        await runner.idle()
        assert statuses(node) == {"one": "unknown"}
        assert len(keys) == 1
        release.set()
        await told_of(told, "committed")
    assert len(keys) == 1
    assert statuses(node) == {"one": "consumed"}


async def test_what_a_thread_says_after_its_time_is_known_without_a_reconcile_function(
    open_node, mail, inbox, sent, within
):
    release = threading.Event()

    @effect(name="mail", timeout_s=0.1)
    def send_mail(key, *, to):
        release.wait(20)
        return "sent late"

    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    consumer.next(lambda run: run.publish(sent, "re-one", payload=run.result))
    node = open_node("laptop")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        told = runner.observe()
        await told_of(told, "unknown")
        await runner.idle()
        assert [one.tool for one in node.mutations.unresolved()] == ["mail"]
        release.set()
        await told_of(told, "committed")
    assert [event.payload for event in node.peek("mail", "sent")] == ["sent late"]


@pytest.mark.parametrize("with_next", [True, False])
def test_skipping_by_hand_during_the_call_does_not_hide_that_it_happened(
    open_node, mail, inbox, calls, hands, with_next
):
    @effect(name="mail")
    async def send_mail(key):
        pass

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())
    if with_next:
        consumer.next(lambda run: None)
    node = open_node("laptop")
    publish(node, "one")
    run = hands(node).consume(consumer)
    perform = until(run, script.Perform)
    node.events.skip(perform.run)
    assert to_end(run, Happened("sent")).kind == "lost"
    assert node.mutations.get(perform.run).result == "sent"
    assert node.mutations.unresolved() == []


@pytest.mark.parametrize("settle", ["skip", "consume"])
async def test_what_is_settled_by_hand_while_it_is_found_out_is_asked_about_no_more(
    open_node, mail, inbox, within, quick, settle
):
    asked, settled = asyncio.Semaphore(0), asyncio.Event()
    answers = [Retry()]

    @effect(name="mail")
    async def send_mail(key):
        raise ConnectionResetError

    @send_mail.reconcile
    async def was_sent(key):
        asked.release()
        if answers:
            return answers.pop()
        await settled.wait()
        return NotApplied()

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())
    node = open_node("laptop")
    publish(node, "one")
    async with within(), node.running([mail], retry=quick) as runner:
        await asked.acquire()
        await asked.acquire()
        run = run_of(node, "send").id
        getattr(node.events, settle)(run)
        settled.set()
        await told_of(runner.observe(), "reconciled")
        await runner.idle()
    assert asked.locked(), "it was asked again"
    assert node.mutations.get(run).status == "failed"


def test_a_call_that_did_nothing_says_so_although_its_events_were_settled_by_hand(open_node, mail, sending, hands):
    node = open_node("laptop")
    publish(node, "one")
    run = hands(node).consume(sending)
    perform = until(run, script.Perform)
    node.events.skip(perform.run)
    assert to_end(run, DidNot(DidNotHappen("refused"))).kind == "failed"
    assert node.mutations.get(perform.run).status == "failed"
    assert statuses(node) == {"one": "skipped"}


# --- Deleting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [True, False])
async def test_a_topic_that_is_deleted_under_what_is_to_be_gone_on_with_blocks_nothing(
    open_node, mail, inbox, within, quick, hands, stateful
):
    @effect(name="mail")
    async def send_mail(key):
        pass

    consumer = mail.consumer(inbox, name="send", mode="soft", stateful=stateful)
    consumer.mutate(lambda run: send_mail())

    @consumer.next
    def tell(run):
        if run.events[0].message_id == "one":
            raise Transient("the service is down")
        return (run.state or 0) + 1 if stateful else None

    node = open_node("laptop")
    publish(node, "zero")
    by_hand = hands(node)
    assert carry_out(by_hand.consume(consumer)) == "committed"
    publish(node, "one")
    assert carry_out(by_hand.consume(consumer)) == "failed"
    node.topics.delete(node.topics.get_by_name("mail", "inbox").id, force=True)
    publish(node, "two")
    async with within(), node.running([mail], retry=quick) as runner:
        told = runner.observe()
        await told_of(told, "committed")
        await told_of(told, "committed")
        await runner.idle()
    assert statuses(node) == {"two": "consumed"}
    assert node.events.held_runs(own=True) == []
    if stateful:
        assert node.handler_states.get("mail", "send").state == 2


def carry_out(run):
    until(run, script.Perform)
    return to_end(run, Happened("sent")).kind


async def test_work_beyond_its_effect_whose_handler_is_gone_is_told_of_once(open_node, mail, sending, within, hands):
    node = open_node("laptop")
    publish(node, "one")
    run = hands(node).consume(sending)
    perform = until(run, script.Perform)
    node.mutations.mark_applied(perform.run, "sent")  # then the process dies, and the next app has another handler
    other = Workflow("mail")
    other.consumer(other.topic("inbox"), name="other").next(lambda run: None)
    found = Recovery(Manager(node, RetryRule()), {(one.workflow, one.name): one for one in other.consumers})
    ((kind, _, told_of_run, text),) = found.look().notifications
    assert (kind, told_of_run) == ("trouble", perform.run)
    assert f"leasemesh consume {perform.run[:16]}" in text
    assert found.look().notifications == ()
    assert statuses(node) == {"one": "reserved"}


# --- Take-overs -------------------------------------------------------------------------------------------------------


def appoint(device):
    device.node.authorities.appoint(device.node.site_id, by="the test")


def test_who_wakes_up_beyond_the_effect_does_not_publish_what_another_has_published_in_its_place(
    device_lab, mail, inbox, sent
):
    calls = []

    @effect(name="mail")
    async def send_mail(key):
        calls.append(key)

    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    consumer.mutate(lambda run: send_mail())

    @consumer.next
    async def tell(run):
        await asyncio.sleep(5)
        run.publish(sent, run.id)

    lab = device_lab(devices=["laptop", "phone", "hub"], workflows=lambda name: [] if name == "hub" else [mail])
    publish(lab["hub"].node, "one")
    lab.until(lambda: calls)
    lab.advance(1)
    sleeper, other = lab["laptop"], lab["phone"]
    if run_of(lab["hub"].node, "send").node != sleeper.node.site_id:
        sleeper, other = other, sleeper
    lab.pause(sleeper, 200)
    lab.until(lambda: statuses(other.node) == {"one": "consumed"}, within_s=190)
    lab.advance(230)
    lab.settle()
    lab.assert_converged()
    assert len(calls) == 1
    assert len(statuses(lab["hub"].node, "sent")) == 1
    assert lab["hub"].node.events.held_runs(own=False) == []


# --- Permits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["confirmed", "soft", "prepare"])
def test_what_stands_in_a_dead_devices_permit_holds_up_nothing_else(device_lab, mail, inbox, kind):
    calls = []

    @effect(name="mail")
    async def send_mail(key, *, to):
        calls.append(to)

    consumer = mail.consumer(inbox, name="send", mode="soft" if kind == "soft" else "confirmed")
    consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    if kind == "prepare":

        @consumer.prepare
        def choose(run):
            run.reserve(run.peek(inbox, limit=1))

    lab = device_lab(devices=["hub", "dead", "phone"], workflows=lambda name: [mail] if name == "phone" else [])
    appoint(lab["hub"])
    lab.settle()
    lab.crash("phone")
    hub, dead = lab["hub"].node, lab["dead"].node
    publish(dead, "one", "two")
    run = dead.handler_runs.new_id()
    dead.events.reserve(run, "mail", [("inbox", ["one"])], handler="send", default_mode="confirmed")
    dead.permits.request(run)
    lab.until(lambda: (permit := hub.permits.get(run)) is not None and permit.state == "granted")
    lab.crash("dead")
    other = hub.handler_runs.new_id()  # who had not heard of the permit has claimed it, and given it back
    (event,) = hub.peek("mail", "inbox", status="reserved")
    hub.events.take_over(other, [event.id], handler="send", default_mode="confirmed")
    hub.events.release(other)
    lab.restart("phone")
    lab.advance(600)
    assert calls == ["two"]
    assert statuses(hub) == {"one": "pending", "two": "consumed"}
    assert len(runs(hub)) <= 3


@pytest.mark.parametrize("how", ["blocked", "disabled"])
def test_a_handler_that_is_stopped_while_it_waits_for_its_permit_gives_back_and_does_nothing(
    device_lab, mail, inbox, how
):
    calls = []

    @effect(name="mail")
    async def send_mail(key):
        calls.append(key)

    consumer = mail.consumer(inbox, name="send")
    consumer.mutate(lambda run: send_mail())
    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    appoint(lab["hub"])
    lab.settle()
    lab.crash("hub")
    laptop = lab["laptop"].node
    publish(laptop, "one")
    lab.until(lambda: statuses(laptop) == {"one": "reserved"})
    if how == "blocked":
        laptop.handler_blocks.block("mail", "send", reason="the account is closed", by="Ann")
    else:
        laptop.workflows.update(laptop.workflows.get("mail").id, enabled=False)
    lab.restart("hub")
    lab.advance(60)
    assert calls == []
    assert statuses(laptop) == {"one": "pending"}
    assert [status for *_, status in runs(laptop)] == ["lost"]


# --- A state ----------------------------------------------------------------------------------------------------------


def test_a_state_is_kept_by_one_run_at_a_time_even_if_it_reserves_nothing(device_lab, mail, inbox):
    busy, most = [0], [0]
    consumer = mail.consumer(inbox, name="count", stateful=True)
    consumer.prepare(lambda run: None)

    @consumer.next
    async def count(run):
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        await asyncio.sleep(0.5)
        busy[0] -= 1
        return [*(run.state or []), run.id]

    lab = device_lab(devices=3, workflows=[mail])
    for number in range(3):
        publish(lab[number].node, f"{number}")
        lab.advance(1)
    lab.settle()
    lab.assert_converged()
    assert most[0] == 1
    committed = [run.id for run in lab[0].node.handler_runs.list("mail") if run.status == "committed"]
    assert sorted(lab[0].node.handler_states.get("mail", "count").state) == sorted(committed)


# --- Waking up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told_in", ["prepare", "next"])
def test_a_crash_does_not_forget_that_a_handler_was_woken(device_lab, mail, inbox, told_in):
    done, begun = [], []
    consumer = mail.consumer(inbox, name="remind")

    @consumer.prepare
    async def plan(run):
        if told_in == "prepare":
            run.wake_at(run.now_ms() + 3_600_000)
        run.reserve(run.peek(inbox))

    @consumer.next
    async def remind(run):
        begun.append(run.id)
        await asyncio.sleep(5)
        done.append(run.id)
        if told_in == "next":
            run.wake_at(run.now_ms() + 3_600_000)

    lab = device_lab(devices=1, workflows=[mail])
    publish(lab[0].node, "one")
    lab.until(lambda: len(begun) == 2, within_s=4_000)
    lab.crash(0)
    lab.restart(0)
    lab.advance(60)
    assert len(done) == 2
    lab.advance(3_600)
    assert len(done) == 3


async def test_a_device_that_got_a_new_identity_tries_again_what_it_failed_at_under_the_old_one(
    open_node, mail, inbox, within
):
    """A backup was restored, and a peer told it so while the app ran: the failed run belongs to another node now."""
    tried = []

    @mail.consumer(inbox, name="count").next
    def count(run):
        tried.append(run.id)
        if len(tried) == 1:
            raise Transient("not yet")

    node = open_node("a")
    publish(node, "one")
    async with within(), node.running([mail], retry=RetryRule(first_ms=200, most_ms=200)) as runner:
        await told_of(runner.observe(), "failed")
        first = node.handler_runs.get(tried[0])
        assert node.reset_identity() != first.node
        await told_of(runner.observe(), "committed")
    assert statuses(node) == {"one": "consumed"}
    assert node.handler_runs.get(tried[1]).retry_of == first.id
    assert node.handler_runs.get(first.id).status == first.status == "paused:transient"
