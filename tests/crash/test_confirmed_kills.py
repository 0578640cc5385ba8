"""Mode confirmed, and a process killed at every step on the way from a request to what its effect has become.

Three files of one workspace: the hub, which is the authority, and two devices that always want some of the same
events. The process that takes a step is a real one; changes are carried between the files here, so that it is known
what each file has when the next process is killed. `test_confirmed_mesh` does the like to processes that sync.
"""

import signal
from collections import Counter

import pytest
from confirmed_child import Service, intend, recover, run_confirmed, twice_permitted
from crash_child import OPTIONS, transfer
from sweeps import kill_at_every_step, problems_of

from leasemesh import NewEvent, Node
from leasemesh.node.model.clock import unix_ms

ROUNDS_MAX = 10


class Mesh:
    """Three devices, what is asked of them, and what must hold whatever befalls their processes."""

    def __init__(self, folder, child):
        self.hub, self.laptop, self.phone = self.nodes = [
            Node.open(folder / f"{name}.db", name=name, **OPTIONS) for name in ("hub", "laptop", "phone")
        ]
        self.devices = (self.laptop, self.phone)
        self.service = Service(folder / "service.log")
        self.child = child
        self.hub.modes.set("mail", "confirmed", topic="inbox")
        self.hub.authorities.appoint(self.hub.site_id, by="Ann")
        self.hub.authority.tend()
        self.exchange()

    def close(self):
        for node in self.nodes:
            node.close()

    def to_hub(self):
        for device in self.devices:
            transfer(device, self.hub)

    def to_devices(self):
        for device in self.devices:
            transfer(self.hub, device)

    def exchange(self):
        self.to_hub()
        self.to_devices()

    # --- Up to the step that is killed --------------------------------------------------------------------------------

    def publish(self, number):
        """Publish three events; returns the message ids of those that the laptop wants, and that the phone wants."""
        names = [f"{number}-{index}" for index in range(3)]
        self.hub.publish_many("mail", "inbox", [NewEvent(name, name, None) for name in names])
        self.to_devices()
        return names[:2], names[1:]

    def claim(self, number):
        """The laptop has claimed what it wants, and after it the phone; returns their runs."""
        of_laptop, of_phone = self.publish(number)
        first = self.laptop.reserve("mail", "inbox", message_ids=of_laptop).run
        claimed_ms = unix_ms(self.laptop.events.reservation(first).at)
        while self.phone.database.clock_ms() <= claimed_ms:
            pass  # of two claims in one millisecond either may be the first
        return [first, self.phone.reserve("mail", "inbox", message_ids=of_phone).run]

    def ask(self, number):
        """Both devices have asked for what they claimed, and the hub has heard of it."""
        runs = self.claim(number)
        for node, run in zip(self.devices, runs, strict=True):
            node.permits.request(run)
        self.to_hub()
        return runs

    def decide(self, number):
        """The hub has decided, and nobody has heard of it."""
        runs = self.ask(number)
        self.hub.authority.tend()
        return runs

    def grant(self, number):
        """The laptop has its permit, and the phone, which claimed later, is refused."""
        runs = self.decide(number)
        self.to_devices()
        assert self.states(self.laptop, runs) == ["granted", "refused"]
        return runs

    @staticmethod
    def states(node, runs):
        permits = [node.permits.get(run) for run in runs]
        return [permit.state if permit is not None else "not asked" for permit in permits]

    # --- Killing ------------------------------------------------------------------------------------------------------

    def kill(self, node, operation, subject, kill_at):
        """Let a process do an operation on a node's file until it is killed.

        Returns the step that it was killed at, None when it came to its end before; and what it said before.
        """
        with self.child(run_confirmed, str(node.path), operation, subject, kill_at, False) as process:
            *said, (kind, step) = process.words()
            assert (kind, process.process.exitcode) in {("killed", -signal.SIGKILL), ("done", 0)}
        assert problems_of(node) == []
        self.check()
        return step, dict(said)

    def check(self):
        """No event stands in two permits, and for no event an effect happened twice."""
        for node in self.nodes:
            assert twice_permitted(node) == []
        assert set(self.service.effects().values()) <= {1}

    def heal(self):
        self.exchange()
        digests = [node.digest().tables for node in self.nodes]
        assert digests[0] == digests[1] == digests[2]

    # --- The end ------------------------------------------------------------------------------------------------------

    def finish(self):
        """Every device ends what its killed processes began, and does what is left: all is done, once."""
        statuses = ("pending", "reserved", "unknown", "consumed")
        everything = [event for status in statuses for event in self.events(status)]
        for _ in range(ROUNDS_MAX):
            for node in self.nodes:
                recover(node, self.service)
            self.exchange()
            if len(self.events("consumed")) == len(everything):
                break
            self.work()
        assert self.service.effects() == Counter(self.events("consumed")) == Counter(everything)
        assert not any(self.hub.explain(event).duplicate for event in everything)
        self.heal()

    def events(self, status):
        return [event.id for event in self.hub.peek("mail", "inbox", status=status, limit=5_000)]

    def work(self):
        """Both devices want all that is free; who gets a permit does it."""
        claims = [(node, node.reserve("mail", "inbox", limit=1_000)) for node in self.devices]
        for node, claim in claims:
            if claim.events:
                node.permits.request(claim.run)
        for node in (self.hub, *self.nodes):  # Who begins as the authority is asked only after that.
            self.exchange()
            node.authority.tend()
        self.exchange()
        for node, claim in claims:
            if self.states(node, [claim.run]) == ["granted"]:
                permit = node.permits.require(claim.run)
                intend(node, permit)
                self.service.perform(permit)
                node.mutations.mark_applied(claim.run)
                node.events.consume(claim.run)
        self.check()


@pytest.fixture
def mesh(tmp_path, child):
    mesh = Mesh(tmp_path, child)
    yield mesh
    mesh.close()


def sweep(mesh, steps, kill_one):
    """Kill at every step, and heal each time; bring all to its end afterwards."""

    def kill_and_heal(number, kill_at):
        step = kill_one(number, kill_at)
        mesh.heal()
        return step

    kill_at_every_step(kill_and_heal, steps)
    mesh.finish()


def named(part, *statements):
    """The steps of one transaction of one part of an operation."""
    return {f"{part}: {step}" for step in ("BEGIN IMMEDIATE", *statements, "COMMIT", "write log")}


def test_a_request_is_made_wholly_or_not_at_all(mesh):
    def kill_one(number, kill_at):
        run, _ = mesh.claim(number)
        step, _ = mesh.kill(mesh.laptop, "ask", run, kill_at)
        (state,) = mesh.states(mesh.laptop, [run])
        assert state == "waiting" if step is None else state in ("not asked", "waiting")
        return step

    sweep(mesh, named("ask", "INSERT INTO permit_requests"), kill_one)


def test_decisions_are_made_wholly_or_not_at_all(mesh):
    def kill_one(number, kill_at):
        runs = mesh.ask(number)
        step, _ = mesh.kill(mesh.hub, "tend", runs[0], kill_at)
        states = mesh.states(mesh.hub, runs)
        assert states == ["granted", "refused"] or (step is not None and states == ["waiting", "waiting"])
        mesh.hub.authority.tend()
        assert mesh.states(mesh.hub, runs) == ["granted", "refused"]
        return step

    sweep(mesh, named("tend", "INSERT INTO permits"), kill_one)


def test_a_permit_arrives_wholly_or_not_at_all(mesh):
    def kill_one(number, kill_at):
        run, _ = mesh.decide(number)
        step, _ = mesh.kill(mesh.laptop, "receive", run, kill_at)
        (state,) = mesh.states(mesh.laptop, [run])
        assert state == "granted" or (step is not None and state == "waiting")
        return step

    sweep(mesh, named("receive", "INSERT INTO crsql_changes", "INSERT INTO absorbed", "DELETE FROM resume"), kill_one)


def compete(mesh, number, operation, kill_at):
    """Kill the laptop at an operation on two events, one of which the phone wants as well."""
    mine, theirs = mesh.publish(number)
    mesh.phone.permits.request(mesh.phone.reserve("mail", "inbox", message_ids=theirs).run)
    return mesh.kill(mesh.laptop, operation, mine, kill_at)


def test_an_effect_happens_once_wherever_its_process_is_killed(mesh):
    def kill_one(number, kill_at):
        step, said = compete(mesh, number, "work", kill_at)
        run = said["claimed"]
        entry = mesh.laptop.mutations.get(run)
        stages = ["nothing", "pending", "in_flight", "applied"]
        reached = stages.index(entry.status) if entry is not None else 0
        acknowledged = max([stages.index(word) for word in said if word in stages], default=0)
        assert reached >= acknowledged, "an acknowledged word of the ledger was lost"
        if any(line["run"] == run for line in mesh.service.lines("called")):
            assert reached >= stages.index("in_flight"), "the effect was begun without an intent in the file"
        expected = "consumed" if "consumed" in said else "unknown" if reached == 2 else "reserved"
        assert mesh.laptop.events.get(mesh.laptop.permits.get(run).events[0]).status in (expected, "consumed")
        return step

    steps = named("intent") | {"before the effect", "after the effect"} | named("outcome") | named("end")
    sweep(mesh, steps, kill_one)


def test_a_permit_is_given_up_wholly_or_not_at_all(mesh):
    def kill_one(number, kill_at):
        step, said = compete(mesh, number, "fail", kill_at)
        run = said["claimed"]
        released = mesh.laptop.events.reservation(run).state == "released"
        assert mesh.states(mesh.laptop, [run]) == ["void" if released else "granted"]
        assert released or "released" not in said
        return step

    sweep(mesh, named("outcome") | named("end", "UPDATE permit_requests SET"), kill_one)


class Move:
    """The authority moves between the hub and the phone, again and again; the laptop waits for a permit each time."""

    def __init__(self, mesh):
        self.mesh = mesh

    def begin(self, number):
        """A person has appointed the other one, and everybody has heard of it. Returns (who it was, who is next)."""
        hub, laptop, phone = self.mesh.nodes
        info = hub.authorities.info()
        old, new = (hub, phone) if info.authority == hub.site_id else (phone, hub)
        self.run, self.rival = self.mesh.ask(number)
        self.generation = info.generation
        laptop.authorities.move(new.site_id, by="Ann")
        self.mesh.exchange()
        return old, new

    def generations(self, *nodes):
        return [node.authorities.granting() for node in nodes]


def test_an_authority_steps_back_wholly_or_not_at_all(mesh):
    move = Move(mesh)

    def kill_one(number, kill_at):
        old, new = move.begin(number)
        step, _ = mesh.kill(old, "tend", move.run, kill_at)
        assert move.generations(old) == [0] or (step is not None and move.generations(old) == [move.generation])
        assert mesh.states(old, [move.run]) == ["waiting"], "it decided although it was to step back"
        carry_on(mesh, old, new)
        return step

    sweep(mesh, named("tend", "INSERT INTO authority_fences", "UPDATE permit_requests SET"), kill_one)


def test_an_authority_begins_wholly_or_not_at_all(mesh):
    move = Move(mesh)

    def kill_one(number, kill_at):
        old, new = move.begin(number)
        old.authority.tend()
        mesh.exchange()
        step, _ = mesh.kill(new, "tend", move.run, kill_at)
        begun = [0, move.generation + 1]
        assert move.generations(old, new) == begun or (step is not None and move.generations(old, new) == [0, 0])
        carry_on(mesh, old, new)
        return step

    sweep(mesh, named("tend", "INSERT INTO authority_fences"), kill_one)


def test_a_request_is_asked_again_wholly_or_not_at_all(mesh):
    move = Move(mesh)

    def kill_one(number, kill_at):
        old, new = move.begin(number)
        for node in (old, new):
            node.authority.tend()
            mesh.exchange()
        step, _ = mesh.kill(mesh.laptop, "tend", move.run, kill_at)
        asked = mesh.laptop.permits.get(move.run).generation
        assert asked == move.generation + 1 or (step is not None and asked == move.generation)
        carry_on(mesh, old, new)
        return step

    sweep(mesh, named("tend", "UPDATE permit_requests SET"), kill_one)


def carry_on(mesh, *nodes):
    """Let the authority that was to move have moved, and decide."""
    for node in (*nodes, mesh.laptop, *nodes):
        mesh.exchange()
        node.authority.tend()
    mesh.exchange()
    mesh.check()


def test_a_device_steps_back_for_an_authority_that_is_gone_wholly_or_not_at_all(mesh):
    """The hub's file is given a new identity each time: the one that was the authority is gone for good. Of the
    laptop's two runs one has its permit, the other waits."""
    gone = []

    def kill_one(number, kill_at):
        hub, laptop, phone = mesh.nodes
        granted, _ = mesh.grant(f"{number} granted")
        waiting = laptop.reserve("mail", "inbox", message_ids=publish_one(mesh, number)).run
        laptop.permits.request(waiting)
        generation = hub.authorities.granting()
        gone.append(hub.site_id)
        hub.reset_identity()
        laptop.authorities.move(hub.site_id, gone=gone, by="Ann")
        mesh.exchange()
        step, _ = mesh.kill(laptop, "tend", waiting, kill_at)
        asked = laptop.permits.get(waiting).generation
        assert asked == generation + 1 or (step is not None and asked == generation)
        assert laptop.permits.require(granted).generation == generation
        for node in (laptop, phone, hub, hub):
            node.authority.tend()
            mesh.exchange()
        assert hub.authorities.granting() == generation + 1
        assert mesh.states(hub, [granted, waiting]) == ["granted", "granted"]
        return step

    sweep(mesh, named("tend", "INSERT INTO authority_fences", "UPDATE permit_requests SET"), kill_one)


def publish_one(mesh, number):
    mesh.hub.publish("mail", "inbox", f"{number} waiting")
    mesh.to_devices()
    return [f"{number} waiting"]
