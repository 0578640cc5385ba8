"""Handlers on several devices: one does the work, a silent one's work is taken over, lost leases cancel, permits and
verdicts travel. Whole nodes in virtual time."""

import asyncio

import pytest
from handling import publish, run_of, runs, statuses

from leasemesh import Applied, DidNotHappen, Retry, Transient, Workflow, effect
from leasemesh.node.authoring.retry import RetryRule

QUICK = {"retry": RetryRule(first_ms=1_000, most_ms=2_000)}


class Outbox:
    """The outside service, with what was asked of it, in order."""

    def __init__(self):
        self.calls = []
        self.hang = set()
        self.seconds = 0.0

    async def send(self, key, to, who=""):
        self.calls.append((key, to))
        if to in self.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(self.seconds)
        return {"number": len(self.calls)}


@pytest.fixture
def outbox():
    return Outbox()


@pytest.fixture
def sender(mail, inbox, sent, outbox):
    """Declares a consumer that sends a mail for each event."""

    def declare(*, mode=None, reconcile=None, timeout_s=30.0, idempotent=False):
        @effect(name="mail", timeout_s=timeout_s, idempotent=idempotent)
        async def send_mail(key, *, to):
            return await outbox.send(key, to)

        if reconcile is not None:
            send_mail.reconcile(reconcile)
        consumer = mail.consumer(inbox, name="send", mode=mode, publishes=[sent])
        consumer.mutate(lambda run: send_mail(to=run.events[0].message_id))
        consumer.next(lambda run: run.publish(sent, f"re-{run.events[0].message_id}", payload=run.result))
        return consumer

    return declare


def calls_by_target(outbox):
    return sorted(to for _, to in outbox.calls)


def appoint(device):
    device.node.authorities.appoint(device.node.site_id, by="the test")


# --- Soft -------------------------------------------------------------------------------------------------------------


def test_connected_devices_share_work_and_do_all_of_it_once(device_lab, mail, sender, outbox):
    sender(mode="soft")
    lab = device_lab(devices=3, workflows=[mail])
    for number, device in enumerate(lab.devices):
        publish(device.node, *(f"{number}-{message}" for message in range(4)))
    lab.settle()
    lab.assert_converged()
    assert calls_by_target(outbox) == sorted(f"{number}-{message}" for number in range(3) for message in range(4))
    assert set(statuses(lab[0].node).values()) == {"consumed"}
    assert lab[0].node.events.count_duplicates() == 0


def test_apart_two_devices_may_do_the_same_and_the_duplicate_shows(device_lab, mail, sender, outbox):
    sender(mode="soft")
    lab = device_lab(devices=2, workflows=[mail])
    lab.partition(0, 1)
    publish(lab[0].node, "one")
    publish(lab[1].node, "one")
    lab.until(lambda: len(outbox.calls) == 2)
    lab.advance(5)
    lab.heal()
    lab.settle()
    lab.assert_converged()
    assert [event.message_id for event in lab[0].node.events.duplicates()] == ["one"]
    (first, second) = outbox.calls
    assert first == second  # the same key, so that a service that looks at it does it once


def test_a_merge_that_takes_an_event_ends_the_run_before_its_effect(device_lab, mail, inbox, outbox):
    """Device b has reserved while apart and is still thinking when it hears of the older claim."""
    consumer = mail.consumer(inbox, name="send", mode="soft")
    thinking = []

    @effect(name="mail")
    async def send_mail(key):
        outbox.calls.append(key)

    @consumer.mutate
    async def think(run):
        thinking.append(run.id)
        await asyncio.sleep(60)
        return send_mail()

    lab = device_lab(devices=["a", "b"], workflows=lambda name: [mail] if name == "b" else [])
    lab.partition(0, 1)
    publish(lab["a"].node, "one")
    held = lab["a"].node.reserve("mail", "inbox")
    lab.advance(1)
    publish(lab["b"].node, "one")
    lab.until(lambda: thinking)
    lab.heal()
    lab.until(lambda: [status for _, _, status in runs(lab["b"].node)] == ["lost"], within_s=20)
    held.consume()
    lab.settle()
    assert outbox.calls == []
    assert "another device's claim won" in run_of(lab["b"].node, "send").details["error"]


def test_an_event_that_arrives_by_sync_wakes_its_consumer(device_lab, mail, inbox):
    seen = []
    mail.consumer(inbox, name="count").next(lambda run: seen.append(run.events[0].message_id))
    lab = device_lab(devices=["a", "b"], workflows=lambda name: [mail] if name == "b" else [])
    lab.settle()
    publish(lab["a"].node, "one")
    lab.until(lambda: seen == ["one"], within_s=2)


def test_an_idle_mesh_with_handlers_writes_nothing(device_lab, mail, inbox, sender):
    sender(mode="soft")
    mail.producer(every_s=86_400)(poll)
    look = mail.consumer(inbox, name="look")
    look.prepare(lambda run: None)
    lab = device_lab(devices=3, workflows=[mail])
    publish(lab[0].node, "one")
    lab.settle()
    before = [device.node.database.version() for device in lab.devices]
    lab.advance(3_600)
    assert [device.node.database.version() for device in lab.devices] == before


async def poll(run, state):
    return state


def test_connected_devices_share_a_schedule(device_lab, mail):
    polls = []

    @mail.producer(every_s=60)
    async def poll(run, state):
        polls.append(run.id)
        return (state or 0) + 1

    lab = device_lab(devices=3, workflows=[mail])
    lab.advance(600)
    lab.settle()
    assert 10 <= len(polls) <= 13  # at the very start each of them knows of no other
    state = lab[0].node.handler_states.get("mail", "poll")
    assert state.version >= 10


def test_a_stateful_consumer_is_serialised_across_devices(device_lab, mail, inbox):
    busy, most = [0], [0]

    @mail.consumer(inbox, stateful=True)
    async def count(run):
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        await asyncio.sleep(0.5)
        busy[0] -= 1
        return (run.state or 0) + 1

    lab = device_lab(devices=3, workflows=[mail])
    for device in lab.devices:
        publish(device.node, f"{device.name}-1", f"{device.name}-2")
    lab.settle()
    lab.assert_converged()
    assert most[0] == 1
    assert lab[1].node.handler_states.get("mail", "count").state == 6


# --- Take-over --------------------------------------------------------------------------------------------------------


def crash_during_call(lab, name, outbox):
    outbox.hang.add("one")
    lab.until(lambda: outbox.calls)
    lab.crash(name)
    outbox.hang.clear()


def test_work_of_a_dead_device_that_was_not_begun_is_taken_over_and_done(device_lab, mail, inbox):
    done = []
    consumer = mail.consumer(inbox, name="think")

    @consumer.next
    async def think(run):
        done.append(run.id)
        if len(done) == 1:
            await asyncio.Event().wait()

    lab = device_lab(devices=["a", "b"], workflows=[mail])
    publish(lab["b"].node, "one")
    lab.until(lambda: done and statuses(lab["b"].node) == {"one": "reserved"})
    holder = run_of(lab["b"].node, "think").node
    dead, alive = ("a", "b") if holder == lab["a"].node.site_id else ("b", "a")
    lab.crash(dead)
    lab.until(lambda: statuses(lab[alive].node) == {"one": "consumed"}, within_s=120)
    taken = [run for run in lab[alive].node.handler_runs.list("mail") if run.status == "superseded"]
    assert "silent for too long" in taken[0].details["error"]
    lab.restart(dead)
    lab.settle()
    lab.assert_converged()
    assert len(done) == 2
    assert lab[alive].node.events.count_duplicates() == 0


def test_work_of_a_dead_device_whose_effect_is_unknown_is_left_to_people(device_lab, mail, sender, outbox):
    sender(mode="soft")
    lab = device_lab(devices=["a", "b"], workflows=[mail])
    publish(lab["b"].node, "one")
    outbox.hang.add("one")
    lab.until(lambda: outbox.calls)
    lab.advance(1)
    (dead,) = [name for name in ("a", "b") if lab[name].node.site_id == run_of(lab["a"].node, "send").node]
    alive = "b" if dead == "a" else "a"
    lab.crash(dead)
    outbox.hang.clear()
    lab.advance(600)
    assert statuses(lab[alive].node) == {"one": "unknown"}
    (entry,) = lab[alive].node.mutations.unresolved()
    lab[alive].node.mutations.resolve(entry.work, "happened", by="Ann", result={"number": 7})
    lab.until(lambda: statuses(lab[alive].node) == {"one": "consumed"}, within_s=120)
    assert lab[alive].node.peek("mail", "sent")[0].payload == {"number": 7}
    lab.restart(dead)
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1
    assert lab[alive].node.events.count_duplicates() == 0


def test_work_of_a_dead_device_beyond_its_effect_is_gone_on_with_by_another(device_lab, mail, inbox, sent, outbox):
    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    endings = []

    @effect(name="mail")
    async def send_mail(key):
        return await outbox.send(key, "one")

    @consumer.prepare
    def choose(run):
        run.reserve(run.peek(inbox))
        return {"prepared": True}

    consumer.mutate(lambda run: send_mail())

    @consumer.next
    async def record(run):
        endings.append((run.prepared, run.result))
        if len(endings) == 1:
            await asyncio.Event().wait()
        run.publish(sent, "receipt", payload=run.result)

    lab = device_lab(devices=["a", "b"], workflows=[mail])
    publish(lab["b"].node, "one")
    lab.until(lambda: endings)
    lab.advance(1)
    (dead,) = [name for name in ("a", "b") if lab[name].node.site_id == run_of(lab["a"].node, "send").node]
    alive = "b" if dead == "a" else "a"
    lab.crash(dead)
    lab.until(lambda: statuses(lab[alive].node) == {"one": "consumed"}, within_s=120)
    assert endings == [({"prepared": True}, {"number": 1})] * 2
    assert len(outbox.calls) == 1
    lab.restart(dead)
    lab.settle()
    lab.assert_converged()
    assert lab[alive].node.events.count_duplicates() == 0
    assert set(statuses(lab[alive].node, "sent")) == {"receipt"}
    assert len(endings) == 2


def test_a_device_that_was_cut_off_beyond_its_effect_reports_no_duplicate(device_lab, mail, inbox, sent, outbox):
    """It was alive: it records what happened, and so does the device that went on with its work. It happened once."""
    consumer = mail.consumer(inbox, name="send", mode="soft", publishes=[sent])
    endings = []

    @effect(name="mail")
    async def send_mail(key):
        return await outbox.send(key, "one")

    consumer.mutate(lambda run: send_mail())

    @consumer.next
    async def record(run):
        endings.append(run.id)
        if len(endings) == 1:
            await asyncio.sleep(200)
        run.publish(sent, "receipt", payload=run.result)

    lab = device_lab(devices=["a", "b"], workflows=[mail])
    publish(lab["b"].node, "one")
    lab.until(lambda: endings)
    lab.advance(1)
    lab.partition("a", "b")
    lab.until(lambda: len(endings) == 2, within_s=150)
    lab.advance(200)
    assert statuses(lab["a"].node) == statuses(lab["b"].node) == {"one": "consumed"}
    lab.heal()
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1
    assert lab["a"].node.events.count_duplicates() == 0
    assert statuses(lab["a"].node, "sent") == {"receipt": "pending"}


# --- Confirmed --------------------------------------------------------------------------------------------------------


def test_an_effect_that_is_not_idempotent_waits_for_an_authority_and_says_so(device_lab, mail, sender, outbox):
    sender()
    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    publish(lab["laptop"].node, "one")
    lab.settle()
    assert outbox.calls == []
    assert runs(lab["laptop"].node) == [("send", "prepared", "paused:confirmation")]
    (status,) = lab["laptop"].node.runner.status.handlers
    assert (status.state, "must appoint" in status.text) == ("waiting", True)
    appoint(lab["hub"])
    lab.until(lambda: statuses(lab["hub"].node) == {"one": "consumed"})
    assert len(outbox.calls) == 1


def test_while_the_authority_is_away_soft_work_goes_on_and_confirmed_work_waits_and_resumes(
    device_lab, mail, sent, sender, outbox
):
    sender()
    seen = []
    mail.consumer(mail.topic("notes"), name="count").next(lambda run: seen.append(run.events[0].message_id))
    lab = device_lab(devices=["hub", "laptop"], workflows=lambda name: [mail] if name == "laptop" else [])
    appoint(lab["hub"])
    lab.settle()
    lab.partition("hub")
    publish(lab["laptop"].node, "one")
    publish(lab["laptop"].node, "note", topic="notes")
    lab.advance(120)
    assert (seen, outbox.calls) == (["note"], [])
    assert "for confirmation by hub" in {one.text for one in lab["laptop"].node.runner.status.handlers}
    lab.heal()
    lab.until(lambda: statuses(lab["laptop"].node) == {"one": "consumed"})
    assert len(outbox.calls) == 1


def test_confirmed_work_that_both_sides_of_a_partition_reach_for_is_done_once(device_lab, mail, sender, outbox):
    sender()
    lab = device_lab(devices=["hub", "a", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    appoint(lab["hub"])
    lab.settle()
    lab.partition("a", "b")
    lab.partition("a", "hub")
    for name in ("a", "b"):
        publish(lab[name].node, *(f"message-{number}" for number in range(4)))
    lab.advance(30)
    lab.heal()
    lab.settle()
    lab.assert_converged()
    assert calls_by_target(outbox) == [f"message-{number}" for number in range(4)]
    assert lab["hub"].node.events.count_duplicates() == 0
    assert set(statuses(lab["hub"].node).values()) == {"consumed"}


def die_with_permit(device_lab, mail):
    """Let device a get the hub's permit for event "one", and die; b, which runs the same handlers, starts then."""
    lab = device_lab(devices=["hub", "a", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    appoint(lab["hub"])
    lab.settle()
    hub = lab["hub"].node
    lab.crash("b")
    publish(lab["a"].node, "one")
    lab.until(lambda: any(hub.permits.holders(one.id) for one in hub.peek("mail", "inbox", status="reserved")))
    lab.crash("a")
    lab.restart("b")
    return lab


@pytest.fixture
def dead_with_permit(device_lab, mail, inbox, outbox):
    """Device a has got the permit for event "one", and dies before it begins; b runs the same handler. Gives the lab,
    and the results with which `next` was run."""
    consumer, went_on = mail.consumer(inbox, name="send", mode="confirmed"), []

    @effect(name="mail")
    async def send_mail(key):
        return await outbox.send(key, "one")

    @consumer.mutate
    async def think(run):
        await asyncio.sleep(1)
        return send_mail()

    @consumer.next
    def go_on(run):
        went_on.append(run.result)

    return die_with_permit(device_lab, mail), went_on


@pytest.mark.parametrize("mode", ["soft", "confirmed"])
@pytest.mark.parametrize("told_first", [True, False])
def test_what_happened_before_a_backup_was_restored_goes_forward_though_the_backup_gave_its_events_back(
    device_lab, mail, inbox, sent, outbox, mode, told_first
):
    """The backup is of the moment between the claim and the effect. Alone with it, the device takes itself for the one
    that made the claim, and releases it. Then the hub tells it of its lost future, and it takes a new identity; or it
    meets a device first that does not know of that."""
    consumer = mail.consumer(inbox, name="send", mode=mode, batch=10, publishes=[sent])
    thinking, endings = [], []

    @effect(name="mail")
    async def send_mail(key):
        return await outbox.send(key, "one")

    @consumer.mutate
    async def think(run):
        thinking.append(run.id)
        await asyncio.sleep(1)
        return send_mail()

    @consumer.next
    async def record(run):
        endings.append([event.message_id for event in run.events])
        if len(endings) == 1:
            await asyncio.Event().wait()
        for event in run.events:
            run.publish(sent, f"re-{event.message_id}", payload=run.result)

    lab = device_lab(devices=["hub", "a", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    appoint(lab["hub"])
    lab.settle()
    lab.crash("b")
    publish(lab["a"].node, "one", "two")
    lab.until(lambda: thinking)
    backup = lab.backup("a")
    lab.until(lambda: endings)
    lab.advance(1)  # the hub hears that it happened
    lab.crash("a")
    lab.partition("a", "hub")
    lab.restore(backup)
    lab.until(lambda: lab["a"].node.events.reservation(thinking[0]).state == "released")
    publish(lab["hub"].node, "three")
    if not told_first:
        lab.restart("b")
    lab.heal()
    lab.advance(2)
    if told_first:
        lab.restart("b")
    lab.until(lambda: set(statuses(lab["b"].node).values()) == {"consumed"}, within_s=200)
    lab.settle()
    lab.assert_converged()
    own = lab["hub"].node.events.reservation(thinking[0]).node == lab["a"].node.site_id
    assert own is not told_first
    assert sorted(endings[1:]) == [["one", "two"], ["three"]]
    assert len(outbox.calls) == 2
    assert lab["hub"].node.events.count_duplicates() == 0
    assert set(statuses(lab["hub"].node, "sent")) == {"re-one", "re-two", "re-three"}


@pytest.mark.parametrize("back", ["the taker", "the holder"])
def test_what_was_said_of_a_dead_devices_permit_goes_forward_although_it_gives_the_permit_up_unheard(
    device_lab, mail, inbox, outbox, back
):
    consumer, went_on = mail.consumer(inbox, name="send", mode="confirmed"), []

    @effect(name="mail")
    async def send_mail(key):
        return await outbox.send(key, "one")

    @consumer.mutate
    async def think(run):
        await asyncio.sleep(1)
        return send_mail()

    @consumer.next
    async def go_on(run):
        went_on.append(run.result)
        if len(went_on) == 1:
            await asyncio.Event().wait()

    lab = die_with_permit(device_lab, mail)
    hub = lab["hub"].node
    lab.advance(120)
    (event,) = hub.peek("mail", "inbox", status="reserved")
    hub.mutations.resolve(hub.permits.get(event.run).work, "happened", by="Ann", result=1)
    lab.until(lambda: went_on, within_s=60)
    lab.advance(2)
    lab.crash("b")
    lab.partition("a", "hub")
    lab.restart("a")  # it has not heard of the verdict, and releases what it had claimed
    lab.until(lambda: lab["a"].node.events.reservation(event.run).state == "released")
    lab.crash("a")
    lab.heal()
    lab.restart("a")
    if back == "the taker":
        lab.restart("b")
    lab.until(lambda: statuses(hub) == {"one": "consumed"}, within_s=200)
    assert went_on == [1, 1]
    assert outbox.calls == []
    if back == "the holder":
        lab.restart("b")
    lab.settle()
    lab.assert_converged()
    assert hub.events.count_duplicates() == 0


def test_what_stands_in_a_silent_devices_permit_is_not_reached_for_again_and_again(dead_with_permit, outbox):
    lab, _ = dead_with_permit
    hub = lab["hub"].node
    lab.advance(600)
    (event,) = hub.peek("mail", "inbox", status="reserved")
    assert hub.permits.holders(event.id)
    assert len(hub.handler_runs.list("mail")) == 1
    assert outbox.calls == []
    hub.mutations.resolve(hub.permits.get(event.run).work, "not_happened", by="Ann")
    lab.until(lambda: statuses(lab["b"].node) == {"one": "consumed"}, within_s=60)
    lab.restart("a")
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1
    assert hub.events.count_duplicates() == 0


@pytest.mark.parametrize(("verdict", "status"), [("happened", "consumed"), ("skip", "skipped")])
def test_what_a_person_says_of_a_dead_devices_permit_is_carried_out_by_others(
    dead_with_permit, outbox, verdict, status
):
    lab, went_on = dead_with_permit
    hub = lab["hub"].node
    lab.advance(120)
    (event,) = hub.peek("mail", "inbox", status="reserved")
    result = {"seen": "by Ann"} if verdict == "happened" else None
    hub.mutations.resolve(hub.permits.get(event.run).work, verdict, by="Ann", result=result)
    lab.until(lambda: statuses(lab["b"].node) == {"one": status}, within_s=60)
    assert went_on == ([result] if verdict == "happened" else [])
    lab.restart("a")
    lab.settle()
    lab.assert_converged()
    assert outbox.calls == []
    assert hub.events.count_duplicates() == 0


def test_a_refusal_gives_the_events_back_and_is_no_hot_loop(device_lab, mail, sender, outbox):
    """Both ask for what one of them gets; the other does not ask again until something has changed."""
    sender()
    lab = device_lab(devices=["hub", "a", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    appoint(lab["hub"])
    lab.settle()
    lab.partition(["a"], ["b"])
    lab.partition(["a", "b"], ["hub"])
    for name in ("a", "b"):
        publish(lab[name].node, "one")
    lab.advance(30)
    outbox.seconds = 20.0
    lab.heal()
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1
    assert len(lab["hub"].node.handler_runs.list("mail")) <= 4


def test_a_verdict_from_another_device_decides(device_lab, mail, sender, outbox):
    sender(mode="soft")
    lab = device_lab(devices=["a", "b"], workflows=lambda name: [mail] if name == "a" else [])
    publish(lab["a"].node, "one")
    crash_during_call(lab, "a", outbox)
    lab.restart("a")
    lab.settle()
    (entry,) = lab["b"].node.mutations.unresolved()
    lab["b"].node.mutations.resolve(entry.work, "not_happened", by="Ann")
    lab.until(lambda: statuses(lab["b"].node) == {"one": "consumed"}, within_s=30)
    (first, second) = outbox.calls
    assert first[0] == entry.work != second[0]


def test_background_reconciliation_goes_on_after_a_restart(device_lab, mail, sender, outbox):
    asked = []

    async def was_sent(key, *, to):
        asked.append(key)
        return Applied({"number": 9}) if len(asked) == 3 else Retry()

    sender(mode="soft", reconcile=was_sent)
    lab = device_lab(devices=["a"], workflows=[mail])
    publish(lab[0].node, "one")
    outbox.hang.add("one")
    lab.until(lambda: outbox.calls)
    lab.until(lambda: asked, within_s=60)
    lab.crash("a")
    lab.restart("a")
    lab.until(lambda: statuses(lab[0].node) == {"one": "consumed"}, within_s=120)
    assert len(asked) == 3
    assert len(outbox.calls) == 1
    assert lab[0].node.peek("mail", "sent")[0].payload == {"number": 9}


# --- Sleep ------------------------------------------------------------------------------------------------------------


def test_a_laptop_that_slept_looks_at_its_leases_again_before_the_next_step(device_lab, mail, inbox, outbox):
    consumer = mail.consumer(inbox, name="send", mode="soft")

    @effect(name="mail")
    async def send_mail(key):
        await outbox.send(key, "one")

    @consumer.mutate
    async def think(run):
        await asyncio.sleep(2)
        return send_mail()

    lab = device_lab(devices=["desktop", "laptop"], workflows=[mail], running=QUICK)
    lab.crash("desktop")
    publish(lab["laptop"].node, "one")
    lab.until(lambda: runs(lab["laptop"].node))
    lab.advance(0.5)
    lab.restart("desktop")
    lab.advance(0.5)
    lab.pause("laptop", 300)
    lab.advance(150)
    assert statuses(lab["desktop"].node) == {"one": "consumed"}
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1
    assert lab["desktop"].node.events.count_duplicates() == 0


def test_the_same_seed_gives_the_same_run(device_lab, outbox):
    def story():
        mail = Workflow("mail")
        consumer = mail.consumer(mail.topic("inbox"), name="send", mode="soft")

        @effect(name="mail")
        async def send_mail(key):
            await outbox.send(key, "one")

        consumer.mutate(lambda run: send_mail())
        lab = device_lab(devices=3, workflows=[mail], seed=11)
        publish(lab[0].node, "one", "two", "three")
        lab.settle()
        return lab.trace

    assert story() == story()


def test_a_failed_run_whose_work_another_device_did_waits_no_longer(device_lab, mail, inbox):
    failed = []

    @mail.consumer(inbox)
    async def count(run):
        if not failed:
            failed.append(run.id)
            raise Transient("the network is down here")

    lab = device_lab(devices=2, workflows=[mail], running={"retry": RetryRule(first_ms=3_600_000, most_ms=3_600_000)})
    publish(lab[1].node, "one")
    lab.settle()
    lab.assert_converged()
    assert statuses(lab[0].node) == {"one": "consumed"}
    assert lab[0].node.handler_runs.get(failed[0]).status == "superseded"
    assert all(device.node.handler_runs.own_incomplete() == [] for device in lab.devices)


def test_what_a_call_came_to_is_known_although_the_device_got_a_new_identity_during_the_call(
    device_lab, mail, sender, outbox
):
    """A restored backup worked alone when a peer told it that it is one. The ledger entry is another node's now."""
    sender(mode="soft")
    outbox.seconds = 10.0
    lab = device_lab(devices=["hub", "a"], workflows=lambda name: [mail] if name == "a" else [])
    lab.settle()
    backup = lab.backup("a")
    lab["a"].node.publish("mail", "other", "what only the hub will know")
    lab.settle()
    lab.partition("a", "hub")
    lab.restore(backup)
    publish(lab["a"].node, "one")
    lab.until(lambda: outbox.calls)
    before = lab["a"].node.site_id
    lab.heal()
    lab.until(lambda: lab["a"].node.site_id != before, within_s=8)
    lab.until(lambda: statuses(lab["hub"].node) == {"one": "reserved"}, within_s=20)
    lab.until(lambda: statuses(lab["hub"].node) == {"one": "consumed"}, within_s=120)
    (receipt,) = lab["hub"].node.peek("mail", "sent")
    assert (receipt.message_id, receipt.payload) == ("re-one", {"number": 1})
    lab.settle()
    lab.assert_converged()
    assert len(outbox.calls) == 1


@pytest.mark.parametrize("mode", ["soft", "confirmed"])
def test_who_goes_on_with_the_effect_of_another_run_of_the_same_work_has_not_done_it_twice(
    device_lab, mail, inbox, mode
):
    """The other run's call was thought to have failed, and its events were given back; the service knows better."""
    consumer, calls, thinking, went_on = mail.consumer(inbox, name="send", mode=mode), [], [], []

    @effect(name="mail")
    async def send_mail(key):
        calls.append(key)
        await asyncio.sleep(5)
        raise DidNotHappen("the key was used before")

    @consumer.mutate
    async def think(run):
        thinking.append(run.id)
        await asyncio.sleep(5)
        return send_mail()

    @consumer.next
    def go_on(run):
        went_on.append(run.result)

    lab = device_lab(devices=["hub", "b"], workflows=lambda name: [] if name == "hub" else [mail])
    hub = lab["hub"].node
    appoint(lab["hub"])
    lab.settle()
    lab.partition("hub", "b")
    publish(hub, "one")
    run = hub.handler_runs.new_id()
    hub.events.reserve(run, "mail", [("inbox", ["one"])], handler="send")
    hub.mutations.intend(run, hub.mutations.work_for(run), tool="mail")
    hub.mutations.mark_failed(run, "no answer")
    hub.events.release(run)
    lab.heal()
    lab.until(lambda: calls if mode == "soft" else thinking)
    hub.mutations.mark_applied(run, "late")
    lab.until(lambda: statuses(hub) == {"one": "consumed"}, within_s=100)
    lab.settle()
    assert len(calls) == (1 if mode == "soft" else 0)
    assert hub.events.count_duplicates() == 0
