'''Several devices in one test, in virtual time, with every fault that can be had.

`DeviceLab` runs whole nodes on real files: your tables, your handlers, the real sync. Only clocks, threads and the
network are simulated. An hour takes as long as what happens in it, and the same seed gives the same run. With pytest
there is a fixture, and nothing to install besides leasemesh:

```python
import asyncio

import pytest

from leasemesh import LeaseLost


def test_of_two_devices_that_take_the_same_work_one_keeps_it(device_lab):
    lab = device_lab(devices=["laptop", "phone", "hub"], seed=7)
    laptop, phone, hub = lab.devices
    laptop.node.publish("inbox", "mail", "message-1", title="Hello")
    lab.settle()  # until all have everything and nothing goes on

    lab.partition(laptop, [phone, hub])
    first = laptop.node.reserve("inbox", "mail")
    lab.advance(seconds=5)
    second = phone.node.reserve("inbox", "mail")  # it cannot know better
    lab.heal()
    lab.settle()

    with pytest.raises(LeaseLost, match=first.run):
        second.consume()
    first.consume()
    lab.settle()
    lab.assert_converged()  # or the first table that differs


def test_a_device_that_crashes_in_a_commit_has_all_of_it_or_nothing(device_lab, tmp_path):
    (tmp_path / "0001_notes.sql").write_text(
        """
        CREATE TABLE notes (id BLOB PRIMARY KEY NOT NULL, title TEXT NOT NULL DEFAULT '');
        SELECT crsql_as_crr('main', 'notes');
        """
    )
    lab = device_lab(devices=2, migrations=tmp_path)
    with lab[0].node.transaction() as transaction:
        transaction.execute("INSERT INTO notes VALUES (randomblob(16), 'one'), (randomblob(16), 'two')")
    lab.crash(1, at="commit")  # the next one
    lab.until(lambda: not lab[1].is_running)
    lab.restart(1)
    lab.settle()
    assert sorted(lab[1].node.query("SELECT title FROM notes")) == [("one",), ("two",)]
```

A device's coroutines run on the device, while time passes:

```python
async def work(node):
    async with node.start("inbox", "mail") as mail:  # waits until everybody within reach has received the claim
        return mail.consume()


def test_work_that_two_devices_begin_at_one_moment_is_done_once(device_lab):
    lab = device_lab(devices=2)
    lab[0].node.publish("inbox", "mail", "message-1")
    lab.settle()
    done = [device.spawn(work(device.node)) for device in lab.devices]
    lab.until(lambda: all(one.done() for one in done), within_s=10)
    assert sorted(one.result() for one in done) == [0, 1]
```

Handlers run on every device, and meet what a test does to it. What they do to the outside is yours to look at:

```python
from leasemesh import Applied, NotApplied, Workflow, effect


def test_a_mail_is_sent_once_although_the_device_that_sends_it_crashes(device_lab):
    outbox = {}  # the service; it knows what it was asked, by key

    mail = Workflow("mail")
    inbox = mail.topic("inbox")

    @effect(timeout_s=30)
    async def send_mail(key, *, to):
        outbox.setdefault(key, []).append(to)
        await asyncio.sleep(1)  # the answer takes its time

    @send_mail.reconcile
    async def was_sent(key, *, to):
        return Applied(None) if key in outbox else NotApplied()

    sender = mail.consumer(inbox, name="send")

    @sender.mutate
    def send(run):
        return send_mail(to=run.events[0].payload["to"])

    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    lab["hub"].node.authorities.appoint(lab["hub"].node.site_id, by="the test")
    lab["hub"].node.publish("mail", "inbox", "message-1", payload={"to": "ann@example.com"})
    lab.until(lambda: outbox)
    lab.crash("laptop")  # after the service did it, before anybody knows
    lab.restart("laptop")
    lab.settle()
    assert list(outbox.values()) == [["ann@example.com"]]
    assert [event.status for event in lab["hub"].node.peek("mail", "inbox", status="consumed")] == ["consumed"]
```

Without pytest: `with DeviceLab(devices=3) as lab`, or `async with`. Handlers are plain Python, so let what they do to
the outside world go to a stand-in that the test holds: there is no real network in virtual time.

What only a product needs does not belong here. Rules: call the lab from one thread. Call what is not a coroutine on
`device.node` directly, and run coroutines with `device.run` or `device.spawn`. Code on devices gets its time from the
event loop (`asyncio.sleep`, `loop.time()`) and from the node, never from the module `time`.'''

from leasemesh.node.testing.lab import Backup, DeviceDown, DeviceLab, LabDevice, LabError, LabTimeout, Spawned

__all__ = ["Backup", "DeviceDown", "DeviceLab", "LabDevice", "LabError", "LabTimeout", "Spawned"]
