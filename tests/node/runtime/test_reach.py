"""Work is begun only where somebody can tell who is within reach; who cannot tell leaves it, and says so."""

import asyncio
import threading
from contextlib import contextmanager

import pytest
from handling import publish, runs, statuses

from leasemesh import Node
from leasemesh.node.database.connection import DatabaseDamaged
from leasemesh.node.machine.environment import Environment
from leasemesh.node.runtime import loops
from leasemesh.sync.errors import LocalProtocolError

LOOPBACK = ("127.0.0.1", 0)

FAILURES = [DatabaseDamaged("the file is damaged"), LocalProtocolError("a link is used twice"), KeyError("of ours")]


@pytest.fixture(autouse=True)
def looking_often(monkeypatch):
    monkeypatch.setattr(loops, "ELSEWHERE_S", 0.05)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_while_sync_has_failed_nothing_is_claimed_and_the_handler_says_so(open_node, mail, inbox, within, error):
    node, done = open_node("a"), asyncio.Event()
    mail.consumer(inbox, name="count").next(lambda run: done.set())
    await node.start_sync(listen=LOOPBACK)
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        node.sync.loop._fail(error)
        publish(node, "one")
        for _ in range(3):
            await runner.idle()
        (status,) = runner.status.handlers
        assert status.state == "elsewhere"
        assert status.text.startswith("sync has failed")
        assert (runs(node), statuses(node)) == ([], {"one": "pending"})
        await node.stop_sync()
        await done.wait()
        await runner.idle()
    assert statuses(node) == {"one": "consumed"}


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_a_run_that_sync_fails_under_is_given_up_before_its_work_begins(open_node, mail, inbox, within, error):
    node, done = open_node("a"), []
    consumer = mail.consumer(inbox, name="count")

    @consumer.prepare
    async def choose(run):
        run.reserve(run.peek(inbox))
        node.sync.loop._fail(error)

    consumer.next(lambda run: done.append(run.id))
    await node.start_sync(listen=LOOPBACK)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        for _ in range(3):
            await runner.idle()
        assert runs(node) == [("count", "prepared", "lost")]
        assert (statuses(node), done) == ({"one": "pending"}, [])


async def test_a_runner_outlives_that_sync_begins_and_fails_while_it_looks_for_other_processes(
    tmp_path, mail, inbox, within
):
    looking, go_on, done = threading.Event(), threading.Event(), asyncio.Event()

    @contextmanager
    def lock(path, wait_s):
        if path.name.endswith("sync-lock") and wait_s and not go_on.is_set():
            looking.set()
            go_on.wait(20)
        yield

    mail.consumer(inbox, name="count").next(lambda run: done.set())
    async with Node.open(tmp_path / "a.db", workspace="team", environment=Environment(lock=lock)) as node:
        publish(node, "one")
        async with within(), node.running([mail]) as runner:
            await asyncio.to_thread(looking.wait)
            sync = await node.start_sync(listen=LOOPBACK)
            sync.loop._fail(LocalProtocolError("a link is used twice"))
            go_on.set()
            for _ in range(3):
                await runner.idle()
            assert runner.status.handlers[0].state == "elsewhere"
            assert (runs(node), statuses(node)) == ([], {"one": "pending"})
            await node.stop_sync()
            await done.wait()
