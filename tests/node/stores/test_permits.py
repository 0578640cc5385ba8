"""Permits: no two that stand hold one event, whoever asks, decides, takes office, dies or comes back from a backup."""

import json
import shutil
from collections import Counter
from random import Random

import pytest
from devices import Device, absorb_all, event_of, permit_body, request_body, work_of

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model import ids
from leasemesh.node.model.errors import (
    IllegalState,
    InvalidInput,
    LeaseLost,
    LeasemeshError,
    NotFound,
    NotOwner,
    PermitRefused,
)
from leasemesh.node.replication.identity import reidentify
from leasemesh.node.stores import AuthorityStore, permits
from leasemesh.node.work.authority import Authority

EVENTS = ("a", "b", "c", "d")


def tend(device):
    return Authority(device.database).tend()


def ask(device, *message_ids):
    run = device.reserve(*message_ids)
    device.permits.request(run)
    return run


def state(device, run):
    return device.permits.get(run).state


@pytest.fixture
def office(pair):
    """An authority and another device, which know each other; the events are on both."""
    hub, laptop = pair
    hub.publish(*EVENTS)
    hub.modes.set("mail", "confirmed", topic="inbox")
    hub.authorities.appoint(hub.node, by="Ann")
    tend(hub)
    absorb_all(hub, laptop)
    absorb_all(laptop, hub)
    return hub, laptop


# --- Asking and deciding ----------------------------------------------------------------------------------------------


def test_a_permit_is_granted_by_the_authority_and_by_nobody_else(office):
    hub, laptop = office
    run = ask(laptop, "a", "b")
    assert not tend(laptop)
    assert state(laptop, run) == "waiting"
    absorb_all(laptop, hub)
    assert [permit.run for permit in hub.permits.waiting()] == [run]
    tend(hub)
    absorb_all(hub, laptop)
    permit = laptop.permits.require(run)
    assert (permit.state, permit.authority, permit.generation) == ("granted", hub.node, 1)
    assert laptop.permits.waiting() == []
    assert laptop.permits.holders(event_of("b")) == [run]


def test_of_two_overlapping_sets_one_gets_a_permit_and_the_other_hears_which(office):
    hub, laptop = office
    mine = ask(hub, "a", "b")
    theirs = ask(laptop, "b", "c")
    tend(hub)
    absorb_all(laptop, hub)
    tend(hub)
    absorb_all(hub, laptop)
    assert state(hub, mine) == "granted"
    with pytest.raises(PermitRefused, match=f"event {event_of('b')[:10]} stands in the permit of run {mine}"):
        laptop.permits.require(theirs)


def test_nothing_is_written_when_there_is_nothing_to_decide(office):
    hub, laptop = office
    ask(hub, "a")
    tend(hub)
    for device in office:
        version = device.database.version()
        assert not tend(device)
        assert device.database.version() == version


def test_without_an_authority_a_request_waits_and_is_decided_when_there_is_one(device):
    device.publish("a")
    run = ask(device, "a")
    assert not tend(device)
    assert state(device, run) == "waiting"
    device.authorities.appoint(device.node, by="Ann")
    assert tend(device)
    assert state(device, run) == "granted"


def test_a_settled_event_gets_no_permit(office):
    hub, laptop = office
    run = ask(laptop, "a")
    hub.events.consume(hub.reserve("a"))
    absorb_all(laptop, hub)
    tend(hub)
    assert state(hub, run) == "refused"
    assert "is settled" in hub.permits.get(run).reason


def test_a_run_that_lost_its_claim_gets_no_permit(office):
    hub, laptop = office
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    hub.events.take_over(hub.runs.new_id(), [event_of("a")])
    tend(hub)
    assert "belongs to run" in hub.permits.get(run).reason


def test_a_request_whose_claims_have_not_come_yet_goes_on_waiting(office):
    hub, laptop = office
    run = ask(laptop, "a")
    rows = laptop.changes()
    hub.absorb([row for row in rows if row[0] == "permit_requests"])
    tend(hub)
    assert state(hub, run) == "waiting"
    hub.absorb(rows)
    tend(hub)
    assert state(hub, run) == "granted"


def test_a_request_that_cannot_be_read_keeps_nobody_from_being_decided(office):
    hub, laptop = office
    body = json.dumps(request_body(work_of("00" * 16), [event_of("a")]))
    assert hub.forge("permit_requests", b"\0" * 16, f'{body[:-1]}, "deep": {"[" * 990}{"]" * 990}}}')
    assert hub.query("SELECT hex(run) FROM waiting_permits") == [("00" * 16,)]
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)
    assert state(hub, run) == "granted"


def test_many_requests_whose_claims_never_come_keep_nobody_from_being_decided(office, monkeypatch):
    monkeypatch.setattr(permits, "DECISIONS_MAX", 2)
    hub, laptop = office
    for number in range(5):
        body = request_body(work_of("00" * 16), [event_of("a")])
        assert hub.forge("permit_requests", bytes([number]) * 16, body)
    runs = [ask(laptop, "a"), ask(laptop, "b"), ask(laptop, "c")]
    absorb_all(laptop, hub)
    assert hub.permits.decide_pending() == 3
    assert [state(hub, run) for run in runs] == ["granted"] * 3
    assert [permit.run for permit in hub.permits.waiting()] == [f"{number:02}" * 16 for number in range(5)]


@pytest.mark.parametrize("events", [[], ["x"], [7], [event_of("a"), None], ["00" * 17], ["00" * 16] * 10_001])
def test_a_request_for_what_are_no_events_is_refused(office, events):
    hub, _ = office
    run = hub.reserve("a")
    assert hub.forge("permit_requests", bytes.fromhex(run), request_body(work_of(run), events, node=hub.node))
    tend(hub)
    permit = hub.permits.get(run)
    assert (permit.state, permit.reason) == ("refused", "its request names no events, or what is none")
    assert hub.permits.waiting() == [] and hub.permits.holders(event_of("a")) == []


def test_what_a_peer_wrote_in_the_place_of_a_decision_does_not_stand_in_its_way(office):
    hub, laptop = office
    run = ask(laptop, "a")
    place = bytes.fromhex(ids.permit_id(hub.node, run, 1))
    assert hub.forge("permits", place, permit_body("00" * 16, work_of(run), [event_of("b")]))
    absorb_all(laptop, hub)
    tend(hub)
    absorb_all(hub, laptop)
    assert state(laptop, run) == "granted"
    assert laptop.permits.holders(event_of("b")) == []


def test_a_request_that_says_everything_twice_is_checked_and_read_alike(office):
    hub, _ = office
    run = hub.reserve("a")
    body = json.dumps(request_body(work_of(run), [event_of("a")], node=hub.node))
    twice = body[:-1] + "".join(f', "{name}": "x"' for name in json.loads(body)) + "}"
    assert hub.forge("permit_requests", bytes.fromhex(run), twice)
    tend(hub)
    permit = hub.permits.get(run)
    assert (permit.state, permit.generation, permit.events) == ("granted", 1, (event_of("a"),))


def test_only_a_held_reservation_of_this_device_can_ask(office):
    hub, laptop = office
    run = laptop.reserve("a")
    absorb_all(laptop, hub)
    with hub.unchanged():
        with pytest.raises(NotOwner):
            hub.permits.request(run)
        with pytest.raises(NotFound):
            hub.permits.request("f" * 32)
        with pytest.raises(InvalidInput):
            hub.permits.request("no id")
    laptop.events.release(run)
    with laptop.unchanged(), pytest.raises(IllegalState, match="only a held one gets a permit"):
        laptop.permits.request(run)
    lost = laptop.reserve("b")
    laptop.events.take_over(laptop.runs.new_id(), [event_of("b")])
    with laptop.unchanged(), pytest.raises(LeaseLost):
        laptop.permits.request(lost)


def test_asking_twice_is_asking_once(office):
    hub, _ = office
    run = ask(hub, "a")
    tend(hub)
    with hub.unchanged():
        assert hub.permits.request(run).state == "granted"


# --- Using and giving up ----------------------------------------------------------------------------------------------


def test_an_effect_begins_with_the_permit_or_not_at_all(office):
    hub, _ = office
    run = ask(hub, "a")
    hub.mutations.create(run, hub.permits.get(run).work, tool="send")
    with hub.unchanged(), pytest.raises(PermitRefused, match="its request is waiting"):
        hub.mutations.mark_in_flight(run)
    tend(hub)
    assert hub.mutations.mark_in_flight(run).status == "in_flight"


def test_a_release_without_an_effect_gives_the_permit_up(office):
    hub, laptop = office
    run = ask(hub, "a")
    tend(hub)
    hub.mutations.create(run, hub.permits.get(run).work, tool="send")
    hub.events.release(run)
    assert state(hub, run) == "void"
    with pytest.raises(PermitRefused):
        hub.mutations.mark_in_flight(run)
    absorb_all(hub, laptop)
    again = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)
    assert state(hub, again) == "granted"


def test_a_permit_that_a_backup_gives_up_stands_where_its_lost_future_is_known(office):
    hub, laptop = office
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)
    absorb_all(hub, laptop)
    before = [row for row in laptop.changes() if row[0] == "permit_requests"]
    laptop.effect(run, laptop.permits.get(run).work)
    hub.absorb([row for row in laptop.changes() if row[0] == "mutations"])
    table, pk, cid, body, version, *rest = before[0]
    hub.absorb([(table, pk, cid, body.replace('"withdrawn":false', '"withdrawn":true'), version + 1, *rest)])
    assert hub.query("SELECT withdrawn FROM permit_requests") == [(1,)]
    assert hub.permits.holders(event_of("a")) == [run]


def test_a_permit_stands_while_its_effect_may_have_happened(office):
    hub, laptop = office
    run = ask(hub, "a")
    tend(hub)
    hub.effect(run, hub.permits.get(run).work)
    hub.forge("reservations", bytes.fromhex(run), "released", column="state", version=2)
    assert state(hub, run) == "granted"
    hub.mutations.mark_failed(run)
    assert state(hub, run) == "void"


@pytest.mark.parametrize(("verdict", "after"), [("not_happened", "void"), ("happened", "granted"), ("skip", "granted")])
def test_a_verdict_that_it_did_not_happen_frees_the_events_for_the_next_generation_of_the_work(office, verdict, after):
    hub, laptop = office
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)
    work = hub.permits.get(run).work
    hub.mutations.resolve(work, verdict, by="Ann")  # the laptop is lost; nobody knows whether it had begun
    assert state(hub, run) == after
    if verdict == "not_happened":
        next_run = hub.runs.new_id()
        hub.events.take_over(next_run, [event_of("a")], handler="manual")
        assert hub.permits.request(next_run).work != work
        tend(hub)
        assert state(hub, next_run) == "granted"
        with pytest.raises(IllegalState, match="ended by a verdict"):
            hub.permits.request(hub.reserve("b"), work=work)


def test_a_verdict_given_while_the_effect_was_in_flight_frees_nothing_by_itself(office):
    hub, laptop = office
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)
    absorb_all(hub, laptop)
    work = laptop.effect(run, laptop.permits.get(run).work)
    laptop.mutations.resolve(work, "not_happened", by="Ann")
    hub.absorb([row for row in laptop.changes() if row[0] == "verdicts"])
    assert state(hub, run) == "granted"
    laptop.mutations.mark_indeterminate(run)
    absorb_all(laptop, hub)
    assert state(hub, run) == "void"


# --- Moving -----------------------------------------------------------------------------------------------------------


def test_a_workspace_has_one_first_appointment(office):
    hub, laptop = office
    with laptop.unchanged(), pytest.raises(IllegalState, match="move it instead"):
        laptop.authorities.appoint(laptop.node, by="Bob")
    with hub.unchanged(), pytest.raises(IllegalState, match="nothing to move"):
        hub.authorities.move(hub.node, by="Ann")


def test_there_is_nothing_to_move_before_the_first_appointment(device):
    with device.unchanged(), pytest.raises(NotFound):
        device.authorities.move(device.node, by="Ann")


def test_the_next_authority_begins_when_it_has_all_that_the_one_before_had(office):
    hub, laptop = office
    mine = ask(hub, "a")
    tend(hub)
    laptop.authorities.move(laptop.node, by="Ann")
    tend(laptop)
    assert laptop.authorities.info().waiting_for == (hub.node,)
    absorb_all(laptop, hub)
    tend(hub)  # steps back
    late = ask(hub, "b")
    assert not tend(hub)
    assert state(hub, late) == "waiting"
    fences = [row for row in hub.changes() if row[0] == "authority_fences"]
    laptop.absorb(fences)
    assert not tend(laptop), "the row alone is not enough: the permit on a has not come yet"
    absorb_all(hub, laptop)
    theirs = laptop.runs.new_id()
    laptop.events.take_over(theirs, [event_of("a")])
    laptop.permits.request(theirs)
    tend(laptop)
    assert (laptop.authorities.info().authority, laptop.authorities.info().generation) == (laptop.node, 2)
    assert state(laptop, late) == "granted"
    assert mine in laptop.permits.get(theirs).reason


def test_of_two_moves_made_apart_one_at_most_takes_effect(trio):
    hub, laptop, phone = trio
    hub.publish("a")
    hub.authorities.appoint(hub.node, by="Ann")
    tend(hub)
    meet_fully(*trio)
    laptop.authorities.move(laptop.node, by="Bob")
    phone.authorities.move(phone.node, by="Cleo")
    for _ in range(3):
        meet_fully(*trio)
        for device in trio:
            tend(device)
    assert len({device.authorities.info().authority for device in trio}) == 1
    assert hub.authorities.info().generation == 2


def test_a_permit_that_nobody_had_seen_is_void_when_its_run_asked_the_next_authority(office):
    hub, laptop = office
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    tend(hub)  # granted here, and the hub is never heard of again
    laptop.authorities.move(laptop.node, by="Ann", gone=[hub.node])
    tend(laptop)
    permit = laptop.permits.require(run)
    assert (permit.authority, permit.generation) == (laptop.node, 2)
    absorb_all(hub, laptop)  # it was not gone after all
    assert laptop.permits.require(run) == permit
    assert len(laptop.query("SELECT * FROM permits")) == 2
    assert laptop.permits.holders(event_of("a")) == [run]


def test_after_an_authority_is_gone_everybody_must_show_what_it_gave_them(trio):
    hub, laptop, phone = trio
    hub.publish("a")
    hub.authorities.appoint(hub.node, by="Ann")
    tend(hub)
    meet_fully(*trio)
    held = ask(phone, "a")
    absorb_all(phone, hub)
    tend(hub)
    absorb_all(hub, phone)  # only the phone has the permit, and the hub burns down
    laptop.authorities.move(laptop.node, by="Ann", gone=[hub.node])
    tend(laptop)
    assert laptop.authorities.info().waiting_for == (phone.node,)
    run = ask(laptop, "a")
    absorb_all(laptop, phone)
    tend(phone)
    absorb_all(phone, laptop)
    tend(laptop)
    assert held in laptop.permits.get(run).reason
    assert phone.permits.require(held).generation == 1


def test_who_was_said_to_be_gone_is_not_waited_for_when_the_next_authority_is_lost_too(trio):
    hub, laptop, phone = trio
    hub.authorities.appoint(hub.node, by="Ann")
    hub.publish("a")
    tend(hub)
    meet_fully(*trio)
    laptop.authorities.move(laptop.node, by="Ann", gone=[hub.node])
    for _ in range(2):
        absorb_all(laptop, phone)
        tend(phone)
        absorb_all(phone, laptop)
        tend(laptop)
    assert laptop.authorities.granting() == 2
    absorb_all(laptop, phone)  # and then the laptop is lost, too
    phone.authorities.move(phone.node, by="Ann", gone=[laptop.node])
    tend(phone)
    assert phone.authorities.info().waiting_for == ()
    assert phone.authorities.granting() == 3


def test_a_copy_of_the_authority_under_a_new_identity_waits_for_a_person(office):
    hub, laptop = office
    before = hub.node
    reidentify(hub.database)
    run = ask(laptop, "a")
    absorb_all(laptop, hub)
    assert not tend(hub)
    assert state(hub, run) == "waiting"
    assert hub.authorities.info().authority == before
    hub.authorities.move(hub.node, by="Ann", gone=[before])
    tend(hub)
    absorb_all(hub, laptop)
    tend(laptop)
    absorb_all(laptop, hub)
    tend(hub)
    assert hub.authorities.info().authority == hub.node
    assert state(hub, run) == "granted"


def test_two_first_authorities_stop_when_they_meet_until_a_person_appoints_the_next(pair):
    one, two = pair
    for device in pair:
        device.publish("a")
        device.authorities.appoint(device.node, by="Ann")
        tend(device)
    meet_fully(*pair)
    run = ask(one, "a")
    assert not tend(one)
    assert one.authorities.info().contested and state(one, run) == "waiting"
    one.authorities.move(one.node, by="Ann")
    for _ in range(2):
        meet_fully(*pair)
        for device in pair:
            tend(device)
    assert state(one, run) == "granted"


def meet_fully(*devices):
    for _ in range(2):
        for source in devices:
            for target in devices:
                if source is not target:
                    absorb_all(source, target)


# --- Rows of a peer ---------------------------------------------------------------------------------------------------


def test_permits_and_requests_count_as_they_stand_last(device):
    run, other = b"r" * 16, b"s" * 16
    work, event = work_of("1" * 32), event_of("a")
    assert device.forge("permits", other, permit_body(run.hex(), work, [event, event, 5, None, "zz"]))
    assert device.permits.holders(event) == [run.hex()]
    assert device.forge("permit_requests", run, request_body(work, [event], generation=2))
    assert device.permits.holders(event) == []
    assert [permit.run for permit in device.permits.waiting()] == [run.hex()]
    assert device.forge("permit_requests", run, request_body(work, [event], withdrawn=True), version=2)
    assert device.permits.waiting() == []
    assert device.forge("permits", other, permit_body("1" * 32, work, [event]), version=2)
    assert device.permits.holders(event) == ["1" * 32]
    assert rebuild(device.database).corrected == {}


# --- All schedules ----------------------------------------------------------------------------------------------------


DONE = Counter()
"""What the schedules did, by action; what was refused does not count."""


class Broken(AssertionError):
    """What must never be was seen."""


class Mesh:
    """Four devices that ask, decide, move, die and come back in an order that a seed gives; and what is true of all of
    them together, which none of them knows."""

    def __init__(self, folder, template, seed):
        self.random = Random(seed)
        self.devices = [Device(folder / f"{n}.db", seed=100 * seed + n, template=template) for n in range(4)]
        self.gone = []
        self.losses = 0
        self.effects = {}
        self.not_happened = set()
        first = self.devices[0]
        first.publish(*EVENTS)
        first.modes.set("mail", "confirmed", topic="inbox")
        first.authorities.appoint(first.node, by="Ann")
        tend(first)
        meet_fully(*self.devices)

    def close(self):
        for device in self.devices:
            device.close()

    def step(self):
        action = self.random.choice(
            ["ask", "ask", "ask", "tend", "tend", "tend", "tend", "merge", "merge", "merge", "piece", "perform"]
            + ["release", "release", "take over", "verdict", "move", "lose"]
        )
        device = self.random.choice(self.devices)
        try:
            getattr(self, action.replace(" ", "_"))(device)
            DONE[action] += 1
        except (LeasemeshError, IndexError):
            pass  # refused, or there was nothing to choose from
        self.check()

    def ask(self, device):
        names = self.random.sample(EVENTS, self.random.randint(1, 3))
        run = device.runs.new_id()
        device.events.reserve(run, "mail", [("inbox", names)], partial=True, handler=self.random.choice(["x", "y"]))
        device.permits.request(run)

    def tend(self, device):
        tend(device)

    def merge(self, device):
        other = self.random.choice(self.devices)
        if other is not device:
            absorb_all(other, device)

    def piece(self, device):
        """The part of a transfer that came before the link was cut, in some order that a third device gave it."""
        other = self.random.choice(self.devices)
        if other is not device:
            rows = other.changes()
            device.absorb([row for row in rows if self.random.random() < 0.5])

    def perform(self, device):
        held = device.events.held_runs(own=True)
        run = self.random.choice([one for one in held if device.permits.get(one)])
        permit = device.permits.require(run)
        device.mutations.create(run, permit.work, tool="send")
        device.mutations.mark_in_flight(run)
        end = self.random.choice(["applied", "failed", "indeterminate", "indeterminate and happened"])
        if end in ("applied", "indeterminate and happened"):
            for event in permit.events:
                self.effects.setdefault(event, []).append(run)
        if end == "indeterminate":
            self.not_happened.add(permit.work)
        getattr(device.mutations, f"mark_{end.split()[0]}")(run)

    def release(self, device):
        device.events.release(self.random.choice(device.events.held_runs(own=True)))

    def take_over(self, device):
        events = [one.id for one in device.events.peek("mail", "inbox", status="reserved")]
        run = device.runs.new_id()
        device.events.take_over(run, [self.random.choice(events)])
        device.permits.request(run)

    def verdict(self, device):
        work = self.random.choice(device.mutations.unresolved()).work
        device.mutations.resolve(work, "not_happened" if work in self.not_happened else "happened", by="Ann")

    def move(self, device):
        target = self.random.choice(self.devices)
        device.authorities.move(target.node, by="Ann", gone=self.gone)

    def lose(self, device):
        """A device burns down, or comes back from a backup that knows nothing since the beginning."""
        if self.losses:
            return
        self.losses += 1
        self.gone.append(device.node)
        if self.random.random() < 0.5:
            self.devices.remove(device)
            device.close()
        else:
            self._restore(device)

    def _restore(self, device):
        number = self.devices.index(device)
        device.close()
        shutil.copyfile(device.path.with_suffix(".backup"), device.path)
        self.devices[number] = Device(device.path, seed=self.random.randrange(10**9))
        reidentify(self.devices[number].database)

    def back_up(self):
        for number, device in enumerate(self.devices):
            device.close()
            shutil.copyfile(device.path, device.path.with_suffix(".backup"))
            self.devices[number] = Device(device.path, seed=self.random.randrange(10**9))

    def check(self):
        permits, requests, void = {}, {}, set()
        for device in self.devices:
            permits |= {
                row[0]: row[1:]
                for row in device.query(
                    "SELECT id, run, work, generation, (SELECT group_concat(value) FROM json_each(body, '$.events')) "
                    "FROM permits WHERE body ->> '$.refused' IS NULL"
                )
            }
            for run, generation, withdrawn in device.query("SELECT id, generation, withdrawn FROM permit_requests"):
                requests[run] = max(requests.get(run, (0, 0)), (generation, withdrawn))
            void |= {
                work
                for (work,) in device.query("SELECT work FROM verdicts WHERE body ->> '$.verdict' = 'not_happened'")
            }
        holders = {}
        for run, work, generation, events in permits.values():
            if work in void or requests.get(run, (generation, 0)) != (generation, 0):
                continue
            for event in events.split(","):
                holders.setdefault(event, set()).add(run)
        for event, runs in holders.items():
            if len(runs) > 1:
                raise Broken(f"{len(runs)} permits stand for {event}")
        for event, runs in self.effects.items():
            if len(runs) > 1:
                raise Broken(f"{len(runs)} effects for {event}")


def run_schedule(folder, template, seed, steps=120):
    mesh = Mesh(folder, template, seed)
    try:
        mesh.back_up()
        for _ in range(steps):
            mesh.step()
        meet_fully(*mesh.devices)
        for device in mesh.devices:
            assert device.derived() == mesh.devices[0].derived()
            assert rebuild(device.database).corrected == {}
    finally:
        mesh.close()
    return mesh


SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_gives_two_standing_permits_or_two_effects_to_one_event(tmp_path, template, seed):
    run_schedule(tmp_path, template, seed)


def test_the_schedules_did_everything_that_they_can_do(tmp_path, template):
    if not DONE:  # called by itself
        run_schedule(tmp_path, template, 0, steps=300)
    assert len(DONE) == 10, DONE


def no_holder_counts(run, found):
    return refusal(run, [(*row[:3], None) for row in found])


def begin_at_once(store, appointment):
    return ()


refusal = permits._refusal
BROKEN = [
    (permits, "_refusal", no_holder_counts),
    (AuthorityStore, "_waited_for", begin_at_once),
]


@pytest.mark.parametrize(("where", "name", "broken"), BROKEN, ids=lambda one: getattr(one, "__name__", str(one)))
def test_a_rule_that_is_switched_off_is_found_by_some_schedule(tmp_path, template, monkeypatch, where, name, broken):
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(Broken):
        for seed in range(20):
            folder = tmp_path / str(seed)
            folder.mkdir()
            run_schedule(folder, template, seed)
