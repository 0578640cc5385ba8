"""Devices with a database and its stores each, merges between them, and forged rows as a hostile peer sends them."""

import itertools
import json
import shutil
from contextlib import closing, contextmanager
from random import Random

import apsw

from leasemesh.node.database.file import Database
from leasemesh.node.database.migrate import own_migrations, upgrade
from leasemesh.node.database.tables import TABLES
from leasemesh.node.model import ids
from leasemesh.node.replication.version_vectors import StateReader, raise_vector
from leasemesh.node.stores import Stores

NOW_MS = 1_700_000_000_000
HOSTILE_SITE = b"a hostile device"
COLUMNS = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'
FACTS = tuple(table.name for table in TABLES if table.replicated and table.json)
DERIVED = {table.name: table.content for table in TABLES if table.content}


class RolledBack(Exception):
    """Ends a transaction that a test does not want to keep."""


class Device(Stores):
    """One database file with all stores, a clock that the test sets, and randomness from a seed."""

    def __init__(self, path, *, seed=0, template=None):
        """With a `template`, a migrated file, the device begins as its copy with a site id of its own."""
        self.path = path
        self.now_ms = NOW_MS
        self.random = Random(seed)
        if template:
            shutil.copyfile(template, path)
            with closing(apsw.Connection(str(path))) as connection:
                connection.execute("UPDATE crsql_site_id SET site_id = ?", (self.random.randbytes(16),))
        super().__init__(Database.open(path, clock_ms=lambda: self.now_ms, random_bytes=self.random.randbytes))
        upgrade(self.database, [own_migrations()])
        self.runs, self.sessions = self.handler_runs, self.script_runs
        self.states, self.blocks = self.handler_states, self.handler_blocks

    @property
    def node(self):
        return self.database.site_id.hex()

    def query(self, sql, parameters=()):
        return self.database.query(sql, parameters)

    def publish(self, *message_ids, topic="inbox", workflow="mail"):
        for message_id in message_ids:
            self.events.publish(workflow, topic, message_id, title=f"Title of {message_id}", payload={"id": message_id})

    def delete(self, topic="inbox", workflow="mail", *, force=False):
        """Delete a topic; returns how many events there were."""
        return self.topics.delete(ids.topic_id(workflow, topic), force=force)

    def reserve(self, *message_ids, topic="inbox", workflow="mail", **options):
        """Reserve by name; returns the run."""
        run = self.runs.new_id()
        self.events.reserve(run, workflow, [(topic, message_ids)], **options)
        return run

    def event(self, message_id, topic="inbox", workflow="mail"):
        return self.events.get_by_message_id(workflow, topic, message_id)

    def status(self, message_id, topic="inbox", workflow="mail"):
        return self.event(message_id, topic, workflow).status

    def pending(self, topic="inbox", workflow="mail"):
        return [event.message_id for event in self.events.peek(workflow, topic, limit=10_000)]

    def effect(self, run, work=None, tool="send"):
        """Enter an effect for `run` and let it be in flight."""
        self.mutations.create(run, work or work_of(run), tool=tool)
        self.mutations.mark_in_flight(run)
        return work or work_of(run)

    def changes(self):
        """All that a peer could be sent."""
        with self.database.transaction(replicated=False) as transaction:
            return transaction.execute(f"SELECT {COLUMNS} FROM crsql_changes ORDER BY db_version, seq")

    def absorb(self, rows):
        """Merge rows; returns those that fail alone."""
        refused = []
        with self.database.transaction(source="peer") as transaction:
            for row in rows:
                try:
                    with self.database.transaction():
                        transaction.execute(f"INSERT INTO crsql_changes ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", row)
                except apsw.Error:
                    refused.append(row)
        return refused

    def forge(self, table, identifier, value, *, column="body", version=1, alive=1):
        """Merge one made-up cell; returns whether it was accepted."""
        return not self.absorb([forged(table, identifier, value, column=column, version=version, alive=alive)])

    def derived(self):
        return {table: sorted(self.query(sql), key=repr) for table, sql in DERIVED.items()}

    def facts(self):
        return {table: sorted(self.query(f"SELECT * FROM {table}"), key=repr) for table in FACTS}

    def dump(self):
        """Everything that the file holds, replicated or not; but for the eras, which say who may write from now on."""
        with self.database.transaction(replicated=False) as transaction:
            tables = transaction.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'eras' ORDER BY name"
            )
            return {name: sorted(transaction.execute(f'SELECT * FROM "{name}"'), key=repr) for (name,) in tables}

    @contextmanager
    def unchanged(self):
        """Nothing may be written in this block."""
        before = self.dump()
        yield
        assert self.dump() == before

    @contextmanager
    def discarded(self):
        """What is written in this block is undone: an example of a property test leaves nothing behind."""
        try:
            with self.database.transaction(durable=True):
                yield
                raise RolledBack
        except RolledBack:
            pass

    def close(self):
        self.database.close()


def work_of(run):
    return ids.work_id(ids.handler_id("mail", "send"), [ids.EventId(run)])


def forged(table, identifier, value, *, column="body", version=1, alive=1):
    """A change as cr-sqlite would read it from a hostile device's database."""
    key = b"\x01\x0c\x10" + identifier
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return (table, key, column, value, version, 1, HOSTILE_SITE, alive, 0)


def deletion(table, identifier, *, alive=2):
    return forged(table, identifier, None, column="-1", version=alive, alive=alive)


def publication_body(topic="inbox", message_ids=("a",), at=NOW_MS << 16, workflow="mail", **fields):
    topic_id = ids.topic_id(workflow, topic)
    return {
        "workflow": workflow,
        "topic": topic,
        "topic_id": topic_id,
        "at": at,
        "ids": ids.event_ids(topic_id, list(message_ids)),
        "events": [{"message_id": name, "title": "", "payload": None} for name in message_ids],
        **fields,
    }


def reservation_body(claims, *, node="00" * 16, at=NOW_MS << 16, **fields):
    """`claims`: (event id, epoch) pairs."""
    return {
        "node": node,
        "incarnation": "00",
        "workflow": "mail",
        "handler": "send",
        "at": at,
        "events": [f"{event}@{epoch}" for event, epoch in claims],
        **fields,
    }


def run_body(*, node="00" * 16, **fields):
    return {
        "node": node,
        "incarnation": "00",
        "workflow": "mail",
        "handler": "send",
        "kind": "consumer",
        "session": None,
        "retry_of": None,
        "started_at": NOW_MS,
        **fields,
    }


def mutation_body(work, *, node="00" * 16, **fields):
    return {
        "node": node,
        "incarnation": "00",
        "work": work,
        "tool": "send",
        "params": None,
        "created_at": NOW_MS,
        **fields,
    }


def mutation_progress(status, **fields):
    return {
        "status": status,
        "attempts": 0,
        "next_reconcile_at": None,
        "error": None,
        "updated_at": NOW_MS,
        **fields,
    }


def mutation_outcome(status, *, number=None, **fields):
    """What the column `outcome` says of applied and failed; other statuses have none."""
    number = {"failed": 0, "applied": 1}[status] if number is None else number
    return f"{number} {status} {json.dumps({'at': NOW_MS, 'result': None, **fields})}"


def verdict_body(work, verdict, *, node="00" * 16, **fields):
    return {"work": work, "node": node, "verdict": verdict, "by": "Ann", "result": None, "at": NOW_MS, **fields}


def request_body(work, events, *, node="00" * 16, generation=1, **fields):
    return {
        "node": node,
        "workflow": "mail",
        "handler": "send",
        "work": work,
        "events": events,
        "generation": generation,
        "withdrawn": False,
        "asked_at": NOW_MS,
        **fields,
    }


def permit_body(run, work, events, *, node="00" * 16, generation=1, **fields):
    return {
        "node": node,
        "run": run,
        "work": work,
        "events": events,
        "generation": generation,
        "refused": None,
        "at": NOW_MS,
        **fields,
    }


def event_of(message_id, topic="inbox", workflow="mail"):
    return ids.event_id(ids.topic_id(workflow, topic), message_id)


def merge(source, target):
    """Copy what `source` has to `target`. Among honest devices no row is refused."""
    assert target.absorb(source.changes()) == []


def absorb_all(source, target):
    """A whole transfer: afterwards `target` knows that it includes all that `source` had."""
    vector = StateReader().read(source.query).vector
    merge(source, target)
    with target.database.transaction(replicated=False) as transaction:
        raise_vector(transaction.execute, vector, target.database.site_id)


def meet(*devices):
    """Merge all into all; afterwards all have the same facts and derive the same."""
    for source, target in itertools.permutations(devices, 2):
        merge(source, target)
    for source, target in itertools.permutations(devices, 2):
        merge(source, target)
    for device in devices[1:]:
        assert device.facts() == devices[0].facts()
        assert device.derived() == devices[0].derived()
