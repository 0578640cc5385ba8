"""An automation that sends mail and keeps books, the same on every device.

    read ─┬─► commits ────► letter: a mail each, mode confirmed ─┬─► entries ─► book: an entry each ─► filed ─► file
          └─► headlines ──► announce: a mail each, mode soft ────┘

A letter must not go out twice, and mail has no idempotency key: so `letter` waits for a permit, and when nobody knows
whether a mail left, a person decides. A headline (there are few) is not worth waiting for. The ledger takes
idempotency keys, so nobody has to wait; and it can be asked.
"""

from __future__ import annotations

import json

from mail_effects import Services, entering, mailing
from mail_source import Source

from leasemesh import EffectCall, Json, Run, Workflow
from leasemesh.node.importers import Problem

WORKFLOW = "demo"
HEADLINES, ENTRIES, FILED = "headlines", "entries", "filed"
SUBSCRIBER, EVERYBODY = "subscriber@example.com", "everybody@example.com"
HEADLINES_MAX = 8
FILED_BATCH = 20
WATCH_SECONDS = 1
READ_AGAIN_SECONDS = 3600
BODY_CHARACTERS_MAX = 20_000


def automation(source: Source, services: Services, *, reading: bool, working: bool) -> Workflow:
    """Return the workflow.

    Args:
        source: what is published.
        services: where the effects go.
        reading: this device reads the source.
        working: this device does the work.
    """
    demo = Workflow(WORKFLOW)
    if reading:
        _read(demo, source)
    if working:
        _work(demo, source, services)
    return demo


def _read(demo: Workflow, source: Source) -> None:
    inbox, headlines = demo.topic(source.topic), demo.topic(HEADLINES)
    every_s = WATCH_SECONDS if source.kind == "folder" else READ_AGAIN_SECONDS

    @demo.producer(every_s=every_s, publishes=[inbox, headlines])
    def read(run: Run, state: Json) -> Json:
        records = [record for record in source.records() if not isinstance(record, Problem)]
        for record in records:  # however often it is read, an event is published once
            run.publish(inbox, record.message_id, title=record.title, payload=record.payload)
        for record in records[-HEADLINES_MAX:] if state is None else ():
            run.publish(headlines, record.message_id, title=record.title)
        return {"read": len(records)}


def _work(demo: Workflow, source: Source, services: Services) -> None:
    inbox, headlines = demo.topic(source.topic), demo.topic(HEADLINES)
    entries, filed = demo.topic(ENTRIES), demo.topic(FILED)
    send_mail, enter = mailing(services), entering(services)

    letter = demo.consumer(inbox, name="letter", publishes=[entries])
    announce = demo.consumer(headlines, name="announce", publishes=[entries], mode="soft")
    book = demo.consumer(entries, name="book", publishes=[filed])

    @letter.mutate
    def write_letter(run: Run) -> EffectCall:
        (event,) = run.events
        body = json.dumps(event.payload, indent=2, ensure_ascii=False)[:BODY_CHARACTERS_MAX]
        return send_mail(to=SUBSCRIBER, subject=event.title, body=body, event=event.id)

    @announce.mutate
    def write_to_everybody(run: Run) -> EffectCall:
        (event,) = run.events
        return send_mail(to=EVERYBODY, subject=event.title, body=event.title, event=event.id)

    @letter.next
    @announce.next
    def hand_on(run: Run) -> None:
        (event,) = run.events
        run.publish(entries, event.id, title=event.title)

    @book.mutate
    def make_entry(run: Run) -> EffectCall:
        (event,) = run.events
        return enter(event=event.id, title=event.title)

    @book.next
    def hand_over(run: Run) -> None:
        (event,) = run.events
        run.publish(filed, event.id, title=event.title)

    @demo.consumer(filed, batch=FILED_BATCH)
    def file(run: Run) -> None:
        run.log(f"filed {len(run.events)}")
