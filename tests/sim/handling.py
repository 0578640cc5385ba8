"""Handlers on simulated devices, with effects on a service outside that all of them share.

The service does what it is asked as often as it is asked, so that doing something twice shows. A call that has left
arrives whatever becomes of its caller; an answer may be lost, refused, or late. Asked what became of a call, the
service tells the truth, tells that it cannot say, or does not answer; in runs with the fault "lying service" it may
lie.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from leasemesh import Applied, DidNotHappen, NotApplied, Retry, RetryRule, Workflow, effect
from leasemesh.node.cli.unknown import silent_permits
from leasemesh.node.model.errors import IllegalState, LeaseLost, LeasemeshError, NotFound
from sim.workload import messages

AUTOMATION = "automation"
SOFT, CONFIRMED, HOME, DONE = "soft", "confirmed", "home", "done"
TOPICS = (SOFT, CONFIRMED, HOME)

TIMEOUT_S = 3
LATENCY_MS = (5, 1_200)

FATES = {
    "works": 70,
    "is refused": 8,
    "is lost": 6,
    "happens and the answer is lost": 8,
    "happens and is not answered": 8,
}
ANSWERS = {"the truth": 75, "later": 13, "nothing": 12}
LIE = 0.5

RUNNING = {"retry": RetryRule(first_ms=2_000, most_ms=8_000, tries=4), "drain_s": 2.0}
"""How devices run handlers: tries come soon, so that a run of a minute has them all."""


@dataclass
class Call:
    """A call that has left a device."""

    number: int
    node: str
    key: str
    run: str
    topic: str
    events: tuple[str, ...]
    happened: bool = False


class Service:
    """The world outside.

    Attributes:
        calls: all calls, in the order in which they left.
        lied_about: the events of calls about which the service has lied.
    """

    def __init__(self, world) -> None:
        self._world = world
        self._random = Random(f"{world.seed} service")
        self._void_up_to: dict[str, int] = {}
        self.calls: list[Call] = []
        self.lied_about: set[str] = set()
        self.honest = False

    def happened(self, event: str) -> int:
        """How often an event's effect has happened."""
        return sum(event in call.events for call in self.calls if call.happened)

    def happened_under(self, key: str) -> bool:
        """Whether something has happened under a key."""
        return any(call.happened for call in self.calls if call.key == key)

    async def deliver(self, key: str, run: str, topic: str, events: list[str]) -> dict:
        """What the effects of all handlers call."""
        world, loop = self._world, asyncio.get_running_loop()
        process = next(one for one in world.processes() if one.loop is loop)
        call = Call(len(self.calls), process.node.site_id, key, run, topic, tuple(events))
        world.checks.effects.begins(world.apps_by_device[process.device.number], call)
        self.calls.append(call)
        fate = "works" if self.honest else self._random.choices(list(FATES), list(FATES.values()))[0]
        world.did[f"call: {fate}"] += 1
        there_us, back_us = (self._random.randint(*LATENCY_MS) * 1000 for _ in range(2))
        if fate in ("works", "happens and the answer is lost", "happens and is not answered"):
            world.scheduler.at(world.scheduler.now_us + there_us, lambda: self._arrive(call))
        try:
            await asyncio.sleep((there_us + back_us) / 1_000_000)
            if fate == "is refused":
                raise DidNotHappen("the service refused it")
            if fate in ("is lost", "happens and the answer is lost"):
                raise ConnectionResetError("the connection to the service broke off")
            if fate == "happens and is not answered":
                await asyncio.sleep(TIMEOUT_S * 2)
            return {"call": call.number}
        finally:
            world.checks.effects.work_ends(run)

    def _arrive(self, call: Call) -> None:
        if call.number > self._void_up_to.get(call.key, -1):
            call.happened = True
            self._world.checks.effects.happens(call)

    async def find_out(self, key: str) -> Applied | NotApplied | Retry:
        """What the effects' reconcile functions call."""
        await asyncio.sleep(self._random.randint(*LATENCY_MS) / 1000)
        answer = "the truth" if self.honest else self._random.choices(list(ANSWERS), list(ANSWERS.values()))[0]
        lie = self._world.lying and not self.honest and self._random.random() < LIE
        self._world.did[f"reconcile: {'a lie' if lie else answer}"] += 1
        if lie:
            self._world.fired["lying service"] += 1
            self.lied_about.update(event for call in self.calls if call.key == key for event in call.events)
        elif answer == "nothing":
            await asyncio.sleep(TIMEOUT_S * 2)
        elif answer == "later":
            return Retry("the service is busy")
        if self.happened_under(key) != lie:
            return Applied({"found": True})
        if not lie:  # What has not arrived by now does not happen any more.
            self._void_up_to[key] = len(self.calls) - 1
        return NotApplied()


def workflow_of(world) -> Workflow:
    """The automation that runs on all devices of a world."""
    automation = Workflow(AUTOMATION)
    done = automation.topic(DONE)
    for name in TOPICS:
        _add_consumer(world, automation, name, done)

    @automation.consumer(done, batch=4)
    def count(run):
        world.did["handled to the end"] += len(run.events)

    return automation


def _add_consumer(world, automation: Workflow, name: str, done) -> None:
    @effect(name=f"deliver_{name}", timeout_s=TIMEOUT_S)
    async def deliver(key: str, *, run: str, events: list[str]):
        return await world.service.deliver(key, run, name, events)

    @deliver.reconcile
    async def find_out(key: str, *, run: str, events: list[str]):
        return await world.service.find_out(key)

    topic = automation.topic(name)
    sender = automation.consumer(
        topic, name=f"send_{name}", publishes=[done], batch=2, mode="soft" if name == SOFT else None
    )

    @sender.mutate
    def send(run):
        return deliver(run=run.id, events=[event.id for event in run.events])

    @sender.next
    def tell(run):
        for event in run.events:
            run.publish(done, f"{name} {event.message_id}", caused_by=event)


# --- What people and apps do ------------------------------------------------------------------------------------------


def hand_over(app, random: Random) -> str:
    """Publish events for the handlers."""
    topic = random.choice(TOPICS)
    for message in random.sample(messages(app.world), random.randint(1, 4)):
        app.node.publish(AUTOMATION, topic, message)
    return topic


def move_authority(app, random: Random) -> str:
    """Make this device the authority: the first one, or the next."""
    authorities, site = app.node.authorities, app.node.site_id
    try:
        if authorities.appointments():
            authorities.move(site, by=app.device.name)
            return "moved"
        authorities.appoint(site, by=app.device.name)
        return "appointed"
    except (IllegalState, NotFound) as error:
        return type(error).__name__


def give_verdict(app, random: Random) -> str:
    """A person looks at what nobody knows the outcome of, finds out, and says it."""
    for entry in app.node.mutations.unresolved():
        if entry.status == "indeterminate":
            return resolve(app, entry.work, again=True)
    return "nothing is unknown"


def resolve(app, work: str, *, again: bool) -> str:
    """Say what the service knows of a work; what has not happened is done again, or skipped."""
    happened = app.world.service.happened_under(work)
    verdict = "happened" if happened else "not_happened" if again else "skip"
    try:
        app.node.mutations.resolve(work, verdict, by="a person", result={"said": True} if happened else None)
    except LeasemeshError as error:
        return type(error).__name__
    return verdict


HANDLED_WORK = {"hand over": hand_over, "move authority": move_authority, "give verdict": give_verdict}


# --- The second phase -------------------------------------------------------------------------------------------------


def begin(app) -> None:
    """What people set up on the first device, before anything else."""
    app.node.modes.set(AUTOMATION, "home", topic=HOME)
    if app.world.random.random() < 0.7:
        app.node.authorities.appoint(app.node.site_id, by="a person")


def tidy_up(app) -> bool:
    """What people do until all is done, at one device; returns whether there was anything."""
    world, node = app.world, app.node
    here = {other.database.site_id.hex() for other in world.apps()}
    did = _replace_who_is_gone(app, here) if world.now_ms - world.tidied_at_ms > PATIENCE_MS else False
    for phone in [other for other in world.apps() if not other.device.workflows]:
        did |= _release_what_a_copy_held(phone)
    for entry in node.mutations.unresolved():
        if entry.status == "indeterminate" or entry.node not in here:
            resolve(app, entry.work, again=entry.node in here)  # not what a device has in flight that never comes back
            did = True
    for permit in silent_permits(node):
        if permit.node not in here:
            world.did[f"silent permit: {resolve(app, permit.work, again=world.random.random() < 0.5)}"] += 1
            did = True
    for block in node.handler_blocks.list(AUTOMATION):
        if block.blocked:
            node.handler_blocks.unblock(AUTOMATION, block.handler, by="a person", node=block.node)
            did = True
    return did


def _release_what_a_copy_held(app) -> bool:
    """Give back what a copy of this device's file has claimed in its name, or end by hand what is decided of it. A
    device with handlers does it itself."""
    did = False
    for run in app.events.held_runs(own=True):
        reservation = app.events.reservation(run)
        if reservation is not None and reservation.incarnation != app.database.incarnation.hex():
            effect = app.events.effect_behind(run)
            outcome = effect.outcome if effect is not None else "none"
            end = {"applied": app.events.consume, "skipped": app.events.skip}.get(outcome, app.events.release)
            try:
                did |= bool(end(run))
            except (IllegalState, LeaseLost):  # Nobody knows what became of its effect, or others own a part by now.
                app.world.did["a copy's run is not released"] += 1
    return did


def _replace_who_is_gone(app, here: set[str]) -> bool:
    """Work waits for long: say who never comes back, and who is the authority, and the home, from now on."""
    world, node = app.world, app.node
    world.tidied_at_ms = world.now_ms
    home = node.modes.get(AUTOMATION, topic=HOME)
    if home is not None and home.home not in here:
        world.gone.add(home.home)
        node.modes.set(AUTOMATION, "home", topic=HOME, gone=True)
    if not node.authorities.appointments():
        node.authorities.appoint(node.site_id, by="a person")
        return True
    info = node.authorities.info()
    gone = node.authorities.known_nodes() - here
    if not gone and info.next is None and not info.contested:
        return False
    world.gone |= gone
    others = [site for site in sorted(here) if site != info.authority]
    node.authorities.move(others[0] if others else node.site_id, by="a person", gone=sorted(gone))
    return True


PATIENCE_MS = 12_000
"""So long people wait for work to be done before they say who is gone. A silent device's is taken over before."""
