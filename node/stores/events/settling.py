"""Ending a reservation: its events are settled, or given back. Every operation is one transaction that ends with
exactly what it returned, or with nothing."""

from __future__ import annotations

from typing import Literal

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.model.errors import IllegalState, LeaseLost
from leasemesh.node.stores.base import Store, blob_of, give_up_permit
from leasemesh.node.stores.events.effects_behind import EffectsBehind
from leasemesh.node.stores.events.reservations import Reservations
from leasemesh.node.stores.mutations import MutationStore

Settlement = Literal["consumed", "skipped", "dead"]
_STORED_OUTCOMES: dict[str, str] = {
    "dead": "settled 1 dead",
    "skipped": "settled 2 skipped",
    "consumed": "settled 3 consumed",
}
"""What the column `state` says of an outcome: greater than "held", "lost" and "released", because in a merge the
greater of two equally old words wins. A restored backup may release a run that its lost future had settled."""


class Settlements(Store):
    """Ends the reservations of this node's runs."""

    def __init__(self, database: Database, reservations: Reservations, effects: EffectsBehind) -> None:
        super().__init__(database)
        self._reservations = reservations
        self._effects = effects

    def consume(self, run: str, *, effect_happened: bool = False) -> int:
        """Settle all events of `run` as consumed and return how many. 0 when they were before.

        Args:
            run: a run of this node.
            effect_happened: record the outcome even if the lease was lost. Use it only when something irrevocable was
                done for these events: what happened must be known everywhere, and shows as a duplicate when another run
                did it too.

        Raises:
            LeaseLost: naming the events that the run no longer owns. Nothing is settled.
            NotFound, NotOwner, IllegalState: no such reservation, another node's, or already ended otherwise.
        """
        return self._settle(run, "consumed", effect_happened)

    def skip(self, run: str) -> int:
        """Settle all events of `run` as skipped: never to be done. Returns and raises as `consume` does."""
        return self._settle(run, "skipped", False)

    def dead_letter(self, run: str) -> int:
        """Settle all events of `run` as dead: given up after too many failures. Returns and raises as `consume`."""
        return self._settle(run, "dead", False)

    def release(self, run: str) -> int:
        """Give the events of `run` back: they become pending with the next attempt number.

        Returns how many events it gave up, 0 when the reservation had ended by release before.

        Raises:
            NotFound, NotOwner, IllegalState: no such reservation, another node's, or settled, or the effect of its work
                happened, or nobody knows whether it did, or a person decided to skip it: then these events are not free
                to be done again.
        """
        with self._database.transaction() as transaction:
            state = self._reservations.own_state(run)
            if state in ("released", "lost"):
                return 0
            if state != "held":
                raise IllegalState(f"the reservation of run {run}", state, "what is settled cannot be released")
            claimed, owned = self._reservations.claimed_and_owned(run)
            self._refuse_to_forget(run, claimed, owned)
            _set_state(transaction, run, "lost" if owned < claimed else "released")
            give_up_permit(transaction, run)
            return owned

    def _settle(self, run: str, outcome: Settlement, effect_happened: bool) -> int:
        with self._database.transaction() as transaction:
            state = self._reservations.own_state(run)
            if state == outcome:
                return 0
            if state != "held" and not (effect_happened and state in ("released", "lost")):
                raise IllegalState(f"the reservation of run {run}", state, f"it cannot become {outcome}")
            claimed, owned = self._reservations.claimed_and_owned(run)
            if owned < claimed and not effect_happened:
                raise LeaseLost(run, self._reservations.not_owned(run))
            _set_state(transaction, run, outcome)
            return claimed

    def _refuse_to_forget(self, run: str, claimed: int, owned: int) -> None:
        """What happened, or may have, must go forward: refuse to give back what `run` owns, or has done.

        Without an effect of its own it may leave what it does not own any more. With one, only to those who go on with
        it. Otherwise nothing would tell that the same was done twice. What is to be skipped is skipped, as long as all
        of it can be: given back, it would still be kept.
        """
        effect = self._effects.effect_behind(run)
        keeps = self._database.query("SELECT 1 FROM run_index WHERE id = ? AND effect = 2", (blob_of(run),))
        if effect is not None and keeps and owned == claimed:
            raise IllegalState(f"the effect of run {effect.run}", "to be skipped", f"skip the events of run {run}")
        if effect is None or effect.outcome not in ("applied", "unknown"):
            return
        if not owned:
            entry = MutationStore(self._database).get(run)
            if entry is None or entry.status in ("pending", "failed") or self._effects.is_continued(run):
                return
        wanted = "settle its events (consume)" if effect.outcome == "applied" else "its events wait until it is known"
        raise IllegalState(f"the effect of run {effect.run}", effect.outcome, f"run {run} cannot be released, {wanted}")


def _set_state(transaction: Transaction, run: str, state: str) -> None:
    stored = _STORED_OUTCOMES.get(state, state)
    transaction.execute("UPDATE reservations SET state = ? WHERE id = ?", (stored, blob_of(run)))
