"""How a handler's work is claimed: its default, what a person has set, homes; and what a node's file may refuse."""

import asyncio

import pytest
from handling import publish, run_of, runs, statuses

from leasemesh import effect
from leasemesh.node.database.connection import DatabaseError


@pytest.fixture
def calls():
    return []


@pytest.fixture
def consumer(mail, inbox, calls):
    @effect(name="mail")
    async def send_mail(key):
        calls.append(key)

    found = mail.consumer(inbox, name="send")
    found.mutate(lambda run: send_mail())
    return found


async def test_the_default_for_an_effect_is_confirmed_and_the_permit_is_asked_for_with_the_reservation(
    open_node, mail, consumer, calls, within
):
    node = open_node("a")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        run = run_of(node, "send")
        assert (run.phase, run.status) == ("prepared", "paused:confirmation")
        assert node.events.reservation(run.id).mode == "confirmed"
        assert node.permits.get(run.id).state == "waiting"
        assert runner.status.handlers[0].state == "waiting"
        node.authorities.appoint(node.site_id, by="Ann")
        await runner_has(runner, "committed")
    assert len(calls) == 1


async def runner_has(runner, kind):
    observer = runner.observe()
    while (await anext(observer)).kind != kind:
        pass


async def test_a_stop_gives_back_at_once_what_waits_for_a_permit(open_node, mail, consumer, calls, within):
    node = open_node("a")
    publish(node, "one")
    async with within(), node.running([mail], drain_s=60) as runner:
        await runner.idle()
    assert statuses(node) == {"one": "pending"}
    assert runs(node) == [("send", "prepared", "crashed")]
    assert node.permits.get(run_of(node, "send").id).state == "void"


async def test_who_waits_for_a_permit_holds_no_place(open_node, mail, consumer, within):
    node, seen = open_node("a"), []
    mail.consumer(mail.topic("notes"), name="count").next(lambda run: seen.append(run.id))
    publish(node, "one")
    publish(node, "note", topic="notes")
    async with within(), node.running([mail], concurrency=1) as runner:
        await runner.idle()
        assert len(seen) == 1
        assert {status.state for status in runner.status.handlers} == {"waiting", "idle"}


@pytest.mark.parametrize("what", ["handler", "topic"])
async def test_what_a_person_has_set_comes_before_the_default(open_node, mail, consumer, calls, within, what):
    node = open_node("a")
    node.modes.set("mail", "soft", **{what: "send" if what == "handler" else "inbox"})
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert len(calls) == 1
    assert node.permits.get(run_of(node, "send").id) is None


async def test_work_at_home_is_done_at_home_alone_and_offline(open_node, mail, consumer, calls, within):
    node = open_node("a")
    node.modes.set("mail", "home", handler="send")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert len(calls) == 1
    assert node.events.reservation(run_of(node, "send").id).mode == "home"


async def test_work_that_is_at_home_elsewhere_is_left_alone_and_the_handler_says_so(
    open_node, mail, consumer, calls, within
):
    node = open_node("a")
    node.modes.set("mail", "home", handler="send", home="ab" * 16)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        assert f"at home on node {'ab' * 16}" in runner.status.handlers[0].text
    assert calls == []
    assert node.handler_runs.list() == []


async def test_a_mode_that_is_changed_frees_what_waited_for_it(open_node, mail, consumer, calls, within):
    node = open_node("a")
    node.modes.set("mail", "home", handler="send", home="ab" * 16)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        node.modes.set("mail", "soft", handler="send", gone=True)
        await runner_has(runner, "committed")
    assert len(calls) == 1


async def test_trouble_with_the_file_is_waited_out(open_node, mail, inbox, within, monkeypatch):
    monkeypatch.setattr("leasemesh.node.runtime.loops.TROUBLE_LEAST_S", 0.01)
    node, seen = open_node("a"), []
    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.id))
    publish(node, "one")
    create, full = node.handler_runs.create, [DatabaseError("The disk is full.")]

    def create_or_fail(*arguments, **options):
        if full:
            raise full.pop()
        return create(*arguments, **options)

    monkeypatch.setattr(node.handler_runs, "create", create_or_fail)
    async with within(), node.running([mail]) as runner:
        observer = runner.observe()
        told = [await anext(observer)]
        while told[-1].kind != "committed":
            told.append(await anext(observer))
    assert told[0].kind == "trouble"
    assert "The disk is full." in told[0].text
    assert len(seen) == 1
    assert statuses(node) == {"one": "consumed"}


async def test_trouble_in_the_middle_of_a_run_leaves_it_to_be_looked_after(open_node, mail, inbox, within, monkeypatch):
    monkeypatch.setattr("leasemesh.node.runtime.loops.TROUBLE_LEAST_S", 0.01)
    monkeypatch.setattr("leasemesh.node.runtime.background.HOUSEKEEPING_S", 0.05)
    node, seen = open_node("a"), []
    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.id))
    publish(node, "one")
    consume, full = node.events.consume, [DatabaseError("The disk is full.")]

    def consume_or_fail(*arguments, **options):
        if full:
            raise full.pop()
        return consume(*arguments, **options)

    monkeypatch.setattr(node.events, "consume", consume_or_fail)
    async with within(), node.running([mail]) as runner:
        await runner_has(runner, "committed")
    assert [status for _, _, status in runs(node)] == ["crashed", "committed"]
    assert len(seen) == 2
    assert statuses(node) == {"one": "consumed"}


async def test_handlers_on_two_real_nodes_share_the_work(open_node, mail, inbox, sent, within):
    hub, laptop = open_node("hub"), open_node("laptop")
    done = []

    @mail.consumer(inbox, publishes=[sent])
    async def forward(run):
        done.append(run.events[0].message_id)
        await asyncio.sleep(0)
        run.publish(sent, run.events[0].message_id)

    async with within(60):
        sync = await hub.start_sync(listen=("127.0.0.1", 0))
        await laptop.start_sync(peers=[sync.url])
        await laptop.caught_up()
        async with hub.running([mail]) as first, laptop.running([mail]) as second:
            publish(hub, *(f"hub-{number}" for number in range(10)))
            publish(laptop, *(f"laptop-{number}" for number in range(10)))
            while len(hub.peek("mail", "sent")) + len(laptop.peek("mail", "sent")) < 40:
                await first.idle()
                await second.idle()
                await hub.caught_up()
    assert sorted(done) == sorted([f"hub-{n}" for n in range(10)] + [f"laptop-{n}" for n in range(10)])
    assert hub.events.count_duplicates() == laptop.events.count_duplicates() == 0
