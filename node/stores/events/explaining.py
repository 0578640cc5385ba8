"""Why an event is in its state: who claimed it with which outcome, who published it, and its generations."""

from __future__ import annotations

from dataclasses import dataclass

from leasemesh.node.database.file import Database
from leasemesh.node.model import ids
from leasemesh.node.model.clock import unix_ms
from leasemesh.node.model.ids import EventId, NodeId, RunId
from leasemesh.node.model.leases import ClaimState
from leasemesh.node.stores.base import Store, blob_of, topic_of
from leasemesh.node.stores.events.reading import Event, EventReader, StatusName, status_name


@dataclass(frozen=True, slots=True)
class ClaimInfo:
    """One claim in an event's story.

    Attributes:
        run, node, handler: who claimed it.
        epoch: the number of the attempt that it claimed.
        claimed_at: Unix milliseconds.
        state: held, released, lost, consumed, skipped or dead.
        effect: status of the run's external effect. None when it has none.
    """

    run: RunId
    node: NodeId
    handler: str
    epoch: int
    claimed_at: int
    state: str
    effect: str | None


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One generation of an event.

    Attributes:
        event: its id.
        generation: 0 for what was published, counted up by each requeue.
        status: as of an event.
        created_at: Unix milliseconds.
        by: who requeued it. "" when nobody did, or nobody said who.
    """

    event: EventId
    generation: int
    status: StatusName
    created_at: int
    by: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event is in its state.

    Attributes:
        event: the event.
        claims: all claims that this device knows, the oldest first.
        publications: Unix milliseconds of each publication that carries it. More than one when several devices found
            it.
        publishers: the node of each of them. "" when that is not known.
        conflicting: two publications of it differ in title or payload (the earliest one counts).
        duplicate: two runs consumed it.
        generations: all generations of it that are known here, itself among them, the oldest first.
    """

    event: Event
    claims: tuple[ClaimInfo, ...]
    publications: tuple[int, ...]
    publishers: tuple[NodeId, ...]
    conflicting: bool
    duplicate: bool
    generations: tuple[GenerationInfo, ...]


class EventExplainer(Store):
    """Tells the stories of events."""

    def __init__(self, database: Database, reader: EventReader) -> None:
        super().__init__(database)
        self._reader = reader

    def explain(self, event: str) -> Explanation | None:
        """Return an event's story: who claimed it, when, with which outcome, and who published it."""
        with self._database.snapshot():
            found = self._reader.get(event)
            return None if found is None else self._explain(found)

    def _explain(self, found: Event) -> Explanation:
        blob = blob_of(found.id)
        claims = self._database.query(
            "SELECT lower(hex(r.id)), lower(hex(r.node)), v.body ->> '$.handler', c.epoch, r.at, "
            "CASE WHEN e.status = 1 AND e.run = c.run THEN 0 ELSE r.state END, m.status "
            "FROM event_index AS e CROSS JOIN claims AS c ON c.event = e.n CROSS JOIN run_index AS r ON r.n = c.run "
            "LEFT JOIN reservations AS v ON v.id = r.id LEFT JOIN mutations AS m ON m.id = r.id "
            "WHERE e.id = ? ORDER BY c.epoch, r.at, r.id",
            (blob,),
        )
        copies = self._database.query(
            "SELECT c.at, p.body -> ('$.events[' || c.position || ']') FROM event_index AS e "
            "CROSS JOIN event_copies AS c ON c.event = e.n JOIN publications AS p ON p.id = c.publication "
            "WHERE e.id = ? ORDER BY c.at, c.publication",
            (blob,),
        )
        publishers = self._database.query(_PUBLISHERS, (blob,))
        duplicate = self._database.query(
            "SELECT 1 FROM event_index AS e CROSS JOIN duplicates AS d ON d.event = e.n WHERE e.id = ?", (blob,)
        )
        return Explanation(
            event=found,
            claims=tuple(
                ClaimInfo(
                    RunId(run), NodeId(node), handler or "", epoch, unix_ms(at), ClaimState(state).name.lower(), effect
                )
                for run, node, handler, epoch, at, state, effect in claims
            ),
            publications=tuple(unix_ms(at) for at, _ in copies) or (found.created_at,),
            publishers=tuple(NodeId(node) for (node,) in publishers),
            conflicting=len({text for _, text in copies}) > 1,
            duplicate=bool(duplicate),
            generations=self._generations(found),
        )

    def _generations(self, found: Event) -> tuple[GenerationInfo, ...]:
        # Of a generation that two devices made, the publication that counts is that of the event's row.
        rows = self._database.query(
            "SELECT lower(hex(e.id)), p.generation, e.status, e.at, p.body ->> '$.by' FROM publications AS p "
            "CROSS JOIN event_index AS e ON e.id = unhex(p.body ->> '$.ids[0]') AND e.publication = p.id "
            "WHERE p.first = ?1 UNION ALL SELECT lower(hex(id)), 0, status, at, '' FROM event_index "
            "WHERE id = ?1 AND publication IS NOT NULL ORDER BY 2",
            (blob_of(ids.event_id(topic_of(found.workflow, found.topic), found.message_id)),),
        )
        return tuple(
            GenerationInfo(EventId(event), generation, status_name(status), unix_ms(at), by)
            for event, generation, status, at, by in rows
        )


_PUBLISHERS = """
WITH published (at, publication) AS (
    SELECT e.at, e.publication FROM event_index AS e WHERE e.id = ?1
    UNION
    SELECT c.at, c.publication FROM event_index AS e CROSS JOIN event_copies AS c ON c.event = e.n WHERE e.id = ?1
)
SELECT coalesce((
    SELECT lower(hex(s.site_id)) FROM publications__crsql_pks AS k
    CROSS JOIN publications__crsql_clock AS c ON c.key = k.__crsql_key AND c.col_name = 'body'
    CROSS JOIN crsql_site_id AS s ON s.ordinal = c.site_id WHERE k.id = p.publication), '')
FROM published AS p ORDER BY p.at, p.publication
"""
"""A publication does not say who wrote it. The clock of its row does."""
