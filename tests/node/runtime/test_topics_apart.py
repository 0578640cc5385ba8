"""One consumer of several topics, each with a mode of its own; and what is at home elsewhere."""

import asyncio

import pytest
from handling import publish, runs, statuses

from leasemesh import effect

ELSEWHERE = "ab" * 16


@pytest.fixture
def outbox(mail):
    return mail.topic("outbox")


@pytest.mark.parametrize("mode", ["soft", "home"])
async def test_the_setting_of_one_topic_says_nothing_about_another(open_node, mail, inbox, outbox, within, mode):
    calls = []

    @effect(name="mail")
    async def send_mail(key, *, to):
        calls.append(to)

    consumer = mail.consumer(inbox, outbox, name="send", batch=10)
    consumer.mutate(lambda run: send_mail(to=[event.message_id for event in run.events]))
    node = open_node("laptop")
    node.authorities.appoint(node.site_id, by="the test")
    node.modes.set("mail", mode, topic="inbox")
    publish(node, "one", topic="outbox")
    publish(node, "two", topic="inbox")
    async with within(), node.running([mail]) as runner:
        await runner.idle(permits=True)
    assert sorted(calls) == [["one"], ["two"]]
    asked = {run.id: node.permits.get(run.id) for run in node.handler_runs.list("mail")}
    modes = {node.events.reservation(run).mode: permit is not None for run, permit in asked.items()}
    assert modes == {mode: False, "confirmed": True}


def test_what_is_claimed_together_is_claimed_by_the_strictest_and_the_default_counts(open_node):
    node = open_node("laptop")
    node.modes.set("mail", "soft", topic="inbox")
    assert node.modes.claiming("mail", ["inbox"], "send", default="confirmed") == "soft"
    assert node.modes.claiming("mail", ["inbox", "~state"], "send", default="confirmed") == "soft"
    assert node.modes.claiming("mail", ["inbox", "outbox"], "send", default="confirmed") == "confirmed"
    node.modes.set("mail", "soft", handler="send")
    assert node.modes.claiming("mail", ["inbox", "outbox"], "send", default="confirmed") == "soft"


async def test_what_is_at_home_elsewhere_does_not_hold_up_the_rest(open_node, mail, inbox, outbox, within):
    consumer = mail.consumer(inbox, outbox, name="note")
    consumer.next(lambda run: None)
    node = open_node("laptop")
    node.modes.set("mail", "home", topic="inbox", home=ELSEWHERE)
    publish(node, "one", topic="inbox")
    publish(node, "two", topic="outbox")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert (statuses(node), statuses(node, "outbox")) == ({"one": "pending"}, {"two": "consumed"})


@pytest.mark.parametrize("topics", [["inbox"], ["inbox", "outbox"]])
async def test_a_prepare_phase_does_not_reach_for_what_is_at_home_elsewhere(open_node, mail, within, topics):
    consumer = mail.consumer(*map(mail.topic, topics), name="note")

    @consumer.prepare
    def choose(run):
        for topic in topics:
            run.reserve(run.peek(topic))

    consumer.next(lambda run: None)
    node = open_node("laptop")
    node.modes.set("mail", "home", topic="inbox", home=ELSEWHERE)
    publish(node, "one", topic="inbox")
    publish(node, "two", topic="outbox")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        publish(node, "three", topic="inbox")
        await asyncio.sleep(0.5)  # time in which it would try again, and lose
        await runner.idle()
    assert statuses(node) == {"one": "pending", "three": "pending"}
    assert {status for _, _, status in runs(node)} <= {"committed"}
    assert len(runs(node)) <= 3


async def test_a_settled_event_cannot_be_chosen(open_node, mail, inbox, within):
    consumer = mail.consumer(inbox, name="note")

    @consumer.prepare
    def choose(run):
        run.reserve(run.get_many(inbox, ["one", "two"]))

    consumer.next(lambda run: None)
    node = open_node("laptop")
    publish(node, "one", "two")
    by_hand = node.handler_runs.new_id()
    node.events.reserve(by_hand, "mail", [("inbox", ["one"])])
    node.events.consume(by_hand)
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        assert runner.status.handlers[0].state == "retrying"
    assert [status for *_, status in runs(node)] == ["failed:logic"]
