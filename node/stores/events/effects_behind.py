"""The effect that stands behind a run's claims: what of it is known decides what may become of them."""

from __future__ import annotations

from dataclasses import dataclass

from leasemesh.node.model.ids import RunId, WorkId
from leasemesh.node.stores.base import Store, WorkOutcome, blob_of, work_outcome

SUCCESSIONS_MAX = 1_000
"""How far the way is followed from a run that took work over to the run that began it."""


@dataclass(frozen=True, slots=True)
class EffectBehind:
    """The effect that stands behind a run's claims.

    Attributes:
        run: whose ledger entry or permit it is. If neither is here, the run that went on with it.
        work: the work, with which `MutationStore` tells more.
        outcome: what all entries and verdicts on that work come to.
    """

    run: RunId
    work: WorkId
    outcome: WorkOutcome


class EffectsBehind(Store):
    """Effects by the runs whose claims they stand behind."""

    def effect_behind(self, run: str) -> EffectBehind | None:
        """Return the effect that stands behind a run's claims: its own, or that of a run whose work it goes on with, or
        what was known of that work when it was taken over.

        None when none of them has entered one, and no person has decided about one that a permit was given for: its
        entry may never arrive. Of several, one that happened comes before one of unknown outcome, and both before the
        rest.
        """
        rows = self._database.query(
            f"{_CHAIN} SELECT lower(hex(w.run)), lower(hex(w.work)), w.outcome FROM chain "
            "CROSS JOIN work_outcomes AS w WHERE w.run = chain.run ORDER BY chain.steps",
            (blob_of(run),),
        )
        found = [EffectBehind(RunId(one), WorkId(work), outcome) for one, work, outcome in rows]
        found += [*self._decided_about_permits(run), *self._named(run)]
        return min(found, key=lambda effect: _WEIGHT.get(effect.outcome, len(_WEIGHT)), default=None)

    def _named(self, run: str) -> list[EffectBehind]:
        """What has become of the works that were decided when they were taken over: without an entry they may be known
        by a verdict alone, whose permit is void by now."""
        rows = self._database.query(
            f"{_CHAIN} SELECT lower(hex(v.id)), lower(hex(v.work)) FROM chain "
            "CROSS JOIN reservations AS v WHERE v.id = chain.run AND v.work IS NOT NULL ORDER BY chain.steps",
            (blob_of(run),),
        )
        return [EffectBehind(RunId(one), WorkId(work), work_outcome(self._database, work)) for one, work in rows]

    def _decided_about_permits(self, run: str) -> list[EffectBehind]:
        """What became of the works that permits stand for. Who was refused asked for the same work as who was not."""
        rows = self._database.query(
            f"{_CHAIN} SELECT DISTINCT lower(hex(p.run)), lower(hex(p.work)) FROM chain "
            "CROSS JOIN standing_permits AS p WHERE p.run = chain.run AND p.work IS NOT NULL ORDER BY 1, 2",
            (blob_of(run),),
        )
        found = [EffectBehind(RunId(one), WorkId(work), work_outcome(self._database, work)) for one, work in rows]
        return [effect for effect in found if effect.outcome in ("applied", "skipped")]

    def is_continued(self, run: str) -> bool:
        """Whether all that a run claimed went to runs that go on with its work, or have done the rest of it: then
        nothing is left for it to record, and it may be released even if its effect happened."""
        owners = self._database.query(
            "SELECT DISTINCT o.id FROM run_index AS r CROSS JOIN claims AS c ON c.run = r.n "
            "CROSS JOIN event_index AS e ON e.n = c.event "
            "LEFT JOIN run_index AS o ON o.n = e.run AND o.state IN (0, 3) WHERE r.id = ?",
            (blob_of(run),),
        )
        return bool(owners) and all(
            owner is not None
            and owner.hex() != run
            and self._database.query(f"{_CHAIN} SELECT 1 FROM chain WHERE run = ?", (owner, blob_of(run)))
            for (owner,) in owners
        )


_CHAIN = (
    "WITH RECURSIVE chain (run, steps) AS (VALUES (?, 0) UNION ALL "
    "SELECT unhex(v.body ->> '$.of'), chain.steps + 1 FROM chain CROSS JOIN reservations AS v "
    f"WHERE v.id = chain.run AND v.body ->> '$.of' IS NOT NULL AND chain.steps < {SUCCESSIONS_MAX})"
)
"""A run, the run whose work it goes on with, the one whose work that one went on with, ..."""

_WEIGHT: dict[WorkOutcome, int] = {"applied": 0, "unknown": 1, "skipped": 2, "failed": 3}
