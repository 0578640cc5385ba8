"""What apps do on simulated devices, through the real stores. Each returns in a word how it ended."""

from __future__ import annotations

from functools import partial
from random import Random

from node import ids
from node.errors import IllegalState, LeaseLost, NotAvailable, NotFound, NotOwner, StillReserved
from node.stores import NewEvent
from sim import files
from sim.device import Crashed

WORKFLOW = "inbox"
TOPICS = ("mail", "bills")
MESSAGES = tuple(f"message-{number}" for number in range(12))
"""All devices publish and reserve out of these, so that they meet."""

NOTES = tuple(bytes([number]) * 16 for number in range(6))


def commit(process, work):
    """Do a piece of the app's work in one transaction, unless the device is to crash in it."""
    device = process.device
    if device.write_crash == "before the commit":
        device.restart_later(3_000)
        process.crash_in_transaction(work, "crash in write")
    result = work()
    process.committed()
    process.notify_commit()
    if device.write_crash == "after the commit":
        device.write_crash = None
        device.world.fired["crash in write"] += 1
        device.crash()
        device.restart_later(3_000)
        raise Crashed
    return result


def publish(process, random: Random) -> str:
    chosen = random.sample(MESSAGES, random.randint(1, 4))
    payload = {"from": process.device.name} if random.random() < 0.5 else None
    events = [NewEvent(message, f"Title of {message}", payload) for message in chosen]
    counts = commit(process, lambda: process.events.publish_many(WORKFLOW, random.choice(TOPICS), events))
    return "new" if counts.created else "known"


def reserve(process, random: Random) -> str:
    topic, run = random.choice(TOPICS), new_run(process)
    if random.random() < 0.4:
        return _claim(process, run, None, lambda: process.events.reserve_next(run, WORKFLOW, topic, limit=3))
    known = [event.message_id for event in process.events.peek(WORKFLOW, topic)]
    pool = known if known and random.random() < 0.8 else MESSAGES
    wanted = random.sample(pool, min(len(pool), random.randint(1, 3)))
    some = random.random() < 0.3
    work = partial(process.events.reserve, run, WORKFLOW, [(topic, wanted)], partial=some)
    return _claim(process, run, None if some else len(wanted), work)


def take_over(process, random: Random) -> str:
    stale = stale_events(process)
    if not stale:
        return "nothing is stale"
    run, chosen = new_run(process), stale[: random.randint(1, 3)]
    return _claim(process, run, len(chosen), lambda: process.events.take_over(run, chosen))


def _claim(process, run: str, asked: int | None, work) -> str:
    checks = process.world.checks
    try:
        got = commit(process, work)
    except (NotFound, NotAvailable, IllegalState) as error:
        checks.refused_claim(process, run)
        return type(error).__name__
    checks.claimed(process, run, asked, got)
    if got:
        process.held[run] = [event.id for event in got]
    return "got" if got else "nothing pending"


def settle(process, random: Random) -> str:
    if not process.held:
        return "nothing is held"
    run = random.choice(list(process.held))
    store = process.events
    return settle_run(process, run, random.choice([store.consume, store.consume, store.skip, store.bury]))


def settle_run(process, run: str, how) -> str:
    """Settle one run; one that has lost its lease is released."""
    picture = process.world.checks.before_settling(process, run)
    try:
        commit(process, lambda: how(run))
    except LeaseLost:
        process.world.checks.refused_settling(process, run, picture)
        commit(process, lambda: process.events.release(run))
        process.held.pop(run, None)
        return "lost"
    except (NotOwner, IllegalState) as error:  # The file has a new site id, or another file is in its place.
        process.held.pop(run, None)
        return type(error).__name__
    process.world.checks.settled(process, run, picture)
    process.held.pop(run, None)
    return "done"


def release(process, random: Random) -> str:
    if not process.held:
        return "nothing is held"
    run = random.choice(list(process.held))
    del process.held[run]
    try:
        commit(process, lambda: process.events.release(run))
    except (NotOwner, IllegalState) as error:
        return type(error).__name__
    return "done"


def write_foreign(process, random: Random) -> str:
    """Try what must be refused: to write another node's row."""
    runs = process.events.held_runs(own=False)
    if not runs:
        return "no foreign run"
    run = random.choice(runs)
    try:
        commit(process, lambda: random.choice([process.events.consume, process.events.release])(run))
    except NotOwner:
        return "NotOwner"
    return "written"


def edit_notes(process, random: Random) -> str:
    key, number = random.choice(NOTES), random.randrange(1_000)
    statements = [
        ("INSERT OR IGNORE INTO notes (id, title, stars) VALUES (?, ?, ?)", (key, f"title {number}", number)),
        ("UPDATE notes SET title = ? WHERE id = ?", (f"edited {number}", key)),
        ("UPDATE notes SET stars = stars + 1 WHERE id = ?", (key,)),
        ("UPDATE notes SET title = title", ()),
        ("DELETE FROM notes WHERE id = ?", (key,)),
    ]
    if process.device.level == files.NEWEST:
        statements += [
            ("UPDATE notes SET colour = ? WHERE id = ?", (f"colour {number}", key)),
            ("INSERT OR IGNORE INTO tags VALUES (?, ?)", (key, f"tag {number}")),
            ("DELETE FROM tags WHERE id = ?", (key,)),
        ]
    chosen = random.choices(statements, k=random.randint(1, 4))

    def work() -> None:
        with process.database.transaction() as transaction:
            for statement in chosen:
                transaction.execute(*statement)

    commit(process, work)
    return "done"


def write_batch(process, random: Random) -> str:
    """Write rows that say of how many they are; nobody ever changes them."""
    total = random.randint(2, process.world.params.batch_rows_max)
    body = f"{random.getrandbits(64):016x}/{total}"
    rows = [(random.randbytes(16), body) for _ in range(total)]

    def work() -> None:
        with process.database.transaction() as transaction:
            transaction.execute_many("INSERT INTO batch_rows (id, body) VALUES (?, ?)", rows)

    commit(process, work)
    return "done"


def delete_topic(process, random: Random) -> str:
    topic, force = random.choice(TOPICS), random.random() < 0.5
    try:
        commit(process, lambda: process.events.delete_by_topic(WORKFLOW, topic, force=force))
    except (NotFound, StillReserved) as error:
        return type(error).__name__
    return "done"


WORK = {
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


def new_run(process) -> str:
    return ids.ordered_id(process.database.clock_ms(), process.database.random_bytes)


def stale_events(process) -> list[str]:
    """The events that others hold and have been silent about for long enough."""
    rows = process.database.query(
        "SELECT lower(hex(e.id)) FROM event_index AS e JOIN run_index AS r ON r.n = e.run "
        "WHERE e.status = 1 AND e.publication IS NOT NULL AND r.node <> ? ORDER BY e.id",
        (process.database.site_id,),
    )
    return [event for (event,) in rows if process.staleness.holder(event).wait_ms == 0]


def finish_work(process) -> bool:
    """Do what is left to do, a round of it; return whether there was anything."""
    held = process.events.held_runs(own=True)
    for run in held:
        settle_run(process, run, process.events.consume)
    claimed = 0
    for topic in TOPICS:
        if process.events.peek(WORKFLOW, topic, limit=1):
            run = new_run(process)
            claimed += _claim(process, run, None, partial(process.events.reserve_next, run, WORKFLOW, topic)) == "got"
    stale = stale_events(process)
    if stale:
        run = new_run(process)
        _claim(process, run, len(stale), lambda: process.events.take_over(run, stale))
    return bool(held or claimed or stale)
