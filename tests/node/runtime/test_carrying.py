"""A thread carries a script and makes its calls of plain functions; the event loop watches their time."""

import asyncio
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from handling import publish, run_of, statuses

from leasemesh import DidNotHappen, RetryRule, effect
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.outcomes import DidNot, Happened, Unknown
from leasemesh.node.execution.script import Perform
from leasemesh.node.runtime.carrying import Begun, Carrying, Taken
from leasemesh.node.runtime.driving import Driver
from leasemesh.sync.drivers.workers import Threads


@pytest.fixture
def threads():
    threads = Threads(4, "test")
    yield threads
    threads.shutdown(cancel_futures=True)


@pytest.fixture
def carry(threads):
    """Begin to carry a script that makes calls one after the other and ends with their outcomes."""

    def carry(*functions, timeout_s=30.0, name="call"):
        requests = [Perform(effect(name=name, timeout_s=timeout_s)(one), "key", {}, "run") for one in functions]

        def script():
            outcomes = []
            for request in requests:
                outcomes.append((yield request))
            return outcomes

        return Carrying(script(), threads, calls_take_s=timeout_s, calling=_under_way)

    return carry


under_way = []


@contextmanager
def _under_way(run):
    under_way.append(run)
    try:
        yield
    finally:
        under_way.remove(run)


async def test_calls_are_made_one_after_the_other_by_one_thread(carry, within):
    seen = []

    def call(key):
        seen.append((threading.get_ident(), list(under_way)))
        return key

    async with within():
        assert await carry(call, call).turn(None, None) == [Happened("key"), Happened("key")]
    assert seen[0] == seen[1]
    assert seen[0] == (seen[0][0], ["run"]) and seen[0][0] != threading.get_ident()
    assert under_way == []


async def test_only_its_author_says_that_a_call_did_not_happen(carry, within):
    def fail(key):
        raise ConnectionError("reset")

    def refuse(key):
        raise DidNotHappen("no such address")

    async with within():
        unknown, left, refused = await carry(fail, lambda key: sys.exit(1), refuse).turn(None, None)
    assert unknown == Unknown("ConnectionError: reset")
    assert left == Unknown("RuntimeError: it called sys.exit(1)")
    assert isinstance(refused, DidNot) and str(refused.error) == "no such address"


async def test_a_script_is_taken_from_a_call_that_has_had_its_time_and_goes_on_in_another_thread(carry, within):
    release, idents = threading.Event(), []

    def hang(key):
        idents.append(threading.get_ident())
        release.wait(30)
        return "at last"

    def answer(key):
        idents.append(threading.get_ident())
        return "at once"

    carrying = carry(hang, answer, timeout_s=0.02)
    async with within():
        taken = await carrying.turn(None, None)
        assert isinstance(taken, Taken)
        assert (taken.outcome.reason, taken.outcome.may_ask) == ("no answer within 0.02 s", False)
        assert await carrying.turn(taken.outcome, None) == [taken.outcome, Happened("at once")]
        assert idents[0] != idents[1]
        assert not taken.outcome.late.done()
        release.set()
        assert await taken.outcome.late == "at last"


async def test_the_time_of_a_call_begins_with_the_call(carry, within):
    begun, release, now = threading.Event(), threading.Event(), [1000.0]

    def call(key):
        begun.set()
        release.wait(30)

    carrying = carry(call, timeout_s=30.0)
    carrying._loop = SimpleNamespace(time=lambda: now[0])
    async with within():
        turn = asyncio.ensure_future(carrying.turn(None, None))
        await asyncio.to_thread(begun.wait)
        now[0] += 29.0
        assert carrying._seconds_left() == 1.0
        assert carrying._take() is None
        now[0] += 1.0
        assert carrying._take() is not None
        assert carrying._take() is None  # only once
        release.set()
        turn.cancel()


async def test_a_stop_takes_the_script_from_a_call_and_lets_no_other_begin(carry, within):
    begun, release, calls = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def hang(key):
        loop.call_soon_threadsafe(begun.set)
        release.wait(30)

    carrying = carry(hang, calls.append)
    async with within():
        turn = asyncio.ensure_future(carrying.turn(None, None))
        await begun.wait()
        carrying.stop()
        taken = await turn
        assert taken.outcome.reason == "the node stopped during the call"
        outcomes = await carrying.turn(taken.outcome, None)
        release.set()
        await taken.outcome.late
    assert isinstance(outcomes[1], DidNot) and outcomes[1].stopped
    assert str(outcomes[1].error) == "the node stopped before the call"
    assert calls == []


async def test_what_a_plain_function_returns_to_be_awaited_is_awaited(carry, open_node, mail, inbox, within):
    async def answer(key):
        await asyncio.sleep(0)
        return {"key": key}

    async with within():
        begun = await carry(lambda key: answer(key)).turn(None, None)
        assert isinstance(begun, Begun) and await begun.awaitable == {"key": "key"}
    send_mail = effect(name="mail")(lambda key: answer(key))
    mail.consumer(inbox, name="send", mode="soft").mutate(lambda run: send_mail())
    node = open_node("a")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    run = run_of(node, "send")
    assert (run.status, statuses(node)) == ("committed", {"one": "consumed"})
    entry = node.mutations.get(run.id)
    assert entry.result == {"key": entry.work}


async def test_a_stop_during_a_call_of_a_plain_function_leaves_its_outcome_unknown(open_node, mail, inbox, within):
    node, begun, release = open_node("a"), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @effect(name="mail")
    def send_mail(key):
        loop.call_soon_threadsafe(begun.set)
        release.wait(30)

    mail.consumer(inbox, name="send", mode="soft").mutate(lambda run: send_mail())
    publish(node, "one")
    async with within(), node.running([mail], drain_s=0):
        await begun.wait()
    assert statuses(node) == {"one": "unknown"}
    assert run_of(node, "send").phase == "mutating"
    release.set()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stop_before_the_call_is_known_to_have_prevented_it_and_the_next_start_does_not_wait(
    open_node, mail, inbox, within, asynchronous
):
    choosing, stopped, keys = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def send(key):
        keys.append(key)

    async def send_async(key):
        keys.append(key)

    send_mail = effect(name="mail")(send_async if asynchronous else send)

    def choose(run):
        loop.call_soon_threadsafe(choosing.set)
        stopped.wait(30)
        return send_mail()

    mail.consumer(inbox, name="send", mode="soft", effects=[send_mail]).mutate(choose)
    node = open_node("a")
    publish(node, "one")
    async with within(), node.running([mail], drain_s=0) as runner:
        end_all = runner.driver.end_all
        runner.driver.end_all = lambda: (end_all(), stopped.set())
        await choosing.wait()
    run = run_of(node, "send")
    assert (node.mutations.get(run.id).status, run.status) == ("failed", "crashed")
    assert (statuses(node), keys) == ({"one": "pending"}, [])
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert statuses(node) == {"one": "consumed"}
    assert len(keys) == 1


async def test_a_call_that_was_cancelled_before_it_began_did_not_happen(open_node, within):
    calls = []

    @effect(name="mail")
    async def send_mail(key):
        calls.append(key)

    driver = Driver(Manager(open_node("a"), RetryRule()), concurrency=1)
    async with within():
        making = asyncio.ensure_future(driver._carry_out(Perform(send_mail, "key", {}, "run")))
        await asyncio.sleep(0)  # the call is the next that the event loop would begin
        driver.end_all()
        outcome, _ = await making
    driver.close()
    assert isinstance(outcome, DidNot) and outcome.stopped
    assert calls == []
