"""Which handlers must not run, on one device or on all; and what devices are called."""

import pytest
from devices import meet, merge

from leasemesh.node.model.errors import InvalidInput

RUN = "a" * 32


def test_a_handler_runs_unless_something_was_said(device):
    assert device.blocks.get("mail", "send") is None
    assert device.blocks.last("mail", "send") is None
    assert device.blocks.list() == []


def test_a_block_of_one_device_holds_there_alone_and_is_shown_everywhere(pair):
    one, two = pair
    block = one.blocks.block("mail", "send", reason="five failures in a row", node=one.node, run=RUN)
    assert (block.blocked, block.by, block.run, block.at) == (True, one.node, RUN, one.now_ms)
    meet(one, two)
    assert one.blocks.get("mail", "send") == block
    assert two.blocks.get("mail", "send") is None
    assert two.blocks.list() == two.blocks.list("mail") == [block]
    assert two.blocks.list("other") == []


def test_a_block_everywhere_holds_on_every_device(pair):
    one, two = pair
    block = one.blocks.block("mail", "send", reason="the account is closed", by="Ann")
    one.blocks.block("mail", "send", reason="five failures in a row", node=one.node)
    meet(one, two)
    assert one.blocks.get("mail", "send") == two.blocks.get("mail", "send") == block
    assert one.blocks.get("mail", "read") is None


def test_a_person_lets_a_handler_run_again_from_any_device(pair):
    one, two = pair
    one.blocks.block("mail", "send", reason="five failures in a row", node=one.node, run=RUN)
    meet(one, two)
    two.now_ms += 5
    said = two.blocks.unblock("mail", "send", reason="the server is back", by="Ann", node=one.node)
    meet(one, two)
    assert one.blocks.get("mail", "send") is None
    assert one.blocks.list() == []
    assert one.blocks.last("mail", "send", node=one.node) == said
    assert (said.blocked, said.reason, said.by, said.run) == (False, "the server is back", "Ann", RUN)
    again = one.blocks.block("mail", "send", reason="five more", node=one.node, run="b" * 32)
    assert one.blocks.get("mail", "send") == again


def test_the_two_kinds_of_block_are_taken_back_one_by_one(device):
    device.blocks.block("mail", "send", reason="", by="Ann")
    device.blocks.block("mail", "send", reason="", node=device.node)
    device.blocks.unblock("mail", "send")
    assert device.blocks.get("mail", "send").node == device.node
    device.blocks.unblock("mail", "send", node=device.node)
    assert device.blocks.get("mail", "send") is None


def test_what_is_not_blocked_is_not_written(device):
    with device.unchanged():
        assert device.blocks.unblock("mail", "send") is None
    device.blocks.block("mail", "send", reason="")
    said = device.blocks.unblock("mail", "send")
    with device.unchanged():
        assert device.blocks.unblock("mail", "send", by="Bob") == said


def test_blocks_are_listed_by_name_within_the_limit(device):
    for name in ("c", "a", "b"):
        device.blocks.block("mail", name, reason="")
    assert [block.handler for block in device.blocks.list()] == ["a", "b", "c"]
    assert [block.handler for block in device.blocks.list("mail", limit=2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("", "send"), {}),
        (("mail", ""), {}),
        (("mail", 5), {}),
        (("mail", "send"), {"node": "laptop"}),
        (("mail", "send"), {"node": None}),
        (("mail", "send"), {"run": "no id"}),
        (("mail", "send"), {"by": 5}),
        (("mail", "send"), {"reason": "x" * 1001}),
    ],
)
def test_what_cannot_be_a_block_changes_nothing(device, names, options):
    with device.unchanged(), pytest.raises(InvalidInput):
        device.blocks.block(*names, **{"reason": "", **options})


def test_a_device_tells_its_name_once_and_again_when_it_changes(pair):
    one, two = pair
    assert one.devices.name_of(one.node) is None
    assert one.devices.announce("laptop")
    with one.unchanged():
        assert not one.devices.announce("laptop")
    merge(one, two)
    assert two.devices.name_of(one.node) == "laptop"
    assert one.devices.announce("office laptop")
    two.devices.announce("hub")
    meet(one, two)
    assert [(device.node, device.name) for device in two.devices.list()] == [
        (two.node, "hub"), (one.node, "office laptop"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", None, 5, "x" * 513, "a\x00b"])
def test_a_device_name_is_text(device, name):
    with device.unchanged(), pytest.raises(InvalidInput):
        device.devices.announce(name)


@pytest.mark.parametrize("node", ["laptop", "", None])
def test_a_device_is_named_by_its_node_id(device, node):
    with pytest.raises(InvalidInput):
        device.devices.name_of(node)
