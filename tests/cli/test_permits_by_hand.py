"""permit: asking the authority by hand."""

import asyncio
import threading

import pytest
from cli_devices import meet

from leasemesh import Node


@pytest.fixture
def reserved(leasemesh, database):
    return leasemesh("reserve", "shop/orders", "--id", "order-1", "--json").document["run"]


def test_the_authority_gives_itself_a_permit_at_once(leasemesh, database, reserved):
    leasemesh("authority", "set")
    granted = leasemesh("permit", reserved[:16])
    assert granted.code == 0
    assert granted.out.startswith(f"run {reserved[:16]} has the permit of laptop, work ")
    assert granted.out.splitlines()[1] == f"when the work is done: leasemesh consume {reserved[:16]}"
    again = leasemesh("permit", reserved, "--wait", "--json").document
    assert (again["run"], again["permit"]["state"], again["permit"]["device"]) == (reserved, "granted", "laptop")
    assert leasemesh("consume", reserved).code == 0


def test_who_has_no_permit_yet_must_not_begin(leasemesh, database, reserved):
    for options in ([], ["--wait", "--timeout", "0.1"]):
        waiting = leasemesh("permit", reserved, *options)
        assert (waiting.code, waiting.out) == (4, "")
        assert "waiting for confirmation by an authority (`leasemesh authority set` names one)" in waiting.err
        assert "the request stays, --wait waits" in waiting.err
    leasemesh("authority", "set")
    assert leasemesh("permit", reserved).code == 0


def test_a_permit_for_what_somebody_else_has_one_for_is_refused(leasemesh, database, other, reserved):
    second = leasemesh("reserve", "shop/orders", "--id", "order-1", "--json", "--db", other).document["run"]
    leasemesh("authority", "set")
    assert leasemesh("permit", reserved).code == 0
    with Node.open(other) as node:
        node.permits.request(second)
    meet(database, other)
    with Node.open(database) as node:
        node.authority.tend()
    meet(database, other)
    refused = leasemesh("permit", second, "--db", other)
    assert (refused.code, refused.out) == (4, "")
    assert f"run {second} has no permit: event" in refused.err and "release the run" in refused.err


def test_waiting_ends_when_the_authority_decides(leasemesh, database, other, reserved):
    with Node.open(other) as node:
        node.authorities.appoint(node.site_id, by="the test")
        node.authority.tend()
    meet(database, other)
    synced = threading.Thread(target=asyncio.run, args=(sync_until_decided(database, other, reserved),))
    synced.start()
    granted = leasemesh("permit", reserved, "--wait", "--timeout", "30")
    synced.join()
    assert granted.code == 0, granted.err
    assert "has the permit of desktop" in granted.out
    assert granted.err.startswith(f"run {reserved[:16]}: waiting for confirmation by desktop since 20")


async def sync_until_decided(database, other, run):
    """Sync the two devices, as two processes would, once the run has asked."""
    async with Node.open(database) as one, Node.open(other) as two, asyncio.timeout(30):
        await until(one, lambda: one.permits.get(run) is not None)
        listening = await one.start_sync(listen=("127.0.0.1", 0))
        await two.start_sync(peers=[listening.url])
        await until(one, lambda: one.permits.get(run).state == "granted")


async def until(node, condition):
    async with node.changes() as changes:
        while not condition():
            await anext(changes)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ffffffffffff"], 3, "no such run"),
        (["RUN", "--timeout", "1"], 2, "--timeout goes with --wait"),
        (["RUN", "--wait", "--timeout", "0"], 2, "--timeout goes with --wait and is more than 0"),
    ],
)
def test_what_cannot_be_asked_ends_with_one_sentence(leasemesh, database, reserved, arguments, code, said):
    failed = leasemesh("permit", *(argument.replace("RUN", reserved) for argument in arguments))
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1
    with Node.open(database) as node:
        assert node.permits.get(reserved) is None


def test_the_examples_of_permit_work(leasemesh, database, reserved):
    leasemesh("authority", "set")
    examples = leasemesh("permit", "--help").out.partition("Examples:")[2].splitlines()
    lines = [line.strip().replace("019a2b3c4d5e", reserved) for line in examples if line.strip()]
    assert len(lines) == 2
    for line in lines:
        assert leasemesh(*line.split()[1:]).code == 0
