"""Claiming events for a run: all that was asked for, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, NotAvailable, NotFound
from leasemesh.node.model.ids import RunId
from leasemesh.node.model.jsonvalue import check_text, check_whole
from leasemesh.node.model.leases import EPOCH_MAX
from leasemesh.node.stores.base import CLAIMS_MAX, Store, blob_of, events_of, topic_of
from leasemesh.node.stores.events.effects_behind import EffectsBehind
from leasemesh.node.stores.events.reading import Event, EventReader
from leasemesh.node.stores.events.reservations import Reservations
from leasemesh.node.stores.events.times import issue_times
from leasemesh.node.stores.modes import Mode, ModeStore


class Claims(Store):
    """Claims free events, and makes the reservation for whoever takes over."""

    def __init__(
        self, database: Database, reader: EventReader, reservations: Reservations, effects: EffectsBehind
    ) -> None:
        super().__init__(database)
        self._reader = reader
        self._reservations = reservations
        self._effects = effects

    def reserve(
        self,
        run: str,
        workflow: str,
        wanted: Sequence[tuple[str, Sequence[str]]],
        *,
        partial: bool = False,
        handler: str = "manual",
        default_mode: Mode = "soft",
    ) -> list[Event]:
        """Claim the named events for `run`, all or nothing.

        Args:
            run: a new run id. A run reserves once.
            workflow: the events' workflow.
            wanted: (topic, message ids) pairs; at most 1,000 events together. Of an event that was requeued, the
                newest generation that is known here is meant.
            partial: take what is pending and return exactly that, which may be nothing.
            handler: the handler the run belongs to.
            default_mode: how it claims when neither the handler nor a topic has a setting (`node.stores.modes`).

        Raises:
            NotFound: naming the events that do not exist.
            NotAvailable: naming the events that are not pending (not with `partial`), or stand in a permit.
            HomeElsewhere: another node alone claims there.
            IllegalState: the run has reserved before.
            InvalidInput: nothing, or too much, was asked for.
        """
        firsts = {
            identifier: f"{topic}/{message_id}"
            for topic, message_ids in wanted
            for message_id, identifier in zip(
                message_ids, events_of(topic_of(workflow, topic), message_ids), strict=True
            )
        }
        check_whole("number of events to reserve", len(firsts), least=1, most=CLAIMS_MAX)
        with self._database.transaction() as transaction:
            mode = self.mode(workflow, dict.fromkeys(topic for topic, _ in wanted), handler, default_mode)
            names = dict(zip(self._reader.newest_generations(list(firsts)), firsts.values(), strict=True))
            found = self._reader.by_ids(list(names))
            missing = [name for identifier, name in names.items() if identifier not in found]
            if missing:
                raise NotFound("event", missing, f"workflow {workflow} has no such message ids; nothing was reserved")
            free = [event for event in found.values() if event.status == "pending"]
            if len(free) < len(found) and not partial:
                raise NotAvailable({names[one.id]: _holder(one) for one in found.values() if one.status != "pending"})
            self.refuse_permitted(free, mode)
            return self.claim(transaction, run, workflow, handler, free, mode)

    def reserve_next(
        self,
        run: str,
        workflow: str,
        topic: str,
        *,
        limit: int = 100,
        handler: str = "manual",
        default_mode: Mode = "soft",
    ) -> list[Event]:
        """Claim the oldest pending events of a topic for `run`. Returns them, an empty list when there are none. What
        stands in somebody's permit is left alone. `default_mode` is as in `reserve`.

        Raises:
            InvalidInput: `limit` is not within 1..1,000.
            IllegalState: the run has reserved before.
        """
        check_whole("limit", limit, least=1, most=CLAIMS_MAX)
        with self._database.transaction() as transaction:
            mode = self.mode(workflow, (topic,), handler, default_mode)
            free = self._reader.peek(workflow, topic, limit=limit, permitted=False)
            return self.claim(transaction, run, workflow, handler, free, mode)

    def mode(self, workflow: str, topics: Iterable[str], handler: str, default: Mode) -> Mode:
        """Return how a handler claims from these topics.

        Raises:
            HomeElsewhere: another node alone claims there.
            InvalidInput: the handler's name cannot be accepted.
        """
        return ModeStore(self._database).claiming(workflow, topics, check_text("handler", handler), default=default)

    def refuse_permitted(self, events: Sequence[Event], mode: Mode) -> None:
        """Refuse events that stand in a permit: what somebody may still do is not free for those who ask nobody.

        Raises:
            NotAvailable: naming them.
        """
        if mode == "confirmed" or not events:
            return
        rows = self._database.query(
            "SELECT lower(hex(e.event)), lower(hex(p.run)) FROM json_each(?) AS j "
            "CROSS JOIN permitted_events AS e ON e.event = unhex(j.value) CROSS JOIN permits AS p ON p.id = e.permit",
            (json.dumps([event.id for event in events]),),
        )
        if rows:
            raise NotAvailable({event: f"in the permit of run {ids.short_run(run)}" for event, run in rows})

    def claim(
        self,
        transaction: Transaction,
        run: str,
        workflow: str,
        handler: str,
        events: Sequence[Event],
        mode: Mode,
        *,
        of: str | None = None,
    ) -> list[Event]:
        """Write the reservation of `run` for these events, at the next epoch, and return them as it owns them.

        Whether they are free is decided before. `of` is the run whose work it goes on with.

        Raises:
            IllegalState: the run has reserved before.
            NotAvailable: another run keeps one, because of what is known of its effect.
        """
        if not events:
            return []
        if max(event.epoch for event in events) >= EPOCH_MAX:
            raise InvalidInput("event", f"was claimed {EPOCH_MAX:,} times; that is a fault and not work")
        blob = blob_of(run)
        self._refuse_run_of_other_writer(run)
        if self._database.query("SELECT 1 FROM reservations WHERE id = ?", (blob,)):
            raise IllegalState(f"run {run}", "used", "a run reserves once; take a new run id")
        body = {
            "node": self._node,
            "incarnation": self._database.incarnation.hex(),
            "workflow": workflow,
            "handler": handler,
            "at": issue_times(self._database, transaction, 1),
            "events": [f"{event.id}@{event.epoch + 1}" for event in events],
        }
        if mode != "soft":
            body["mode"] = mode
        if of is not None:
            body |= {"of": of, "root": self._root(of)}
            effect = self._effects.effect_behind(of)
            if effect is not None and effect.outcome in ("applied", "skipped"):
                body["work"] = effect.work  # what is known of it keeps these claims, too
        transaction.execute("INSERT INTO reservations (id, body) VALUES (?, ?)", (blob, json.dumps(body)))
        if self._reservations.claimed_and_owned(run) != (len(events), len(events)):
            lost = self._reservations.not_owned(run)
            raise NotAvailable(dict.fromkeys(lost, "kept by another run, whose effect is decided"))
        return [Event(*event[:-3], "reserved", event.epoch + 1, RunId(run)) for event in events]

    def _root(self, run: str) -> str:
        """Return the run that began the work that a run goes on with."""
        rows = self._database.query("SELECT lower(hex(root)) FROM run_roots WHERE id = ?", (blob_of(run),))
        return str(rows[0][0])


def _holder(event: Event) -> str:
    return event.status + (f" by run {ids.short_run(event.run)}" if event.run else "")
