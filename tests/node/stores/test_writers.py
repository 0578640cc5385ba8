"""Which rows have one writer, and that the doctor finds what another device wrote there."""

import pytest
from devices import meet

from leasemesh.node.database.tables import ONE_WRITER_TABLES
from leasemesh.node.doctor import examine


def writers(device):
    (finding,) = (finding for finding in examine(device.database) if finding.name == "writers")
    return finding


@pytest.fixture
def busy_pair(pair):
    """Both have written in every table whose rows have one writer, about the same things where that is possible."""
    hub, laptop = pair
    hub.publish("a", "b")
    hub.authorities.appoint(hub.node, by="Ann")
    hub.authorities.step()
    meet(hub, laptop)
    for number, (device, event) in enumerate([(hub, "a"), (laptop, "b"), (hub, "a")]):
        device.states.set("mail", "send", number, run=f"{number}", expected_version=number)
        if number < 2:
            run = device.reserve(event)
            device.runs.create("mail", "send", "consumer", run=run)
            device.permits.request(run)
            device.devices.announce(f"device {number}")
        meet(hub, laptop)
    hub.permits.decide_pending()
    meet(hub, laptop)
    run = hub.events.held_runs(own=True)[0]
    work = hub.effect(run, hub.mutations.work_for(run))
    meet(hub, laptop)
    for device in pair:
        device.mutations.resolve(work, "skip", by=device.node)
    meet(hub, laptop)
    return pair


def test_what_devices_write_in_turn_has_the_writers_that_it_names(busy_pair):
    for device in busy_pair:
        assert all(device.query(f"SELECT count(*) FROM {table}")[0][0] for table in ONE_WRITER_TABLES)
        assert writers(device).healthy


@pytest.mark.parametrize("table", ONE_WRITER_TABLES)
def test_what_another_device_wrote_is_found(busy_pair, table):
    hub, laptop = busy_pair
    with laptop.database.transaction() as transaction:
        transaction.execute(
            f"UPDATE {table} SET body = json_set(body, '$.later', 1) WHERE body ->> '$.node' = ?", (hub.node,)
        )
    assert f"in {table};" in writers(laptop).text
