"""The command mode."""

import pytest
from cli_devices import meet, work_until
from shops import packing

from leasemesh import Node


def test_a_mode_is_shown_and_set_by_topic_and_by_handler(leasemesh, database):
    assert leasemesh("mode", "shop/orders", "--json").document == {
        "workflow": "shop", "topic": "orders", "handler": None, "mode": None, "home": None, "device": None,
    }  # fmt: skip
    assert leasemesh("mode", "shop/orders").out == "shop/orders: not set: as the app's code declares\n"
    assert leasemesh("mode", "shop/orders", "confirmed").out == "shop/orders: confirmed\n"
    assert leasemesh("mode", "shop", "home", "--handler", "send").out == "shop, handler send: home on laptop\n"
    assert leasemesh("mode", "shop/orders").out == "shop/orders: confirmed\n"


@pytest.mark.parametrize("about", [["shop/orders", "--handler", "send"], ["shop", "--handler", "sned"]])
def test_a_handler_that_nobody_has_heard_of_is_set_with_a_warning(leasemesh, database, about):
    said = f"no run of {about[0]}/{about[-1]} is known here: is that its name?\n"
    workflow, *handler = about
    assert leasemesh("mode", workflow, *handler).err == said
    done = leasemesh("mode", workflow, "home", *handler)
    assert (done.code, done.err) == (0, said)


def test_a_handler_that_has_run_is_set_without_a_warning(leasemesh, database):
    work_until(database, packing(), lambda node: not node.peek("shop", "orders"))
    assert leasemesh("mode", "shop", "confirmed", "--handler", "pack").err == ""


def test_at_home_elsewhere_the_home_is_named_and_a_person_may_leave_it(leasemesh, database, other):
    leasemesh("mode", "shop/orders", "home")
    meet(database, other)
    home = leasemesh("mode", "shop/orders", "--json").document["home"]
    refused = leasemesh("reserve", "shop/orders", "--db", other)
    assert (refused.code, f"at home on node {home}" in refused.err) == (4, True)
    assert leasemesh("mode", "shop/orders", "soft", "--db", other).code == 4
    assert leasemesh("mode", "shop/orders", "soft", "--gone", "--db", other).code == 0
    assert leasemesh("reserve", "shop/orders", "--db", other).code == 0


def next_step(leasemesh, path):
    return leasemesh("why", "shop/orders/order-0", "--db", path).out.splitlines()[-1]


def test_at_home_elsewhere_why_names_who_alone_claims_and_proposes_nothing_that_is_refused(leasemesh, database, other):
    leasemesh("mode", "shop/orders", "home")
    meet(database, other)
    assert next_step(leasemesh, database) == "next: it is free: leasemesh reserve shop/orders --id order-0"
    assert next_step(leasemesh, other) == "next: it is for laptop, which alone claims here (mode home)"
    leasemesh("reserve", "shop/orders", "--id", "order-0")
    meet(database, other)
    assert leasemesh("take-over", "shop/orders/order-0", "--force", "--db", other).code == 4
    assert next_step(leasemesh, other) == "next: it is for laptop, which alone claims here (mode home)"


def test_what_a_handler_claimed_at_home_is_not_offered_to_others(leasemesh, database, other):
    leasemesh("mode", "shop", "home", "--handler", "send")
    leasemesh("reserve", "shop/orders", "--id", "order-0", "--handler", "send")
    meet(database, other)
    assert leasemesh("take-over", "shop/orders/order-0", "--force", "--db", other).code == 4
    assert next_step(leasemesh, other) == "next: it is for laptop, which alone claims here (mode home)"
    leasemesh("mode", "shop", "home", "--handler", "send", "--gone", "--db", other)
    assert "others may take it over in 75 s" in next_step(leasemesh, other)


def test_why_says_what_is_missing_of_a_home_that_was_handed_over(leasemesh, database, other):
    leasemesh("mode", "shop/orders", "home")
    leasemesh("mode", "shop/orders", "home", "--home", "desktop")
    meet(database, other)
    assert next_step(leasemesh, other) == "next: it is free: leasemesh reserve shop/orders --id order-0"
    with Node.open(other) as node, node.database.transaction(replicated=False) as transaction:
        transaction.execute("UPDATE version_vector SET version = 1")  # as after half a transfer
    assert leasemesh("reserve", "shop/orders", "--db", other).code == 4
    assert next_step(leasemesh, other).endswith(": wait until everything from there has arrived")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shop/orders", "firm"], 2),
        (["shop/orders", "soft", "--home", "laptop"], 2),
        (["shop/orders", "--gone"], 2),
        (["shop/nothing", "soft"], 3),
        (["shop/orders", "home", "--home", "toaster"], 3),
    ],
)
def test_what_cannot_be_a_mode_is_refused(leasemesh, database, arguments, code):
    assert leasemesh("mode", *arguments).code == code
    assert leasemesh("mode", "shop/orders", "--json").document["mode"] is None
