"""What apps do on simulated devices, through the nodes. Each returns in a word how it ended."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random

from leasemesh import Node
from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, LeaseLost, NotAvailable, NotFound, NotOwner, StillReserved
from leasemesh.node.stores import NewEvent
from leasemesh.node.testing.crashes import CrashPlan
from leasemesh.sync.errors import LocalProtocolError
from sim import files

WORKFLOW = "inbox"
TOPICS = ("mail", "bills")
MESSAGES_AT_A_TIME = 12
NEW_MESSAGE_EVERY_MS = 8_000
"""All devices publish and reserve out of a few messages, so that they meet; others follow, so that work never ends."""

NOTES = tuple(bytes([number]) * 16 for number in range(6))


class App:
    """An app on one process of a device: the parts of the node that it uses, and what it remembers.

    Attributes:
        held: run -> the events that it holds.
        has_recovered: its handlers' recovery has had its first look.
    """

    def __init__(self, process, world) -> None:
        self.process = process
        self.world = world
        self.device = process.device
        self.node = process.node
        self.database = process.node.database
        self.events = process.node.events
        self.staleness = process.node.staleness
        self.held: dict[str, list[str]] = {}
        self.has_recovered = False


def messages(world) -> list[str]:
    """Return the messages that the apps are at now."""
    first = world.now_ms // NEW_MESSAGE_EVERY_MS
    return [f"message-{number}" for number in range(first, first + MESSAGES_AT_A_TIME)]


def commit(app, work):
    """Do a piece of the app's work in one transaction, unless the device is to crash in it."""
    device, crashes = app.device, app.world.write_crashes
    moment = crashes.pop(device.number, None)
    if moment is None:
        return work()
    planned = device.crash_plan
    device.crash_plan = CrashPlan("commit", moment)
    try:
        return work()
    finally:
        if device.crash_plan is None:
            app.world.fired["crash in write"] += 1
        else:  # It has not come to a commit.
            device.crash_plan, crashes[device.number] = planned, moment


def publish(app, random: Random) -> str:
    chosen = random.sample(messages(app.world), random.randint(1, 4))
    payload = {"from": app.device.name} if random.random() < 0.5 else None
    events = [NewEvent(message, f"Title of {message}", payload) for message in chosen]
    counts = commit(app, lambda: app.events.publish_many(WORKFLOW, random.choice(TOPICS), events))
    return "new" if counts.created else "known"


def reserve(app, random: Random) -> str:
    topic, run = random.choice(TOPICS), new_run(app)
    if random.random() < 0.4:
        return _claim(app, run, None, lambda: app.events.reserve_next(run, WORKFLOW, topic, limit=3))
    known = [event.message_id for event in app.events.peek(WORKFLOW, topic)]
    pool = known if known and random.random() < 0.8 else messages(app.world)
    wanted = random.sample(pool, min(len(pool), random.randint(1, 3)))
    some = random.random() < 0.3
    work = partial(app.events.reserve, run, WORKFLOW, [(topic, wanted)], partial=some)
    return _claim(app, run, None if some else len(wanted), work)


def start(app, random: Random) -> str:
    """Begin work behind the barrier, take some time for it, and settle it."""
    app.process.spawn(_start(app, random.choice(TOPICS), random.uniform(0.1, 3)))
    return "begun"


async def _start(app, topic: str, takes_s: float) -> None:
    did, effects = app.world.did, app.world.checks.effects
    try:
        async with app.node.start(WORKFLOW, topic, limit=2) as work:
            if work.lost:
                did["start: lost some to others"] += 1
            if not work.events:
                return
            effects.work_begins(app, work.run, [event.id for event in work.events])
            try:
                await asyncio.sleep(takes_s)
                work.consume()
            finally:
                effects.work_ends(work.run)
            did["start: done"] += 1
    except (LeaseLost, NotFound, NotOwner, IllegalState, NotAvailable) as error:
        did[f"start: {type(error).__name__}"] += 1
    except DatabaseError:
        if not app.device.disk_is_full:
            raise
        did["start: no room on the disk"] += 1
    except LocalProtocolError:  # The process ends in order, and takes leave of its peers.
        did["start: stopped"] += 1


def other_process(app, random: Random) -> str:
    """Do something in a second process on the same file, as the command line does."""
    topic = random.choice(TOPICS)
    with Node.open(app.device.path, environment=app.process.environment()) as other:
        other.publish(WORKFLOW, topic, random.choice(messages(app.world)))
        if random.random() < 0.5:
            with other.reserve(WORKFLOW, topic, limit=1) as work:
                work.consume()
    app.world.checks.after_commit(app)
    return "done"


def take_over(app, random: Random) -> str:
    stale = stale_events(app)
    if not stale:
        return "nothing is stale"
    run, chosen = new_run(app), stale[: random.randint(1, 3)]
    return _claim(app, run, len(chosen), lambda: app.events.take_over(run, chosen))


def _claim(app, run: str, asked: int | None, work) -> str:
    checks = app.world.checks
    try:
        got = commit(app, work)
    except (NotFound, NotAvailable, IllegalState) as error:
        checks.refused_claim(app, run)
        return type(error).__name__
    checks.claimed(app, run, asked, got)
    if got:
        app.held[run] = [event.id for event in got]
    return "got" if got else "nothing pending"


def settle(app, random: Random) -> str:
    if not app.held:
        return "nothing is held"
    run = random.choice(list(app.held))
    store = app.events
    return settle_run(app, run, random.choice([store.consume, store.consume, store.skip, store.dead_letter]))


def settle_run(app, run: str, how) -> str:
    """Settle one run; one that has lost its lease is released."""
    picture = app.world.checks.before_settling(app, run)
    try:
        commit(app, lambda: how(run))
    except LeaseLost:
        app.world.checks.refused_settling(app, run, picture)
        commit(app, lambda: app.events.release(run))
        app.held.pop(run, None)
        return "lost"
    except (NotOwner, IllegalState) as error:  # The file has a new site id, or another file is in its place.
        app.held.pop(run, None)
        return type(error).__name__
    app.world.checks.settled(app, run, picture)
    app.held.pop(run, None)
    return "done"


def release(app, random: Random) -> str:
    if not app.held:
        return "nothing is held"
    run = random.choice(list(app.held))
    del app.held[run]
    try:
        commit(app, lambda: app.events.release(run))
    except (NotOwner, IllegalState) as error:
        return type(error).__name__
    return "done"


def write_foreign(app, random: Random) -> str:
    """Try what must be refused: to write another node's row."""
    runs = app.events.held_runs(own=False)
    if not runs:
        return "no foreign run"
    run = random.choice(runs)
    try:
        commit(app, lambda: random.choice([app.events.consume, app.events.release])(run))
    except NotOwner:
        return "NotOwner"
    return "written"


def edit_notes(app, random: Random) -> str:
    key, number = random.choice(NOTES), random.randrange(1_000)
    statements = [
        ("INSERT OR IGNORE INTO notes (id, title, stars) VALUES (?, ?, ?)", (key, f"title {number}", number)),
        ("UPDATE notes SET title = ? WHERE id = ?", (f"edited {number}", key)),
        ("UPDATE notes SET stars = stars + 1 WHERE id = ?", (key,)),
        ("UPDATE notes SET title = title", ()),
        ("DELETE FROM notes WHERE id = ?", (key,)),
    ]
    if app.world.levels[app.device.number] == files.NEWEST:
        statements += [
            ("UPDATE notes SET colour = ? WHERE id = ?", (f"colour {number}", key)),
            ("INSERT OR IGNORE INTO tags VALUES (?, ?)", (key, f"tag {number}")),
            ("DELETE FROM tags WHERE id = ?", (key,)),
        ]
    chosen = random.choices(statements, k=random.randint(1, 4))

    def work() -> None:
        with app.database.transaction() as transaction:
            for statement in chosen:
                transaction.execute(*statement)

    commit(app, work)
    return "done"


def write_batch(app, random: Random) -> str:
    """Write rows that say of how many they are; nobody ever changes them."""
    total = random.randint(2, app.world.params.batch_rows_max)
    body = f"{random.getrandbits(64):016x}/{total}"
    rows = [(random.randbytes(16), body) for _ in range(total)]

    def work() -> None:
        with app.database.transaction() as transaction:
            transaction.execute_many("INSERT INTO batch_rows (id, body) VALUES (?, ?)", rows)

    commit(app, work)
    return "done"


def delete_topic(app, random: Random) -> str:
    topic, force = random.choice(TOPICS), random.random() < 0.5
    found = app.node.topics.get_by_name(WORKFLOW, topic)
    if found is None:
        return "nothing there"
    try:
        commit(app, lambda: app.node.topics.delete(found.id, force=force))
    except StillReserved as error:
        return type(error).__name__
    return "done"


WORK = {
    "other process": other_process,
    "start": start,
    "race": start,
    "publish": publish,
    "reserve": reserve,
    "settle": settle,
    "release": release,
    "take over": take_over,
    "write foreign": write_foreign,
    "edit notes": edit_notes,
    "write batch": write_batch,
    "delete topic": delete_topic,
}


def new_run(app) -> str:
    return ids.ordered_id(app.database.clock_ms(), app.database.random_bytes)


def stale_events(app) -> list[str]:
    """The events that others hold and have been silent about for long enough."""
    rows = app.database.query(
        "SELECT lower(hex(e.id)) FROM event_index AS e JOIN run_index AS r ON r.n = e.run "
        "JOIN publications AS p ON p.id = e.publication "
        "WHERE e.status = 1 AND r.node <> ? AND p.body ->> '$.workflow' = ? ORDER BY e.id",
        (app.database.site_id, WORKFLOW),
    )
    return [event for (event,) in rows if app.staleness.holder(event).wait_ms == 0]


def held_by_hand(app) -> list[str]:
    """The held runs of this node that are no handler's."""
    return [run for run in app.events.held_runs(own=True) if app.node.handler_runs.get(run) is None]


def finish_work(app) -> bool:
    """Do what is left to do, a round of it; return whether there was anything."""
    held = held_by_hand(app)
    for run in held:
        settle_run(app, run, app.events.consume)
    claimed = 0
    for topic in TOPICS:
        if app.events.peek(WORKFLOW, topic, limit=1):
            run = new_run(app)
            claimed += _claim(app, run, None, partial(app.events.reserve_next, run, WORKFLOW, topic)) == "got"
    stale = stale_events(app)
    if stale:
        run = new_run(app)
        _claim(app, run, len(stale), lambda: app.events.take_over(run, stale))
    return bool(held or claimed or stale)
