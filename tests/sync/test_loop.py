"""The loop with real engines, real databases and links in memory: faults of storage, of the engine, and of
observers."""

import asyncio
import logging
import threading
import time

import pytest

from leasemesh import NewEvent
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.sync.actions import LinkId, LoadState, Notify, RecordHeartbeats, Reidentify, SetTimer
from leasemesh.sync.drivers import loop as loop_module
from leasemesh.sync.drivers.links import LinkEnd
from leasemesh.sync.drivers.loop import SyncLoop
from leasemesh.sync.drivers.notifications import Notifications
from leasemesh.sync.drivers.queues import ITEMS_MAX
from leasemesh.sync.drivers.workers import Worker
from leasemesh.sync.engine import Engine, EngineConfig
from leasemesh.sync.errors import LocalProtocolError, StorageLimit
from leasemesh.sync.transport import TransportEnd
from leasemesh.sync.version_vector import Era, SiteId


class MemoryTransport:
    """One end of a link in memory."""

    remote = "memory"
    is_local = True

    def __init__(self):
        self.peer = None
        self._inbox = asyncio.Queue()
        self._closed = None

    def send(self, data):
        if self.peer._closed is None:
            self.peer._inbox.put_nowait(data)

    def close(self, code, reason):
        self._closed = self._closed or TransportEnd(code, reason)
        self._inbox.put_nowait(self._closed)
        self.peer._inbox.put_nowait(TransportEnd(code, f"closed by the peer: {reason}"))

    def has_received(self):
        return False  # messages come whole here

    async def pump(self, received):
        while True:
            item = await self._inbox.get()
            if isinstance(item, TransportEnd):
                return self._closed or item
            if self._closed is None:
                received(item)


class Faulty:
    """A storage of which single methods can be broken: `break_("apply", error)`, until `mend`."""

    def __init__(self, storage):
        self._storage = storage
        self._errors = {}
        self._called = threading.Condition()
        self.calls = []

    def break_(self, method, error):
        self._errors[method] = error

    def mend(self):
        self._errors.clear()

    def wait_for(self, method, *, times):
        """Wait until the method was called so many times more."""
        goal = self.calls.count(method) + times
        with self._called:
            assert self._called.wait_for(lambda: self.calls.count(method) >= goal, timeout=15)

    def __getattr__(self, name):
        def call(*arguments):
            with self._called:
                self.calls.append(name)
                self._called.notify_all()
            if name in self._errors:
                raise self._errors[name]
            return getattr(self._storage, name)(*arguments)

        return call


class Device:
    """A node's file with a loop of its own."""

    def __init__(self, node):
        self.node = node
        self.storage = Faulty(ChangeStorage(node.database))
        config = EngineConfig("team", node.name, Era(node.database.incarnation))
        self.engine = Engine(self.storage.state(), config, node.database.random_bytes)
        self.loop = SyncLoop(self.engine, self.storage)
        self.tasks = []

    def publish(self, *message_ids):
        self.node.publish_many("inbox", "mail", [NewEvent(message_id) for message_id in message_ids])
        self.loop.notify_commit()

    def has(self, count):
        return len(self.node.peek("inbox", "mail", limit=1000)) == count

    def carry(self, transport, *, dialed):
        self.tasks.append(asyncio.ensure_future(self.loop.carry(transport, dialed=dialed)))
        return self.tasks[-1]

    async def stop(self):
        await self.loop.stop()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def device(open_node):
    """Makes devices by name."""
    devices = []

    def make(name):
        devices.append(Device(open_node(name)))
        return devices[-1]

    yield make
    await asyncio.gather(*(one.stop() for one in devices))


def link(dialer, listener):
    """Connect two devices; return the tasks that carry the link at either end."""
    first, second = MemoryTransport(), MemoryTransport()
    first.peer, second.peer = second, first
    return dialer.carry(first, dialed=True), listener.carry(second, dialed=False)


async def until_open(*devices):
    for one in devices:
        await one.loop.until(lambda one=one: any(peer.state == "open" for peer in one.loop.peers()))


class TestLinks:
    async def test_carry_changes_both_ways(self, device, within):
        a, b = device("a"), device("b")
        a.publish("1")
        b.publish("2")
        link(a, b)
        async with within():
            await a.loop.until(lambda: a.has(2))
            await b.loop.until(lambda: b.has(2))

    async def test_tell_how_they_ended(self, device, within):
        a, b = device("a"), device("b")
        at_a, at_b = link(a, b)
        async with within():
            await until_open(a, b)
            await a.loop.stop()
            assert await at_a == LinkEnd("a is being stopped", retry=True, established=True)
            assert await at_b == LinkEnd("closed by the peer: a is being stopped", retry=True, established=True)

    async def test_are_refused_once_the_loop_stops(self, device, within):
        a, b = device("a"), device("b")
        await a.loop.stop()
        async with within():
            at_a, at_b = link(a, b)
            assert (await at_a).reason == "the node is stopping"
            assert not (await at_b).established

    async def test_end_in_the_engine_when_their_task_is_cancelled(self, device, within):
        a, b = device("a"), device("b")
        at_a, _ = link(a, b)
        async with within():
            await until_open(a)
            at_a.cancel()
            await a.loop.until(lambda: a.loop.peers() == [])

    async def test_many_links_share_a_few_reader_threads(self, device, within):
        hub = device("hub")
        devices = [device(f"device {number}") for number in range(6)]
        for one in devices:
            link(one, hub)
        hub.publish("1")
        async with within():
            for one in devices:
                await one.loop.until(lambda one=one: one.has(1))
        hubs_readers = [worker for worker in hub.loop._readers]
        assert len(hubs_readers) == loop_module.READER_THREADS_MAX

    async def test_stopping_ends_all_threads(self, device, within):
        before = threading.enumerate()  # a call that another test let hang, perhaps
        a, b = device("a"), device("b")
        link(a, b)
        async with within():
            await until_open(a, b)
            assert any(thread.name == "leasemesh-storage" for thread in threading.enumerate())
            await asyncio.gather(a.stop(), b.stop())
        left = [thread.name for thread in threading.enumerate() if thread not in before]
        assert [name for name in left if name.startswith("leasemesh")] == []


class TestStorageFaults:
    async def test_a_piece_that_cannot_be_applied_ends_its_link_alone(self, device, within, caplog):
        hub, a, b = device("hub"), device("a"), device("b")
        a.storage.break_("apply", OSError("the disk is full"))
        at_a, at_hub = link(a, hub)
        link(b, hub)
        hub.publish("1")
        async with within():
            assert "a could not store the changes" in (await at_a).reason
            assert (await at_hub).retry
            await b.loop.until(lambda: b.has(1))
            assert "could not store the changes: the disk is full" in caplog.text
            assert "Traceback" not in caplog.text
            a.storage.mend()
            link(a, hub)
            await a.loop.until(lambda: a.has(1))

    async def test_a_limit_is_not_worth_dialling_again(self, device, within):
        hub, a = device("hub"), device("a")
        a.storage.break_("apply", StorageLimit("a peer sends too much"))
        at_a, at_hub = link(a, hub)
        hub.publish("1")
        async with within():
            assert await at_a == LinkEnd("a peer sends too much", retry=False, established=True)
            assert not (await at_hub).retry

    async def test_a_reader_that_fails_is_opened_anew_for_the_next_link(self, device, within):
        hub, a = device("hub"), device("a")
        hub.publish("1")
        hub.storage.break_("open_reader", OSError("too many open files"))
        _, at_hub = link(a, hub)
        async with within():
            assert "hub could not read its changes" in (await at_hub).reason
            hub.storage.mend()
            link(a, hub)
            await a.loop.until(lambda: a.has(1))

    async def test_a_resume_point_that_cannot_be_read_ends_the_link(self, device, within, caplog):
        a, b = device("a"), device("b")
        a.storage.break_("resume_point", OSError("the file is gone"))
        at_a, _ = link(a, b)
        async with within():
            assert await at_a == LinkEnd("internal error, see the log of this node", retry=True, established=False)
        assert "ended by an internal error: the file is gone" in caplog.text

    async def test_a_commit_is_not_forgotten_when_the_state_cannot_be_read(self, device, within, monkeypatch):
        monkeypatch.setattr(loop_module, "STATE_RETRY_S", 0.01)
        a, b = device("a"), device("b")
        link(a, b)
        async with within():
            await until_open(a, b)
            a.storage.break_("state", OSError("busy"))
            a.publish("1")
            await asyncio.to_thread(a.storage.wait_for, "state", times=3)
            a.storage.mend()
            await b.loop.until(lambda: b.has(1))

    async def test_a_doubt_lasts_until_the_state_can_be_read(self, device, within, monkeypatch):
        monkeypatch.setattr(loop_module, "STATE_RETRY_S", 0.01)
        a, b = device("a"), device("b")
        answered = asyncio.Event()
        monkeypatch.setattr(a.engine, "state_loaded", lambda state, now_ms: answered.set())
        a.storage.break_("state", OSError("busy"))
        a.engine._actions.append(LoadState())
        link(a, b)
        async with within():
            await asyncio.to_thread(a.storage.wait_for, "state", times=2)
            assert not answered.is_set()
            a.storage.mend()
            await answered.wait()
            assert a.loop.failure is None

    async def test_an_identity_that_cannot_be_changed_ends_the_loop(self, device, within):
        a = device("a")
        a.storage.break_("reidentify", OSError("read-only"))
        a.loop._reidentify(Reidentify("it is a copy"))
        async with within():
            with pytest.raises(OSError, match="read-only"):
                await a.loop.wait()
        assert isinstance(a.loop.failure, OSError)

    async def test_commits_that_come_together_are_read_together(self, device, within):
        a, b = device("a"), device("b")
        link(a, b)
        async with within():
            await until_open(a, b)
            before = a.storage.calls.count("state")
            for _ in range(1000):
                a.loop.notify_commit()
            a.publish("1")
            await b.loop.until(lambda: b.has(1))
        assert a.storage.calls.count("state") - before < 100

    async def test_nodes_heard_of_are_written_down_together_and_at_the_end(self, device, within):
        a = device("a")
        for number in range(100):
            a.loop._note_heartbeats(RecordHeartbeats({SiteId(bytes([number % 10]) * 16): (Era(b"incarnat"), number)}))
        async with within():
            await a.stop()
        assert a.storage.calls.count("record_heartbeats") == 1
        assert len(a.node.query("SELECT 1 FROM heartbeats")) == 10

    async def test_commits_may_be_noticed_from_any_thread(self, device, within):
        a, b = device("a"), device("b")
        link(a, b)
        async with within():
            await until_open(a, b)
            await asyncio.to_thread(a.publish, "1")
            await b.loop.until(lambda: b.has(1))


class TestEngineFaults:
    async def test_one_about_a_link_ends_that_link_and_shows_a_traceback_to_debuggers_only(
        self, device, within, caplog, monkeypatch
    ):
        hub, a, b = device("hub"), device("a"), device("b")
        take, stumbling_over = hub.engine.received, []

        def stumble(link, data, now_ms):
            if link in stumbling_over:
                raise ZeroDivisionError("a fault of ours")
            take(link, data, now_ms)

        monkeypatch.setattr(hub.engine, "received", stumble)
        at_a, at_hub = link(a, hub)
        async with within():
            await until_open(hub, a)
            stumbling_over.append(hub.loop.peers()[0].link)
            link(b, hub)
            with caplog.at_level(logging.INFO):
                a.publish("1")
                assert (await at_hub).reason == "internal error, see the log of this node"
            assert "ended by an internal error: a fault of ours" in caplog.text
            assert "Traceback" not in caplog.text
            b.publish("2")
            await hub.loop.until(lambda: hub.has(1))
            await at_a

    async def test_any_other_ends_the_loop_and_is_raised_to_whoever_waits(self, device, within, monkeypatch):
        a, b = device("a"), device("b")
        at_a, at_b = link(a, b)

        def stumble(*_, **__):
            raise ZeroDivisionError("a fault of ours")

        async with within():
            await until_open(a, b)
            monkeypatch.setattr(a.engine, "local_commit", stumble)
            a.publish("1")
            with pytest.raises(ZeroDivisionError):
                await a.loop.wait()
            with pytest.raises(ZeroDivisionError):
                await a.loop.until(lambda: False)
            await asyncio.gather(at_a, at_b)
            await a.loop.stop()
        assert isinstance(a.loop.failure, ZeroDivisionError)


class TestWaiting:
    async def test_ends_with_an_error_when_the_loop_stops(self, device, within):
        a = device("a")
        waiting = asyncio.ensure_future(a.loop.until(lambda: False))
        await asyncio.sleep(0)
        async with within():
            await a.loop.stop()
            await a.loop.wait()
            with pytest.raises(LocalProtocolError, match="sync has been stopped"):
                await waiting

    async def test_a_timer_set_again_fires_once(self, device, within):
        a = device("a")
        fired = []
        a.engine.timer_fired = lambda key, now_ms: fired.append(key)
        now_ms = int(time.monotonic() * 1000)
        for delay_ms in (0, 5, 10):
            a.loop._set_timer(SetTimer(("test", 1), now_ms + delay_ms))
        async with within():
            await a.loop.until(lambda: bool(fired))
        assert fired == [("test", 1)] and time.monotonic() * 1000 >= now_ms + 10


class TestObservers:
    def tell(self, kind, number=0):
        return Notify(kind, f"{kind} {number}", LinkId(1))

    async def test_a_slow_one_loses_progress_first_and_never_blocks(self):
        observer = Notifications()
        observer.put(self.tell("connected"))
        observer.put(self.tell("receiving"))
        for number in range(ITEMS_MAX):
            observer.put(self.tell("received", number))
        observer.close()
        texts = [tell.text async for tell in observer]
        assert len(texts) == ITEMS_MAX
        assert "receiving 0" not in texts
        assert texts[-1] == f"received {ITEMS_MAX - 1}"

    async def test_all_of_them_end_with_the_loop(self, device, within):
        a, b = device("a"), device("b")
        observer = a.loop.observe()
        link(a, b)
        async with within():
            await until_open(a)
            await a.stop()
            assert "connected" in [tell.kind async for tell in observer]
            assert [tell async for tell in a.loop.observe()] == []

    async def test_hear_a_refusal_once_until_somebody_connects(self, device):
        a = device("a")
        observer = a.loop.observe()
        for kind in ("refused", "refused", "connected", "refused"):
            a.loop.tell(Notify(kind, kind))
        observer.close()
        assert [tell.kind async for tell in observer] == ["refused", "connected", "refused"]


class TestWorkers:
    async def test_do_jobs_in_order_and_all_of_them_before_they_stop(self):
        worker = Worker("test", asyncio.get_running_loop())
        done = []
        for number in range(100):
            worker.submit(lambda number=number: number, done.append)
        await worker.stop()
        assert done == list(range(100))

    async def test_hand_exceptions_back(self):
        worker = Worker("test", asyncio.get_running_loop())
        failures = []
        worker.submit(lambda: 1 / 0, failed=failures.append)
        await worker.stop()
        assert [type(failure) for failure in failures] == [ZeroDivisionError]

    async def test_report_exceptions_that_nobody_wants(self):
        loop = asyncio.get_running_loop()
        reports = []
        loop.set_exception_handler(lambda _, context: reports.append(context["message"]))
        worker = Worker("test", loop)
        worker.submit(lambda: 1 / 0)
        await worker.stop()
        assert reports == ["a job of test failed"]
