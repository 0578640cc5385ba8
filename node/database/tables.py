"""What each table of leasemesh is: the one list that everything else asks.

The columns stand in `migrations/`. tests/node/test_schema.py proves that this list names exactly the tables of the
schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Writer = Literal["anyone", "its node", "immutable", "triggers", "this file"]
"""Who writes the rows of a table.

| writer | meaning |
|---|---|
| anyone | a register: the last writer of a column wins |
| its node | a fact of the one node that its body names |
| immutable | a fact whose id is a hash of what it says, or that one node creates once: it never changes |
| triggers | derived from the facts, local |
| this file | local, not derived |
"""

Waits = Literal["handlers", "gates", "recovery", "authority", "authority when asked"]
"""Who may have something to do after a change of a table.

| who | because |
|---|---|
| handlers | something may be pending that was not |
| gates | a handler may be blocked, or let run again |
| recovery | what is to be done about what was left behind may be decided, when it comes from outside |
| authority | there may be something to decide |
| authority when asked | the same, while a request waits: events change all the time, and each look costs time |
"""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: its name.
        row: what one row is.
        writer: who writes it. What `anyone`, `its node` and `immutable` write replicates.
        json: the columns that hold JSON, or a word with JSON behind it.
        derive: for a fact from which others follow: the statement that derives them, of the fact's id.
        content: for a derived table: what it says, without the local numbers, which depend on the order of arrival.
            Each row of the table is a row of it, also one that belongs to nothing.
        wakes: who may have something to do when it changes.
    """

    name: str
    row: str
    writer: Writer
    json: tuple[str, ...] = ()
    derive: str = ""
    content: str = ""
    wakes: tuple[Waits, ...] = ()

    @property
    def replicated(self) -> bool:
        """Whether its rows travel to other devices."""
        return self.writer in ("anyone", "its node", "immutable")


TABLES = (
    # Facts, in the order in which a rebuild derives from them.
    Table("workflows", "a workflow", "anyone", wakes=("gates",)),
    Table("script_runs", "a session: a burst of activity of a workflow", "anyone"),
    Table("topics", "a topic; its id is a hash of (workflow, name)", "immutable", json=("body",)),
    Table(
        "publications",
        "a batch of up to 128 events of one topic",
        "immutable",
        json=("body",),
        derive="INSERT INTO absorb_publication SELECT * FROM published WHERE id = ?",
        wakes=("handlers", "authority when asked"),
    ),
    Table(
        "reservations",
        "all claims of one run; `body` never changes, `state` does",
        "its node",
        json=("body",),
        derive="INSERT INTO absorb_reservation SELECT * FROM reserved WHERE id = ?",
        wakes=("handlers", "recovery", "authority when asked"),
    ),
    Table("handler_runs", "one attempt of one handler", "its node", json=("body", "progress", "ended")),
    Table(
        "mutations",
        "the ledger entry of a run's external effect",
        "its node",
        json=("body", "progress", "outcome"),
        derive="INSERT INTO absorb_entry SELECT id, work FROM mutations WHERE id = ? AND work IS NOT NULL",
        wakes=("handlers", "recovery", "authority when asked"),
    ),
    Table(
        "verdicts",
        "a person's word on an unknown outcome",
        "its node",
        json=("body",),
        wakes=("handlers", "recovery", "authority"),
    ),
    Table("handler_state", "a handler's state as one node last wrote it", "its node", json=("body",)),
    Table(
        "permits",
        "a decision on a request",
        "its node",
        json=("body",),
        derive="INSERT INTO absorb_permit SELECT id, run FROM permits WHERE id = ? AND body <> '{}'",
        wakes=("handlers", "authority"),
    ),
    Table(
        "permit_requests",
        "a run's request for a permit",
        "its node",
        json=("body",),
        derive="INSERT INTO absorb_permit_request SELECT id FROM permit_requests WHERE id = ? AND body <> '{}'",
        wakes=("handlers", "authority"),
    ),
    Table("authorities", "an appointment of an authority", "its node", json=("body",), wakes=("authority",)),
    Table(
        "authority_fences",
        "that a node stepped back for an authority",
        "its node",
        json=("body",),
        wakes=("authority",),
    ),
    Table("modes", "how a topic or a handler is claimed", "anyone", json=("body",), wakes=("handlers",)),
    Table("handler_blocks", "a handler that must not run", "anyone", json=("body",), wakes=("gates",)),
    Table("devices", "what a node is called", "its node", json=("body",)),
    # What follows from them.
    Table(
        "event_index",
        "an event: where its content is, its status and its owner",
        "triggers",
        content="SELECT e.id, e.publication, e.position, e.topic, e.at, e.status, e.epoch, r.id "
        "FROM event_index AS e LEFT JOIN run_index AS r ON r.n = e.run",
    ),
    Table(
        "event_copies",
        "a publication of an event that was published more than once",
        "triggers",
        content="SELECT e.id, c.publication, c.position, c.topic, c.at FROM event_copies AS c "
        "LEFT JOIN event_index AS e ON e.n = c.event",
    ),
    Table(
        "run_index", "a run that claims events", "triggers", content="SELECT id, node, state, effect, at FROM run_index"
    ),
    Table(
        "claims",
        "a run's claim on an event",
        "triggers",
        content="SELECT e.id, r.id, c.epoch FROM claims AS c LEFT JOIN event_index AS e ON e.n = c.event "
        "LEFT JOIN run_index AS r ON r.n = c.run",
    ),
    Table(
        "duplicates",
        "an event that was done twice",
        "triggers",
        content="SELECT e.id FROM duplicates AS d LEFT JOIN event_index AS e ON e.n = d.event",
    ),
    Table(
        "permitted_events",
        "an event of a permit that stands",
        "triggers",
        content="SELECT event, permit FROM permitted_events",
    ),
    Table(
        "waiting_permits",
        "a request that nobody has decided",
        "triggers",
        content="SELECT run, node, generation FROM waiting_permits",
    ),
    # What a file keeps for itself.
    Table("node", "a setting of this node", "this file"),
    Table("eras", "from which version on which process wrote", "this file"),
    Table("version_vector", "up to where this file includes another site's history", "this file"),
    Table("absorbed", "a range of versions that came out of one transfer", "this file"),
    Table("resume", "how far an unfinished transfer came", "this file"),
    Table("quarantined", "a change that cannot be applied yet", "this file"),
    Table("heartbeats", "when a node last gave a sign of life", "this file"),
    Table("peers", "a link of the process that syncs this file", "this file"),
    Table("claim_watches", "since when another node's claims are seen unchanged", "this file"),
    Table("wake_ups", "when a consumer wants to run next", "this file"),
    Table("polls", "a producer's poll that is under way", "this file"),
    Table("hybrid_clock", "the last hybrid time that was issued here", "this file"),
    Table("seen_times", "the greatest hybrid time seen in a period", "this file"),
    Table("schema_migrations", "a migration that was applied", "this file"),
)

ONE_WRITER_TABLES = tuple(table.name for table in TABLES if table.writer == "its node")
JSON_COLUMNS = {table.name: frozenset(table.json) for table in TABLES if table.json}


def tables_that_wake(who: Waits) -> frozenset[str]:
    """Return the tables whose change may give `who` something to do."""
    return frozenset(table.name for table in TABLES if who in table.wakes)
