"""Processes that are killed while they sync, that sleep for too long, and that crowd one file."""

import asyncio
import signal
from collections import Counter

import pytest
from crash_child import OPTIONS, hold_an_event, publish_and_sync, work_on_one_file
from sweeps import problems_of

from leasemesh import Node, TooEarly
from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.work.staleness import StalenessWatch

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
async def hub(tmp_path):
    async with Node.open(tmp_path / "hub.db", name="hub", **OPTIONS) as node:
        yield node


async def take_over_when_allowed(node, event):
    while True:
        try:
            return node.take_over([event])
        except TooEarly as error:
            await asyncio.sleep(error.wait_ms / 1000)


async def test_a_device_that_slept_for_too_long_finds_its_lease_lost(hub, tmp_path, start, within):
    hub.staleness = StalenessWatch(hub.database, rule=StalenessRule(ttl_ms=200, margin_ms=100))
    event = hub.publish("mail", "inbox", "1").event
    async with within(60), hub.syncing(listen=LOOPBACK) as sync:
        holder = start(hold_an_event, tmp_path / "holder.db", sync.url)
        await asyncio.to_thread(holder.hear, "reserved")
        assert [one.id for one in hub.peek("mail", "inbox", status="reserved")] == [event.id]
        holder.sleep()
        taken = await take_over_when_allowed(hub, event.id)
        holder.wake()
        await hub.caught_up("holder")
        holder.pipe.send("go")
        assert await asyncio.to_thread(holder.hear, "lost") == {event.id: taken.run}
        assert taken.consume() == 1
        assert hub.explain(event.id).duplicate is False


async def test_whoever_is_killed_while_syncing_has_lost_nothing(hub, tmp_path, start, within):
    path = tmp_path / "publisher.db"
    said = []
    async with within(60), hub.syncing(listen=LOOPBACK) as sync:
        for number in range(6):
            child = start(publish_and_sync, path, sync.url)
            hub.publish("mail", "inbox", f"of the hub {number}")
            for _ in range(15 + 7 * number):
                said.append(await asyncio.to_thread(child.hear, "published"))
            child.process.kill()
            said += [name for _, name in child.words()]
            assert child.process.exitcode == -signal.SIGKILL
        with Node.open(path) as node:
            assert problems_of(node) == []
            assert {event.message_id for event in node.peek("mail", "inbox", limit=10_000)} >= set(said)
            async with node.syncing(peers=[sync.url]):
                await node.caught_up()
            assert node.digest().tables == hub.digest().tables
        assert {event.message_id for event in hub.peek("mail", "inbox", limit=10_000)} >= set(said)


async def test_several_processes_share_one_file_that_is_synced_meanwhile(hub, tmp_path, start, within):
    path = tmp_path / "shared.db"
    with Node.open(path, name="shared", **OPTIONS) as shared:
        async with within(60), hub.syncing(listen=LOOPBACK) as sync, shared.syncing(peers=[sync.url]):
            await shared.caught_up()
            children = [start(work_on_one_file, path, number, 25) for number in range(3)]
            said = [word for child in children for word in await asyncio.to_thread(lambda c=child: list(c.words()))]
            await shared.caught_up()
            assert shared.digest().tables == hub.digest().tables
        assert [child.process.exitcode for child in children] == [0, 0, 0]
        assert Counter(kind for kind, _ in said) == {"published": 75, "consumed": 75, "done": 3}
        published = {name for kind, names in said if kind == "published" for name in names}
        consumed = Counter(name for kind, names in said if kind == "consumed" for name in names)
        assert set(consumed.values()) == {1}, "an event was consumed by two processes"
        assert consumed.keys() <= published and len(published) == 300
        for node in (shared, hub):
            assert {one.message_id for one in node.peek("mail", "inbox", status="consumed", limit=1_000)} == set(
                consumed
            )
            assert {one.message_id for one in node.peek("mail", "inbox", limit=1_000)} == published - set(consumed)
        assert [finding.text for finding in shared.doctor() if not finding.healthy] == []
