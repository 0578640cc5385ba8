"""Taking over from other runs, releasing, and what becomes of an effect meanwhile: what happened goes forward, once."""

import pytest
from devices import absorb_all, event_of, meet, merge, work_of

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model.errors import HomeElsewhere, IllegalState, InvalidInput, NotAvailable, NotFound
from leasemesh.node.work.staleness import StalenessWatch

HANDLER = ("mail", "send")


@pytest.fixture
def two(pair):
    """Two devices that both know the events a, b and c."""
    first, second = pair
    first.publish("a", "b", "c")
    merge(first, second)
    return first, second


def held(device, *message_ids, status=None):
    """A run that holds events; with a `status`, its effect has got so far."""
    run = device.reserve(*message_ids, handler="send")
    if status is not None:
        work = device.effect(run)
        match status:
            case "applied" | "failed" | "indeterminate":
                getattr(device.mutations, f"mark_{status}")(run)
            case "happened" | "skip" | "not_happened":
                device.mutations.mark_indeterminate(run)
                device.mutations.resolve(work, status, by="Ann")
    return run


def continued(device, of, **options):
    """Take over from run `of`; returns the run that goes on."""
    run = device.runs.new_id()
    device.events.take_over_run(run, of, handler="send", **options)
    return run


# --- Releasing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["in_flight", "indeterminate", "applied", "happened"])
def test_what_happened_or_may_have_is_not_given_back(device, status):
    device.publish("a")
    run = held(device, "a", status=status)
    outcome = "applied" if status in ("applied", "happened") else "unknown"
    with device.unchanged(), pytest.raises(IllegalState, match=f"the effect of run {run} is {outcome}") as raised:
        device.events.release(run)
    assert f"run {run} cannot be released" in str(raised.value)


@pytest.mark.parametrize("status", [None, "failed", "not_happened"])
def test_what_did_not_happen_is_given_back(device, status):
    device.publish("a")
    assert device.events.release(held(device, "a", status=status)) == 1
    assert device.status("a") == "pending"


def test_what_a_person_decided_to_skip_is_not_given_back(device):
    device.publish("a")
    run = held(device, "a", status="skip")
    with device.unchanged(), pytest.raises(IllegalState, match=f"to be skipped: skip the events of run {run}"):
        device.events.release(run)
    assert device.events.skip(run) == 1


def test_a_run_whose_effect_happened_does_not_leave_when_others_did_the_work_too(two):
    first, second = two
    mine, theirs = held(first, "a", status="applied"), held(second, "a", status="applied")
    second.events.consume(theirs)
    meet(first, second)
    with first.unchanged(), pytest.raises(IllegalState):
        first.events.release(mine)
    first.events.consume(mine, effect_happened=True)
    meet(first, second)
    assert [event.message_id for event in second.events.duplicates()] == ["a"]


def test_a_run_without_an_effect_of_its_own_leaves_what_it_lost(two):
    first, second = two
    held(first, "a", status="applied")
    second.now_ms += 5
    late = held(second, "a")
    second.mutations.create(late, work_of(late), tool="send")
    meet(first, second)
    assert second.events.release(late) == 0
    assert second.events.reservation(late).state == "lost"


# --- Taking over events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["applied", "happened", "skip"])
def test_events_of_an_effect_that_is_decided_are_not_taken_over_to_be_done_anew(two, status):
    first, second = two
    run = held(first, "a", "b", status=status)
    merge(first, second)
    with second.unchanged(), pytest.raises(IllegalState, match=f"take over what run {run} holds by itself"):
        second.events.take_over(second.runs.new_id(), [event_of("a")])


def test_one_run_holds_what_is_to_be_finished_and_not_done_anew(device):
    device.publish("a", "b", "c", "d")
    happened, skipped, _ = (held(device, *names, status=status) for names, status in DECIDED.items())

    def holder(*names):
        found = device.events.decided_holder([event_of(name) for name in names])
        return found.run if found is not None else None

    assert (holder("a"), holder("a", "b"), holder("c"), holder("d")) == (happened, happened, skipped, None)
    assert holder("a", "c") is None, "two runs"
    device.events.consume(happened)
    assert holder("a") is None, "settled"


DECIDED = {("a", "b"): "applied", ("c",): "skip", ("d",): "indeterminate"}


@pytest.mark.parametrize("status", [None, "failed", "not_happened"])
def test_events_for_which_no_effect_happened_are_taken_over(two, status):
    first, second = two
    held(first, "a", status=status)
    merge(first, second)
    assert len(second.events.take_over(second.runs.new_id(), [event_of("a")])) == 1


# --- Going on with a run ----------------------------------------------------------------------------------------------


def test_all_that_a_run_still_owns_is_claimed_at_the_next_epoch_to_go_on_with_it(two):
    first, second = two
    run = held(first, "a", "b", status="applied")
    merge(first, second)
    taker = second.runs.new_id()
    events = second.events.take_over_run(taker, run, handler="send")
    assert [(event.message_id, event.epoch, event.run) for event in events] == [("a", 2, taker), ("b", 2, taker)]
    assert second.events.reservation(taker).of == run
    assert second.events.consume(taker) == 2
    meet(first, second)
    assert first.status("a") == first.status("b") == "consumed"


def test_a_run_that_was_gone_on_with_leaves_and_no_duplicate_is_reported(two):
    first, second = two
    run = held(first, "a", status="applied")
    merge(first, second)
    taker = continued(second, run)
    second.events.consume(taker)
    meet(first, second)
    assert first.events.is_continued(run)
    assert first.events.release(run) == 0
    meet(first, second)
    assert first.events.reservation(run).state == "lost"
    assert first.events.duplicates() == second.events.duplicates() == []


def test_a_run_whose_taker_gave_the_events_to_others_is_not_gone_on_with(two):
    """The holder's effect is known to nobody else, so the others do the work again: that must show."""
    first, second = two
    run = held(first, "a")
    merge(first, second)
    taker = continued(second, run)
    second.events.release(taker)
    second.events.consume(second.reserve("a", handler="send"))
    first.effect(run)
    first.mutations.mark_applied(run)
    meet(first, second)
    assert not first.events.is_continued(run)
    with first.unchanged(), pytest.raises(IllegalState):
        first.events.release(run)
    assert first.events.consume(run, effect_happened=True) == 1
    assert first.events.count_duplicates() == 1


def test_whoever_takes_over_from_the_taker_still_finds_the_effect(trio):
    first, second, third = trio
    first.publish("a")
    run = held(first, "a", status="applied")
    merge(first, second)
    taker = continued(second, run)
    merge(second, third)
    effect = third.events.effect_behind(taker)
    assert (effect.run, effect.work, effect.outcome) == (run, work_of(run), "applied")
    with third.unchanged(), pytest.raises(IllegalState, match=f"the effect of run {run} is applied"):
        third.events.take_over(third.runs.new_id(), [event_of("a")])
    with second.unchanged(), pytest.raises(IllegalState, match=f"the effect of run {run} is applied"):
        second.events.release(taker)
    last = continued(third, taker)
    third.events.consume(last)
    meet(*trio)
    assert first.events.is_continued(run) and first.events.is_continued(taker)
    assert first.status("a") == "consumed"


def test_a_run_of_this_device_is_gone_on_with_too(device):
    device.publish("a")
    run = held(device, "a", status="applied")
    taker = continued(device, run)
    assert device.event("a").run == taker
    assert device.events.release(run) == 0
    assert device.events.consume(taker) == 1


def test_nothing_is_written_when_the_run_owns_nothing_any_more(device):
    device.publish("a")
    run = device.reserve("a")
    device.events.consume(run)
    with device.unchanged():
        assert device.events.take_over_run(device.runs.new_id(), run, handler="send") == []


@pytest.mark.parametrize("status", ["in_flight", "indeterminate"])
def test_nobody_goes_on_with_a_run_whose_effect_is_unknown(two, status):
    first, second = two
    run = held(first, "a", status=status)
    merge(first, second)
    with second.unchanged(), pytest.raises(IllegalState, match="its events wait until it is known"):
        second.events.take_over_run(second.runs.new_id(), run, handler="send")


@pytest.mark.parametrize(("run", "error"), [("0" * 32, NotFound), ("no id", InvalidInput)])
def test_there_must_be_a_run_to_go_on_with(device, run, error):
    with device.unchanged(), pytest.raises(error):
        device.events.take_over_run(device.runs.new_id(), run, handler="send")


@pytest.mark.parametrize("verdict", [None, "happened", "skip"])
def test_a_permit_that_has_served_does_not_keep_others_from_going_on(two, verdict):
    first, second = two
    first.authorities.appoint(first.node, by="Ann")
    first.authorities.step()
    runs = [first.reserve(name, handler="send", default_mode="confirmed") for name in "ab"]
    for run in runs:
        first.permits.request(run)
    first.permits.decide_pending()
    work = first.effect(runs[0], first.permits.get(runs[0]).work)
    if verdict is None:
        first.mutations.mark_applied(runs[0])
    else:
        first.mutations.resolve(work, verdict, by="Ann")
    merge(first, second)
    assert len(second.events.take_over_run(second.runs.new_id(), runs[0], handler="send")) == 1
    with second.unchanged(), pytest.raises(NotAvailable, match="in the permit of run"):
        second.events.take_over_run(second.runs.new_id(), runs[1], handler="send")


@pytest.mark.parametrize(("verdict", "outcome"), [("happened", "applied"), ("skip", "skipped")])
def test_what_a_person_said_of_a_permit_counts_although_no_entry_ever_arrived(trio, verdict, outcome):
    first, second, third = trio
    first.publish("a")
    first.authorities.appoint(first.node, by="Ann")
    first.authorities.step()
    run = first.reserve("a", handler="send", default_mode="confirmed")
    first.permits.request(run)
    first.permits.decide_pending()
    merge(first, second)
    assert second.events.effect_behind(run) is None
    work = first.permits.get(run).work
    second.mutations.resolve(work, verdict, by="Ann", result={"said": 1} if verdict == "happened" else None)
    effect = second.events.effect_behind(run)
    assert (effect.run, effect.work, effect.outcome) == (run, work, outcome)
    taker = continued(second, run)
    assert second.events.effect_behind(taker) == effect
    merge(second, first)
    merge(second, third)
    assert third.events.effect_behind(taker) == effect
    if verdict == "happened":
        with first.unchanged(), pytest.raises(IllegalState, match=f"the effect of run {run} is applied"):
            first.events.take_over(first.runs.new_id(), [event_of("a")])
        assert second.events.consume(taker) == 1
    else:
        assert second.events.skip(taker) == 1


@pytest.mark.parametrize("verdict", ["happened", "skip"])
def test_what_was_said_of_a_permit_is_gone_on_with_although_its_holder_gave_it_up_unheard(open_device, verdict):
    hub, holder, second, third = (open_device() for _ in range(4))
    hub.publish("a")
    hub.authorities.appoint(hub.node, by="Ann")
    hub.authorities.step()
    merge(hub, holder)
    run = holder.reserve("a", handler="send", default_mode="confirmed")
    work = holder.permits.request(run).work
    merge(holder, hub)
    assert hub.permits.decide_pending() == 1
    merge(hub, second)
    merge(hub, third)
    second.mutations.resolve(work, verdict, by="Ann")
    taker = continued(second, run)
    holder.events.release(run)
    meet(hub, holder, second, third)
    assert second.permits.get(run).state == "void"
    with second.unchanged(), pytest.raises(IllegalState):
        second.events.release(taker)
    last = continued(third, taker)
    assert (third.events.skip if verdict == "skip" else third.events.consume)(last) == 1
    assert rebuild(third.database).corrected == {}


@pytest.mark.parametrize("first_word", ["happened", "skip"])
def test_a_word_that_is_taken_back_after_a_take_over_frees_the_events(trio, first_word):
    first, second, third = trio
    first.publish("a")
    run = held(first, "a", status="indeterminate")
    meet(first, second, third)
    work = first.mutations.get(run).work
    second.mutations.resolve(work, first_word, by="Ann")
    merge(second, third)
    taker = continued(third, run)
    second.mutations.resolve(work, "not_happened", by="Ann")
    meet(first, second, third)
    assert third.events.effect_behind(taker).outcome == "failed"
    assert third.events.release(taker) == 1
    assert third.status("a") == "pending"
    assert rebuild(third.database).corrected == {}


def test_what_was_said_of_a_takers_own_permit_counts_whatever_became_of_the_first_call(trio):
    hub, first, second = trio
    hub.publish("a")
    hub.authorities.appoint(hub.node, by="Ann")
    hub.authorities.step()
    meet(hub, first, second)
    run = held(first, "a", status="indeterminate")
    meet(hub, first, second)
    work = first.mutations.get(run).work
    hub.mutations.resolve(work, "happened", by="Ann")
    meet(hub, first, second)
    taker = continued(second, run)
    hub.mutations.resolve(work, "not_happened", by="Ann")
    meet(hub, first, second)
    permit = second.permits.request(taker)
    meet(hub, first, second)
    assert hub.permits.decide_pending() == 1
    hub.mutations.resolve(permit.work, "happened", by="Ann")
    meet(hub, first, second)
    assert second.events.effect_behind(taker).outcome == "applied"
    with second.unchanged(), pytest.raises(IllegalState):
        second.events.release(taker)
    assert second.events.consume(taker) == 1


def test_a_person_can_decide_about_a_permit_whose_run_does_not_own_the_events(trio):
    """Two have claimed the same; the earlier claim owns, and the later one, which was known first, has the permit."""
    hub, second, third = trio
    hub.publish("a")
    hub.authorities.appoint(hub.node, by="Ann")
    hub.authorities.step()
    meet(hub, second, third)
    third.now_ms -= 5
    earlier = third.reserve("a", handler="send", default_mode="confirmed")
    later = second.reserve("a", handler="send", default_mode="confirmed")
    work = second.permits.request(later).work
    merge(second, hub)
    assert hub.permits.decide_pending() == 1
    meet(hub, second, third)
    assert hub.event("a").run == earlier
    hub.mutations.resolve(work, "happened", by="Ann")
    meet(hub, second, third)
    assert {device.event("a").run for device in trio} == {later}
    assert second.events.consume(later) == 1


@pytest.fixture
def given_up(two):
    """A run whose effect a person thought had not happened, and another that did the same then; it had happened."""
    first, second = two
    run = held(first, "a", status="not_happened")
    first.events.release(run)
    meet(first, second)
    again = held(second, "a", status="applied")
    second.events.consume(again)
    first.mutations.mark_applied(run, "late")
    meet(first, second)
    return two


def test_work_shows_as_done_twice_although_one_run_gave_its_events_back(given_up):
    one, other = given_up
    assert one.events.count_duplicates() == other.events.count_duplicates() == 1
    assert rebuild(one.database).corrected == rebuild(other.database).corrected == {}


def test_who_was_refused_a_permit_has_no_effect_behind_it_when_another_did_that_work(two):
    first, second = two
    first.authorities.appoint(first.node, by="Ann")
    first.authorities.step()
    merge(first, second)
    run = first.reserve("a", handler="send", default_mode="confirmed")
    other = second.reserve("a", handler="send", default_mode="confirmed")
    for device, one in ((first, run), (second, other)):
        device.permits.request(one)
    first.permits.decide_pending()
    merge(second, first)
    first.permits.decide_pending()
    assert first.permits.get(other).work == first.permits.get(run).work
    first.effect(run, first.permits.get(run).work)
    first.mutations.mark_applied(run)
    merge(first, second)
    assert second.permits.get(other).state == "refused"
    assert second.events.effect_behind(other) is None
    assert second.events.release(other) == 0  # it owned nothing any more
    assert second.events.reservation(other).state == "lost"


def test_nobody_goes_on_with_what_is_at_home_elsewhere(two):
    first, second = two
    first.modes.set("mail", "home", topic="inbox")
    run = held(first, "a", status="applied")
    first.modes.set("mail", "soft", topic="inbox")
    absorb_all(first, second)
    with second.unchanged(), pytest.raises(HomeElsewhere, match=f"run {run}"):
        second.events.take_over_run(second.runs.new_id(), run, handler="send")


# --- Whom to take over from -------------------------------------------------------------------------------------------


def test_candidates_are_other_nodes_held_runs_of_these_handlers_with_what_is_known_of_their_effects(two):
    first, second = two
    applied = held(first, "a", status="applied")
    plain = held(first, "b")
    first.reserve("c", handler="other")
    second.publish("d", "e")
    held(second, "d")
    merge(first, second)
    found = {one.run: one for one in second.events.stale_candidates([HANDLER, ("mail", "absent")])}
    assert set(found) == {applied, plain}
    assert found[plain].effect is None
    assert found[applied].effect.outcome == "applied"
    assert (found[plain].node, found[plain].workflow, found[plain].handler) == (first.node, *HANDLER)
    assert found[plain].event == event_of("b")
    assert second.events.stale_candidates([]) == []


def test_runs_of_unknown_outcome_and_those_that_own_nothing_are_no_candidates(two):
    first, second = two
    held(first, "a", status="in_flight")
    lost = held(first, "b")
    merge(first, second)
    taker = continued(second, lost)
    assert second.events.stale_candidates([HANDLER]) == []
    merge(second, first)
    assert [one.run for one in first.events.stale_candidates([HANDLER])] == [taker]


def test_the_longest_silent_come_first_within_the_limit(two):
    first, second = two
    now_ms = 1_000
    watch = StalenessWatch(second.database, now_ms=lambda: now_ms, boot="b")
    runs = []
    for name in "abc":
        runs.append(held(first, name))
        merge(first, second)
        watch.observe()
        now_ms += 1_000
    assert [one.run for one in second.events.stale_candidates([HANDLER])] == runs
    assert [one.run for one in second.events.stale_candidates([HANDLER], limit=1)] == runs[:1]
    with pytest.raises(InvalidInput):
        second.events.stale_candidates([HANDLER], limit=0)


# --- Modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["reserve", "reserve_next", "take_over", "take_over_run"])
def test_the_default_mode_counts_where_nobody_has_set_one(two, claim):
    first, second = two
    before = first.reserve("a")
    merge(first, second)

    def claimed(**options):
        run = second.runs.new_id()
        match claim:
            case "reserve":
                second.events.reserve(run, "mail", [("inbox", ["b"])], **options)
            case "reserve_next":
                second.events.reserve_next(run, "mail", "inbox", limit=1, **options)
            case "take_over":
                second.events.take_over(run, [event_of("a")], **options)
            case "take_over_run":
                second.events.take_over_run(run, before, handler="manual", **options)
        return second.events.reservation(run).mode

    with second.discarded():
        assert claimed() == "soft"
    with second.discarded():
        assert claimed(default_mode="confirmed") == "confirmed"
    second.modes.set("mail", "soft", handler="manual")
    assert claimed(default_mode="confirmed") == "soft"


def test_a_home_by_default_needs_a_person_who_names_it(device):
    device.publish("a")
    with device.unchanged(), pytest.raises(IllegalState, match="at home nowhere yet: a person names it"):
        device.reserve("a", default_mode="home")
    device.modes.set("mail", "home", handler="manual")
    assert device.events.reservation(device.reserve("a", default_mode="home")).mode == "home"


def test_a_default_mode_is_a_mode(device):
    device.publish("a")
    with device.unchanged(), pytest.raises(InvalidInput, match="'firm' is not one of"):
        device.reserve("a", default_mode="firm")


def test_a_run_and_those_that_go_on_with_its_work_record_one_doing(trio):
    """The holder was cut off, not dead, beyond its effect: what it and its takers record is no duplicate."""
    first, second, third = trio
    first.publish("a")
    run = held(first, "a", status="applied")
    merge(first, second)
    taker = continued(second, run)
    merge(second, third)
    last = continued(third, taker)
    for device, one in ((third, last), (second, taker), (first, run)):
        device.events.consume(one, effect_happened=True)
    for _ in range(2):
        meet(first, second)
        meet(second, third)
    assert [device.events.count_duplicates() for device in trio] == [0, 0, 0]
    assert [device.status("a") for device in trio] == ["consumed"] * 3


def test_a_run_that_did_the_work_anew_is_a_duplicate_of_those_that_went_on_with_it(two):
    first, second = two
    run = held(first, "a")
    merge(first, second)
    taker = continued(second, run)
    second.events.release(taker)
    second.events.consume(second.reserve("a", handler="send"))
    first.events.consume(run, effect_happened=True)
    meet(first, second)
    assert [device.events.count_duplicates() for device in two] == [1, 1]
