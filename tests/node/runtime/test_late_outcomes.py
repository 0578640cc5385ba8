"""What becomes of outcomes that are known late, or cannot be written at once, and how often the ledger is looked at."""

import asyncio

from handling import publish, statuses

from node import Retry, effect


def test_an_effect_that_another_run_goes_on_with_is_not_looked_at_all_the_time(device_lab, mail, inbox, monkeypatch):
    @effect(name="mail")
    async def send_mail(key):
        raise ConnectionResetError

    @send_mail.reconcile
    async def was_sent(key):
        return Retry()

    begun, looks = [], []
    consumer = mail.consumer(inbox, name="send", mode="soft")
    consumer.mutate(lambda run: send_mail())

    @consumer.next
    async def tell(run):
        begun.append(run.id)
        await asyncio.sleep(60)

    lab = device_lab(devices=1, workflows=[mail])
    node = lab[0].node
    publish(node, "one")
    lab.until(node.mutations.unresolved)
    (entry,) = node.mutations.unresolved()
    node.mutations.resolve(entry.work, "happened", by="Ann")
    lab.until(lambda: begun)
    due = node.mutations.due
    monkeypatch.setattr(node.mutations, "due", lambda now_ms: looks.append(now_ms) or due(now_ms))
    lab.advance(70)
    assert statuses(node) == {"one": "consumed"}
    assert 1 <= len(looks) <= 30
