import pytest
from devices import NOW_MS, meet, merge

from leasemesh.node.model.errors import InvalidInput, StaleVersion
from leasemesh.node.model.jsonvalue import PAYLOAD_BYTES_MAX


def write(device, state, expected_version, *, handler="poll", run="r1"):
    return device.states.set("mail", handler, state, run=run, expected_version=expected_version)


def test_a_state_is_written_and_read_with_its_version(device):
    first = write(device, {"cursor": 5}, 0)
    assert (first.version, first.state, first.run, first.node, first.at) == (
        1,
        {"cursor": 5},
        "r1",
        device.node,
        NOW_MS,
    )
    assert device.states.get("mail", "poll") == first
    second = write(device, None, 1, run="r2")
    assert (second.version, second.state) == (2, None)
    assert device.states.get("mail", "poll") == second


def test_what_is_absent_reads_as_nothing(device):
    assert device.states.get("mail", "poll") is None
    assert device.states.list("mail") == []
    assert device.states.wake_at("mail", "poll") is None


@pytest.mark.parametrize("expected", [0, 2, -1])
def test_a_stale_version_is_an_error_and_not_a_silent_overwrite(device, expected):
    write(device, "kept", 0)
    with device.unchanged():
        with pytest.raises(StaleVersion, match=f"mail/poll is at version 1, not {expected}") as caught:
            write(device, "lost", expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 1)
    assert device.states.get("mail", "poll").state == "kept"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"workflow": ""}, "workflow"),
        ({"handler": 5}, "handler"),
        ({"state": object()}, "state"),
        ({"state": "x" * PAYLOAD_BYTES_MAX}, "state"),
        ({"run": None}, "run"),
    ],
)
def test_a_state_that_cannot_be_kept_is_explained_and_nothing_is_written(device, change, name):
    arguments = {"workflow": "mail", "handler": "poll", "state": None, "run": "r1"} | change
    with device.unchanged(), pytest.raises(InvalidInput) as caught:
        device.states.set(
            arguments["workflow"], arguments["handler"], arguments["state"], run=arguments["run"], expected_version=0
        )
    assert caught.value.name == name


def test_the_highest_version_counts_whichever_device_wrote_it(pair):
    one, two = pair
    write(one, "one", 0)
    merge(one, two)
    write(two, "two", 1)
    meet(one, two)
    assert one.states.get("mail", "poll") == two.states.get("mail", "poll")
    assert one.states.get("mail", "poll").state == "two"
    write(one, "three", 2)
    meet(one, two)
    assert two.states.get("mail", "poll").state == "three"


def test_of_two_equal_versions_the_later_counts_on_both_devices(pair):
    one, two = pair
    two.now_ms += 5
    write(one, "earlier", 0)
    write(two, "later", 0)
    meet(one, two)
    assert one.states.get("mail", "poll") == two.states.get("mail", "poll")
    assert one.states.get("mail", "poll").state == "later"


def test_of_two_equal_versions_and_times_the_run_decides(pair):
    one, two = pair
    write(one, "a", 0, run="r1")
    write(two, "b", 0, run="r2")
    meet(one, two)
    assert one.states.get("mail", "poll").state == two.states.get("mail", "poll").state == "b"


def test_two_devices_rows_never_overwrite_each_other(pair):
    one, two = pair
    write(one, "one", 0)
    write(two, "two", 0)
    meet(one, two)
    assert one.query("SELECT count(*) FROM handler_state") == [(2,)]


def test_the_list_has_the_current_state_of_each_handler(pair):
    one, two = pair
    write(one, 1, 0, handler="b")
    write(one, 1, 0, handler="a")
    merge(one, two)
    write(two, 2, 1, handler="a")
    meet(one, two)
    assert [(state.handler, state.state) for state in one.states.list("mail")] == [("a", 2), ("b", 1)]


def test_who_looked_in_vain_is_told_by_the_run_that_is_missing(pair):
    one, two = pair
    kept = one.runs.create("mail", "found", "producer").id
    write(one, 1, 0, handler="found", run=kept)
    write(one, 1, 0, handler="vain", run=one.runs.new_id())
    write(one, 1, 0, handler="by hand", run="r1")
    meet(one, two)
    for device in pair:
        assert [state.handler for state in device.states.looked_in_vain("mail")] == ["vain"]
        assert device.states.looked_in_vain("other") == []


def test_a_wake_up_is_planned_changed_and_cancelled_on_this_device_alone(pair):
    one, two = pair
    one.states.set_wake_at("mail", "send", NOW_MS)
    one.states.set_wake_at("mail", "send", NOW_MS + 5)
    assert one.states.wake_at("mail", "send") == NOW_MS + 5
    meet(one, two)
    assert two.states.wake_at("mail", "send") is None
    one.states.set_wake_at("mail", "send", None)
    assert one.states.wake_at("mail", "send") is None


@pytest.mark.parametrize("at", [-1, "soon", 1.5, True, 2**53])
def test_a_wake_up_is_a_time(device, at):
    with device.unchanged(), pytest.raises(InvalidInput, match="at"):
        device.states.set_wake_at("mail", "send", at)


def test_a_state_that_python_cannot_read_does_not_hide_the_others(device):
    write(device, "mine", 0)
    ((body,),) = device.query("SELECT body FROM handler_state")
    deep = "[" * 990 + "]" * 990
    assert device.forge("handler_state", b"h" * 16, body.replace('"mine"', deep).replace('"version":1', '"version":9'))
    assert [state.state for state in device.states.list("mail")] == ["mine"]
    assert device.states.get("mail", "poll").state == "mine"
