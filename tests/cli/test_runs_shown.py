"""runs and show."""

import pytest
from cli_devices import meet, work_until
from shops import charging, failing, packing, watching


@pytest.fixture
def packed(database):
    """./leasemesh.db after its ten orders were packed, four at a time."""
    work_until(database, packing(), lambda node: not node.peek("shop", "orders"))
    return database


def listed(leasemesh, *options):
    return leasemesh("runs", "--json", *options).document["runs"]


def test_runs_are_listed_the_newest_first_on_all_devices(leasemesh, packed, other):
    found = listed(leasemesh)
    assert [(one["workflow"], one["handler"], one["device"], one["status"]) for one in found] == [
        ("shop", "pack", "laptop", "committed")
    ] * 3
    assert [one["started_at"] for one in found] == sorted((one["started_at"] for one in found), reverse=True)
    lines = leasemesh("runs").out.splitlines()
    assert lines[0].split() == ["run", "handler", "device", "state", "started"]
    assert lines[1].split()[:4] == [found[0]["run"][:16], "shop/pack", "laptop", "committed"]
    meet(packed, other)
    assert [one["device"] for one in listed(leasemesh, "--db", other)] == ["laptop"] * 3


def test_of_a_producer_that_finds_nothing_it_is_said_when_it_looked(leasemesh, database):
    work_until(database, watching(), lambda node: node.handler_states.get("shop", "watch").state >= 3)
    shown = leasemesh("runs", "--json").document
    assert [(one["handler"], one["kind"], one["status"]) for one in shown["runs"]] == [
        ("watch", "producer", "committed")
    ]
    (poll,) = shown["polls"]
    assert (poll["workflow"], poll["handler"], poll["device"]) == ("shop", "watch", "laptop")
    assert poll["at"] > shown["runs"][0]["ended_at"]
    *_, last = leasemesh("runs").out.splitlines()
    assert last.startswith("shop/watch looked ") and last.endswith(" on laptop, and found nothing")
    assert leasemesh("runs", "--json", "--handler", "pack").document["polls"] == []
    assert leasemesh("runs", "--json", "--status", "crashed").document["polls"] == []
    assert leasemesh("runs", "--json", "--workflow", "mail").document["polls"] == []


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([], 3),
        (["--limit", "2"], 2),
        (["--workflow", "shop"], 3),
        (["--workflow", "mail"], 0),
        (["--handler", "pack"], 3),
        (["--handler", "send"], 0),
        (["--status", "committed", "--handler", "pack"], 3),
        (["--status", "failed:logic"], 0),
    ],
)
def test_runs_are_filtered(leasemesh, packed, options, count):
    assert len(listed(leasemesh, *options)) == count
    if not count:
        assert leasemesh("runs", *options).out == "no runs of handlers that fit\n"


def test_what_is_left_out_of_a_list_of_runs_is_said(leasemesh, packed):
    assert leasemesh("runs", "--limit", "2").out.splitlines()[-1] == "the newest 2 are shown; --limit shows more"


def test_without_runs_it_is_said_how_there_will_be_some(leasemesh, database):
    assert "`leasemesh run APP`" in leasemesh("runs").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["runs", "--status", "done"], 2, "'done' is not one of active, paused:transient"),
        (["runs", "--limit", "0"], 2, "limit: is 0"),
        (["show", "ffffffffffff"], 3, "no such run: ffffffffffff; `leasemesh runs` lists"),
        (["show", "zz"], 2, "is not the beginning of an id"),
    ],
)
def test_what_cannot_be_shown_ends_with_one_sentence(leasemesh, packed, arguments, code, said):
    failed = leasemesh(*arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1


def test_a_run_is_shown_with_its_phases_events_log_and_cost(leasemesh, packed):
    run = listed(leasemesh)[-1]["run"]
    shown = leasemesh("show", run[:16])
    lines = shown.out.splitlines()
    assert lines[0] == f"run {run}  committed"
    assert lines[1].startswith("consumer shop/pack on laptop, began ")
    phases = [line.split()[2] for line in lines[4:7]]
    assert phases == ["preparing", "prepared", "committed"]
    assert "cost  1.5" in shown.out and "  packs 4" in lines
    assert sum("orders/order-" in line for line in lines) == 4
    document = leasemesh("show", run, "--json").document
    assert [one["message_id"] for one in document["events"]] == [f"order-{number}" for number in range(4)]
    assert {one["status"] for one in document["events"]} == {"consumed"}
    assert (document["logs"], document["handler_run"]["cost"], document["effect"]) == (["packs 4"], 1_500_000, None)
    assert leasemesh("run", "show", run[:16]).out == shown.out


def test_run_takes_one_app(leasemesh, database):
    failed = leasemesh("run", "app.py", "other.py")
    assert (failed.code, "got unexpected extra argument" in failed.err) == (2, True)


def test_a_run_by_hand_is_shown_too(leasemesh, database):
    run = leasemesh("reserve", "shop/orders", "--limit", "2", "--json").document["run"]
    text = leasemesh("show", run).out
    assert "shop: manual, by hand on laptop, held" in text
    document = leasemesh("show", run, "--json").document
    assert (document["handler_run"], len(document["events"]), document["chain"]) == (None, 2, [])


def test_an_effect_is_shown_with_its_parameters_its_result_and_when(leasemesh, database):
    leasemesh("authority", "set")
    results = iter([{"receipt": number} for number in range(10)])
    work_until(database, charging(results), lambda node: not node.peek("shop", "orders"))
    run = listed(leasemesh)[-1]["run"]
    document = leasemesh("show", run, "--json").document
    assert [one["phase"] for one in document["phases"]] == [
        "preparing", "prepared", "", "", "mutating", "mutated", "committed"
    ]  # fmt: skip
    assert [one["text"] for one in document["phases"]][2:4] == ["asked for a permit", "laptop: granted"]
    effect = document["effect"]
    assert (effect["tool"], effect["params"], effect["result"]) == (
        "charge", {"order": "order-0", "amount": 0}, {"receipt": 0}
    )  # fmt: skip
    text = leasemesh("show", run).out
    assert 'params   {"order": "order-0", "amount": 0}' in text
    assert 'outcome  it happened, result {"receipt": 0}' in text


def test_the_tries_of_one_work_are_shown_in_order(leasemesh, database):
    leasemesh("reserve", "shop/orders", "--limit", "9")
    work_until(database, failing(), lambda node: node.events.dead_letters())
    runs = listed(leasemesh)
    assert [one["error"] for one in runs] == ["ValueError: nobody knows order-9"] * 3
    text = leasemesh("show", runs[1]["run"]).out
    assert "error  ValueError: nobody knows order-9" in text
    lines = text.partition("tries, the first one first\n")[2].splitlines()[1:]
    assert [("→" in line, line.replace("→", " ").split()[0]) for line in lines] == [
        (number == 1, run["run"][:16]) for number, run in enumerate(reversed(runs))
    ]


def test_errors_are_listed_where_there_is_room(leasemesh, database):
    leasemesh("reserve", "shop/orders", "--limit", "9")
    work_until(database, failing(), lambda node: node.events.dead_letters())
    heading, first, *_ = leasemesh("runs").out.splitlines()
    assert heading.split()[-1] == "error" and "nobody knows order-9" in first
