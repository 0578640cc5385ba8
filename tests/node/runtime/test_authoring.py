"""Declaring workflows, handlers and effects: what is accepted, and what is refused with which sentence."""

import pytest

from leasemesh.node.authoring.effects import EffectCall, effect
from leasemesh.node.authoring.schedule import Cron, Every
from leasemesh.node.authoring.workflow import Workflow
from leasemesh.node.model.errors import InvalidInput


@pytest.fixture
def mail():
    return Workflow("mail")


@pytest.fixture
def inbox(mail):
    return mail.topic("inbox")


@effect
def send_mail(key, *, to, body=""):
    return {"key": key}


@effect(idempotent=True, timeout_s=2, name="put")
async def put_file(key, name):
    return None


def test_a_topic_is_the_same_each_time(mail, inbox):
    assert mail.topic("inbox") is inbox
    assert str(inbox) == "mail/inbox"


@pytest.mark.parametrize("name", ["", "~state", 5, None, "x" * 513])
def test_a_topic_needs_a_name_of_its_own(mail, name):
    with pytest.raises(InvalidInput):
        mail.topic(name)


def test_a_decorated_function_is_a_consumer_of_its_name(mail, inbox):
    @mail.consumer(inbox)
    def count(run):
        pass

    mail.check()
    assert (count.name, count.topics, count.batch, count.default_mode) == ("count", (inbox,), 1, "soft")
    assert mail.consumers == (count,)


def test_phases_are_declared_one_by_one(mail, inbox):
    sender = mail.consumer(inbox, name="send", publishes=[mail.topic("sent")], batch=10)

    @sender.prepare
    def choose(run):
        pass

    @sender.mutate
    def send(run):
        return send_mail(to="me")

    @sender.next
    def record(run):
        pass

    mail.check()
    assert (sender.prepare_function, sender.mutate_function, sender.next_function) == (choose, send, record)
    assert sender.effects == {"send_mail": send_mail}


def test_a_phase_is_declared_once(mail, inbox):
    sender = mail.consumer(inbox, name="send")
    sender.next(print)
    with pytest.raises(InvalidInput, match="has its next phase already"):
        sender.next(print)


def test_a_consumer_without_any_function_cannot_run(mail, inbox):
    mail.consumer(inbox, name="send")
    with pytest.raises(InvalidInput, match="mail/send: has no function"):
        mail.check()


def test_a_state_that_nothing_returns_is_refused(mail, inbox):
    mail.consumer(inbox, name="send", stateful=True).prepare(print)
    with pytest.raises(InvalidInput, match="is stateful, and has no next phase"):
        mail.check()


def test_an_effect_that_is_not_idempotent_makes_work_confirmed(mail, inbox):
    consumer = mail.consumer(inbox, name="send")
    consumer.mutate(lambda run: send_mail(to="me"))
    assert consumer.default_mode == "confirmed"


def test_an_idempotent_effect_makes_work_soft(mail, inbox):
    consumer = mail.consumer(inbox, name="put")
    consumer.mutate(lambda run: put_file("a"))
    assert consumer.default_mode == "soft"


def test_a_mode_that_is_given_counts(mail, inbox):
    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail(to="me"))
    assert consumer.default_mode == "soft"


def test_effects_of_the_enclosing_function_are_found(mail, inbox):
    inner = effect(name="inner")(lambda key: None)
    consumer = mail.consumer(inbox, name="send")
    consumer.mutate(lambda run: inner())
    assert consumer.effects == {"inner": inner}


def test_a_mutate_whose_effect_cannot_be_told_must_have_it_named(mail, inbox):
    hidden = {"one": put_file}
    consumer = mail.consumer(inbox, name="send")
    consumer.mutate(lambda run: hidden["one"]("a"))
    with pytest.raises(InvalidInput, match="names no effect; give it by consumer"):
        mail.check()
    named = mail.consumer(inbox, name="named", effects=[put_file])
    named.mutate(lambda run: hidden["one"]("a"))
    assert named.effects == {"put": put_file}


def test_two_effects_of_one_name_are_refused(mail, inbox):
    other = effect(name="send_mail")(lambda key: None)
    consumer = mail.consumer(inbox, name="send", effects=[other])
    consumer.mutate(lambda run: send_mail(to="me"))
    with pytest.raises(InvalidInput, match="two effects called send_mail"):
        mail.check()


def test_a_producer_has_a_schedule_and_a_function_of_two_parameters(mail, inbox):
    @mail.producer(every_s=60, publishes=[inbox])
    async def poll(run, state):
        return state

    @mail.producer(cron="0 7 * * *", time_zone="Europe/Berlin", name="morning")
    def other(run, state):
        return state

    assert mail.producers == (poll, other)
    assert (poll.schedule, other.schedule, other.name) == (Every(60), Cron("0 7 * * *", "Europe/Berlin"), "morning")
    with pytest.raises(InvalidInput, match="two parameters"):
        mail.producer(every_s=1)(lambda run: None)


@pytest.mark.parametrize("options", [{}, {"every_s": 1, "cron": "* * * * *"}])
def test_a_producer_has_one_schedule(mail, options):
    with pytest.raises(InvalidInput, match="every_s, cron: give one of them"):
        mail.producer(**options)


def test_handlers_of_one_workflow_have_different_names(mail, inbox):
    mail.consumer(inbox, name="send")
    with pytest.raises(InvalidInput, match="has a handler send already"):
        mail.consumer(inbox, name="send")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", 5])
def test_a_handler_needs_a_name_that_people_can_type(mail, inbox, name):
    with pytest.raises(InvalidInput):
        mail.consumer(inbox, name=name)


def test_a_lambda_needs_a_name(mail, inbox):
    with pytest.raises(InvalidInput, match="give name"):
        mail.consumer(inbox)(lambda run: None)


@pytest.mark.parametrize(
    ("topics", "options"),
    [((), {}), (("inbox",), {}), ((Workflow("other").topic("inbox"),), {})],
)
def test_a_consumer_consumes_topics_of_its_workflow(mail, topics, options):
    with pytest.raises(InvalidInput):
        mail.consumer(*topics, **options)


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 1000}, {"mode": "home"}, {"mode": "fast"}])
def test_what_a_consumer_cannot_be_is_refused(mail, inbox, options):
    with pytest.raises(InvalidInput):
        mail.consumer(inbox, name="send", **options)


def test_calling_an_effect_says_which_call_to_make():
    assert send_mail(to="me", body="hello") == EffectCall(send_mail, {"to": "me", "body": "hello"})
    assert put_file("a") == put_file(name="a") == EffectCall(put_file, {"name": "a"})


def test_parameters_are_as_json_keeps_them():
    assert send_mail(to=("a", "b")).params == {"to": ["a", "b"]}


@pytest.mark.parametrize("params", [{}, {"to": "me", "cc": "you"}, {"to": object()}, {"to": float("nan")}])
def test_parameters_that_do_not_fit_are_refused(params):
    with pytest.raises(InvalidInput, match="parameters of effect send_mail"):
        send_mail(**params)


def test_further_parameters_by_name_are_kept_under_their_names():
    @effect
    def log(key, **fields):
        return None

    assert log(a=1, b=2).params == {"a": 1, "b": 2}


@pytest.mark.parametrize("function", [lambda: None, lambda key, *many: None, lambda *, key: None])
def test_an_effect_takes_the_key_and_then_parameters_by_name(function):
    with pytest.raises(InvalidInput):
        effect(name="x")(function)


@pytest.mark.parametrize("seconds", [0, -1, 4_000, "30", True])
def test_a_time_out_is_a_sensible_number_of_seconds(seconds):
    with pytest.raises(InvalidInput, match="timeout_s"):
        effect(timeout_s=seconds)(lambda key: None)


def test_an_effect_has_one_reconcile_function():
    one = effect(name="one")(lambda key: None)
    one.reconcile(lambda key: None)
    with pytest.raises(InvalidInput, match="reconcile function already"):
        one.reconcile(lambda key: None)
