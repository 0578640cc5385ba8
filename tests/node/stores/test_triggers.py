"""What the triggers of the execution model derive, and what they refuse; forged rows stand for a hostile peer.

That they equal the ownership rule in every order of arrival: test_merging.
"""

import inspect
import json

import pytest
from devices import (
    FACTS,
    NOW_MS,
    deletion,
    event_of,
    forged,
    meet,
    mutation_body,
    mutation_outcome,
    mutation_progress,
    permit_body,
    publication_body,
    request_body,
    reservation_body,
    run_body,
    verdict_body,
    work_of,
)

from leasemesh.node.database.derived import rebuild
from leasemesh.node.model import ids
from leasemesh.node.stores.events.reading import EventReader

WORK = work_of("1" * 32)
RUN = b"r" * 16

GOOD = {
    "topics": {"workflow": "mail", "name": "inbox", "created_at": NOW_MS},
    "publications": publication_body(),
    "reservations": reservation_body([(event_of("a"), 1)]),
    "handler_runs": run_body(),
    "mutations": mutation_body(WORK),
    "verdicts": verdict_body(WORK, "happened"),
    "handler_state": {
        "handler_id": ids.handler_id("mail", "poll"), "workflow": "mail", "handler": "poll", "version": 1,
        "state": None, "run": "r1", "node": "00" * 16, "at": NOW_MS,
    },
    "permit_requests": request_body(WORK, [event_of("a")]),
    "permits": permit_body(RUN.hex(), WORK, [event_of("a")]),
    "authorities": {
        "node": "00" * 16, "authority": "00" * 16, "generation": 1, "needs": [], "gone": [], "by": "Ann", "at": NOW_MS,
    },
    "authority_fences": {"node": "00" * 16, "authority": "00" * 16, "generation": 1, "version": 1, "at": NOW_MS},
    "modes": {
        "workflow": "mail", "kind": "topic", "name": "inbox", "mode": "home", "home": "00" * 16, "after": "00" * 16,
        "version": 1, "gone": "00" * 16, "at": NOW_MS,
    },
    "handler_blocks": {
        "workflow": "mail", "handler": "send", "node": "00" * 16, "blocked": True, "reason": "", "by": "Ann",
        "run": "00" * 16, "at": NOW_MS,
    },
    "devices": {"node": RUN.hex(), "name": "laptop", "at": NOW_MS},
}  # fmt: skip
# Fields of which derivation and stores need the type.
NEEDED = {
    "topics": ["workflow", "name", "created_at"],
    "publications": ["workflow", "topic", "topic_id", "at", "ids", "events"],
    "reservations": ["workflow", "handler", "incarnation", "node", "at", "events"],
    "handler_runs": ["workflow", "handler", "incarnation", "node", "kind", "started_at"],
    "mutations": ["node", "incarnation", "work", "tool", "created_at"],
    "verdicts": ["work", "node", "verdict", "by", "at"],
    "handler_state": ["handler_id", "workflow", "handler", "version", "run", "node", "at"],
    "permit_requests": ["node", "workflow", "handler", "work", "events", "generation", "withdrawn", "asked_at"],
    "permits": ["node", "run", "work", "events", "generation", "at"],
    "authorities": ["node", "authority", "generation", "needs", "gone", "by", "at"],
    "authority_fences": ["node", "authority", "generation", "version", "at"],
    "modes": ["workflow", "kind", "name", "mode", "version", "at"],
    "handler_blocks": ["workflow", "handler", "node", "blocked", "reason", "by", "at"],
    "devices": ["node", "name", "at"],
}
NO_OBJECTS = [
    5, 2.5, None, b"\x0c", b"{}", "", "null", "[]", "\"text\"", "not json", "{at:1}", "{'at':1}", "[" * 2000, "{} {}",
]  # fmt: skip
WRONG_VALUES = [None, [], {}, 2.5, True, -1, 10**30, 2**63, "zz", "aa", ""]


def read_everything(device):
    """Call whatever reads without a name; a poisoned row must not break any of it."""
    device.topics.list("mail")
    device.events.peek("mail", "inbox")
    device.events.counts("mail")
    device.events.duplicates()
    for own in (True, False):
        for run in device.events.held_runs(own=own):
            device.events.reservation(run)
            device.events.reserved_by(run)
    for name in ("a", "b"):
        device.events.explain(event_of(name))
    device.runs.list("mail")
    device.runs.list()
    device.runs.list(status="active")
    device.runs.recent("mail", "send")
    device.runs.own_incomplete()
    device.runs.retry_chain(RUN.hex())
    device.mutations.get(RUN.hex())
    device.mutations.due(2**53)
    device.mutations.next_due_at()
    device.mutations.result_of(WORK)
    device.mutations.unresolved()
    device.mutations.verdicts(WORK)
    device.mutations.outcome(WORK)
    device.states.list("mail")
    device.states.get("mail", "poll")
    device.permits.waiting()
    device.permits.get(RUN.hex())
    device.permits.holders(event_of("a"))
    device.permits.decide_pending()
    device.permits.ask_again()
    device.authorities.info()
    device.modes.list("mail")
    device.modes.get("mail", topic="inbox")
    device.authorities.step()
    device.blocks.list()
    device.blocks.get("mail", "send")
    device.devices.list()
    device.devices.name_of(RUN.hex())
    device.events.stale_candidates([("mail", "send")])
    device.query("SELECT * FROM events")
    assert rebuild(device.database).corrected == {}


@pytest.mark.parametrize("table", FACTS)
def test_a_well_formed_row_is_accepted_and_read(device, table):
    assert device.forge(table, RUN, GOOD[table])
    read_everything(device)


@pytest.mark.parametrize("table", FACTS)
def test_a_body_that_is_no_json_object_fails_alone(device, table):
    with device.unchanged():
        for body in NO_OBJECTS:
            assert not device.forge(table, RUN, body), body


@pytest.mark.parametrize("table", FACTS)
@pytest.mark.parametrize(
    "ending", [", extra: 1}", ', "extra": 1,}', ", 'extra': 1}", ', "extra": +1}', ', "extra": 0x1} // why']
)
def test_a_body_that_sqlite_reads_and_python_does_not_fails_alone(device, table, ending):
    with device.unchanged():
        assert not device.forge(table, RUN, json.dumps(GOOD[table])[:-1] + ending)


@pytest.mark.parametrize("table", FACTS)
def test_a_field_of_a_wrong_type_fails_alone_or_is_harmless(device, table):
    for field in GOOD[table]:
        for value in [*WRONG_VALUES, "absent"]:
            body = {name: one for name, one in GOOD[table].items() if name != field}
            if value != "absent":
                body[field] = value
            with device.discarded():
                accepted = device.forge(table, RUN, body)
                read_everything(device)
            if field in NEEDED[table] and (value == "absent" or type(value) is not type(GOOD[table][field])):
                assert not accepted, (field, value)


# The cells beside the body, in their rows.
CELLS = [
    ("handler_runs", "progress", {"phase": "mutating", "status": "paused:transient", "details": {"a": 1}}),
    ("handler_runs", "ended", {"at": NOW_MS, "details": {"a": 1}}),
    ("mutations", "progress", mutation_progress("needs_reconcile", next_reconcile_at=NOW_MS)),
    ("mutations", "outcome", {"at": NOW_MS, "result": None}),
]
WORDS = {"ended": "2 failed:logic ", "outcome": "1 applied "}
MAY_BE_ABSENT = {"next_reconcile_at", "error", "result"}


@pytest.mark.parametrize(("table", "column", "content"), CELLS)
@pytest.mark.parametrize("first", ["the body", "the cell"])
def test_a_cell_beside_the_body_is_read_with_it_and_inert_without_it(device, table, column, content, first):
    cell = WORDS.get(column, "") + json.dumps(content)
    if first == "the cell":
        assert device.forge(table, RUN, cell, column=column)
        read_everything(device)
        assert device.runs.get(RUN.hex()) is device.mutations.get(RUN.hex()) is None
    assert device.forge(table, RUN, GOOD[table])
    assert device.forge(table, RUN, cell, column=column)
    read_everything(device)
    run, entry = device.runs.get(RUN.hex()), device.mutations.get(RUN.hex())
    match table, column:
        case "handler_runs", "progress":
            assert (run.phase, run.status, run.ended_at, run.details) == (
                "mutating",
                "paused:transient",
                None,
                {"a": 1},
            )
        case "handler_runs", "ended":
            assert (run.phase, run.status, run.ended_at, run.details) == ("pending", "failed:logic", NOW_MS, {"a": 1})
        case "mutations", "progress":
            assert (entry.status, entry.next_reconcile_at) == ("needs_reconcile", NOW_MS)
        case "mutations", "outcome":
            assert (entry.status, entry.next_reconcile_at, entry.updated_at) == ("applied", None, NOW_MS)


@pytest.mark.parametrize(("table", "column", "content"), CELLS)
def test_a_cell_of_a_wrong_shape_fails_alone_or_is_harmless(device, table, column, content):
    assert device.forge(table, RUN, GOOD[table])
    word = WORDS.get(column, "")
    with device.unchanged():
        for cell in NO_OBJECTS:
            text = word + cell if isinstance(cell, str) else cell
            if not (column in WORDS and cell == ""):
                assert not device.forge(table, RUN, text, column=column, version=3), text
        for text in ("1", "1 applied", "applied {}", "committed", json.dumps(content)) if word else ():
            assert not device.forge(table, RUN, text, column=column, version=3), text
    for field in content:
        for value in [*WRONG_VALUES, "absent"]:
            changed = {name: one for name, one in content.items() if name != field}
            if value != "absent":
                changed[field] = value
            with device.discarded():
                accepted = device.forge(table, RUN, word + json.dumps(changed), column=column, version=3)
                read_everything(device)
            if field not in MAY_BE_ABSENT and (value == "absent" or type(value) is not type(content[field])):
                assert not accepted, (field, value)


def test_a_word_for_an_outcome_that_is_not_known_here_keeps_its_events(device):
    device.publish("a")
    assert device.forge("reservations", RUN, GOOD["reservations"])
    assert device.forge("mutations", RUN, GOOD["mutations"])
    assert device.forge("mutations", RUN, mutation_outcome("compensated", number=2), column="outcome", version=2)
    assert device.mutations.outcome(WORK) == "unknown"
    assert device.status("a") == "unknown"


@pytest.mark.parametrize("table", FACTS)
@pytest.mark.parametrize("key", ["short", "text", "number", "empty"])
def test_a_key_that_is_no_id_fails_alone(device, table, key):
    packed = {
        "short": b"\x01\x0c\x02ab",
        "text": b"\x01\x0b\x10" + b"a" * 16,
        "number": b"\x01\x09\x05",
        "empty": b"\x01\x04",
    }
    _, _, *rest = forged(table, RUN, GOOD[table])
    with device.unchanged():
        assert len(device.absorb([(table, packed[key], *rest)])) == 1


@pytest.mark.parametrize("table", FACTS)
def test_a_row_that_is_only_announced_is_inert(device, table):
    assert device.absorb([deletion(table, RUN, alive=1)]) == []
    assert device.query(f"SELECT body FROM {table}") == [("{}",)]
    read_everything(device)
    assert device.query("SELECT (SELECT count(*) FROM event_index) + (SELECT count(*) FROM run_index)") == [(0,)]
    for read in (device.topics.get, device.runs.get, device.mutations.get, device.events.reservation):
        assert read(RUN.hex()) is None


def test_a_row_that_fails_leaves_local_writes_replicated(pair):
    """cr-sqlite marks what it merges; the mark must not outlive a failure."""
    one, two = pair
    assert not one.forge("publications", RUN, "not json")
    one.publish("a")
    one.reserve("a")
    meet(one, two)
    assert two.status("a") == "reserved"


def test_a_topic_that_was_only_announced_can_be_created(device):
    assert device.absorb([deletion("topics", bytes.fromhex(ids.topic_id("mail", "inbox")), alive=1)]) == []
    device.publish("a")
    assert [topic.name for topic in device.topics.list("mail")] == ["inbox"]


def test_a_run_that_was_only_announced_cannot_be_reserved_for(device):
    device.publish("a")
    assert device.absorb([deletion("reservations", RUN, alive=1)]) == []
    with device.unchanged(), pytest.raises(Exception, match="a run reserves once"):
        device.events.reserve(RUN.hex(), "mail", [("inbox", ["a"])])
    with device.unchanged(), pytest.raises(Exception, match="no such reservation"):
        device.events.consume(RUN.hex())


def test_a_state_without_its_body_is_inert_until_the_body_comes(device):
    device.publish("a")
    assert device.forge("reservations", RUN, "settled 3 consumed", column="state", version=3)
    assert device.status("a") == "pending"
    assert device.forge("reservations", RUN, GOOD["reservations"])
    assert device.status("a") == "consumed"


def test_a_word_for_a_state_that_is_not_known_here_holds(device):
    device.publish("a")
    assert device.forge("reservations", RUN, GOOD["reservations"])
    assert device.forge("reservations", RUN, "delegated", column="state", version=3)
    assert device.status("a") == "reserved"
    assert device.events.reservation(RUN.hex()).state == "delegated"


@pytest.mark.parametrize("claim", ["", "@", "@0", "@-1", "@x", "@1000001", "@" + "9" * 40])
def test_a_claim_without_a_usable_epoch_claims_nothing(device, claim):
    device.publish("a")
    body = reservation_body([], events=[event_of("a") + claim, event_of("unheard of") + claim, 5, None, ["x"], "aa@1"])
    assert device.forge("reservations", RUN, body)
    assert device.status("a") == "pending"
    assert device.events.reservation(RUN.hex()).claims == {}
    assert device.query("SELECT count(*) FROM event_index") == [(1,)]


def test_of_two_claims_of_one_run_on_one_event_the_first_counts(device):
    device.publish("a")
    assert device.forge("reservations", RUN, reservation_body([(event_of("a"), 2), (event_of("a"), 7)]))
    assert device.event("a").epoch == 2


def test_an_event_that_a_publication_names_twice_is_one(device):
    for order in ([b"p" * 16, b"q" * 16], [b"q" * 16, b"p" * 16]):
        with device.discarded():
            for identifier in order:
                names = ["a", "b", "a"] if identifier == b"p" * 16 else ["a"]
                assert device.forge("publications", identifier, publication_body(message_ids=names))
            assert device.query("SELECT count(*) FROM event_copies") == [(2,)]
            assert device.query("SELECT position FROM event_index ORDER BY n") in ([(0,), (1,)],)


def test_ids_that_are_none_name_no_events(device):
    body = publication_body(message_ids=["a"])
    body["ids"] += ["", "aa", "zz" * 16, 5, None, [], {"a": 1}]
    assert device.forge("publications", RUN, body)
    assert device.pending() == ["a"]
    assert device.query("SELECT count(*) FROM event_index") == [(1,)]


def test_a_publication_whose_ids_outnumber_its_events_shows_empty_ones(device):
    body = publication_body(message_ids=["a", "b"])
    body["events"].pop()
    assert device.forge("publications", RUN, body)
    assert [event.message_id for event in device.events.peek("mail", "inbox")] == ["a", ""]


def test_a_rewritten_publication_counts_as_it_stands_last(device):
    device.forge("publications", RUN, publication_body(message_ids=["a", "b"]))
    device.forge("publications", RUN, publication_body(message_ids=["b", "c"], at=(NOW_MS + 9) << 16), version=2)
    assert [event.id for event in device.events.peek("mail", "inbox")] == [event_of("b"), event_of("c")]
    device.forge("publications", RUN, "{}", version=3)
    assert device.events.peek("mail", "inbox") == []
    assert device.query("SELECT count(*) FROM event_index") == [(0,)]


def test_a_rewritten_reservation_counts_as_it_stands_last(device):
    device.publish("a", "b")
    device.forge("reservations", RUN, reservation_body([(event_of("a"), 1), (event_of("unheard of"), 1)]))
    device.forge("reservations", RUN, reservation_body([(event_of("b"), 5)]), version=2)
    assert (device.status("a"), device.status("b"), device.event("b").epoch) == ("pending", "reserved", 5)
    device.forge("reservations", RUN, "{}", version=3)
    assert (device.status("b"), device.event("b").epoch) == ("pending", 0)
    assert device.query("SELECT (SELECT count(*) FROM event_index), (SELECT count(*) FROM run_index)") == [(2, 0)]


@pytest.mark.parametrize("end", ["rewritten", "emptied", "deleted", "released"])
def test_a_second_outcome_that_goes_away_is_no_duplicate(device, end):
    device.publish("a")
    for identifier in (RUN, b"s" * 16):
        assert device.forge("reservations", identifier, GOOD["reservations"])
        assert device.forge("reservations", identifier, "settled 3 consumed", column="state")
    assert device.events.count_duplicates() == 1
    match end:
        case "rewritten":
            device.forge("reservations", RUN, reservation_body([]), version=2)
        case "emptied":
            device.forge("reservations", RUN, "{}", version=2)
        case "deleted":
            device.absorb([deletion("reservations", RUN)])
        case "released":
            device.forge("reservations", RUN, "released", column="state", version=2)
    assert device.events.count_duplicates() == 0
    assert device.status("a") == "consumed"


def test_the_clock_remembers_the_greatest_time_of_each_period_only(device):
    for number in range(20):
        device.forge("publications", bytes([number]) * 16, publication_body(at=(NOW_MS + number) << 16))
    assert device.query("SELECT latest FROM seen_times") == [((NOW_MS + 19) << 16,)]


def test_a_rebuild_corrects_what_was_damaged_and_says_what(device):
    device.publish("a", "b")
    run = device.reserve("a")
    device.events.consume(run)
    before = device.derived()
    with device.database.transaction(replicated=False) as transaction:
        transaction.execute("UPDATE event_index SET status = 0 WHERE id = ?", (bytes.fromhex(event_of("a")),))
        transaction.execute("DELETE FROM claims")
        transaction.execute("INSERT INTO duplicates SELECT n FROM event_index")
    assert rebuild(device.database).corrected == {"event_index": 2, "claims": 1, "duplicates": 2}
    assert device.derived() == before
    assert rebuild(device.database).corrected == {}


def test_a_rebuild_writes_nothing_that_replicates(device):
    device.publish("a")
    device.reserve("a")
    version = device.database.version()
    rebuild(device.database)
    device.publish("b")
    assert device.database.version() == version + 1


# The findings of the seed's review that are about the schema.


def test_every_fact_table_replicates(device):
    assert {*FACTS, "workflows", "script_runs"} <= set(device.database.replicated_tables())


def test_no_replicated_table_is_unique_in_anything_but_its_key(device):
    for table in device.database.replicated_tables():
        rows = device.query('SELECT name, origin FROM pragma_index_list(?) WHERE "unique"', (table,))
        assert all(origin == "pk" for _, origin in rows), (table, rows)


def test_all_times_are_whole_milliseconds(device):
    device.publish("a")
    run = device.runs.create("mail", "send", "consumer", session=device.sessions.create("s1", "mail").id)
    device.mutations.create(run.id, WORK, tool="send")
    device.mutations.mark_in_flight(run.id)
    device.mutations.mark_needs_reconcile(run.id, at=NOW_MS)
    device.mutations.resolve(WORK, "skip", by="Ann")
    device.states.set("mail", "poll", None, run=run.id, expected_version=0)
    device.runs.set_status(run.id, "crashed")
    times = []
    for table in (*FACTS, "workflows", "script_runs"):
        columns = [name for (name,) in device.query("SELECT name FROM pragma_table_xinfo(?)", (table,))]
        for row in device.query(f"SELECT {', '.join(columns)} FROM {table}"):
            fields = dict(zip(columns, row, strict=True))
            for name in ("body", "progress"):
                fields |= json.loads(fields.get(name, "{}"))
            times += [(table, name, value) for name, value in fields.items() if name.endswith("_at") and value]
    assert {table for table, _, _ in times} == {"topics", "handler_runs", "mutations", "workflows", "script_runs"}
    assert all(value == NOW_MS for _, _, value in times), times


def test_peek_takes_only_what_it_uses():
    assert list(inspect.signature(EventReader.peek).parameters) == [
        "self", "workflow", "topic", "limit", "status", "permitted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "row"),
    [("claims", "998, 999, 1"), ("event_copies", "998, zeroblob(16), 0, zeroblob(16), 0"), ("duplicates", "998")],
)
def test_a_rebuild_finds_rows_that_belong_to_no_event(device, table, row):
    with device.database.transaction(replicated=False) as transaction:
        transaction.execute(f"INSERT INTO {table} VALUES ({row})")
    assert rebuild(device.database).corrected == {table: 1}
    assert rebuild(device.database).corrected == {}


def test_a_permit_that_changes_its_run_stands_for_the_new_one_only(device):
    device.publish("a", "b")
    runs = [device.reserve(name) for name in ("a", "b")]
    works = [work_of(run) for run in runs]
    for run, work, name in zip(runs, works, ("a", "b"), strict=True):
        assert device.forge("permit_requests", bytes.fromhex(run), request_body(work, [event_of(name)]))
        assert device.forge("verdicts", bytes.fromhex(work), verdict_body(work, "happened"))

    def stands():
        effects = dict(device.query("SELECT lower(hex(id)), effect FROM run_index"))
        waiting = {run.hex() for (run,) in device.query("SELECT run FROM waiting_permits")}
        assert rebuild(device.database).corrected == {}
        return [(effects[run], run in waiting) for run in runs]

    assert stands() == [(0, True), (0, True)]
    for version, number in ((1, 0), (2, 1)):
        body = permit_body(runs[number], works[number], [event_of("ab"[number])])
        assert device.forge("permits", RUN, body, version=version)
        assert stands() == [(3, False), (0, True)][:: 1 if number == 0 else -1]
    with device.database.transaction() as transaction:
        transaction.execute("DELETE FROM permits")
    assert stands() == [(0, True), (0, True)]
