"""What each phase may call, and what it is told when it may not."""

import pytest
from handling import publish

from leasemesh import InvalidInput, PhaseViolation, Run
from leasemesh.node.authoring.context import LOG_CHARACTERS_MAX, Given, Told

PHASES = ("producer", "prepare", "mutate", "next")


@pytest.fixture
def begin(open_node, mail, inbox, sent):
    """Begin a phase of a handler by hand; returns its context and what it has told."""
    node = open_node("a")
    publish(node, "one", "two")
    consumer = mail.consumer(inbox, name="copy", publishes=[sent])
    producer = mail.producer(every_s=60, publishes=[sent], name="poll")(lambda run, state: None)

    def begin_phase(phase, **given):
        told = Told()
        run = Run(
            node.handler_runs.new_id(),
            producer if phase == "producer" else consumer,
            phase,
            given=Given(**given),
            told=told,
            events=node.events,
            clock_ms=lambda: 1_234,
        )
        return run, told

    return begin_phase


CALLS = {
    "peek": lambda run, inbox, sent: run.peek(inbox),
    "get_many": lambda run, inbox, sent: run.get_many(inbox, ["one"]),
    "reserve": lambda run, inbox, sent: run.reserve([]),
    "publish": lambda run, inbox, sent: run.publish(sent, "three"),
    "wake_at": lambda run, inbox, sent: run.wake_at(1_000),
    "log": lambda run, inbox, sent: run.log("line"),
    "cost": lambda run, inbox, sent: run.cost(1),
    "now_ms": lambda run, inbox, sent: run.now_ms(),
}
EVERYWHERE = {"log", "cost", "now_ms"}
ALLOWED = {
    "producer": {"publish"} | EVERYWHERE,
    "prepare": {"peek", "get_many", "reserve", "wake_at"} | EVERYWHERE,
    "mutate": EVERYWHERE,
    "next": {"publish", "wake_at"} | EVERYWHERE,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_allows_what_it_is_for_and_nothing_else(begin, inbox, sent, phase, call):
    run, _ = begin(phase)
    if call in ALLOWED[phase]:
        CALLS[call](run, inbox, sent)
    else:
        with pytest.raises(PhaseViolation) as caught:
            CALLS[call](run, inbox, sent)
        assert caught.value.call == call
        assert caught.value.phase == ("a producer" if phase == "producer" else phase)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("phase", PHASES)
def test_after_its_end_a_phase_allows_nothing(begin, inbox, sent, phase, call):
    run, told = begin(phase)
    run._end()
    with pytest.raises(PhaseViolation, match=f"{call} in phase {phase}: the phase has ended"):
        CALLS[call](run, inbox, sent)
    assert told == Told()


def test_events_are_read_and_chosen(begin, inbox):
    run, told = begin("prepare")
    one, two = run.peek(inbox)
    assert run.peek("inbox", limit=1) == [one]
    assert run.get_many(inbox, ["two", "three"]) == [two]
    run.reserve(one)
    run.reserve([one, two])
    assert list(told.reserve) == [one.id, two.id]


def test_only_events_of_consumed_topics_are_chosen(begin, open_node, sent):
    run, _ = begin("prepare")
    node = open_node("a")
    publish(node, "other", topic="sent")
    (other,) = run.peek(sent)
    with pytest.raises(PhaseViolation, match="copy does not consume sent"):
        run.reserve(other)
    with pytest.raises(InvalidInput, match="is not an event"):
        run.reserve(["one"])


def test_publishing_is_to_declared_topics(begin, inbox, sent):
    run, told = begin("next")
    run.publish(sent, "three", title="Three", payload={"n": 3})
    run.publish("sent", "four")
    assert [(topic, event.message_id) for topic, event, _ in told.publications] == [(sent, "three"), (sent, "four")]
    with pytest.raises(PhaseViolation, match="copy does not declare topic mail/inbox; name it in publishes"):
        run.publish(inbox, "five")
    with pytest.raises(PhaseViolation, match="does not declare topic elsewhere"):
        run.publish("elsewhere", "five")
    with pytest.raises(InvalidInput, match="payload of six"):
        run.publish(sent, "six", payload=object())
    assert len(told.publications) == 2


def test_a_published_event_is_caused_by_the_only_one_or_by_one_that_is_named(begin, open_node, sent):
    node = open_node("a")
    one, two = node.peek("mail", "inbox")
    run, told = begin("next", events=(one,))
    run.publish(sent, "a")
    run, told_of_two = begin("next", events=(one, two))
    run.publish(sent, "b")
    run.publish(sent, "c", caused_by=two)
    causes = [cause for _, _, cause in [*told.publications, *told_of_two.publications]]
    assert causes == [one.id, None, two.id]


def test_a_log_is_text_that_can_be_stored_up_to_a_limit(begin):
    run, told = begin("mutate")
    run.log("nul \x00 and half a pair \ud800")
    run.log(17)
    assert told.logs == ["nul  and half a pair ?", "17"]
    run.log("x" * LOG_CHARACTERS_MAX)
    run.log("nothing of this")
    assert sum(map(len, told.logs)) == LOG_CHARACTERS_MAX


@pytest.mark.parametrize("millionths", [-1, 1.5, "1", True])
def test_a_cost_is_a_whole_number(begin, millionths):
    run, told = begin("next")
    with pytest.raises(InvalidInput, match="cost"):
        run.cost(millionths)
    run.cost(2)
    run.cost(3)
    assert told.cost == 5


def test_a_run_shows_what_it_was_given(begin, open_node):
    (event,) = open_node("a").peek("mail", "inbox", limit=1)
    run, _ = begin("next", events=(event,), prepared={"a": 1}, result=[2], outcome="applied", state="s")
    assert (run.workflow, run.handler, run.phase, run.now_ms()) == ("mail", "copy", "next", 1_234)
    assert (run.events, run.prepared, run.result, run.outcome, run.state) == ((event,), {"a": 1}, [2], "applied", "s")
