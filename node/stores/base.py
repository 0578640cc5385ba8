"""What all stores share: one database, explicit transactions, rows with a JSON body and one writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.errors import Ambiguous, InvalidInput, NotOwner
from leasemesh.node.model.ids import EventId, NodeId, TopicId, to_blob
from leasemesh.node.model.jsonvalue import decode_object

WorkOutcome = Literal["none", "applied", "failed", "skipped", "unknown"]

CLAIMS_MAX = 1_000
"""Events in one reservation: it is one row, and settling it is one transaction."""

LIST_MAX = 10_000
"""What one list holds at the most. A caller who wants more asks again."""

INTERNAL_PREFIX = "~"
"""With it begin the names of topics that the runtime keeps for itself: they have no mode, are hidden from lists, and
nobody else publishes there."""

INTERNAL_TOPICS = f"{INTERNAL_PREFIX}*"
"""Their names as a GLOB pattern of SQLite."""


class Store:
    """A store of one or a few tables. All stores of a node share its database.

    Every method may be called inside `database.transaction()` or alone. Alone, it is a transaction of its own. Reads
    of something absent give None or an empty list.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def _node(self) -> NodeId:
        return NodeId(self._database.site_id.hex())

    def _bodies(self, table: str, condition: str, parameters: tuple[Any, ...]) -> list[tuple[str, dict[str, Any]]]:
        """Return (id, body) of the fact rows that fit; `table` and `condition` are constants of the calling store.

        A row without a readable body is left out: it is absent, or waits for its body.
        """
        rows = self._database.query(f"SELECT id, body FROM {table} WHERE {condition}", parameters)
        found = ((identifier.hex(), decode_object(body)) for identifier, body in rows)
        return [(identifier, body) for identifier, body in found if body]

    def _by_prefix(self, table: str, kind: str, prefix: str) -> str | None:
        """Return the id that begins with `prefix`. `table` and `kind` are constants of the calling store."""
        if not isinstance(prefix, str):
            raise InvalidInput(kind, f"must be text, not {type(prefix).__name__}")
        prefix = prefix.lower()
        if not 4 <= len(prefix) <= 2 * ids.ID_BYTES or prefix.strip("0123456789abcdef"):
            raise InvalidInput(kind, f"{prefix!r} is not the beginning of an id (4 to 32 hexadecimal characters)")
        low, high = bytes.fromhex(prefix.ljust(32, "0")), bytes.fromhex(prefix.ljust(32, "f"))
        rows = self._database.query(f"SELECT lower(hex(id)) FROM {table} WHERE id BETWEEN ? AND ? LIMIT 4", (low, high))
        if len(rows) > 1:
            raise Ambiguous(kind, prefix, [row[0] for row in rows])
        return str(rows[0][0]) if rows else None

    def _refuse_run_of_other_writer(self, run: str) -> None:
        """Refuse to write rows for a run that is known as another node's."""
        rows = self._database.query(
            "SELECT lower(hex(node)) FROM run_index WHERE id = ?1 UNION ALL "
            "SELECT body ->> '$.node' FROM handler_runs WHERE id = ?1 AND body <> '{}'",
            (blob_of(run),),
        )
        for (node,) in rows:
            self._refuse_other_writer(run, node)

    def _refuse_other_writer(self, run: str, node: str) -> None:
        if node != self._node:
            raise NotOwner(run, node)


def is_internal(topic: str) -> bool:
    """Tell whether a topic of that name is the runtime's own."""
    return topic.startswith(INTERNAL_PREFIX)


def blob_of(identifier: str) -> bytes:
    """Return an id as the database stores it.

    Raises:
        InvalidInput: when it is not an id.
    """
    try:
        return to_blob(identifier)
    except (ValueError, TypeError) as error:
        raise InvalidInput("id", f"{identifier!r} is not an id of 32 lowercase hexadecimal characters") from error


def said_in(ending: str) -> dict[str, Any]:
    """Return the object in a cell that is written once, "<number> <word> {...}". {} while it is empty."""
    _, brace, rest = ending.partition("{")
    return decode_object(brace + rest)


def work_outcome(database: Database, work: str) -> WorkOutcome:
    """Return the one answer that all runs of a work and all verdicts on it come to."""
    ((outcome,),) = database.query(
        "SELECT coalesce((SELECT w.outcome FROM work_outcomes AS w WHERE w.work = ?1 LIMIT 1), "
        "(SELECT o.outcome FROM verdict_outcomes AS o WHERE o.work = ?1 LIMIT 1), 'none')",
        (blob_of(work),),
    )
    return cast(WorkOutcome, outcome)


def give_up_permit(transaction: Transaction, run: str) -> None:
    """Withdraw the request of a run of this node, if it made one, when its reservation has ended and its effect
    certainly did not happen."""
    transaction.execute(
        "UPDATE permit_requests SET body = json_set(body, '$.withdrawn', json('true')) "
        "WHERE id = ?1 AND body <> '{}' AND NOT withdrawn "
        "AND EXISTS (SELECT 1 FROM reservations WHERE id = ?1 AND state IN ('released', 'lost')) "
        "AND NOT EXISTS (SELECT 1 FROM mutations WHERE id = ?1 AND status NOT IN ('pending', 'failed'))",
        (blob_of(run),),
    )


def topic_of(workflow: str, topic: str) -> TopicId:
    """Return the id of a topic.

    Raises:
        InvalidInput: a name is not text.
    """
    try:
        return ids.topic_id(workflow, topic)
    except (AttributeError, TypeError, UnicodeEncodeError) as error:
        raise InvalidInput("topic", f"{workflow!r}, {topic!r} are not the names of a workflow and its topic") from error


def events_of(topic: TopicId, message_ids: Sequence[str]) -> list[EventId]:
    """Return the ids of a topic's events.

    Raises:
        InvalidInput: a message id is not text, or one text was given in place of a list.
    """
    if isinstance(message_ids, str):
        raise InvalidInput("message_ids", f"must be a list of texts, not the text {message_ids!r}")
    try:
        return ids.event_ids(topic, message_ids)
    except (AttributeError, TypeError, UnicodeEncodeError) as error:
        raise InvalidInput("message_ids", f"must be a list of texts ({error})") from error
