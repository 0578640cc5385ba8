"""Two devices that reach for the same events: few claims are lost, nothing is left lying; one alone keeps the order."""

import asyncio

import pytest
from handling import publish, runs, statuses

from leasemesh import effect


@pytest.fixture
def sending(mail, inbox):
    calls = []

    @effect(name="mail")
    async def send_mail(key, *, to):
        calls.append(to)
        await asyncio.sleep(0.01)

    def declare(mode):
        consumer = mail.consumer(inbox, name="send", mode=mode)
        consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
        return calls

    return declare


@pytest.mark.parametrize("mode", ["soft", "confirmed"])
def test_two_devices_lose_few_claims_to_each_other(device_lab, mail, sending, mode):
    calls = sending(mode)
    lab = device_lab(devices=["hub", "a", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    lab["hub"].node.authorities.appoint(lab["hub"].node.site_id, by="the test")
    lab.settle()
    publish(lab["hub"].node, *(f"{number:02}" for number in range(100)))
    lab.until(lambda: list(statuses(lab["hub"].node).values()) == ["consumed"] * 100, within_s=240)
    lab.settle()
    lab.assert_converged()
    assert sorted(calls) == [f"{number:02}" for number in range(100)]
    lost = sum(status == "lost" for device in lab.devices[1:] for _, _, status in own_runs(device))
    assert lost <= 15, lost


def own_runs(device):
    node = device.node
    return [
        (run.handler, run.phase, run.status)
        for run in node.handler_runs.list("mail", limit=1000)
        if run.node == node.site_id
    ]


async def test_one_device_keeps_the_order(open_node, mail, sending, within):
    calls, node = sending("soft"), open_node("a")
    publish(node, *(f"{number:02}" for number in range(20)))
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert calls == sorted(calls)
    assert len(runs(node)) == 20


def test_a_start_does_not_wait_long_for_a_peer_that_does_not_answer(device_lab, mail, inbox):
    seen = []
    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.id))
    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    publish(lab["laptop"].node, "one")
    lab.settle()
    lab.pause("hub", 300)  # it takes connections and says nothing
    lab.restart("laptop")
    publish(lab["laptop"].node, "two")
    lab.until(lambda: len(seen) == 2, within_s=2)
