"""Soft, confirmed and home: who may claim, and what a change means for what is claimed already."""

import pytest
from devices import absorb_all, event_of, forged

from leasemesh.node.model import ids
from leasemesh.node.model.errors import HomeElsewhere, IllegalState, InvalidInput, NotAvailable, PermitRefused
from leasemesh.node.work.authority import Authority


@pytest.fixture
def hub_and_laptop(pair):
    hub, laptop = pair
    hub.publish(*"abcd")
    absorb_all(hub, laptop)
    absorb_all(laptop, hub)
    return hub, laptop


def begin(device, run):
    device.mutations.create(run, device.mutations.work_for(run), tool="send")
    return device.mutations.mark_in_flight(run)


def test_without_a_setting_everything_is_soft(device):
    device.publish("a")
    run = device.reserve("a")
    assert device.modes.get("mail", topic="inbox") is None
    assert begin(device, run).status == "in_flight"


@pytest.mark.parametrize("about", [{"topic": "inbox"}, {"handler": "manual"}])
def test_in_mode_confirmed_no_effect_begins_without_a_permit(device, about):
    device.publish("a")
    device.modes.set("mail", "confirmed", **about)
    run = device.reserve("a")
    with pytest.raises(PermitRefused, match="it has not asked for one"):
        begin(device, run)
    device.authorities.appoint(device.node, by="Ann")
    device.permits.request(run)
    Authority(device.database).tend()
    assert device.mutations.mark_in_flight(run).status == "in_flight"


def test_the_strictest_of_topic_and_handler_counts(device):
    device.modes.set("mail", "soft", topic="inbox")
    device.modes.set("mail", "confirmed", handler="send")
    assert device.modes.claiming("mail", ["inbox"], "send") == "confirmed"
    assert device.modes.claiming("mail", ["inbox"], "read") == "soft"
    device.modes.set("mail", "home", topic="inbox")
    assert device.modes.claiming("mail", ["inbox"], "send") == "home"
    assert [(one.kind, one.name, one.mode) for one in device.modes.list("mail")] == [
        ("handler", "send", "confirmed"), ("topic", "inbox", "home"),
    ]  # fmt: skip


@pytest.mark.parametrize("about", [{"topic": "inbox"}, {"handler": "manual"}])
def test_at_home_one_node_alone_claims_and_the_others_are_told_which(hub_and_laptop, about):
    hub, laptop = hub_and_laptop
    laptop.modes.set("mail", "home", **about, home=hub.node)
    assert laptop.modes.get("mail", **about).home == hub.node
    absorb_all(laptop, hub)
    run = laptop.runs.new_id()
    with laptop.unchanged():
        for claim in (
            lambda: laptop.reserve("a"),
            lambda: laptop.events.reserve_next(run, "mail", "inbox"),
        ):
            with pytest.raises(HomeElsewhere, match=f"is at home on node {hub.node}") as raised:
                claim()
            assert raised.value.node == hub.node
    assert hub.events.consume(hub.reserve("a", "b")) == 2


def test_what_is_at_home_is_not_taken_over_however_silent_its_home_is(hub_and_laptop):
    hub, laptop = hub_and_laptop
    hub.modes.set("mail", "home", topic="inbox")
    held = hub.reserve("a")
    hub.modes.set("mail", "soft", topic="inbox")
    absorb_all(hub, laptop)
    with laptop.unchanged(), pytest.raises(HomeElsewhere, match=f"run {held}"):
        laptop.events.take_over(laptop.runs.new_id(), [event_of("a")])
    assert laptop.reserve("b")


def test_only_home_itself_moves_away_and_the_next_waits_for_all_that_it_did(hub_and_laptop):
    hub, laptop = hub_and_laptop
    hub.modes.set("mail", "home", topic="inbox")
    absorb_all(hub, laptop)
    with laptop.unchanged(), pytest.raises(HomeElsewhere):
        laptop.modes.set("mail", "home", topic="inbox")
    hub.events.consume(hub.reserve("a"))
    hub.modes.set("mail", "home", topic="inbox", home=laptop.node)
    with hub.unchanged(), pytest.raises(HomeElsewhere):
        hub.reserve("b")
    laptop.absorb([row for row in hub.changes() if row[0] == "modes"])
    with laptop.unchanged(), pytest.raises(IllegalState, match="wait until everything from there has arrived"):
        laptop.reserve("a")
    absorb_all(hub, laptop)
    assert laptop.status("a") == "consumed"
    assert laptop.reserve("b")


def handed_to_the_laptop(hub, laptop):
    """The laptop has heard that it is home, and not yet what the hub did before."""
    hub.modes.set("mail", "home", topic="inbox")
    hub.reserve("a")
    hub.modes.set("mail", "home", topic="inbox", home=laptop.node)
    laptop.absorb([row for row in hub.changes() if row[0] == "modes"])


@pytest.mark.parametrize("mode", ["home", "soft"])
def test_a_home_that_lacks_its_predecessors_work_does_not_hand_it_on(hub_and_laptop, mode):
    hub, laptop = hub_and_laptop
    handed_to_the_laptop(hub, laptop)
    with laptop.unchanged(), pytest.raises(IllegalState, match=f"node {hub.node}.*wait until everything from there"):
        laptop.modes.set("mail", mode, topic="inbox")
    absorb_all(hub, laptop)
    assert laptop.modes.set("mail", mode, topic="inbox").after == laptop.node


def test_a_home_hands_on_what_a_predecessor_did_that_never_comes_back(hub_and_laptop):
    hub, laptop = hub_and_laptop
    handed_to_the_laptop(hub, laptop)
    setting = laptop.modes.set("mail", "soft", topic="inbox", gone=True)
    assert (setting.after, setting.gone) == (laptop.node, hub.node)
    assert laptop.reserve("a")


def test_a_home_that_never_comes_back_is_left_on_a_persons_word(hub_and_laptop):
    hub, laptop = hub_and_laptop
    hub.modes.set("mail", "home", topic="inbox")
    hub.reserve("a")
    absorb_all(hub, laptop)
    laptop.modes.set("mail", "home", topic="inbox", gone=True)
    run = laptop.runs.new_id()
    assert [event.message_id for event in laptop.events.take_over(run, [event_of("a")])] == ["a"]


def hub_held_and_is_lost(hub, laptop, mode, home=None):
    """The hub has claimed "a" at home, and hands over what it has not; the laptop knows all of that."""
    hub.modes.set("mail", "home", topic="inbox")
    hub.reserve("a")
    hub.modes.set("mail", mode, topic="inbox", home=home)
    absorb_all(hub, laptop)


@pytest.mark.parametrize("mode", ["home", "soft"])
def test_what_a_former_home_held_that_never_comes_back_is_free_on_a_persons_word(hub_and_laptop, mode):
    hub, laptop = hub_and_laptop
    hub_held_and_is_lost(hub, laptop, mode, laptop.node if mode == "home" else None)
    with laptop.unchanged(), pytest.raises(HomeElsewhere):
        laptop.events.take_over(laptop.runs.new_id(), [event_of("a")])
    assert laptop.modes.set("mail", "soft", topic="inbox", gone=True).gone == hub.node
    assert laptop.events.take_over(laptop.runs.new_id(), [event_of("a")])


def test_that_a_home_never_comes_back_is_not_forgotten_until_it_is_home_again(hub_and_laptop):
    hub, laptop = hub_and_laptop
    hub_held_and_is_lost(hub, laptop, "home")
    laptop.modes.set("mail", "home", topic="inbox", gone=True)
    assert laptop.modes.set("mail", "soft", topic="inbox").gone == hub.node
    assert laptop.events.take_over(laptop.runs.new_id(), [event_of("a")])
    assert laptop.modes.set("mail", "home", topic="inbox", home=hub.node).gone is None


def test_claims_and_permits_end_under_the_mode_in_which_they_began(hub_and_laptop):
    hub, laptop = hub_and_laptop
    hub.authorities.appoint(hub.node, by="Ann")
    soft = hub.reserve("a")
    hub.modes.set("mail", "confirmed", topic="inbox")
    assert begin(hub, soft).status == "in_flight"
    confirmed, permitted = hub.reserve("b"), hub.reserve("c")
    hub.permits.request(permitted)
    Authority(hub.database).tend()
    hub.modes.set("mail", "soft", topic="inbox")
    with pytest.raises(PermitRefused):
        begin(hub, confirmed)
    absorb_all(hub, laptop)
    with laptop.unchanged(), pytest.raises(NotAvailable, match=f"in the permit of run {permitted[:10]}"):
        laptop.events.take_over(laptop.runs.new_id(), [event_of("c")])
    assert begin(hub, permitted).status == "in_flight"


def test_what_cannot_be_a_setting_changes_nothing(device):
    with device.unchanged():
        for arguments, named in [
            (("mail", "firm"), {"topic": "inbox"}),
            (("mail", "soft"), {}),
            (("mail", "soft"), {"topic": "inbox", "handler": "send"}),
            (("mail", "soft"), {"topic": "inbox", "home": "aa" * 16}),
            (("mail", "home"), {"topic": "inbox", "home": "no id"}),
            (("mail", "soft"), {"topic": ""}),
            (("", "soft"), {"topic": "inbox"}),
        ]:
            with pytest.raises(InvalidInput):
                device.modes.set(*arguments, **named)


def test_a_mode_of_a_later_version_is_confirmed_here(device):
    key = bytes.fromhex(ids.mode_id("mail", "topic", "inbox"))
    body = {
        "workflow": "mail", "kind": "topic", "name": "inbox", "mode": "by vote", "home": None, "after": None,
        "version": 0, "gone": None, "at": 0,
    }  # fmt: skip
    assert device.absorb([forged("modes", key, body)]) == []
    assert device.modes.claiming("mail", ["inbox"], "send") == "confirmed"
