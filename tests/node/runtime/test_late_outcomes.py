"""What becomes of outcomes that are known late, or cannot be written at once, and how often the ledger is looked at."""

import asyncio

import pytest
from handling import publish, statuses

from leasemesh import DidNotHappen, NotOwner, Retry, effect
from leasemesh.node.runtime.background import Reconciliation


def test_an_effect_that_another_run_goes_on_with_is_not_looked_at_all_the_time(device_lab, mail, inbox, monkeypatch):
    @effect(name="mail")
    async def send_mail(key):
        raise ConnectionResetError

    @send_mail.reconcile
    async def was_sent(key):
        return Retry()

    begun, looks = [], []
    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())

    @consumer.next
    async def tell(run):
        begun.append(run.id)
        await asyncio.sleep(60)

    lab = device_lab(devices=1, workflows=[mail])
    node = lab[0].node
    publish(node, "one")
    lab.until(node.mutations.unresolved)
    (entry,) = node.mutations.unresolved()
    node.mutations.resolve(entry.work, "happened", by="Ann")
    lab.until(lambda: begun)
    due = node.mutations.due
    monkeypatch.setattr(node.mutations, "due", lambda now_ms: looks.append(now_ms) or due(now_ms))
    lab.advance(70)
    assert statuses(node) == {"one": "consumed"}
    assert 1 <= len(looks) <= 30


@pytest.mark.parametrize("said", [None, "not_happened"])
def test_what_a_call_came_to_after_its_time_is_recorded_while_another_effect_is_found_out(
    device_lab, mail, inbox, sent, said
):
    keys, asking = [], []

    @effect(name="mail", timeout_s=10)
    async def send_mail(key):
        keys.append(key)
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        return "sent late"

    @effect(name="ping", timeout_s=100)
    async def ping(key):
        raise ConnectionResetError

    @ping.reconcile
    async def was_pinged(key):
        asking.append(key)
        if len(asking) > 1:
            await asyncio.sleep(90)
        return Retry()

    sending = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    sending.mutate(lambda run: send_mail())
    sending.next(lambda run: run.publish(sent, "re-one", payload=run.result))
    mail.consumer(mail.topic("others"), name="ping", mode="soft").mutate(lambda run: ping())
    lab = device_lab(devices=1, workflows=[mail])
    node = lab[0].node
    publish(node, "one")
    publish(node, "other", topic="others")
    lab.until(lambda: len(asking) == 2)
    lab.until(lambda: statuses(node) == {"one": "unknown"})
    if said is not None:
        node.mutations.resolve(keys[0], said, by="Ann")
    lab.advance(60)
    assert node.calls_going_on == set()
    assert len(asking) == 2, "the other one is still asked about"
    assert statuses(node) == {"one": "consumed"}
    assert [event.payload for event in node.peek("mail", "sent")] == ["sent late"]
    assert len(keys) == 1


@pytest.fixture
def full_disk_during_call(device_lab, mail, inbox, sent):
    """A device whose disk is full from before the end of its first call on, and the keys of its calls."""

    def fill(*, outcome, with_next=True):
        keys = []

        @effect(name="mail")
        async def send_mail(key):
            keys.append(key)
            await asyncio.sleep(5)
            if len(keys) == 1 and outcome is not None:
                raise outcome
            return "sent"

        consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
        consumer.mutate(lambda run: send_mail())
        if with_next:
            consumer.next(lambda run: run.publish(sent, "re-one", payload=run.result))
        lab = device_lab(devices=1, workflows=[mail])
        publish(lab[0].node, "one")
        lab.until(lambda: keys)
        lab.fill_disk(0)
        lab.advance(20)
        assert statuses(lab[0].node) == {"one": "unknown"}
        return lab, keys

    return fill


@pytest.mark.parametrize("with_next", [True, False])
@pytest.mark.parametrize("stops", [True, False])
def test_that_it_happened_is_written_when_the_disk_has_room_again(full_disk_during_call, with_next, stops):
    lab, keys = full_disk_during_call(outcome=None, with_next=with_next)
    lab.heal()
    if stops:
        lab.restart(0)
    lab.advance(30)
    assert statuses(lab[0].node) == {"one": "consumed"}
    published = [event.payload for event in lab[0].node.peek("mail", "sent")]
    assert published == (["sent"] if with_next else [])
    assert len(keys) == 1


def test_that_it_did_not_happen_is_written_when_the_disk_has_room_again(full_disk_during_call):
    lab, keys = full_disk_during_call(outcome=DidNotHappen("refused", transient=True))
    lab.heal()
    lab.advance(60)
    assert statuses(lab[0].node) == {"one": "consumed"}
    assert len(keys) == 2


def test_why_nobody_knows_is_written_when_the_disk_has_room_again(full_disk_during_call):
    lab, keys = full_disk_during_call(outcome=ConnectionResetError("the line is dead"))
    lab.heal()
    lab.advance(60)
    (entry,) = lab[0].node.mutations.unresolved()
    assert entry.result == "ConnectionResetError: the line is dead"
    assert len(keys) == 1


@pytest.mark.parametrize("with_effect", [False, True])
def test_a_run_that_was_to_begin_with_a_commit_that_failed_is_not_under_way(device_lab, mail, inbox, with_effect):
    done = []

    def work(_):
        done.append(1)
        if len(done) == 1:
            lab.fill_disk(0)

    send_mail = effect(name="mail")(work)
    consumer = mail.consumer(inbox, name="work", mode="soft", effects=[send_mail])
    if with_effect:
        consumer.mutate(lambda run: send_mail())
    else:
        consumer.next(work)
    lab = device_lab(devices=1, workflows=[mail])
    publish(lab[0].node, "one", "two")
    lab.until(lambda: done)
    lab.advance(10)
    assert lab[0].node.runner.status.under_way == 0
    lab.heal()
    lab.advance(60)
    assert statuses(lab[0].node) == {"one": "consumed", "two": "consumed"}
    assert len(done) == (2 if with_effect else 3)


def test_an_outcome_that_this_device_may_not_write_does_not_stand_in_the_way_of_others(
    device_lab, mail, inbox, monkeypatch
):
    """A file can get a new site id while a call is under way: the run is another node's then."""

    @effect(name="mail")
    async def send_mail(key):
        await asyncio.sleep(5)
        return "sent"

    not_ours, record = [], Reconciliation._record_late

    def refuse(self, run, entry, outcome):
        if run.id in not_ours:
            raise NotOwner(run.id, "cc" * 16)
        record(self, run, entry, outcome)

    monkeypatch.setattr(Reconciliation, "_record_late", refuse)
    outbox = mail.topic("outbox")
    for topic in (inbox, outbox):
        mail.consumer(topic, name=topic.name, mode="soft").mutate(lambda run: send_mail())
    lab = device_lab(devices=1, workflows=[mail])
    node = lab[0].node
    publish(node, "one")
    publish(node, "two", topic="outbox")
    lab.until(lambda: [run.phase for run in node.handler_runs.list("mail")] == ["mutating"] * 2)
    lab.fill_disk(0)
    lab.advance(20)
    not_ours.append(next(iter(node.runner.driver.late)))
    lab.heal()
    lab.advance(30)
    assert sorted([*statuses(node).values(), *statuses(node, "outbox").values()]) == ["consumed", "unknown"]
    assert not node.runner.driver.late
