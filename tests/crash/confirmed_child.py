"""What processes that work in mode confirmed do, so that the tests of this folder can kill and stop them.

The outside world is a file, which every effect is a line of. A process writes "called" before an effect and "happened"
for it. No database knows of these lines, and they are what is counted. Both ends of an effect are steps to be killed
at, as those of `crash_child` are.
"""

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path

from crash_child import OPTIONS, Steps, transfer

from leasemesh import LeaseLost, Node, PermitRefused
from leasemesh.sync.backoff import Backoff

LARGE_PIECE_BYTES = 100_000
"""So large that a transfer is one transaction."""

TEND_EVERY_S = REDIAL_S = 0.05


class Service:
    """An outside service that does things, and can be asked for what it did."""

    def __init__(self, path):
        self.path = Path(path)

    def perform(self, permit, steps=None):
        """Do the effect that a permit is for."""
        self._write("called", permit)
        if steps is not None:
            steps.take("before the effect")
        self._write("happened", permit)
        if steps is not None:
            steps.take("after the effect")

    def happened(self, work):
        return any(line["work"] == work for line in self.lines("happened"))

    def lines(self, kind):
        lines = map(json.loads, self.path.read_text().splitlines()) if self.path.exists() else ()
        return [line for line in lines if line["kind"] == kind]

    def effects(self):
        """How many effects happened for each event."""
        return Counter(event for line in self.lines("happened") for event in line["events"])

    def _write(self, kind, permit):
        line = json.dumps({"kind": kind, "work": permit.work, "run": permit.run, "events": permit.events})
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def twice_permitted(node):
    """Return the events that stand in two permits, as a file says."""
    return node.query("SELECT hex(event) FROM permitted_events GROUP BY event HAVING count(*) > 1")


def intend(node, permit):
    node.mutations.intend(permit.run, permit.work, tool="post")


def recover(node, service):
    """Bring the runs of this device's earlier processes to their end, as each one's ledger entry demands."""
    for run in node.events.held_runs(own=True):
        entry = node.mutations.get(run)
        status = entry.status if entry is not None else "pending"
        if status == "in_flight":
            status = "applied" if service.happened(entry.work) else "failed"
            (node.mutations.mark_applied if status == "applied" else node.mutations.mark_failed)(run)
        if status == "applied":
            node.events.consume(run, effect_happened=True)
        else:
            node.events.release(run)


# --- Operations that are killed ---------------------------------------------------------------------------------------


def run_confirmed(path, name, subject, kill_at, loses_power, pipe):
    """Do one operation of OPERATIONS, saying what is done, and be killed at its step `kill_at` if it has so many.

    The subject is a run; or, where the operation begins one, the message ids that it is to claim. The last step is
    "done"; it comes only when the machine is to lose its power.
    """
    steps = Steps(pipe, kill_at, loses_power=loses_power)
    steps.part = name
    with Node.open(path) as node:
        OPERATIONS[name](node, subject, steps, pipe)
        if loses_power:
            steps.part = ""
            steps.take("done")
        steps.armed = False
        pipe.send(("done", None))


def ask(node, run, steps, pipe):
    steps.armed = True
    node.permits.request(run)


def tend(node, run, steps, pipe):
    """Decide, step back, begin or ask again: whatever there is to do."""
    steps.armed = True
    node.authority.tend()


def hand_over(node, home, steps, pipe):
    steps.armed = True
    node.modes.set("mail", "home", topic="inbox", home=home)


def receive(node, run, steps, pipe):
    """Take over what the hub has, a decision among it."""
    with Node.open(node.path.with_name("hub.db")) as hub:
        transfer(hub, node, steps, LARGE_PIECE_BYTES)


def claim(node, message_ids, pipe):
    """Claim events and get the hub's permit: whoever begins an effect must be who began its run."""
    run = node.reserve("mail", "inbox", message_ids=message_ids).run
    pipe.send(("claimed", run))
    node.permits.request(run)
    with Node.open(node.path.with_name("hub.db")) as hub:
        transfer(node, hub)
        hub.authority.tend()
        transfer(hub, node)
    return node.permits.require(run)


def work(node, message_ids, steps, pipe):
    """From the permit to the end: intent, effect, outcome."""
    service = Service(node.path.with_name("service.log"))
    permit = claim(node, message_ids, pipe)
    steps.armed, steps.part = True, "intent"
    intend(node, permit)
    pipe.send(("in_flight", permit.run))
    steps.part = ""
    service.perform(permit, steps)
    steps.part = "outcome"
    node.mutations.mark_applied(permit.run, {"sent": True})
    pipe.send(("applied", permit.run))
    steps.part = "end"
    node.events.consume(permit.run)
    pipe.send(("consumed", permit.run))


def fail(node, message_ids, steps, pipe):
    """An effect was begun and did not happen; what was held, and the permit with it, are given up."""
    permit = claim(node, message_ids, pipe)
    intend(node, permit)
    steps.armed, steps.part = True, "outcome"
    node.mutations.mark_failed(permit.run, "refused by the service")
    pipe.send(("failed", permit.run))
    steps.part = "end"
    node.events.release(permit.run)
    pipe.send(("released", permit.run))


OPERATIONS = {operation.__name__: operation for operation in (ask, tend, hand_over, receive, work, fail)}


# --- Processes that sync ----------------------------------------------------------------------------------------------


class SyncingSteps(Steps):
    """Steps of a process with several threads. Those of the main thread belong to the part that it is in, those of the
    others to what their transaction has written last: "permits", or "merged permits"."""

    def __init__(self, pipe, kill_at):
        super().__init__(pipe, kill_at)
        self._written = ""  # Only one thread at a time has a transaction.

    def part_now(self):
        return self.part if threading.current_thread() is threading.main_thread() else self._written

    def saw(self, words, bindings):
        if words[0] == "BEGIN":
            self._written = ""
        elif words[:2] == ["INSERT", "INTO"]:
            table = words[2]
            if table == "crsql_changes" and bindings[0] in DECIDING_TABLES:
                self._written = f"merged {bindings[0]}"
            elif table in DECIDING_TABLES:
                self._written = table


DECIDING_TABLES = ("permit_requests", "permits", "authority_fences")


def serve(path, port, kill_at, pipe):
    """Be the hub, until the pipe says that it is enough."""

    async def run(node):
        async with node.syncing(listen=("127.0.0.1", port)) as sync:
            pipe.send(("listening", int(sync.url.rpartition(":")[2])))
            await asyncio.to_thread(pipe.recv)

    with_node(path, "hub", kill_at, pipe, lambda node, steps: run(node))


def serve_and_work(path, pipe):
    """Be the hub, and hold one event with a permit; the effect follows when the pipe says so."""
    asyncio.run(_serve_and_work(path, pipe))


async def _serve_and_work(path, pipe):
    async with Node.open(path, name="hub", **OPTIONS) as node, node.syncing(listen=("127.0.0.1", 0)) as sync:
        run = node.reserve("mail", "inbox", limit=1).run
        permit = await node.permit(run)
        pipe.send(("listening", sync.url))
        await asyncio.to_thread(pipe.recv)
        intend(node, permit)
        Service(node.path.with_name("service.log")).perform(permit)
        node.mutations.mark_applied(run)
        node.events.consume(run, effect_happened=True)
        pipe.send(("consumed", run))
        await asyncio.to_thread(pipe.recv)


def hold_a_permit(path, peer, pipe):
    """Get a permit for one event, say so, and begin the effect when the pipe says so."""
    asyncio.run(_hold_a_permit(path, peer, pipe))


async def _hold_a_permit(path, peer, pipe):
    async with Node.open(path, name="laptop", **OPTIONS) as node, node.syncing(peers=[peer]):
        await node.caught_up()
        permit = await node.permit(node.reserve("mail", "inbox", limit=1).run)
        pipe.send(("permitted", permit.run))
        await asyncio.to_thread(pipe.recv)
        try:
            intend(node, permit)
        except PermitRefused:
            pipe.send(("refused", permit.run))
        else:
            Service(node.path.with_name("service.log")).perform(permit)
            pipe.send(("performed", permit.run))
        await asyncio.to_thread(pipe.recv)


def work_and_sync(path, peer, kill_at, pipe):
    """Work on whatever is there, as its permit comes, until the pipe says that it is enough."""
    Backoff.next_delay_s = lambda backoff: REDIAL_S  # A hub that dies all the time would be dialled less and less.

    async def run(node, steps):
        service = Service(node.path.with_name("service.log"))
        async with node.syncing(peers=[peer]), node.changes() as changes:
            steps.part = "recovery"
            recover(node, service)
            working = asyncio.create_task(work_until_cancelled(node, service, changes, steps))
            await asyncio.to_thread(pipe.recv)
            working.cancel()
            await asyncio.wait([working])

    with_node(path, Path(path).stem, kill_at, pipe, run)


def with_node(path, name, kill_at, pipe, run):
    steps = SyncingSteps(pipe, kill_at)

    async def open_and_run():
        async with Node.open(path, name=name, **OPTIONS) as node:
            steps.armed = True
            tending = asyncio.create_task(tend_often(node))
            await run(node, steps)
            steps.armed = False
            tending.cancel()
            await asyncio.wait([tending])

    asyncio.run(open_and_run())
    pipe.send(("done", None))


async def tend_often(node):
    """That a file includes more than before is no change that wakes anybody; a node looks every few seconds."""
    while True:
        await asyncio.sleep(TEND_EVERY_S)
        await asyncio.to_thread(node.authority.tend)


async def work_until_cancelled(node, service, changes, steps):
    while True:
        steps.part = "claim"
        reservation = node.reserve("mail", "inbox", limit=2)
        if not reservation.events or not await work_on(node, reservation.run, service, steps):
            await anext(changes)


async def work_on(node, run, service, steps):
    """From a claim to its end; returns whether it was this device's."""
    try:
        permit = await node.permit(run)
    except (PermitRefused, LeaseLost):
        steps.part = "give up"
        node.events.release(run)
        return False
    steps.part = "intent"
    intend(node, permit)
    steps.part = ""
    service.perform(permit, steps)
    steps.part = "outcome"
    node.mutations.mark_applied(run)
    steps.part = "end"
    node.events.consume(run, effect_happened=True)
    return True
