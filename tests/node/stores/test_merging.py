"""Merging: equal facts give equal status, whatever the order and batching in which they arrive."""

import json
import re

from devices import (
    NOW_MS,
    deletion,
    event_of,
    forged,
    meet,
    merge,
    mutation_body,
    mutation_outcome,
    mutation_progress,
    publication_body,
    reservation_body,
    verdict_body,
    work_of,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.model.ids import RunId
from leasemesh.node.model.leases import EPOCH_MAX, Claim, ClaimEffect, ClaimState, decide

MESSAGES = ("a", "b", "c", "d")
EVENTS = [event_of(name) for name in MESSAGES]
RUNS = [bytes([number]) * 16 for number in (0x11, 0x22, 0x33, 0x44)]
PUBLICATIONS = [bytes([number]) * 16 for number in (0xA1, 0xA2, 0xA3)]
WORKS = [work_of("1" * 32), work_of("2" * 32)]
VERDICTS = [bytes([number]) * 16 for number in (0xE1, 0xE2)]
STATES = ["held", "released", "lost", "settled 3 consumed", "settled 2 skipped", "settled 1 dead"]
PROGRESS = ["pending", "in_flight", "needs_reconcile", "indeterminate", "of a later version"]
OUTCOMES = ["", mutation_outcome("failed"), mutation_outcome("applied"), mutation_outcome("undone", number=2)]

EFFECTS = {"unknown": ClaimEffect.UNKNOWN, "skipped": ClaimEffect.SKIPPED, "applied": ClaimEffect.HAPPENED}

# Few times, so that ties are common.
times = st.integers(NOW_MS << 16, (NOW_MS << 16) + 3)
nodes = st.sampled_from(["0" * 32, "f" * 32])

malformed = st.sampled_from(
    [
        None, 5, 2.5, b"\x0c", b"{}", "", "{}", "null", "[]", "not json", "{at:1}", '{"at": 1}', '"text"', "[" * 2000,
        json.dumps(publication_body(at=-1)),
        json.dumps(publication_body(at=2**63)),
        json.dumps(publication_body(at="5")),
        json.dumps(publication_body(at=1.5)),
        json.dumps(publication_body(ids="aa" * 16)),
        json.dumps(publication_body(ids={"0": "aa" * 16})),
        json.dumps(publication_body(topic_id="aa")),
        json.dumps(publication_body(topic_id=None)),
        json.dumps(publication_body() | {"workflow": ["mail"]}),
        json.dumps(reservation_body([(EVENTS[0], 1)], at=-5)),
        json.dumps(reservation_body([(EVENTS[0], 1)], at=1e300)),
        json.dumps(reservation_body([(EVENTS[0], 1)], node="zz")),
        json.dumps(reservation_body([(EVENTS[0], 1)], events={"a": f"{EVENTS[0]}@1"})),
        json.dumps(reservation_body([(EVENTS[0], 1)], events=f"{EVENTS[0]}@1")),
        json.dumps(mutation_body("zz")),
        json.dumps(mutation_body(WORKS[0], tool=5)),
        json.dumps(mutation_progress(5)),
        json.dumps(mutation_progress("in_flight", next_reconcile_at="soon")),
        mutation_outcome("applied", at=-1),
        json.dumps(verdict_body(None, "happened")),
        json.dumps(verdict_body(WORKS[0], "happened", at=10**30)),
    ]
)  # fmt: skip
odd_claims = st.sampled_from(
    [
        5, None, [], {}, "", EVENTS[0], EVENTS[0] + "@", EVENTS[0] + "@0", EVENTS[0] + "@-1", EVENTS[0] + "@x",
        EVENTS[0] + f"@{EPOCH_MAX + 1}", EVENTS[0] + "@" + "9" * 40, "aa@1", EVENTS[0].upper() + "@2",
        EVENTS[1] + "@3x",
    ]
)  # fmt: skip
odd_ids = st.sampled_from([5, None, [], "", "aa", "zz" * 16, EVENTS[0].upper(), EVENTS[1] + "00"])


@st.composite
def publication_bodies(draw):
    names = draw(st.lists(st.sampled_from(MESSAGES), max_size=4))
    body = publication_body(draw(st.sampled_from(["inbox", "other"])), names, draw(times))
    body["ids"] = [event_of(name) for name in names] + draw(st.lists(odd_ids, max_size=1))
    return body


@st.composite
def reservation_bodies(draw):
    claims = draw(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 3)), max_size=4))
    of = draw(st.sampled_from([{}, *({"work": work} for work in WORKS)]))
    body = reservation_body(claims, node=draw(nodes), at=draw(times), **of)
    body["events"] = draw(st.permutations(body["events"] + draw(st.lists(odd_claims, max_size=1))))
    return body


mutation_bodies = st.builds(mutation_body, st.sampled_from(WORKS))
verdict_bodies = st.builds(
    verdict_body, st.sampled_from(WORKS), st.sampled_from(["happened", "skip", "not_happened", "perhaps"])
)


MUTATION_CELLS = {
    "progress": st.builds(mutation_progress, st.sampled_from(PROGRESS)),
    "outcome": st.sampled_from(OUTCOMES),
}


@st.composite
def histories(draw):
    """All changes of a few rows: honest ones, rewritten ones, deleted ones, malformed ones; in no order."""
    rows = []
    kinds = [
        ("publications", PUBLICATIONS, publication_bodies()),
        ("reservations", RUNS, reservation_bodies()),
        ("mutations", RUNS, mutation_bodies),
        ("verdicts", VERDICTS, verdict_bodies),
    ]
    for table, identifiers, bodies in kinds:
        for identifier in draw(st.lists(st.sampled_from(identifiers), unique=True)):
            versions = draw(st.lists(st.one_of(bodies, bodies, bodies, malformed), min_size=1, max_size=3))
            rows += [forged(table, identifier, body, version=number) for number, body in enumerate(versions, 1)]
            if table == "reservations":
                words = draw(st.lists(st.sampled_from([*STATES, "of a later version", None, b"held"]), max_size=3))
                rows += [
                    forged(table, identifier, word, column="state", version=number)
                    for number, word in enumerate(words, 1)
                ]
            if table == "mutations":
                for column, cells in MUTATION_CELLS.items():
                    values = draw(st.lists(st.one_of(cells, cells, cells, malformed), max_size=3))
                    rows += [
                        forged(table, identifier, value, column=column, version=number)
                        for number, value in enumerate(values, 1)
                    ]
            ending = draw(st.sampled_from(["stays", "stays", "stays", "deleted", "created again"]))
            if ending != "stays":
                rows.append(deletion(table, identifier))
            if ending == "created again":
                # What a device sends of a row that it inserted again: the sign of life, then every column.
                rows.append(deletion(table, identifier, alive=3))
                rows.append(forged(table, identifier, draw(bodies), alive=3))
                if table == "reservations":
                    rows.append(forged(table, identifier, draw(st.sampled_from(STATES)), column="state", alive=3))
                for column, cells in MUTATION_CELLS.items() if table == "mutations" else ():
                    rows.append(forged(table, identifier, draw(cells), column=column, alive=3))
    return rows


def claims_of(body):
    """Event -> epoch; the first mention of an event counts."""
    found = {}
    for text in body["events"]:
        match = re.match(r"([0-9a-fA-F]{32}).\s*(-?\d+)", text if isinstance(text, str) else "")
        if match and 1 <= int(match[2]) <= EPOCH_MAX:
            found.setdefault(match[1].lower(), int(match[2]))
    return found


def outcome_of(work, mutations, verdicts):
    """The fold of entries and verdicts, said once more in another language."""
    tried = {body["now"] for body in mutations.values() if body["work"] == work}
    said = {body["verdict"] for body in verdicts.values() if body["work"] == work}
    if "applied" in tried or "happened" in said:
        return "applied"
    if "skip" in said:
        return "skipped"
    if tried <= {"pending", "failed"}:
        return "failed" if "failed" in tried else "none"
    return "failed" if "not_happened" in said and "in_flight" not in tried else "unknown"


def expected(device):
    """What the derived tables must say, from the facts alone by the pure functions."""
    facts = {
        table: {row[0]: json.loads(row[1]) for row in device.query(f"SELECT id, body FROM {table}") if row[1] != "{}"}
        for table in ("publications", "reservations", "mutations", "verdicts")
    }
    mutations, verdicts = facts["mutations"], facts["verdicts"]
    for run, progress, outcome in device.query("SELECT id, progress, outcome FROM mutations"):
        now = outcome.split()[1:2] or [json.loads(progress).get("status", "in_flight")]
        mutations.get(run, {})["now"] = now[0]
    claims, contents = {}, {}
    words = dict(device.query("SELECT id, state FROM reservations"))
    for run, body in facts["reservations"].items():
        name = words[run].rpartition(" ")[2].upper()
        state = ClaimState[name] if name in ClaimState.__members__ else ClaimState.HELD
        own = outcome_of(mutations[run]["work"], mutations, verdicts) if run in mutations else "none"
        named = outcome_of(body["work"], mutations, verdicts) if body.get("work") else "none"
        effect = EFFECTS.get(own) or (EFFECTS[named] if named in ("applied", "skipped") else ClaimEffect.NONE)
        for event, epoch in claims_of(body).items():
            claims.setdefault(event, []).append(Claim(RunId(run.hex()), epoch, body["at"], state, effect))
    for publication, body in facts["publications"].items():
        seen = set()
        for position, event in enumerate(body["ids"]):
            if isinstance(event, str) and re.fullmatch("[0-9a-fA-F]{32}", event) and event.lower() not in seen:
                seen.add(event.lower())
                content = (body["at"] + position, publication, position, bytes.fromhex(body["topic_id"]))
                contents.setdefault(event.lower(), []).append(content)
    rows = []
    for event in claims.keys() | contents.keys():
        at, publication, position, topic = min(contents.get(event, [(None, None, None, None)]))
        owned = decide(claims.get(event, []))
        owner = bytes.fromhex(owned.owner) if owned.owner else None
        rows.append((bytes.fromhex(event), publication, position, topic, at, int(owned.status), owned.epoch, owner))
    applied = {run.hex() for run, body in mutations.items() if body["now"] == "applied"}
    twice = [
        (bytes.fromhex(event),)
        for event, all_of_it in claims.items()
        if sum(claim.state == ClaimState.CONSUMED for claim in all_of_it) > 1
        or sum(claim.run in applied for claim in all_of_it) > 1
    ]
    copies = [
        (bytes.fromhex(event), publication, position, topic, at)
        for event, all_of_it in contents.items()
        if len(all_of_it) > 1
        for at, publication, position, topic in all_of_it
    ]
    return {"event_index": rows, "duplicates": twice, "event_copies": copies}


def deliver(device, rows, order, batch):
    in_order = [rows[index] for index in order]
    for start in range(0, len(in_order), batch):
        device.absorb(in_order[start : start + batch])


def check_derived(devices):
    first = devices[0].derived()
    for table, rows in expected(devices[0]).items():
        assert first[table] == sorted(rows, key=repr), table
    for device in devices:
        assert device.facts() == devices[0].facts()
        assert device.derived() == first
        assert rebuild(device.database).corrected == {}
        assert device.derived() == first


@settings(
    max_examples=80, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.data())
def test_status_follows_from_the_facts_in_every_order_of_arrival(lasting_trio, data):
    one, two, three = lasting_trio
    rows = data.draw(histories())
    with one.discarded(), two.discarded(), three.discarded():
        for device in lasting_trio:
            order = data.draw(st.permutations(range(len(rows))))
            deliver(device, rows, order, data.draw(st.integers(1, 8)))
        check_derived(lasting_trio)


# What people and handlers do, through the stores, on devices that meet now and then.

ACTIONS = [
    "publish", "publish", "reserve", "reserve", "reserve next", "consume", "skip", "dead_letter", "release",
    "take over",
    "take over run", "requeue", "requeue",
    "effect", "applied", "failed", "indeterminate", "verdict", "happened", "delete topic", "meet", "merge", "clock",
]  # fmt: skip


def act(devices, action, number, choose):
    """One action on one device; a refusal is an outcome like any other."""
    device = devices[number]
    events, mutations = device.events, device.mutations
    held = events.held_runs(own=True)
    match action:
        case "publish":
            device.publish(*choose(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3, unique=True)))
        case "reserve":
            names = choose(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3, unique=True))
            device.reserve(*names, partial=choose(st.booleans()))
        case "reserve next":
            events.reserve_next(device.runs.new_id(), "mail", "inbox", limit=choose(st.integers(1, 3)))
        case "consume" | "skip" | "dead_letter" | "release":
            getattr(events, action)(choose(held))
        case "happened":
            events.consume(choose(held), effect_happened=True)
        case "take over":
            reserved = events.peek("mail", "inbox", status="reserved")
            events.take_over(device.runs.new_id(), [choose(reserved).id])
        case "take over run":
            events.take_over_run(device.runs.new_id(), choose(events.held_runs(own=choose(st.booleans()))), handler="x")
        case "requeue":
            settled = [one for end in ("consumed", "dead") for one in events.peek("mail", "inbox", status=end)]
            events.requeue(choose(settled).id)
        case "effect":
            run = choose(held)
            device.effect(run, choose(st.sampled_from([*WORKS, work_of(run)])))
        case "applied" | "failed" | "indeterminate":
            unresolved = [entry.run for entry in mutations.unresolved() if entry.node == device.node]
            getattr(mutations, f"mark_{action}")(choose(unresolved))
        case "verdict":
            work = choose(mutations.unresolved()).work
            mutations.resolve(work, choose(st.sampled_from(["happened", "skip", "not_happened"])), by="Ann")
        case "delete topic":
            device.delete(force=choose(st.booleans()))
        case "merge":
            merge(devices[number - 1], device)
        case "meet":
            meet(*devices)
        case "clock":
            device.now_ms += choose(st.sampled_from([-3_600_000, 1, 60_000]))


class NothingToChoose(Exception):
    """The action has nothing to work on."""


def chooser(data):
    def choose(strategy):
        if isinstance(strategy, list):
            if not strategy:
                raise NothingToChoose
            strategy = st.sampled_from(strategy)
        return data.draw(strategy)

    return choose


def terminal(device):
    """Events that have ended, and how: what no later action may reopen. Only a stronger outcome may replace one."""
    rows = device.query("SELECT id, status FROM event_index WHERE status >= 3")
    return dict(rows)


@settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.data())
def test_devices_that_work_apart_agree_when_they_meet(lasting_trio, data):
    one, two, three = lasting_trio
    with one.discarded(), two.discarded(), three.discarded():
        for device in lasting_trio:
            device.now_ms = NOW_MS
            device.publish("a", "b")
        ended = [terminal(device) for device in lasting_trio]
        for _ in range(data.draw(st.integers(1, 25))):
            action, number = data.draw(st.sampled_from(ACTIONS)), data.draw(st.integers(0, 2))
            facts = [device.facts() for device in lasting_trio]
            try:
                act(lasting_trio, action, number, chooser(data))
            except (LeasemeshError, NothingToChoose):
                assert [device.facts() for device in lasting_trio] == facts, "a refused action writes nothing"
            for device, before in zip(lasting_trio, ended, strict=True):
                now = terminal(device)
                assert before.keys() <= now.keys()
                assert all(now[event] <= status for event, status in before.items())
                before |= now
        meet(*lasting_trio)
        check_derived(lasting_trio)
