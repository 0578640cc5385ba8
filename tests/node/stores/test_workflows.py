import json

import pytest
from devices import NOW_MS, meet, merge

from leasemesh.node.model.errors import InvalidInput, NotFound


def test_a_workflow_is_created_once(device):
    first = device.workflows.get_or_create("mail", title="Mail")
    device.now_ms += 5
    with device.unchanged():
        assert device.workflows.get_or_create("mail", title="Other") == first
    assert (first.title, first.enabled, first.status, first.error, first.handler_config) == (
        "Mail",
        True,
        "active",
        "",
        {},
    )
    assert device.workflows.get("mail") == first
    assert device.workflows.list() == [first]


def test_what_is_absent_reads_as_nothing(device):
    assert device.workflows.get("mail") is None
    assert device.workflows.list() == []
    assert device.sessions.get("s1") is None
    assert device.sessions.by_workflow("mail") == []


def test_what_is_given_is_changed_and_nothing_else(device):
    device.workflows.get_or_create("mail", title="Mail")
    device.now_ms += 5
    changed = device.workflows.update("mail", enabled=False, handler_config={"poll": {"every": 60}})
    assert (changed.title, changed.enabled, changed.handler_config) == ("Mail", False, {"poll": {"every": 60}})
    assert (changed.created_at, changed.updated_at) == (NOW_MS, NOW_MS + 5)
    again = device.workflows.update("mail", title="Post", status="paused", error="no network")
    assert (again.title, again.status, again.error, again.enabled) == ("Post", "paused", "no network", False)
    assert device.workflows.update("mail", error="").error == ""
    with device.unchanged():
        device.workflows.update("mail")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"title": ""}, "title"),
        ({"title": "x" * 1001}, "title"),
        ({"enabled": "yes"}, "enabled"),
        ({"enabled": 1}, "enabled"),
        ({"status": 5}, "status"),
        ({"error": b"no"}, "error"),
        ({"handler_config": object()}, "handler_config"),
        ({"handler_config": "x" * 65536}, "handler_config"),
    ],
)
def test_a_change_that_cannot_be_accepted_is_explained_and_nothing_is_written(device, change, name):
    device.workflows.get_or_create("mail")
    with device.unchanged(), pytest.raises(InvalidInput) as caught:
        device.workflows.update("mail", **({"title": "New"} | change))
    assert caught.value.name == name


@pytest.mark.parametrize("wrong", ["", None, 5, "x" * 513])
def test_a_workflow_needs_a_name(device, wrong):
    with device.unchanged(), pytest.raises(InvalidInput, match="workflow"):
        device.workflows.get_or_create(wrong)


def test_changing_an_unknown_workflow_is_an_error_that_names_it(device):
    with device.unchanged(), pytest.raises(NotFound, match="no such workflow: mail"):
        device.workflows.update("mail", title="New")


def test_changes_of_two_columns_on_two_devices_both_stand(pair):
    one, two = pair
    one.workflows.get_or_create("mail")
    merge(one, two)
    one.workflows.update("mail", title="Mail")
    two.workflows.update("mail", enabled=False)
    meet(one, two)
    assert one.workflows.list() == two.workflows.list()
    assert (one.workflows.get("mail").title, one.workflows.get("mail").enabled) == ("Mail", False)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("handler_config", "not json"), ("handler_config", "[" * 2000), ("created_at", "yesterday"),
        ("updated_at", 1.5), ("title", 5),
    ],
)  # fmt: skip
def test_a_value_that_a_peer_made_nonsense_hides_no_workflow(device, column, value):
    device.workflows.get_or_create("mail")
    key = b"\x01\x0b\x04mail"
    device.absorb([("workflows", key, column, value, 9, 1, b"a hostile device", 1, 0)])
    assert device.query(f"SELECT {column} FROM workflows")[0][0] in (value, str(value))
    (workflow,) = device.workflows.list()
    assert isinstance(workflow.title, str) and isinstance(workflow.created_at, int)
    json.dumps(workflow.handler_config)


def test_a_session_counts_its_runs_and_ends(device):
    session = device.sessions.create("s1", "mail", trigger="event")
    assert (session.trigger, session.started_at, session.ended_at, session.handler_run_count) == ("event", NOW_MS, 0, 0)
    device.sessions.add_handler_run("s1", cost=5, logs="first\n")
    device.sessions.add_handler_run("s1", cost=7, logs="second\n")
    device.now_ms += 5
    ended = device.sessions.end("s1", result="done", error="none")
    assert (ended.handler_run_count, ended.cost, ended.logs) == (2, 12, "first\nsecond\n")
    assert (ended.result, ended.error, ended.ended_at) == ("done", "none", NOW_MS + 5)
    assert device.sessions.get("s1") == ended


def test_creating_a_session_again_returns_the_first(device):
    first = device.sessions.create("s1", "mail")
    with device.unchanged():
        assert device.sessions.create("s1", "other", trigger="retry") == first


def test_the_oldest_logs_go_when_they_are_too_long(device):
    device.sessions.create("s1", "mail")
    device.sessions.add_handler_run("s1", logs="a" * 600_000)
    device.sessions.add_handler_run("s1", logs="b" * 600_000)
    logs = device.sessions.get("s1").logs
    assert len(logs) == 1_000_000 and logs.endswith("b" * 600_000)


def test_sessions_are_listed_newest_first(device):
    for number in range(3):
        device.now_ms += 1
        device.sessions.create(f"s{number}", "mail")
    device.sessions.create("other", "other")
    assert [session.id for session in device.sessions.by_workflow("mail")] == ["s2", "s1", "s0"]
    assert [session.id for session in device.sessions.by_workflow("mail", limit=1)] == ["s2"]


@pytest.mark.parametrize(
    "call",
    [
        lambda sessions: sessions.create("", "mail"),
        lambda sessions: sessions.create("s2", None),
        lambda sessions: sessions.create("s2", "mail", trigger="whim"),
        lambda sessions: sessions.add_handler_run("s1", cost=-1),
        lambda sessions: sessions.add_handler_run("s1", cost=1.5),
        lambda sessions: sessions.add_handler_run("s1", logs=5),
        lambda sessions: sessions.end("s1", result=5),
        lambda sessions: sessions.end("s1", error=None),
    ],
)
def test_what_a_session_cannot_keep_is_refused_and_nothing_is_written(device, call):
    device.sessions.create("s1", "mail")
    with device.unchanged(), pytest.raises(InvalidInput):
        call(device.sessions)


def test_an_unknown_session_is_an_error_that_names_it(device):
    with device.unchanged():
        for call in (device.sessions.add_handler_run, device.sessions.end):
            with pytest.raises(NotFound, match="no such session: s1"):
                call("s1")
