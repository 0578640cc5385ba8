"""Mode confirmed between processes that sync: a hub, which is the authority, and two devices. All of them are killed.

The hub and one device are killed at one point after another, while the other device competes for the same events. What
is killed is started again at once, and goes on with what it finds.
"""

import asyncio
import itertools
import signal

import pytest
from confirmed_child import (
    Service,
    hold_a_permit,
    intend,
    recover,
    serve,
    serve_and_work,
    twice_permitted,
    work_and_sync,
)
from crash_child import OPTIONS
from sweeps import problems_of

from leasemesh import NewEvent, Node, PermitRefused, TooEarly
from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.work.staleness import StalenessWatch


class Mesh:
    """The processes, and the tests' own look at their files."""

    def __init__(self, folder, start):
        self.folder = folder
        self.start = start
        self.service = Service(folder / "service.log")
        self.watchers = {name: Node.open(folder / f"{name}.db", name=name, **OPTIONS) for name in NAMES}
        self.hub = self.watchers["hub"]
        self.hub.modes.set("mail", "confirmed", topic="inbox")
        self.hub.authorities.appoint(self.hub.site_id, by="Ann")
        self.processes = {}
        self.port = 0
        self.published = itertools.count()

    async def run(self, name, kill_at=None):
        """Start the process of a node; it is to be killed at a point, if one is given."""
        path = self.folder / f"{name}.db"
        if name == "hub":
            self.processes[name] = self.start(serve, path, self.port, kill_at)
            if self.port == 0:
                self.port = await asyncio.to_thread(self.processes[name].hear, "listening")
        else:
            self.processes[name] = self.start(work_and_sync, path, f"127.0.0.1:{self.port}", kill_at)

    def kill(self, name):
        """Kill a process now, and wait until it has let go of its locks."""
        self.processes[name].process.kill()
        self.processes[name].process.join()

    async def killed(self, name):
        """Publish events until a process has been killed; returns where."""
        dying = asyncio.create_task(asyncio.to_thread(lambda: list(self.processes[name].words())))
        while not dying.done():
            self.publish()
            await asyncio.wait([dying], timeout=0.1)
        steps = [step for kind, step in dying.result() if kind == "killed"]
        assert steps and self.processes[name].process.exitcode == -signal.SIGKILL
        self.check(name)
        return steps[0]

    def publish(self):
        names = [str(next(self.published)) for _ in range(3)]
        self.hub.publish_many("mail", "inbox", [NewEvent(name, name, None) for name in names])

    def check(self, *names):
        for name in names or NAMES:
            node = self.watchers[name]
            assert problems_of(node) == []
            assert twice_permitted(node) == []
        assert set(self.service.effects().values()) <= {1}

    async def until(self, condition):
        """Wait until something holds that the processes write into their files."""
        changes = [node.changes() for node in self.watchers.values()]
        waits = [asyncio.create_task(anext(one)) for one in changes]
        while not condition():
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            waits = [
                asyncio.create_task(anext(one)) if wait.done() else wait
                for one, wait in zip(changes, waits, strict=True)
            ]
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        for one in changes:
            one.close()

    def events(self, status="consumed"):
        return {event.id for event in self.hub.peek("mail", "inbox", status=status, limit=5_000)}

    async def finish(self):
        """Wait until all is done, and level; then look whether each event had one effect."""
        await self.until(lambda: not any(map(self.events, ("pending", "reserved", "unknown"))))
        await self.until(lambda: self.level())
        for process in self.processes.values():
            process.pipe.send("enough")
            assert (await asyncio.to_thread(lambda p=process: list(p.words())))[-1] == ("done", None)
            assert process.process.exitcode == 0
        self.check()
        assert self.service.effects().keys() == self.events()
        assert len(self.events()) == next(self.published)
        assert not any(self.hub.explain(event).duplicate for event in self.events())

    def level(self):
        digests = [node.digest().tables for node in self.watchers.values()]
        return digests[0] == digests[1] == digests[2]


NAMES = ("hub", "laptop", "phone")


@pytest.fixture
def mesh(tmp_path, start):
    mesh = Mesh(tmp_path, start)
    yield mesh
    for node in mesh.watchers.values():
        node.close()


def points(parts, steps):
    return [f"{part}: {step}" for part in parts for step in steps]


async def test_a_device_that_is_killed_anywhere_does_nothing_twice(mesh, within):
    kills = points(["permit_requests"], ["INSERT INTO permit_requests", "COMMIT", "write log"])
    kills += points(["merged permits"], ["INSERT INTO crsql_changes", "COMMIT", "write log"])
    kills += points(["intent", "outcome", "end", "recovery"], ["BEGIN IMMEDIATE", "COMMIT", "write log"])
    kills += ["before the effect", "after the effect"]
    async with within(150):
        await mesh.run("hub")
        await mesh.run("phone")
        for kill_at in kills:
            await mesh.run("laptop", kill_at)
            assert await mesh.killed("laptop") == kill_at
        await mesh.run("laptop")
        await mesh.finish()


async def test_an_authority_that_is_killed_anywhere_grants_nothing_twice(mesh, within):
    kills = points(["merged permit_requests"], ["INSERT INTO crsql_changes", "COMMIT", "write log"])
    kills += points(["permits"], ["INSERT INTO permits", "COMMIT", "write log"])
    async with within(150):
        await mesh.run("hub")
        await mesh.run("phone")
        await mesh.run("laptop")
        for kill_at in kills:
            mesh.kill("hub")
            await mesh.run("hub", kill_at)
            assert await mesh.killed("hub") == kill_at
        await mesh.run("hub")
        await mesh.finish()


async def test_an_authority_that_is_killed_while_it_moves_is_never_one_of_two(mesh, within):
    fence = points(["authority_fences"], ["INSERT INTO authority_fences", "COMMIT", "write log"])
    hub, phone = mesh.watchers["hub"], mesh.watchers["phone"]
    async with within(150):
        await mesh.run("hub")
        await mesh.run("phone")
        await mesh.run("laptop")
        # Away from the hub, which steps back, and back to it, when it begins.
        for kill_at, new in itertools.product(fence, (phone, hub)):
            mesh.kill("hub")
            await mesh.run("hub", kill_at)
            hub.authorities.move(new.site_id, by="Ann")
            assert await mesh.killed("hub") == kill_at
            await mesh.run("hub")
            await mesh.until(lambda new=new: new.authorities.granting())
            mesh.check()
        await mesh.finish()
        assert {hub.permits.get(run).authority for run in permitted(mesh)} == {hub.site_id, phone.site_id}


def permitted(mesh):
    return [line["run"] for line in mesh.service.lines("happened")]


# --- An authority that sleeps -----------------------------------------------------------------------------------------

RULE = StalenessRule(ttl_ms=200, margin_ms=100)


class Sleeping:
    """A hub in a process of its own, which holds the first of three events with a permit, and is put to sleep."""

    def __init__(self, folder, start, laptop, phone):
        self.service = Service(folder / "service.log")
        self.path = folder / "hub.db"
        self.laptop, self.phone = laptop, phone
        with Node.open(self.path, name="hub", **OPTIONS) as hub:
            hub.modes.set("mail", "confirmed", topic="inbox")
            hub.authorities.appoint(hub.site_id, by="Ann")
            for name in "123":
                hub.publish("mail", "inbox", name)
            self.site = hub.site_id
        self.process = start(serve_and_work, self.path)

    async def meet(self):
        """Let both devices know everything."""
        url = await asyncio.to_thread(self.process.hear, "listening")
        for node in (self.laptop, self.phone):
            node.staleness = StalenessWatch(node.database, rule=RULE)
            await node.start_sync(peers=[url])
            await node.caught_up()

    async def end(self):
        """The hub does its effect and ends; all have the same, and for each event one effect happened at most."""
        self.process.pipe.send("go")
        await asyncio.to_thread(self.process.hear, "consumed")
        for node in (self.laptop, self.phone):
            await node.barrier()  # has what the others had, also what they have not told of yet
        self.process.pipe.send("enough")
        assert await asyncio.to_thread(lambda: list(self.process.words())) == []
        assert self.process.process.exitcode == 0
        with Node.open(self.path) as hub:
            nodes = (hub, self.laptop, self.phone)
            digests = [node.digest().tables for node in nodes]
            assert digests[0] == digests[1] == digests[2]
            for node in nodes:
                assert problems_of(node) == []
                assert twice_permitted(node) == []
            assert set(self.service.effects().values()) == {1}
            consumed = hub.peek("mail", "inbox", status="consumed")
            assert {event.id for event in consumed} == self.service.effects().keys()
            assert not any(hub.explain(event.id).duplicate for event in consumed)


@pytest.fixture
async def sleeping(tmp_path, start, open_node):
    sleeping = Sleeping(tmp_path, start, open_node("laptop"), open_node("phone"))
    await sleeping.meet()
    return sleeping


async def take_over_when_allowed(node, message_id):
    event = node.events.get_by_message_id("mail", "inbox", message_id)
    while True:
        try:
            return node.take_over([event.id])
        except TooEarly as error:
            await asyncio.sleep(error.wait_ms / 1000)


async def finish(service, node, run):
    """Wait for the answer, and do the effect if it is a permit. Returns the answer."""
    try:
        permit = await node.permit(run)
    except PermitRefused:
        node.events.release(run)
        return "refused"
    intend(node, permit)
    service.perform(permit)
    node.mutations.mark_applied(run)
    node.events.consume(run, effect_happened=True)
    return "granted"


async def test_what_an_authority_holds_with_a_permit_is_not_done_by_who_takes_it_over(sleeping, within):
    async with within():
        sleeping.process.sleep()
        taken = await take_over_when_allowed(sleeping.phone, "1")
        answer = asyncio.create_task(finish(sleeping.service, sleeping.phone, taken.run))
        sleeping.process.wake()
        assert await answer == "refused"
        await sleeping.end()


async def test_while_the_authority_sleeps_requests_wait_and_one_of_two_is_granted_afterwards(sleeping, within):
    laptop, phone = sleeping.laptop, sleeping.phone
    async with within():
        async with phone.changes() as changes:
            mine = laptop.reserve("mail", "inbox", message_ids=["2", "3"])
            while phone.events.reservation(mine.run) is None:
                await anext(changes)
        sleeping.process.sleep()
        first = asyncio.create_task(finish(sleeping.service, laptop, mine.run))
        taken = await take_over_when_allowed(phone, "2")
        second = asyncio.create_task(finish(sleeping.service, phone, taken.run))
        await asyncio.sleep(2 * (RULE.ttl_ms + RULE.margin_ms) / 1000)
        assert not first.done() and not second.done() and not sleeping.service.effects()
        sleeping.process.wake()
        assert sorted(await asyncio.gather(first, second)) == ["granted", "refused"]
        await sleeping.end()


async def test_a_device_that_slept_while_its_permit_was_given_up_does_not_use_it(tmp_path, open_node, start, within):
    hub, phone, service = open_node("hub"), open_node("phone"), Service(tmp_path / "service.log")
    hub.modes.set("mail", "confirmed", topic="inbox")
    hub.authorities.appoint(hub.site_id, by="Ann")
    hub.publish("mail", "inbox", "1")
    async with within(), hub.syncing(listen=("127.0.0.1", 0)) as sync, phone.syncing(peers=[sync.url]):
        laptop = start(hold_a_permit, tmp_path / "laptop.db", sync.url)
        run = await asyncio.to_thread(laptop.hear, "permitted")
        # Somebody starts the app once more, which takes the process for a dead one.
        with Node.open(tmp_path / "laptop.db") as another:
            with another.database.transaction(replicated=False):  # so that it does not sleep with the lock
                laptop.sleep()
            recover(another, service)
            assert another.permits.get(run).state == "void"
        laptop.wake()
        laptop.pipe.send("go")
        assert await asyncio.to_thread(laptop.hear, "refused") == run
        async with phone.changes() as changes:
            while not (mine := phone.reserve("mail", "inbox")).events:
                await anext(changes)
        assert await finish(service, phone, mine.run) == "granted"
        laptop.pipe.send("enough")
        assert await asyncio.to_thread(lambda: list(laptop.words())) == [] and laptop.process.exitcode == 0
    assert list(service.effects().values()) == [1]


async def test_a_sleeping_authority_is_waited_for_before_the_next_one_begins(sleeping, within):
    laptop, phone = sleeping.laptop, sleeping.phone
    async with within():
        mine = laptop.reserve("mail", "inbox", message_ids=["2", "3"])
        sleeping.process.sleep()
        asked = asyncio.create_task(finish(sleeping.service, laptop, mine.run))
        phone.authorities.move(phone.site_id, by="Ann")
        assert phone.authorities.info().waiting_for == (sleeping.site,)
        await asyncio.sleep(2 * (RULE.ttl_ms + RULE.margin_ms) / 1000)
        assert not asked.done() and phone.authorities.granting() == 0
        sleeping.process.wake()
        assert await asked == "granted"
        await sleeping.end()
        assert phone.authorities.granting() == 2
