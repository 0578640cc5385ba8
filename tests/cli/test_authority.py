"""authority set, show and move; and what status and why tell about permits."""

import io

import pytest
from cli_devices import meet

from leasemesh.node.node import Node


@pytest.fixture
def asked(leasemesh, database):
    """A run of this device that holds order-1 and has asked for a permit; nobody is the authority."""
    run = leasemesh("reserve", "shop/orders", "--id", "order-1", "--json").document["run"]
    with Node.open(database) as node:
        node.permits.request(run)
    return run


def test_the_first_authority_begins_at_once_and_is_shown(leasemesh, database):
    assert "authority: none" in leasemesh("authority", "show").out
    assert leasemesh("authority", "set").code == 0
    shown = leasemesh("authority", "show", "--json").document
    assert (shown["device"], shown["generation"], shown["next"], shown["waiting"]) == ("laptop", 1, None, [])
    assert "laptop (generation 1)" in leasemesh("status").out
    again = leasemesh("authority", "set", "laptop")
    assert (again.code, "move it instead" in again.err) == (4, True)


def test_who_waits_for_whom_since_when_is_told(leasemesh, database, asked):
    for command in (["status"], ["why", "shop/orders/order-1"], ["authority", "show"]):
        assert (
            "waiting for confirmation by an authority (`leasemesh authority set` names one)" in leasemesh(*command).out
        )
    leasemesh("authority", "set")
    assert leasemesh("status", "--json").document["waiting"] == []
    story = leasemesh("why", "shop/orders/order-1").out
    assert "asks for a permit" in story and f"permit of run {asked[:16]} granted" in story
    permit = leasemesh("why", "shop/orders/order-1", "--json").document["claims"][0]["permit"]
    assert (permit["state"], permit["reason"]) == ("granted", "")


def test_a_run_that_waits_for_another_device_names_it(leasemesh, database, other, asked):
    with Node.open(other) as node:
        desktop = node.site_id
        node.publish("shop", "orders", "from the desktop")
    meet(database, other)
    leasemesh("authority", "set", desktop[:12])
    waiting = leasemesh("status", "--json").document["waiting"]
    assert [one["run"] for one in waiting] == [asked]
    assert waiting[0]["text"].startswith("waiting for confirmation by desktop since 20")


def test_the_authority_moves_when_the_one_before_has_stepped_back(leasemesh, database, other):
    leasemesh("authority", "set")
    meet(database, other)
    first = leasemesh("authority", "show", "--json").document["node"]
    moved = leasemesh("authority", "move", "desktop", "--db", other, "--json").document
    assert (moved["node"], moved["next"]["device"]) == (first, "desktop")
    assert [one["node"] for one in moved["next"]["waiting_for"]] == [first]
    assert "desktop follows when laptop stepped back" in leasemesh("authority", "show", "--db", other).out
    for _ in range(2):
        meet(database, other)
        for file in (database, other):
            with Node.open(file) as node:
                node.authority.tend()
    assert leasemesh("authority", "show", "--json", "--db", other).document["device"] == "desktop"


def test_a_lost_authority_is_followed_after_a_persons_yes(leasemesh, database, other, monkeypatch):
    leasemesh("authority", "set")
    meet(database, other)
    lost = leasemesh("authority", "show", "--json").document["node"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for options in ([], ["--json"]):  # nobody is there to ask
        refused = leasemesh("authority", "move", "desktop", "--gone", lost[:10], "--db", other, *options)
        assert (refused.code, "so nothing was changed; --yes does not ask" in refused.err) == (2, True)
    moved = leasemesh("authority", "move", "desktop", "--gone", lost[:10], "--yes", "--db", other)
    assert moved.code == 0
    assert "authority: desktop (generation 2)" in moved.out


def test_a_device_that_nobody_knows_is_named(leasemesh, database):
    failed = leasemesh("authority", "set", "toaster")
    assert failed.code == 3
    assert "no such device: toaster" in failed.err
