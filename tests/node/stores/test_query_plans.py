"""No statement of a store reads a whole table that grows: not its own SQL, and not the triggers that it sets off.

Every public method of every store is called while the connections are traced; what SQLite plans for each statement is
then searched for scans. A method that is not called here makes the test fail. So does one of a part of the event store
that does not run here, or that is neither offered by the event store nor known to be for other parts.
"""

import importlib
import pkgutil
from contextlib import contextmanager

import apsw
import pytest
from devices import NOW_MS, event_of, forged, reservation_body, work_of

from leasemesh.node import replication, stores
from leasemesh.node.stores import EventStore, NewEvent, events
from leasemesh.node.stores.base import Store

# Small by nature, or a list that was handed in.
NOT_GROWING = {
    "j", "json_each", "CONSTANT", "hybrid_clock", "node", "peers", "NEW", "OLD", "chain",
    "authorities", "authority_fences", "version_vector",
}  # fmt: skip

# Scans that are meant: (what is scanned and how, the statement's beginning, why).
MEANT = [
    ("SCAN workflows", "SELECT id, title, enabled", "the list of all workflows returns every row"),
    *(
        (scan, start, why)
        for start in ("SELECT id FROM holding_runs", "SELECT lower(hex(r.id)), lower(hex(r.node)), v.body")
        for scan, why in (
            ("SCAN run_index USING INDEX run_index_held", "has held ones only"),
            ("SCAN r USING INDEX run_index_kept", "has those only that gave back what their effects keep"),
            ("SCAN holding_runs", "both of them"),
        )
    ),
    ("SCAN r", "SELECT lower(hex(r.id)), lower(hex(r.node)), v.body", "the same"),
    ("SCAN duplicates", "SELECT count(*) FROM duplicates", "work done twice is rare, and people look at each"),
    ("SCAN duplicates", "SELECT e.id", "in the order asked for, up to the limit"),
    ("SCAN d", "SELECT e.id", "the rows of the line above"),
    ("SCAN e USING INDEX event_index_dead", "SELECT e.id", "the dead, in the order asked for, up to the limit"),
    ("SCAN waiting_permits", "SELECT id, body FROM permit_requests", "in the order of its key, up to the limit"),
    ("SCAN handler_blocks USING INDEX", "SELECT id, body FROM handler_blocks", "all of them: a row for each handler"),
    ("SCAN devices", "SELECT id, body FROM devices", "all of them: a row for each device"),
    (
        "SCAN handler_runs USING INDEX sqlite_autoindex_handler_runs_1",
        "SELECT id, body, phase, status, progress, ended FROM handler_runs WHERE body <> '{}' ORDER BY id DESC LIMIT",
        "the newest, in the order of the key, up to the limit",
    ),
    ("SCAN w", "WITH RECURSIVE w (name) AS (SELECT min(workflow)", "a row for each workflow, found by the index"),
    ("SCAN polls", "SELECT lower(hex(run)), body ->> '$.node' FROM polls", "all of them: a row for each producer"),
    ("SCAN eras", "SELECT era FROM eras ORDER BY first_version DESC LIMIT 1", "reads the last row"),
]  # fmt: skip

# What merges do to the facts and stores do not.
MERGES = [
    "UPDATE publications SET body = '{}' WHERE id = zeroblob(16)",
    "DELETE FROM publications WHERE id = zeroblob(16)",
    "UPDATE reservations SET body = '{}' WHERE id = zeroblob(16)",
    "UPDATE reservations SET state = 'held' WHERE id = zeroblob(16)",
    "DELETE FROM reservations WHERE id = zeroblob(16)",
    "INSERT INTO mutations (id) VALUES (zeroblob(16))",
    "UPDATE mutations SET body = '{}' WHERE id = zeroblob(16)",
    "UPDATE mutations SET outcome = '' WHERE id = zeroblob(16)",
    "DELETE FROM mutations WHERE id = zeroblob(16)",
    "INSERT INTO verdicts (id) VALUES (zeroblob(16))",
    "UPDATE verdicts SET body = '{}' WHERE id = zeroblob(16)",
    "DELETE FROM verdicts WHERE id = zeroblob(16)",
    "INSERT INTO permit_requests (id) VALUES (zeroblob(16))",
    "UPDATE permit_requests SET body = '{}' WHERE id = zeroblob(16)",
    "DELETE FROM permit_requests WHERE id = zeroblob(16)",
    "UPDATE permits SET body = '{}' WHERE id = zeroblob(16)",
    "DELETE FROM permits WHERE id = zeroblob(16)",
]


@contextmanager
def traced(database):
    """Collect the statements that both connections run, each with one set of its parameters."""
    statements = {}

    def note(_cursor, sql, bindings):
        statements.setdefault(sql, bindings)
        return True

    connections = (database._writer, database._reader)
    for connection in connections:
        connection.exec_trace = note
    try:
        yield statements
    finally:
        for connection in connections:
            connection.exec_trace = None


def plan(database, sql, bindings=None):
    """The steps that SQLite plans for a statement and for all triggers that it sets off."""
    connection = database._writer
    connection.config(apsw.SQLITE_DBCONFIG_TRIGGER_EQP, 1)
    try:
        return [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
    finally:
        connection.config(apsw.SQLITE_DBCONFIG_TRIGGER_EQP, 0)


def full_scans(steps, sql):
    """Those steps that read a growing table from end to end, or build an index of it for one statement."""
    found = []
    for step in steps:
        words = step.split()
        meant = any(step.startswith(scan) and sql.lstrip().startswith(start) for scan, start, _ in MEANT)
        # A name in parentheses is a subquery, whose own steps are judged.
        scans = words[0] == "SCAN" and words[1] not in NOT_GROWING and not words[1].startswith("(")
        if (scans and not meant) or "AUTOMATIC" in words:
            found.append(step)
    return found


def final_classes(base):
    """The classes made from `base` that no other is made from."""
    made = base.__subclasses__()
    return {base} if not made else set().union(*map(final_classes, made))


def store_classes():
    """The event store, whose parts nobody uses by themselves, and all others."""
    for package in (stores, replication):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(info.name)
    return {EventStore} | {one for one in final_classes(Store) if not is_part(one)}


def is_part(store_class):
    return store_class.__module__.startswith(events.__name__)


def parts_of_the_event_store():
    return {one for one in final_classes(Store) if is_part(one)}


def public_methods(store):
    return {name for name in dir(store) if not name.startswith("_") and callable(getattr(store, name))}


# What parts of the event store have for each other, and the event store does not offer.
FOR_OTHER_PARTS = {
    "by_ids", "newest_generations", "own_state", "claimed_and_owned", "not_owned", "mode", "refuse_permitted", "claim",
}  # fmt: skip


@contextmanager
def noted(classes):
    """Collect the public methods of these classes that run, called from outside or by each other."""
    ran = set()
    with pytest.MonkeyPatch.context() as patch:
        for one in classes:
            for name in public_methods(one):
                patch.setattr(one, name, noting(getattr(one, name), ran))
        yield ran


def noting(method, ran):
    def run_and_note(*args, **kwargs):
        ran.add(method.__qualname__)
        return method(*args, **kwargs)

    return run_and_note


class Caller:
    """Passes calls on to a store and notes which methods were called."""

    def __init__(self, store):
        self.store = store
        self.called = set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.store, name)


def call_event_store(events, device):
    new_run = device.runs.new_id
    events.publish("mail", "inbox", "a", created_by_run=new_run(), caused_by=event_of("x"))
    events.publish_many("mail", "inbox", [NewEvent(name) for name in "bcdefghi"])
    events.peek("mail", "inbox")
    events.get(event_of("a"))
    events.get_by_message_id("mail", "inbox", "a")
    events.get_many("mail", "inbox", ["a", "b"])
    events.find(event_of("a"))
    events.any_pending("mail", "inbox")
    events.pending_mark("mail", "inbox")
    events.counts("mail")
    runs = [new_run() for _ in range(6)]
    events.reserve(runs[0], "mail", [("inbox", ["a", "b"])])
    events.reserve(runs[1], "mail", [("inbox", ["a", "c"])], partial=True)
    events.reserve_next(runs[2], "mail", "inbox", limit=2)
    events.reserve(runs[3], "mail", [("inbox", ["f"])])
    events.take_over(runs[4], [event_of("f")])
    events.decided_holder([event_of("e")])
    events.take_over_run(runs[5], runs[4], handler="manual")
    events.effect_behind(runs[5])
    events.is_continued(runs[4])
    events.stale_candidates([("mail", "manual")])
    events.reserved_by(runs[0])
    events.require_owned(runs[0])
    events.reservation(runs[0])
    events.find_run(runs[0])
    events.held_runs(own=True)
    events.held_runs(own=False)
    device.effect(runs[0])
    events.consume(runs[0])
    events.skip(runs[1])
    events.dead_letter(runs[2])
    events.release(runs[4])
    events.release(runs[5])
    events.consume(runs[3], effect_happened=True)
    # A duplicate.
    twin = b"t" * 16
    device.absorb([
        forged("reservations", twin, reservation_body([(event_of("a"), 1)])),
        forged("reservations", twin, "settled 3 consumed", column="state"),
    ])  # fmt: skip
    assert [event.message_id for event in events.duplicates()] == ["a"]
    assert events.count_duplicates() == 1
    events.requeue(event_of("a"), by="Ann")
    events.explain(event_of("a"))
    events.dead_letters()
    events.dead_letters("mail")


def call_topic_store(topics, device):
    topic = topics.get_or_create("mail", "inbox")
    topics.get(topic.id)
    topics.get_by_name("mail", "inbox")
    topics.list("mail")
    topics.delete(topic.id)


def call_handler_run_store(runs, device):
    run = runs.create("mail", "send", "consumer", run=runs.new_id(), session="s1").id
    runs.new_id()
    runs.get(run)
    runs.advance(run, "preparing")
    runs.set_status(run, "crashed")
    retry = runs.create("mail", "send", "consumer", retry_of=run).id
    runs.retry_chain(retry)
    runs.advance(retry, "preparing", "prepared", "emitting")
    runs.create("mail", "send", "consumer", retry_of=retry, phase="emitting")
    runs.advance(retry, "committed")
    runs.find(retry)
    runs.own_incomplete()
    runs.recent("mail", "send")
    runs.recent("mail", "send", node=device.node)
    runs.list()
    runs.list("mail")
    runs.list("mail", "send")
    runs.list("mail", "send", "crashed")
    runs.list(handler="send")
    runs.list(status="crashed")
    runs.by_session("s1")
    for poll in (runs.new_id(), runs.new_id()):
        runs.begin_poll("mail", "poll", run=poll, session="s1")
    runs.record_poll(poll)
    runs.forget_poll(min(runs.polls()))


def call_mutation_store(mutations, device):
    device.publish(*"abcdef")
    runs = [device.reserve(name) for name in "abcdef"]
    for run in runs[:5]:
        mutations.create(run, work_of(run), tool="send")
        mutations.get(run)
        mutations.mark_in_flight(run)
    mutations.mark_applied(runs[0])
    mutations.mark_failed(runs[1])
    mutations.mark_needs_reconcile(runs[2], at=NOW_MS)
    mutations.schedule_reconcile(runs[2], at=NOW_MS)
    mutations.mark_indeterminate(runs[3])
    work = mutations.work_for(runs[5])
    mutations.earlier_works(runs[5])
    mutations.intend(runs[5], work, tool="send")
    mutations.due(NOW_MS)
    mutations.next_due_at()
    mutations.unresolved()
    mutations.own_in_flight()
    mutations.outcome(work_of(runs[3]))
    mutations.resolve(work_of(runs[3]), "skip", by="Ann")
    mutations.resolve(work_of(runs[3]), "happened", by="Ann")
    mutations.verdicts(work_of(runs[3]))
    mutations.result_of(work_of(runs[3]))
    mutations.outcome("0" * 32)
    mutations.resolve(work, "not_happened", by="Ann")
    mutations.mark_indeterminate(runs[5])
    mutations.work_for(device.reserve("f", topic="other") if False else runs[5])


def call_handler_state_store(states, device):
    states.set("mail", "poll", 1, run="r1", expected_version=0)
    states.set("mail", "poll", 2, run="r1", expected_version=1)
    states.get("mail", "poll")
    states.list("mail")
    states.looked_in_vain("mail")
    states.set_wake_at("mail", "poll", NOW_MS)
    states.wake_at("mail", "poll")
    states.set_wake_at("mail", "poll", None)


def call_workflow_store(workflows, device):
    workflows.get_or_create("mail")
    workflows.get("mail")
    workflows.list()
    workflows.update("mail", title="Mail", enabled=True, status="active", error="", handler_config={})


def call_script_run_store(sessions, device):
    sessions.create("s1", "mail")
    sessions.get("s1")
    sessions.by_workflow("mail")
    sessions.add_handler_run("s1")
    sessions.end("s1")


def call_peer_store(peers, device):
    peers.replace([])
    peers.list()


def call_setting_store(settings, device):
    settings.get_or_set("name", "laptop")
    settings.set("name", "desktop")
    settings.get("name")


def call_authority_store(authorities, device):
    authorities.appoint(device.node, by="Ann")
    authorities.step()
    authorities.granting()
    authorities.asking()
    authorities.move("bb" * 16, by="Ann", gone=["cc" * 16])
    authorities.step()
    authorities.appointments()
    authorities.known_nodes()
    authorities.info()


def call_mode_store(modes, device):
    modes.set("mail", "home", topic="inbox")
    modes.set("mail", "home", topic="inbox", home="bb" * 16)
    modes.set("mail", "confirmed", topic="inbox", gone=True)
    modes.get("mail", topic="inbox")
    modes.list("mail")
    modes.claiming("mail", ["inbox"], "send")
    modes.gone_homes("mail", ["inbox"], "send")


def call_handler_block_store(blocks, device):
    blocks.block("mail", "send", reason="five failures", node=device.node)
    blocks.get("mail", "send")
    blocks.last("mail", "send")
    blocks.list()
    blocks.list("mail")
    blocks.unblock("mail", "send", by="Ann", node=device.node)


def call_device_store(devices, device):
    devices.announce("laptop")
    devices.name_of(device.node)
    devices.list()


def call_permit_store(permits, device):
    device.authorities.appoint(device.node, by="Ann")
    device.authorities.step()
    device.publish("a", "b")
    run = device.reserve("a")
    permits.work_for(run)
    permits.earlier_works(run)
    permits.request(run)
    permits.waiting()
    permits.decide_pending()
    assert permits.require(run) == permits.get(run)
    assert permits.holders(event_of("a")) == [run]
    assert not permits.anyone_waits()
    permits.ask_again()


CALLS = {
    "AuthorityStore": call_authority_store,
    "DeviceStore": call_device_store,
    "EventStore": call_event_store,
    "HandlerBlockStore": call_handler_block_store,
    "TopicStore": call_topic_store,
    "HandlerRunStore": call_handler_run_store,
    "MutationStore": call_mutation_store,
    "HandlerStateStore": call_handler_state_store,
    "WorkflowStore": call_workflow_store,
    "ScriptRunStore": call_script_run_store,
    "PeerStore": call_peer_store,
    "ModeStore": call_mode_store,
    "PermitStore": call_permit_store,
    "SettingStore": call_setting_store,
}


@pytest.mark.parametrize(
    "store_class", sorted(store_classes(), key=lambda one: one.__name__), ids=lambda one: one.__name__
)
def test_no_statement_of_a_store_reads_a_growing_table_from_end_to_end(device, store_class):
    parts = parts_of_the_event_store() if store_class is EventStore else set()
    with noted(parts) as ran:
        store = store_class(device.database)
        caller = Caller(store)
        with traced(device.database) as statements:
            CALLS[store_class.__name__](caller, device)
    assert caller.called == public_methods(store), "every public method must be called here"
    assert ran == {f"{part.__name__}.{name}" for part in parts for name in public_methods(part)}
    planned = {
        sql: full_scans(plan(device.database, sql, bindings), sql)
        for sql, bindings in statements.items()
        if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH") and "crsql_" not in sql
    }
    assert len(planned) >= 2
    assert {sql: scans for sql, scans in planned.items() if scans} == {}


def test_the_event_store_offers_what_its_parts_do_not_have_for_each_other(device):
    of_parts = [name for part in parts_of_the_event_store() for name in public_methods(part)]
    assert len(of_parts) == len(set(of_parts))
    assert set(of_parts) - public_methods(EventStore(device.database)) == FOR_OTHER_PARTS


@pytest.mark.parametrize("sql", MERGES)
def test_what_a_merge_does_reads_no_growing_table_from_end_to_end(device, sql):
    steps = plan(device.database, sql)
    assert any("TRIGGER" in step for step in steps), "the plan shows the triggers too"
    assert full_scans(steps, sql) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM event_index WHERE at > 5",
        "SELECT id FROM run_index WHERE state = 3",
        "SELECT id FROM handler_runs WHERE phase = 'pending'",
        "SELECT count(*) FROM claims",
        "SELECT 1 FROM event_index AS e JOIN run_index AS r ON r.at = e.at WHERE e.id = zeroblob(16)",
        "UPDATE publications SET body = '{}'",
    ],
)
def test_a_full_scan_is_found(device, sql):
    assert full_scans(plan(device.database, sql), sql)


def test_a_full_scan_in_a_trigger_is_found(device):
    with device.database.transaction() as transaction:
        transaction.execute(
            "CREATE TRIGGER slow AFTER INSERT ON topics "
            "BEGIN UPDATE event_index SET epoch = 0 WHERE at = NEW.created_at; END"
        )
    sql = "INSERT INTO topics (id) VALUES (zeroblob(16))"
    assert full_scans(plan(device.database, sql), sql) == ["SCAN event_index"]
