"""Whatever a handler's functions raise is an error like others: it can be stored and shown, and ends just the run."""

import asyncio
import sys

import pytest
from handling import publish, runs, statuses

from leasemesh import DidNotHappen, effect


def cancelled():
    raise asyncio.CancelledError


LEAVING = [cancelled, lambda: sys.exit(3)]


@pytest.mark.parametrize("leave", LEAVING, ids=["cancelled", "exit"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("where", ["next", "effect", "reconcile"])
async def test_a_function_that_leaves_as_no_error_does_has_failed_like_others(
    open_node, mail, inbox, within, leave, is_async, where
):
    def function(key):
        leave()

    async def async_function(key):
        leave()

    leaving = async_function if is_async else function
    consumer = mail.consumer(inbox, name="send", mode="soft")
    if where == "next":
        consumer.next(leaving)
    else:
        send_mail = effect(name="mail")(leaving if where == "effect" else lambda key: None)
        if where == "reconcile":
            send_mail.function = async_broken
            send_mail.reconcile(leaving)
        consumer.mutate(lambda run: send_mail())
    node = open_node("laptop")
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        assert not runner.stopping
        assert runner.status.handlers[0].state == ("retrying" if where == "next" else "idle")
    assert [status for _, _, status in runs(node)] == ["failed:logic" if where == "next" else "paused:reconciliation"]


async def async_broken(key):
    raise ConnectionResetError


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("nobody can say it")


ERRORS = [
    Unspeakable(),
    ValueError("\ud800"),
    ValueError("\x00"),
    ValueError("x" * 3_000_000),
    ValueError("two\nlines"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["unspeakable", "surrogate", "nul", "huge", "lines"])
@pytest.mark.parametrize("where", ["next", "effect", "reconcile", "did_not"])
async def test_an_error_that_cannot_be_shown_is_an_error_like_others(
    open_node, mail, inbox, within, quick, error, where
):
    @effect(name="mail")
    async def send_mail(key, *, to):
        if where == "did_not":
            raise DidNotHappen(error, transient=True)
        raise error

    if where == "reconcile":

        @send_mail.reconcile
        async def was_sent(key, *, to):
            raise error

    consumer = mail.consumer(inbox, name="send", mode="soft")
    if where == "next":

        @consumer.next
        def note(run):
            raise error
    else:
        consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
    node = open_node("laptop")
    publish(node, "one", "two")
    async with within(), node.running([mail], retry=quick) as runner:
        told = runner.observe()
        if where in ("next", "did_not"):
            await told_of(told, "blocked")
        elif where == "effect":
            await runner.idle()
        else:
            await told_of(told, "a person must decide")
            await told_of(told, "a person must decide")
        assert not runner.stopping
    if where not in ("next", "did_not"):
        assert statuses(node) == {"one": "unknown", "two": "unknown"}
        assert all(type(error).__name__ in str(entry.result) for entry in node.mutations.unresolved())


async def told_of(observer, what):
    async for told in observer:
        if what == told.kind or what in told.text:
            return
