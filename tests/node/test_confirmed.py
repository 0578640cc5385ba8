"""Permits between real nodes, over real websockets, through a hub."""

import asyncio

import pytest
from meshes import LOOPBACK, publish

from leasemesh import HomeElsewhere, PermitRefused
from leasemesh.node.replication import syncing


@pytest.fixture
async def mesh(open_node, within):
    """A hub that is the authority, with two devices that are dialled into it; all know the events."""
    hub, laptop, phone = open_node("hub"), open_node("laptop"), open_node("phone")
    publish(hub, "1", "2", "3")
    hub.authorities.appoint(hub.site_id, by="Ann")
    serving = await hub.start_sync(listen=LOOPBACK)
    for device in (laptop, phone):
        await device.start_sync(peers=[serving.url])
    async with within():
        for device in (laptop, phone):
            await device.caught_up("hub")
    return hub, laptop, phone


async def until(node, condition):
    async with node.changes() as changes:
        while not condition():
            await anext(changes)


async def test_a_run_gets_its_permit_from_the_hub(mesh, within):
    _, laptop, _ = mesh
    async with within():
        with laptop.reserve("inbox", "mail", message_ids=["1", "2"]) as reservation:
            permit = await laptop.permit(reservation.run)
            assert (permit.state, len(permit.events)) == ("granted", 2)
            assert await laptop.permit(reservation.run) == permit
            assert reservation.consume() == 2


async def test_of_two_devices_with_overlapping_claims_one_is_refused_and_told_who_has_it(mesh, within):
    hub, laptop, phone = mesh
    async with within():
        mine = laptop.reserve("inbox", "mail", message_ids=["1", "2"])
        theirs = phone.reserve("inbox", "mail", message_ids=["2", "3"])
        answers = await asyncio.gather(laptop.permit(mine.run), phone.permit(theirs.run), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, PermitRefused)]
        assert len(refused) == 1
        assert (theirs.run if refused[0].run == mine.run else mine.run) in refused[0].reason


async def test_without_the_hub_a_run_waits_and_gets_its_permit_when_it_is_back(mesh, within):
    hub, laptop, _ = mesh
    port = int(hub.sync.url.rpartition(":")[2])
    await hub.stop_sync()
    reservation = laptop.reserve("inbox", "mail", limit=1)
    waiting = asyncio.create_task(laptop.permit(reservation.run))
    async with within():
        await until(laptop, lambda: laptop.permits.waiting() != [])
        assert not waiting.done()
        await hub.start_sync(listen=("127.0.0.1", port))
        assert (await waiting).state == "granted"


async def test_the_authority_moves_while_everybody_is_at_work(mesh, within):
    hub, laptop, phone = mesh
    async with within():
        mine = phone.reserve("inbox", "mail", message_ids=["1"])
        await phone.permit(mine.run)
        phone.authorities.move(laptop.site_id, by="Ann")
        await until(laptop, lambda: laptop.authorities.info().authority == laptop.site_id)
        late = hub.reserve("inbox", "mail", message_ids=["2"])
        permit = await hub.permit(late.run)
        assert (permit.authority, permit.generation) == (laptop.site_id, 2)
        assert phone.permits.require(mine.run).generation == 1


async def test_a_node_that_is_the_authority_needs_nobody(open_node, within):
    node = open_node("alone")
    publish(node, "1")
    node.authorities.appoint(node.site_id, by="Ann")
    async with within():
        assert (await node.permit(node.reserve("inbox", "mail").run)).authority == node.site_id


class Failing:
    """Fails at its first call."""

    def __init__(self, work):
        self.failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._work = work

    def __call__(self):
        if not self.failed.is_set():
            self._loop.call_soon_threadsafe(self.failed.set)
            raise ValueError("a row that nobody understands")
        return self._work()


async def test_decisions_go_on_after_an_error_of_any_kind(open_node, within, monkeypatch, caplog):
    monkeypatch.setattr(syncing, "HOUSEKEEPING_EVERY_S", 1000)
    node = open_node("alone")
    publish(node, "1", "2")
    node.authorities.appoint(node.site_id, by="Ann")
    async with within(), node.syncing(listen=LOOPBACK):
        await until(node, lambda: node.authorities.info().authority == node.site_id)
        tend = Failing(node.authority.tend)
        monkeypatch.setattr(node.authority, "tend", tend)
        node.permits.request(node.reserve("inbox", "mail", message_ids=["1"]).run)
        await tend.failed.wait()
        node.permits.request(node.reserve("inbox", "mail", message_ids=["2"]).run)
        await until(node, lambda: node.permits.waiting() == [])
    assert "a row that nobody understands" in caplog.text


async def test_housekeeping_goes_on_after_an_error_of_any_kind(open_node, within, monkeypatch, caplog):
    monkeypatch.setattr(syncing, "HOUSEKEEPING_EVERY_S", 0.01)
    node = open_node("alone")
    observed = asyncio.Event()
    loop = asyncio.get_running_loop()
    observe = Failing(lambda: loop.call_soon_threadsafe(observed.set))
    monkeypatch.setattr(node.staleness, "observe", observe)
    async with within(), node.syncing(listen=LOOPBACK):
        await observed.wait()
    assert "a row that nobody understands" in caplog.text


async def test_an_idle_mesh_with_an_authority_writes_nothing(mesh, within):
    hub, laptop, phone = mesh
    async with within():
        await laptop.permit(laptop.reserve("inbox", "mail").run)
        await laptop.caught_up("hub")
        await phone.caught_up("hub")
    versions = [node.database.version() for node in mesh]
    await asyncio.to_thread(lambda: [node._keep_house() for node in mesh])
    assert [node.database.version() for node in mesh] == versions


async def test_a_topic_at_home_is_claimed_there_alone(mesh, within):
    hub, laptop, _ = mesh
    hub.modes.set("inbox", "home", topic="mail")
    async with within():
        await until(laptop, lambda: laptop.modes.get("inbox", topic="mail") is not None)
    with pytest.raises(HomeElsewhere) as raised:
        laptop.reserve("inbox", "mail")
    assert raised.value.node == hub.site_id
    assert len(hub.reserve("inbox", "mail")) == 3
