"""A device whose clock was a year ahead, and is set right: nothing waits for that year."""

import pytest
from handling import publish, statuses

from leasemesh import Applied, Retry, Transient, effect

AHEAD_S = 400 * 86_400


@pytest.fixture
def ahead(device_lab, mail):
    lab = device_lab(devices=1, workflows=[mail])
    lab.set_clock(0, wrong_by_s=AHEAD_S)
    return lab


@pytest.mark.parametrize("restart", [True, False])
def test_a_failed_handler_is_tried_again(ahead, mail, inbox, restart):
    tries = []

    @mail.consumer(inbox)
    async def note(run):
        tries.append(run.id)
        if len(tries) < 3:
            raise Transient("the service is down")

    ahead.crash(0)
    ahead.restart(0)
    publish(ahead[0].node, "one")
    ahead.until(lambda: len(tries) == 2)
    if restart:
        ahead.crash(0)
    ahead.set_clock(0, wrong_by_s=0)
    if restart:
        ahead.restart(0)
    ahead.advance(60)
    assert statuses(ahead[0].node) == {"one": "consumed"}


def test_an_unknown_outcome_is_asked_for_again(device_lab, mail, inbox):
    asked, answers = [], [Retry(), Retry(), Applied(None)]

    @effect(name="mail")
    async def send_mail(key):
        raise ConnectionResetError

    @send_mail.reconcile
    async def was_sent(key):
        asked.append(key)
        return answers[len(asked) - 1]

    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())
    lab = device_lab(devices=1, workflows=[mail])
    lab.set_clock(0, wrong_by_s=AHEAD_S)
    publish(lab[0].node, "one")
    lab.until(lambda: len(asked) == 2)
    lab.set_clock(0, wrong_by_s=0)
    lab.advance(1_200)
    assert statuses(lab[0].node) == {"one": "consumed"}


def test_a_wish_to_be_woken_and_a_schedule_hold(device_lab, mail, inbox):
    woken, polls = [], []
    consumer = mail.consumer(inbox, name="tick")

    @consumer.prepare
    async def tick(run):
        woken.append(run.id)
        run.wake_at(run.now_ms() + 60_000)

    @mail.producer(every_s=60)
    async def poll(run, state):
        polls.append(run.id)

    lab = device_lab(devices=1, workflows=[mail])
    lab.set_clock(0, wrong_by_s=AHEAD_S)
    publish(lab[0].node, "one")
    lab.until(lambda: len(woken) == 2)
    before = len(polls)
    lab.set_clock(0, wrong_by_s=0)
    lab.advance(300)
    assert len(woken) >= 5
    assert len(polls) >= before + 4
