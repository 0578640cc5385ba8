import subprocess
import sys
import threading
from pathlib import Path

import pytest
from devices import NOW_MS, event_of, meet, merge, reservation_body

from leasemesh.node.model.errors import IllegalState, InvalidInput, LeaseLost, NotAvailable, NotFound, NotOwner
from leasemesh.node.model.leases import EPOCH_MAX
from leasemesh.node.stores import EventStore, HandlerRunStore, NewEvent
from leasemesh.node.stores.base import CLAIMS_MAX


def names(events):
    return [event.message_id for event in events]


def test_reserving_returns_the_events_won(device):
    device.publish("a", "b", "c")
    device.publish("d", topic="archive")
    run = device.runs.new_id()
    won = device.events.reserve(run, "mail", [("inbox", ["a", "c"]), ("archive", ["d"])], handler="send")
    assert names(won) == ["a", "c", "d"]
    assert {(event.status, event.run, event.epoch) for event in won} == {("reserved", run, 1)}
    assert device.events.reserved_by(run) == won
    assert device.pending() == ["b"]
    reservation = device.events.reservation(run)
    assert (reservation.node, reservation.handler, reservation.state) == (device.node, "send", "held")
    assert reservation.claims == {event.id: 1 for event in won}
    assert device.events.held_runs(own=True) == [run]


def test_reserving_is_all_or_nothing(device):
    device.publish("a", "b")
    first = device.reserve("b")
    with device.unchanged():
        with pytest.raises(NotAvailable, match=f"inbox/b is reserved by run {first[:16]}") as caught:
            device.reserve("a", "b")
        assert caught.value.holders == {"inbox/b": f"reserved by run {first[:16]}"}


def test_a_partial_reservation_takes_exactly_what_is_free(device):
    device.publish("a", "b", "c", "d")
    device.reserve("b")
    device.events.consume(device.reserve("c"))
    run = device.reserve("a", "b", "c", "d", partial=True)
    assert names(device.events.reserved_by(run)) == ["a", "d"]
    with device.unchanged():
        assert device.events.reserve(device.runs.new_id(), "mail", [("inbox", ["a", "b"])], partial=True) == []


@pytest.mark.parametrize("partial", [False, True])
def test_unknown_events_are_named(device, partial):
    device.publish("a")
    with (
        device.unchanged(),
        pytest.raises(NotFound, match="no such event: inbox/x, archive/a; workflow mail") as caught,
    ):
        run = device.runs.new_id()
        device.events.reserve(run, "mail", [("inbox", ["a", "x"]), ("archive", ["a"])], partial=partial)
    assert caught.value.names == ("inbox/x", "archive/a")


def test_a_reservation_is_scoped_by_its_workflow(device):
    device.publish("a", workflow="other")
    with device.unchanged(), pytest.raises(NotFound):
        device.reserve("a", workflow="mail")


def test_naming_an_event_twice_claims_it_once(device):
    device.publish("a")
    run = device.reserve("a", "a")
    assert device.events.consume(run) == 1


@pytest.mark.parametrize(
    "wanted", [[], [("inbox", [])], [("inbox", [f"m{number}" for number in range(CLAIMS_MAX + 1)])]]
)
def test_asking_for_nothing_or_too_much_is_refused(device, wanted):
    with device.unchanged(), pytest.raises(InvalidInput, match="number of events to reserve"):
        device.events.reserve(device.runs.new_id(), "mail", wanted)


@pytest.mark.parametrize("run", ["", "me", None, 5, "A" * 32])
def test_a_run_must_be_an_id(device, run):
    device.publish("a", "b")
    taken = device.reserve("b")
    with device.unchanged():
        for call in (
            lambda: device.events.reserve(run, "mail", [("inbox", ["a"])]),
            lambda: device.events.reserve_next(run, "mail", "inbox"),
            lambda: device.events.take_over(run, [event_of("b")]),
            lambda: device.events.consume(run),
            lambda: device.events.release(run),
        ):
            with pytest.raises(InvalidInput):
                call()
    assert device.events.held_runs(own=True) == [taken]


@pytest.mark.parametrize("handler", ["", None, 5, "x" * 513])
def test_a_handler_must_have_a_name(device, handler):
    device.publish("a")
    with device.unchanged(), pytest.raises(InvalidInput, match="handler"):
        device.reserve("a", handler=handler)


def test_a_run_reserves_once(device):
    device.publish("a", "b")
    run = device.reserve("a")
    for settle in (lambda: None, lambda: device.events.release(run)):
        settle()
        with device.unchanged(), pytest.raises(IllegalState, match="a run reserves once"):
            device.events.reserve(run, "mail", [("inbox", ["b"])])


def test_a_run_of_another_node_cannot_reserve_here(pair):
    one, two = pair
    run = one.runs.create("mail", "send", "consumer").id
    merge(one, two)
    two.publish("a")
    with two.unchanged(), pytest.raises(NotOwner, match=f"run {run} belongs to node {one.node}"):
        two.events.reserve(run, "mail", [("inbox", ["a"])])


def test_the_next_events_are_the_oldest(device):
    device.publish("a", "b", "c")
    first, second, third = (device.runs.new_id() for _ in range(3))
    assert names(device.events.reserve_next(first, "mail", "inbox", limit=2)) == ["a", "b"]
    assert names(device.events.reserve_next(second, "mail", "inbox")) == ["c"]
    with device.unchanged():
        assert device.events.reserve_next(third, "mail", "inbox") == []
        assert device.events.reserve_next(third, "mail", "absent") == []


@pytest.mark.parametrize("limit", [0, CLAIMS_MAX + 1, None, "1"])
def test_the_number_of_next_events_has_a_range(device, limit):
    with pytest.raises(InvalidInput, match="limit"):
        device.events.reserve_next(device.runs.new_id(), "mail", "inbox", limit=limit)


@pytest.mark.parametrize(("settle", "status"), [("consume", "consumed"), ("skip", "skipped"), ("dead_letter", "dead")])
def test_settling_ends_all_events_of_the_run_once(device, settle, status):
    device.publish("a", "b", "c")
    run = device.reserve("a", "b")
    assert getattr(device.events, settle)(run) == 2
    assert {device.status("a"), device.status("b")} == {status}
    assert device.pending() == ["c"]
    assert device.event("a").run == run
    assert device.events.reserved_by(run) == []
    with device.unchanged():
        assert getattr(device.events, settle)(run) == 0


def test_releasing_makes_events_pending_with_the_next_attempt(device):
    device.publish("a", "b")
    run = device.reserve("a", "b")
    assert device.events.release(run) == 2
    assert device.pending() == ["a", "b"]
    assert (device.event("a").epoch, device.event("a").run) == (1, None)
    with device.unchanged():
        assert device.events.release(run) == 0
    again = device.reserve("a")
    assert device.event("a").epoch == 2
    assert device.events.reservation(again).claims == {event_of("a"): 2}


def test_what_has_ended_cannot_end_otherwise(device):
    device.publish("a")
    run = device.reserve("a")
    device.events.consume(run)
    with device.unchanged():
        for call in (device.events.skip, device.events.dead_letter, device.events.release):
            with pytest.raises(IllegalState, match="consumed"):
                call(run)
    assert device.status("a") == "consumed"


def test_what_was_released_cannot_be_settled(device):
    device.publish("a")
    run = device.reserve("a")
    device.events.release(run)
    with device.unchanged():
        for call in (device.events.consume, device.events.skip, device.events.dead_letter):
            with pytest.raises(IllegalState, match="released"):
                call(run)


def test_settling_what_was_never_reserved_is_an_error_that_names_the_run(device):
    run = device.runs.new_id()
    with device.unchanged():
        for call in (device.events.consume, device.events.skip, device.events.dead_letter, device.events.release):
            with pytest.raises(NotFound, match=f"no such reservation of run: {run}"):
                call(run)


def test_another_node_s_run_is_for_that_node_alone(pair):
    one, two = pair
    one.publish("a")
    run = one.reserve("a")
    merge(one, two)
    with two.unchanged():
        for call in (two.events.consume, two.events.skip, two.events.dead_letter, two.events.release):
            with pytest.raises(NotOwner, match=f"run {run} belongs to node {one.node}"):
                call(run)
    assert two.events.held_runs(own=False) == [run]
    assert two.events.held_runs(own=True) == []


def both_reserve(one, two, *message_ids):
    """Both reserve the same while apart, `one` first; then they meet. Returns the runs."""
    one.publish(*message_ids)
    merge(one, two)
    winner = one.reserve(*message_ids)
    two.now_ms = one.now_ms + 5
    loser = two.reserve(*message_ids)
    meet(one, two)
    return winner, loser


def test_of_two_reservations_the_earlier_wins_on_both_devices(pair):
    one, two = pair
    winner, loser = both_reserve(one, two, "a")
    assert one.event("a").run == two.event("a").run == winner
    assert two.events.reserved_by(loser) == []


@pytest.mark.parametrize("settle", ["consume", "skip", "dead_letter"])
def test_settling_what_another_device_won_fails_whole_and_names_the_owner(pair, settle):
    one, two = pair
    winner, loser = both_reserve(one, two, "a", "b")
    with two.unchanged():
        with pytest.raises(
            LeaseLost, match=f"run {loser} lost its lease: {event_of('a')} now belongs to {winner}"
        ) as caught:
            getattr(two.events, settle)(loser)
        assert caught.value.owners == {event_of("a"): winner, event_of("b"): winner}
    assert one.events.consume(winner) == 2


def test_losing_one_event_of_several_settles_none(pair):
    one, two = pair
    one.publish("a", "b")
    merge(one, two)
    winner = one.reserve("a")
    two.now_ms += 5
    loser = two.reserve("a", "b")
    meet(one, two)
    with two.unchanged(), pytest.raises(LeaseLost) as caught:
        two.events.consume(loser)
    assert caught.value.owners == {event_of("a"): winner}
    assert two.status("b") == "reserved"


def test_releasing_what_was_lost_says_how_much_it_gave_up(pair):
    one, two = pair
    one.publish("a", "b")
    merge(one, two)
    one.reserve("a")
    two.now_ms += 5
    loser = two.reserve("a", "b")
    meet(one, two)
    assert two.events.release(loser) == 1
    assert two.events.reservation(loser).state == "lost"
    meet(one, two)
    assert one.pending() == ["b"]
    assert one.status("a") == "reserved"


def test_a_lost_claim_is_settled_when_its_effect_has_happened_and_shows_as_a_duplicate(pair):
    one, two = pair
    winner, loser = both_reserve(one, two, "a")
    one.events.consume(winner)
    meet(one, two)
    assert two.events.consume(loser, effect_happened=True) == 1
    meet(one, two)
    for device in pair:
        assert names(device.events.duplicates()) == ["a"]
        assert device.events.count_duplicates() == 1
        assert device.events.explain(event_of("a")).duplicate
        assert device.event("a").run == winner


def test_what_happened_is_recorded_even_after_a_release(device):
    device.publish("a")
    run = device.reserve("a")
    device.events.release(run)
    assert device.events.consume(run, effect_happened=True) == 1
    assert device.status("a") == "consumed"


def test_both_consuming_apart_is_a_duplicate_on_both(pair):
    one, two = pair
    one.publish("a", "b")
    merge(one, two)
    first = one.reserve("a", "b")
    two.now_ms += 5
    second = two.reserve("a")
    one.events.consume(first)
    two.events.consume(second)
    meet(one, two)
    assert [names(device.events.duplicates()) for device in pair] == [["a"], ["a"]]
    assert one.event("a").run == two.event("a").run == first


def test_an_outcome_beats_a_release_and_a_claim_of_other_devices(trio):
    one, two, three = trio
    one.publish("a")
    merge(one, two)
    merge(one, three)
    runs = [device.reserve("a") for device in trio]
    one.events.consume(runs[0])
    two.events.release(runs[1])
    meet(*trio)
    assert {device.event("a").run for device in trio} == {runs[0]}
    assert {device.status("a") for device in trio} == {"consumed"}


def test_taking_over_claims_the_next_epoch_and_wins_everywhere(pair):
    one, two = pair
    one.publish("a", "b")
    run = one.reserve("a", "b")
    merge(one, two)
    taker = two.runs.new_id()
    assert names(two.events.take_over(taker, [event_of("a")])) == ["a"]
    meet(one, two)
    assert (one.event("a").run, one.event("a").epoch) == (taker, 2)
    assert one.event("b").run == run
    assert one.events.reservation(taker).workflow == "mail"
    with one.unchanged(), pytest.raises(LeaseLost):
        one.events.consume(run)


def test_a_claim_below_the_highest_epoch_owns_nothing_even_after_a_release(pair):
    one, two = pair
    one.publish("a")
    run = one.reserve("a")
    merge(one, two)
    taker = two.runs.new_id()
    two.events.take_over(taker, [event_of("a")])
    two.events.release(taker)
    meet(one, two)
    assert one.status("a") == "pending"
    with pytest.raises(LeaseLost, match="now belongs to nobody"):
        one.events.consume(run)


@pytest.mark.parametrize("message_id", ["pending", "consumed", "unknown"])
def test_only_what_is_reserved_can_be_taken_over(device, message_id):
    device.publish("reserved", "pending", "consumed", "unknown")
    device.reserve("reserved")
    device.events.consume(device.reserve("consumed"))
    device.effect(device.reserve("unknown"))
    with device.unchanged(), pytest.raises(IllegalState, match=f"is {message_id}"):
        device.events.take_over(device.runs.new_id(), [event_of("reserved"), event_of(message_id)])


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([], InvalidInput), (["0" * 32], NotFound), (["A" * 32], InvalidInput), ([5], InvalidInput),
        (event_of("a"), InvalidInput),
    ],
)  # fmt: skip
def test_taking_over_what_does_not_exist_is_refused(device, events, error):
    device.publish("a")
    device.reserve("a")
    with device.unchanged(), pytest.raises(error):
        device.events.take_over(device.runs.new_id(), events)


def test_epochs_that_are_used_up_are_an_error_and_higher_ones_are_ignored(device):
    device.publish("a", "b")
    for number, (name, epoch) in enumerate([("a", EPOCH_MAX), ("b", EPOCH_MAX + 1)]):
        body = reservation_body([(event_of(name), epoch)])
        assert device.forge("reservations", bytes([number]) * 16, body)
    assert (device.status("a"), device.status("b")) == ("reserved", "pending")
    with device.unchanged(), pytest.raises(InvalidInput, match="claimed 1,000,000 times"):
        device.events.take_over(device.runs.new_id(), [event_of("a")])
    device.reserve("b")


def test_the_time_of_a_claim_is_later_than_all_that_was_seen(pair):
    one, two = pair
    one.now_ms += 60_000
    one.publish("a")
    merge(one, two)
    run = two.reserve("a")
    assert two.events.reservation(run).at >> 16 == NOW_MS + 60_000


def test_a_failed_reservation_inside_a_transaction_leaves_the_rest(device):
    device.publish("a", "b")
    with device.database.transaction():
        run = device.reserve("a")
        with pytest.raises(NotAvailable):
            device.reserve("a", "b")
        device.events.consume(run)
        with pytest.raises(IllegalState):
            device.events.release(run)
    assert (device.status("a"), device.status("b")) == ("consumed", "pending")


def test_publishing_settling_and_state_are_one_transaction(device):
    device.publish("a")
    run = device.reserve("a")
    with device.unchanged(), pytest.raises(ZeroDivisionError), device.database.transaction():
        device.publish("b", topic="next")
        device.events.consume(run)
        device.states.set("mail", "send", {"n": 1}, run=run, expected_version=0)
        raise ZeroDivisionError
    assert device.status("a") == "reserved"


def drain(events, runs, won):
    while batch := events.reserve_next(runs.new_id(), "mail", "inbox", limit=3):
        won.extend(names(batch))


def test_threads_that_reserve_at_once_share_the_events(device):
    published = [f"m{number}" for number in range(150)]
    device.events.publish_many("mail", "inbox", (NewEvent(name) for name in published))
    won = [[] for _ in range(4)]
    # One store for two threads each: stores are shared, too.
    stores = [EventStore(device.database), EventStore(device.database)]
    threads = [
        threading.Thread(target=drain, args=(stores[number % 2], HandlerRunStore(device.database), won[number]))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for part in won for name in part) == sorted(published)


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from devices import Device
from test_leasing import drain
device = Device(Path(sys.argv[1]), seed=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
won = []
drain(device.events, device.runs, won)
device.close()
print(*won)
"""


def test_processes_that_reserve_at_once_share_the_events(device):
    published = [f"m{number}" for number in range(150)]
    device.events.publish_many("mail", "inbox", (NewEvent(name) for name in published))
    here = Path(__file__).parent
    command = [sys.executable, "-c", WORKER, device.path]
    folders = [here, here.parent.parent.parent]
    workers = [
        subprocess.Popen([*command, seed, *folders], stdin=-1, stdout=-1, text=True)
        for seed in ("worker 1", "worker 2")
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    won = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert sorted(name for part in won for name in part) == sorted(published)
    assert all(worker.returncode == 0 for worker in workers)
    assert len(device.events.peek("mail", "inbox", status="reserved", limit=200)) == 150


@pytest.mark.parametrize("word", ["released", "lost", "settled 1 dead"])
@pytest.mark.parametrize(("settle", "outcome"), [("consume", "consumed"), ("skip", "skipped"), ("dead_letter", "dead")])
def test_an_outcome_outranks_what_a_copy_of_the_file_did_to_the_same_run(device, settle, outcome, word):
    """A restored backup ends a run before it has met anybody who knows that the run was settled."""
    device.publish("a")
    run = device.reserve("a")
    getattr(device.events, settle)(run)
    assert device.forge("reservations", bytes.fromhex(run), word, column="state", version=2)
    assert device.status("a") == outcome
    assert device.events.reservation(run).state == outcome


def test_a_run_that_owns_all_is_told_from_one_that_lost_some_or_has_ended(pair):
    one, two = pair
    one.publish("a", "b")
    merge(one, two)
    winner = one.reserve("a")
    two.now_ms += 5
    loser = two.reserve("a", "b")
    one.events.require_owned(winner)
    merge(one, two)
    with pytest.raises(LeaseLost) as caught:
        two.events.require_owned(loser)
    assert caught.value.owners == {event_of("a"): winner}
    one.events.release(winner)
    with pytest.raises(LeaseLost) as caught:
        one.events.require_owned(winner)
    assert list(caught.value.owners) == [event_of("a")]
