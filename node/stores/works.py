"""Which piece of work a run does: the idempotency key of its effect."""

from __future__ import annotations

import json

from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, NotFound
from leasemesh.node.model.ids import EventId, HandlerId, WorkId
from leasemesh.node.stores.base import Store, blob_of, work_outcome

WORK_GENERATIONS_MAX = 1_000


class WorkReader(Store):
    """The part that the ledger and the permits share."""

    def work_for(self, run: str) -> WorkId:
        """Return the work of a run: what its ledger entry or its request for a permit says, otherwise made from its
        handler and all events that it claims, so that every device finds the same key for the same work.

        When the verdict "not happened" counts on a work, the next generation of it follows: another key, because a
        call with the old one may still arrive.

        Raises:
            NotFound: the run has no reservation.
            IllegalState: there were a thousand such verdicts.
        """
        with self._database.snapshot():
            rows = self._database.query(
                "SELECT lower(hex(work)) FROM mutations WHERE id = ?1 AND work IS NOT NULL UNION ALL "
                "SELECT body ->> '$.work' FROM permit_requests WHERE id = ?1 AND body <> '{}'",
                (blob_of(run),),
            )
            if rows:
                return WorkId(rows[0][0])
            return self._newest_work(*self._claimed(run))

    def _claimed(self, run: str) -> tuple[HandlerId, list[EventId]]:
        rows = self._database.query(
            "SELECT v.body ->> '$.workflow', v.body ->> '$.handler', (SELECT json_group_array(lower(hex(e.id))) "
            "FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n "
            "CROSS JOIN event_index AS e ON e.n = c.event "
            "WHERE r.id = v.id) FROM reservations AS v WHERE v.id = ? AND v.body <> '{}'",
            (blob_of(run),),
        )
        if not rows:
            raise NotFound("reservation of run", [run])
        ((workflow, handler, events),) = rows
        return ids.handler_id(workflow, handler), [EventId(event) for event in json.loads(events)]

    def earlier_works(self, run: str) -> list[WorkId]:
        """Return the works that were tried before that of a run, which is about the same events for the same handler:
        those that were said not to have happened, in order. Whoever said so may have been wrong."""
        with self._database.snapshot():
            own = self.work_for(run)
            handler, events = self._claimed(run)
            found: list[WorkId] = []
            for generation in range(WORK_GENERATIONS_MAX):
                work = ids.work_id(handler, events, generation)
                if work == own or not self._was_tried(work):
                    return found
                found.append(work)
        return found

    def _was_tried(self, work: WorkId) -> bool:
        rows = self._database.query("SELECT 1 FROM verdicts WHERE work = ? LIMIT 1", (blob_of(work),))
        return bool(rows)

    def _newest_work(self, handler: HandlerId, events: list[EventId]) -> WorkId:
        for generation in range(WORK_GENERATIONS_MAX):
            work = ids.work_id(handler, events, generation)
            if not self._did_not_happen(work):
                return work
        raise IllegalState(f"handler {handler}", "at its last attempt", "a thousand verdicts on one work are a fault")

    def _did_not_happen(self, work: WorkId) -> bool:
        """Whether a person's verdict that it did not happen counts: the holder has stopped, nobody knows better."""
        said = self._database.query(
            "SELECT 1 FROM verdicts WHERE work = ? AND body ->> '$.verdict' = 'not_happened' LIMIT 1", (blob_of(work),)
        )
        return bool(said) and work_outcome(self._database, work) in ("failed", "none")
