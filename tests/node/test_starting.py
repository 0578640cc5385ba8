"""Beginning work with the barrier: real nodes race for the same events over real websockets."""

import asyncio
import random
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager

import pytest
from meshes import LOOPBACK, Proxy, equal, message_ids, publish, told

from leasemesh import LeaseLost, Node, NotAvailable, SyncRefused
from leasemesh.sync.errors import LocalProtocolError


@asynccontextmanager
async def star(open_node, *names):
    """A hub and devices that have dialled it, level with it."""
    hub, devices = open_node("hub"), [open_node(name) for name in names]
    serving = await hub.start_sync(listen=LOOPBACK)
    for device in devices:
        await device.start_sync(peers=[serving.url])
        await device.caught_up("hub")
    yield hub, *devices
    for device in devices:
        await device.stop_sync()
    await hub.stop_sync()


async def meet(*nodes):
    """Sync until the nodes are level, and stop."""
    first, *others = nodes
    async with first.syncing(listen=LOOPBACK) as serving:
        for other in others:
            async with other.syncing(peers=[serving.url]):
                await other.caught_up()


@contextmanager
def synced_elsewhere(node):
    """Another process has the right to sync the node's file."""
    program = (
        "import sys; from pathlib import Path; from leasemesh.node.replication.syncing import sync_lock\n"
        f"with sync_lock(Path({str(node.path)!r})): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.close()


# --- One node ---------------------------------------------------------------------------------------------------------


class TestAlone:
    async def test_work_begins_at_once_and_what_is_not_settled_is_released(self, open_node):
        node = open_node("a")
        publish(node, "1", "2")
        async with node.start("inbox", "mail", limit=1) as work:
            assert [event.message_id for event in work] == ["1"]
            assert work.consume() == 1
        async with node.start("inbox", "mail") as work:
            assert [event.message_id for event in work] == ["2"]
        assert message_ids(node, status="consumed") == ["1"] and message_ids(node) == ["2"]

    async def test_nothing_to_do_is_no_work(self, open_node):
        node = open_node("a")
        publish(node, "1")
        async with node.start("inbox", "mail", message_ids=["1"]) as work, node.start("inbox", "mail") as more:
            assert (len(work), len(more)) == (1, 0)
            with pytest.raises(NotAvailable):
                async with node.start("inbox", "mail", message_ids=["1"]):
                    raise AssertionError("it has begun")

    async def test_listening_without_peers_is_being_alone(self, open_node, within):
        node = open_node("a")
        publish(node, "1")
        async with within(), node.syncing(listen=LOOPBACK), node.start("inbox", "mail") as work:
            assert len(work) == 1

    async def test_a_file_that_another_process_syncs_is_refused_and_nothing_stays_reserved(self, open_node):
        node = open_node("a")
        publish(node, "1")
        with synced_elsewhere(node):
            with pytest.raises(SyncRefused, match="begin the work in that process"):
                async with node.start("inbox", "mail"):
                    raise AssertionError("it has begun")
            assert message_ids(node) == ["1"]
        async with node.start("inbox", "mail") as work:
            assert len(work) == 1


# --- What was lost ----------------------------------------------------------------------------------------------------


class TestLosing:
    """Two devices claim overlapping events while they are apart; the second, whose claims lose, begins when they have
    met: its barrier is a meeting."""

    @pytest.fixture
    async def apart(self, open_node, within, monkeypatch):
        first, second = open_node("first"), open_node("second")
        publish(first, "1", "2", "3")
        async with within():
            await meet(first, second)
        held = first.reserve("inbox", "mail", message_ids=["1"])

        async def meeting():
            await meet(first, second)

        monkeypatch.setattr(second, "barrier", meeting)
        return first, second, held

    async def test_it_is_given_back_and_the_rest_is_kept(self, apart, within):
        first, second, held = apart
        async with within(), second.start("inbox", "mail") as work:
            assert [event.message_id for event in work] == ["2", "3"]
            assert {event.run for event in work} == {work.run}
            assert [event.message_id for event in work.lost] == ["1"]
            assert second.events.reservation(work.lost[0].run).state == "lost"
            await meet(first, second)
            assert message_ids(first) == [], "the rest was never free"
            assert work.consume() == 2
        assert held.consume() == 1
        assert message_ids(second, status="consumed") == ["2", "3"]

    async def test_all_of_it_is_no_work(self, apart, within):
        _, second, _ = apart
        async with within(), second.start("inbox", "mail", message_ids=["1"], partial=True) as work:
            assert len(work) == 0
            assert [second.events.reservation(run).state for run in second.events.held_runs(own=True)] == []

    async def test_named_events_are_all_or_nothing(self, apart, within):
        first, second, held = apart
        async with within():
            with pytest.raises(LeaseLost) as lost:
                async with second.start("inbox", "mail", message_ids=["1", "2"]):
                    raise AssertionError("it has begun")
        assert lost.value.owners == {held.events[0].id: held.run}
        assert message_ids(second) == ["2", "3"]
        assert held.consume() == 1


# --- Races ------------------------------------------------------------------------------------------------------------


async def race(node, message_id, begun, chance):
    await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
    async with node.start("inbox", "mail", message_ids=[message_id], partial=True) as work:
        if work.events:
            begun.append(node.name)
            await asyncio.sleep(chance.choice([0, 0.001]))
            work.consume()


async def begun_by(message_id, nodes, chance):
    begun = []
    await asyncio.gather(*(race(node, message_id, begun, chance) for node in nodes))
    return begun


async def claims_of(nodes, contested):
    await equal(*nodes)
    return [
        len(nodes[0].explain(nodes[0].events.get_by_message_id("inbox", "mail", one).id).claims) for one in contested
    ]


class TestRaces:
    async def test_of_two_devices_behind_a_hub_one_begins_200_times(self, open_node, within):
        chance, wanted = random.Random(1), [str(number) for number in range(200)]
        async with within(120), star(open_node, "laptop", "phone") as (hub, laptop, phone):
            publish(hub, *wanted)
            await equal(hub, laptop, phone)
            for message_id in wanted:
                begun = await begun_by(message_id, [laptop, phone], chance)
                assert len(begun) == 1, message_id
            claims = await claims_of([hub, laptop, phone], wanted)
            assert sum(count == 2 for count in claims) > 50, "most races are none"
            assert hub.events.count_duplicates() == 0
            assert message_ids(hub, status="consumed") == sorted(wanted)

    async def test_without_the_barrier_both_begin(self, open_node, within, monkeypatch):
        async def no_barrier(node):
            await asyncio.sleep(0)

        monkeypatch.setattr(Node, "barrier", no_barrier)
        chance, wanted = random.Random(1), [str(number) for number in range(50)]
        async with within(60), star(open_node, "laptop", "phone") as (hub, laptop, phone):
            publish(hub, *wanted)
            await equal(hub, laptop, phone)
            for message_id in wanted:
                begun = []
                results = await asyncio.gather(
                    race(laptop, message_id, begun, chance),
                    race(phone, message_id, begun, chance),
                    return_exceptions=True,
                )
                assert all(result is None or isinstance(result, LeaseLost) for result in results)
                if len(begun) == 2:
                    return
        raise AssertionError("no race was lost: the test with the barrier shows nothing")

    async def test_of_a_hub_and_three_devices_one_begins(self, open_node, within):
        chance, wanted = random.Random(2), [str(number) for number in range(40)]
        async with within(120), star(open_node, "laptop", "phone", "tablet") as nodes:
            publish(nodes[0], *wanted)
            await equal(*nodes)
            for message_id in wanted:
                assert len(await begun_by(message_id, nodes, chance)) == 1, message_id
            assert max(await claims_of(nodes, wanted)) > 2

    async def test_devices_share_a_topic_without_doing_anything_twice(self, open_node, within):
        wanted = [str(number) for number in range(60)]
        done = []

        async def drain(node):
            while node.peek("inbox", "mail", limit=1):
                async with node.start("inbox", "mail", limit=5) as work:
                    done.extend(event.message_id for event in work)
                    await asyncio.sleep(0.001)
                    work.consume()

        async with within(120), star(open_node, "laptop", "phone") as nodes:
            publish(nodes[0], *wanted)
            await equal(*nodes)
            await asyncio.gather(*map(drain, nodes))
            await equal(*nodes)
            assert sorted(done) == sorted(wanted)
            assert nodes[0].events.count_duplicates() == 0


# --- Waiting ----------------------------------------------------------------------------------------------------------


class TestWaiting:
    async def test_what_is_given_up_waiting_is_not_begun_and_not_kept(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(laptop, "1")
        async with within(60), hub.syncing(listen=LOOPBACK) as serving:
            async with Proxy(int(serving.url.rpartition(":")[2])) as proxy, laptop.syncing(peers=[proxy.url]):
                await laptop.caught_up()
                proxy.pause()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3), laptop.start("inbox", "mail"):
                        raise AssertionError("it has begun")
                assert message_ids(laptop) == ["1"]

    async def test_a_link_that_breaks_lets_the_work_begin(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(laptop, "1")
        async with within(60), hub.syncing(listen=LOOPBACK) as serving:
            async with Proxy(int(serving.url.rpartition(":")[2])) as proxy, laptop.syncing(peers=[proxy.url]) as sync:
                await laptop.caught_up()
                proxy.pause()
                barrier = asyncio.create_task(laptop.barrier())
                disconnected = asyncio.create_task(told(sync, "disconnected"))
                await asyncio.sleep(0)
                assert not barrier.done()
                proxy.cut()
                await disconnected
                await barrier

    async def test_a_node_that_stops_begins_nothing(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        async with within(60), hub.syncing(listen=LOOPBACK) as serving:
            async with Proxy(int(serving.url.rpartition(":")[2])) as proxy:
                await laptop.start_sync(peers=[proxy.url])
                await laptop.caught_up()
                proxy.pause()
                barrier = asyncio.create_task(laptop.barrier())
                await asyncio.sleep(0)  # it waits from here on
                await laptop.stop_sync()
                with pytest.raises(LocalProtocolError, match="has been stopped"):
                    await barrier

    async def test_many_that_wait_share_barriers(self, open_node, within):
        async with within(), star(open_node, "laptop") as (_, laptop):
            before = laptop.sync.loop._barriers_begun
            await asyncio.gather(*(laptop.barrier() for _ in range(50)))
            assert laptop.sync.loop._barriers_begun - before == 2, "the first to come, and one for all others"
