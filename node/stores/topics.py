"""Topics: durable streams inside a workflow. Their ids come from their names, so every device creates the same row."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass

from leasemesh.node.model import ids
from leasemesh.node.model.errors import StillReserved
from leasemesh.node.model.ids import TopicId
from leasemesh.node.model.jsonvalue import check_text
from leasemesh.node.stores.base import INTERNAL_TOPICS, Store, blob_of, topic_of

_SELECT = "SELECT lower(hex(id)), workflow, name, created_at FROM topics"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: its id, the workflow it belongs to, its name, and when it was created (Unix milliseconds)."""

    id: TopicId
    workflow: str
    name: str
    created_at: int


class TopicStore(Store):
    """Topics by id and by name."""

    def get(self, topic: str) -> Topic | None:
        """Return the topic with this id."""
        rows = self._database.query(f"{_SELECT} WHERE id = ? AND body <> '{{}}'", (blob_of(topic),))
        return Topic(*rows[0]) if rows else None

    def get_by_name(self, workflow: str, name: str) -> Topic | None:
        """Return a workflow's topic of that name."""
        return self.get(topic_of(workflow, name))

    def list(self, workflow: str, *, internal: bool = False) -> builtins.list[Topic]:
        """Return the topics of a workflow by name. With `internal` those of the runtime too, whose names begin with
        "~"."""
        rows = self._database.query(
            f"{_SELECT} WHERE workflow = ? AND (? OR name NOT GLOB ?) ORDER BY name",
            (workflow, internal, INTERNAL_TOPICS),
        )
        return [Topic(*row) for row in rows]

    def get_or_create(self, workflow: str, name: str) -> Topic:
        """Return the topic, creating it (and registering the workflow) when this device does not know it.

        Raises:
            InvalidInput: `workflow` or `name` is empty, too long or not text.
        """
        check_text("workflow", workflow)
        check_text("topic", name)
        found = self.get_by_name(workflow, name)
        if found is not None:
            return found
        now = self._database.clock_ms()
        topic = Topic(ids.topic_id(workflow, name), workflow, name, now)
        with self._database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO workflows (id, title, created_at, updated_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (workflow, workflow, now, now),
            )
            transaction.execute(
                "INSERT INTO topics (id, body) VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET body = excluded.body WHERE body = '{}'",
                (blob_of(topic.id), json.dumps({"workflow": workflow, "name": name, "created_at": now})),
            )
        return topic

    def delete(self, topic: str, *, force: bool = False) -> int:
        """Delete a topic with all its events, on every device, and return how many events there were.

        An event that another device publishes at the same time, before it has heard of the deletion, survives.

        Raises:
            StillReserved: events of it are reserved and `force` is not given.
        """
        blob = blob_of(topic)
        with self._database.transaction() as transaction:
            reserved, total = self._database.query(
                "SELECT (SELECT count(*) FROM event_index WHERE topic = ?1 AND status IN (1, 2)), "
                "(SELECT count(*) FROM event_index WHERE topic = ?1)",
                (blob,),
            )[0]
            if reserved and not force:
                found = self.get(topic)
                raise StillReserved(f"topic {found.name if found else topic}", reserved)
            transaction.execute(
                "DELETE FROM publications WHERE id IN (SELECT publication FROM event_index WHERE topic = ?1 UNION "
                "SELECT c.publication FROM event_index AS e CROSS JOIN event_copies AS c ON c.event = e.n "
                "WHERE e.topic = ?1)",
                (blob,),
            )
            transaction.execute("DELETE FROM topics WHERE id = ?", (blob,))
        return int(total)
