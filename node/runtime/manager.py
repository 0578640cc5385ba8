"""The manager: every transition of a run, each in one transaction, and nobody else makes any.

Which transitions are legal stands in `node.stores.runs.PHASES`; what each does together with the phase:

| transition | in the same transaction |
|---|---|
| to preparing, executing | the session's row, when it is the session's first run |
| to prepared | the reservation, the prepare result, wake_at; in mode confirmed the request for a permit |
| to mutating | ownership and permit checked; the ledger entry is in flight. On the disk before the call leaves |
| to mutated (and emitting, as nothing happens between) | the effect's outcome |
| to committed | what is published, the events' outcome, the handler's state, the session's count |

Transitions with nothing external between them are one. A consumer without an effect has two transactions: up to
prepared, and from there to committed.

**The boundary** is the moment when the effect is known to have happened. Before it a run that cannot go on gives its
events back, and another one begins from the start. Beyond it the work must go forward: a new run begins at emitting,
with the same prepare result and the same effect result, on the reservation of the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from node.connection import DatabaseError
from node.errors import LeaseLost, NotAvailable, StaleVersion
from node.ids import EventId, RunId, short
from node.jsonvalue import Json, encode
from node.runtime.attempt import Attempt, Session
from node.runtime.choosing import STATE_TOPIC, Choice, FailedBefore, choose, failed_claims, state_token
from node.runtime.context import storable
from node.runtime.effects import EffectCall
from node.runtime.errors import is_transient
from node.runtime.retry import CLAIMS_THAT_FAIL_MAX, RetryRule
from node.runtime.workflow import Consumer, Handler, Producer
from node.stores import Event, HandlerRun
from node.stores.runs import ENDED, Phase, RunStatus

if TYPE_CHECKING:
    from node.service import Node

ERROR_CHARACTERS_MAX = 2_000
PREPARED_BYTES_MAX = 512 * 1024
"""A run's details as a whole are one cell of at most a megabyte."""

SESSION_LOG_CHARACTERS_MAX = 4_000
"""What a session shows of its runs' logs; it is one cell, rewritten with each of them."""

WAKE_LEAST_MS, WAKE_MOST_MS = 30_000, 24 * 3600 * 1000
"""A handler that asks to be woken at once would never let its device rest; one that sleeps for ever is a mistake."""

Failure = Literal["transient", "logic", "internal"]
Settling = Literal["leave", "release", "skip"]
_STATUS: dict[Failure, RunStatus] = {
    "transient": "paused:transient",
    "logic": "failed:logic",
    "internal": "failed:internal",
}


class Manager:
    """Makes the transitions of this node's runs. Synchronous; every method is one transaction."""

    def __init__(self, node: Node, retry: RetryRule) -> None:
        self.node = node
        self.retry = retry
        self._database = node.database
        self._events = node.events
        self._runs = node.handler_runs
        self._under_way: dict[RunId, Attempt] = {}

    # --- What is under way --------------------------------------------------------------------------------------------

    def under_way(self) -> list[Attempt]:
        """Return the runs that this process runs now."""
        return list(self._under_way.values())

    def is_under_way(self, run: str) -> bool:
        """Whether this process runs a run, or one that goes on with its reservation."""
        return run in self._under_way or any(attempt.holder == run for attempt in self.under_way())

    def over(self, attempt: Attempt) -> None:
        """Nobody runs this run any more, whatever became of it."""
        self._under_way.pop(attempt.run, None)

    # --- Beginning ----------------------------------------------------------------------------------------------------

    def begin(self, consumer: Consumer, session: Session, *, retry_of: RunId | None = None) -> Attempt | None:
        """Begin a run without a prepare phase on the oldest pending events; None, and nothing is written, when there
        are none that it may have.

        Raises:
            HomeElsewhere, IllegalState, NotAvailable: this device may not claim them now.
        """
        try:
            return self._begin(consumer, session, retry_of, wary=False)
        except FailedBefore:
            return self._begin(consumer, session, retry_of, wary=True)

    def _begin(self, consumer: Consumer, session: Session, retry_of: RunId | None, *, wary: bool) -> Attempt | None:
        try:
            with self._beginning(consumer, session) as attempt:
                attempt.mode = self._mode(consumer)
                choice = choose(self.node, consumer, attempt.run, attempt.mode, wary=wary)
                if choice is None:
                    raise _NothingToDo
                self._reserve(attempt, choice)
                self._create(attempt, "prepared", retry_of)
        except _NothingToDo:
            return None
        return attempt

    def begin_preparing(self, consumer: Consumer, session: Session, *, retry_of: RunId | None = None) -> Attempt:
        """Begin a run with its prepare phase."""
        with self._beginning(consumer, session) as attempt:
            self._create(attempt, "preparing", retry_of)
        return attempt

    def wake_up_has_come(self, consumer: Consumer) -> None:
        """Forget the time that a handler wanted to run again."""
        self.node.handler_states.set_wake_at(consumer.workflow, consumer.name, None)

    def begin_producing(self, producer: Producer, session: Session, *, retry_of: RunId | None = None) -> Attempt:
        """Begin a run of a producer."""
        with self._beginning(producer, session) as attempt:
            self._create(attempt, "executing", retry_of)
        return attempt

    def prepared(self, attempt: Attempt, result: Json) -> None:
        """Store what prepare returned, and reserve what it chose.

        Raises:
            InvalidInput: the result is not JSON or too large.
            NotAvailable: an event that it chose is not free any more.
            HomeElsewhere, IllegalState: this device may not claim now.
        """
        consumer = _consumer(attempt)
        encode("prepare result", result, PREPARED_BYTES_MAX)
        with self._transaction():
            attempt.mode = self._mode(consumer)
            if attempt.told.reserve:
                self._reserve(attempt, Choice(tuple(attempt.told.reserve.values()), reserved=False))
            self.wake_up_has_come(consumer)
            self._set_wake_at(attempt)
            status = self._status_of_waiting(attempt)
            self._runs.advance(attempt.run, "prepared", status=status, details={"prepared": result})
        attempt.prepared = result

    # --- The effect ---------------------------------------------------------------------------------------------------

    def require_owned(self, attempt: Attempt) -> None:
        """Make sure that the run still owns all its events. Raises LeaseLost, naming those that it does not."""
        if attempt.holder is not None:
            self._events.require_owned(attempt.holder)

    def has_permit(self, attempt: Attempt) -> bool:
        """Whether the run may begin its effect; False while nobody has decided.

        Raises:
            PermitRefused: the authority decided otherwise.
            LeaseLost: another run owns one of its events now.
        """
        self.require_owned(attempt)
        permit = self.node.permits.get(attempt.run)
        if permit is None or permit.state == "waiting":
            return False
        self.node.permits.require(attempt.run)
        return True

    def authority_name(self) -> str:
        """Return who decides on permits, as people call that node."""
        info = self.node.authority.info()
        node = info.authority or (info.next.authority if info.next is not None else None)
        if node is None:
            return "the authority, which a person must appoint (`leasemesh authority set`)"
        return self.node.devices.name_of(node) or f"node {short(node)}"

    def intend(self, attempt: Attempt, call: EffectCall) -> None:
        """Record, on the disk, that the effect may happen from now on. The call may leave when this has returned.

        Raises:
            LeaseLost, PermitRefused, IllegalState: the run must not begin it.
        """
        with self._transaction(durable=True):
            self.require_owned(attempt)
            work = self.node.mutations.work_for(attempt.run)
            self._runs.advance(attempt.run, "mutating")
            self.node.mutations.intend(attempt.run, work, tool=call.effect.name, params=call.params)
        attempt.work = work

    def applied(self, attempt: Attempt, result: Json) -> None:
        """Record that the effect happened: from here on the work goes forward."""
        with self._transaction():
            self.node.mutations.mark_applied(attempt.run, result)
            self._runs.advance(attempt.run, "mutated", "emitting")
        attempt.result = result
        attempt.outcome = "applied"

    def applied_and_committed(self, attempt: Attempt, result: Json) -> None:
        """Record that the effect happened, and end the run with it: nothing of the user's comes between."""
        with self._transaction():
            self.applied(attempt, result)
            self.commit(attempt, None)

    def did_not_happen(self, attempt: Attempt, error: BaseException) -> int:
        """Record that the effect certainly did not happen, and give the run up; returns as `fail`."""
        with self._transaction():
            self.node.mutations.mark_failed(attempt.run, _text(error))
            return self.fail(attempt, error)

    def unknown(self, attempt: Attempt, reason: str, *, reconcile_at: int | None) -> None:
        """Record that nobody knows whether the effect happened. The events stay reserved until it is known.

        Args:
            attempt: the run.
            reason: why, for people.
            reconcile_at: when to find out (Unix ms); None: only a person can tell.
        """
        with self._transaction():
            if reconcile_at is None:
                self.node.mutations.mark_indeterminate(attempt.run, reason)
            else:
                self.node.mutations.mark_needs_reconcile(attempt.run, at=reconcile_at, error=reason)
            details = self._told(attempt) | {"error": reason}
            self._runs.set_status(attempt.run, "paused:reconciliation", details=details)
            self._count(attempt)

    # --- The end ------------------------------------------------------------------------------------------------------

    def commit(self, attempt: Attempt, state: Json) -> None:
        """End a run: publish, settle its events, keep its state, all in one transaction.

        A run whose effect happened settles its events also when another run owns them by now: what happened must be
        known everywhere, and shows as a duplicate when the other did it too.

        Raises:
            LeaseLost: the run does not own all its events any more, and no effect happened.
            StaleVersion: another device's run has written the handler's state, and no effect happened.
            InvalidInput: the state is not JSON.
        """
        handler = attempt.handler
        details: dict[str, Json] = {}
        with self._transaction():
            self._publish(attempt)
            if attempt.holder is not None:
                self._events.consume(attempt.holder, effect_happened=attempt.outcome == "applied")
            if isinstance(handler, Producer) or handler.stateful:
                details |= self._keep_state(attempt, state)
            if isinstance(handler, Consumer):
                self._set_wake_at(attempt)
            self._runs.advance(attempt.run, *_way_to_commit(attempt), details=self._told(attempt) | details)
            self._count(attempt)

    def fail(self, attempt: Attempt, error: BaseException) -> int:
        """End a run whose code failed; before the boundary its events are given back, or buried after three such runs.

        Returns:
            How many events were buried.
        """
        failure = classify(error)
        details = self._told(attempt) | {
            "failure": failure,
            "error": _text(error),
            "failed_at": self._database.clock_ms(),
        }
        attempt.session.error = _text(error)
        with self._transaction():
            buried = 0
            if attempt.holder is not None and attempt.outcome == "none":
                buried = self._give_back(attempt, bury=failure == "logic")
            self._runs.set_status(attempt.run, _STATUS[failure], details=details)
            self._count(attempt)
        return buried

    def lose(self, attempt: Attempt, reason: str) -> None:
        """End a run that lost its lease, or may not go on, before the boundary; it gives back what it still has."""
        self._end(attempt, "lost", reason)

    def stop(self, attempt: Attempt, reason: str) -> None:
        """End a run that is not to go on in this process. Before the boundary its events are free at once; beyond it
        they wait for a run that goes on."""
        self._end(attempt, "crashed", reason)

    def _end(self, attempt: Attempt, status: RunStatus, reason: str) -> None:
        with self._transaction():
            if attempt.holder is not None and attempt.outcome == "none":
                self._events.release(attempt.holder)
            self._runs.set_status(attempt.run, status, details=self._told(attempt) | {"error": reason})
            self._count(attempt)

    # --- What became known later --------------------------------------------------------------------------------------

    def found_applied(self, run: HandlerRun, result: Json) -> None:
        """Record, of a run that has stopped, that its effect happened; another run goes on (`go_on`)."""
        with self._transaction():
            self.node.mutations.mark_applied(run.id, result)
            if run.phase == "mutating" and run.status not in ENDED:
                self._runs.advance(run.id, "mutated", status="paused:reconciliation")

    def found_not_applied(self, run: HandlerRun, reason: str) -> None:
        """Record, of a run that has stopped, that its effect certainly did not happen, and give its events back."""
        with self._transaction():
            self.node.mutations.mark_failed(run.id, reason)
            self._events.release(run.id)
            if run.status not in ENDED:
                details = {"failure": "transient", "error": reason, "failed_at": self._database.clock_ms()}
                self._runs.set_status(run.id, "paused:transient", details=details)

    def ask_again(self, run: RunId, *, at: int) -> None:
        """Plan the next try (Unix ms) to find out what became of a run's effect."""
        self.node.mutations.schedule_reconcile(run, at=at)

    def leave_to_a_person(self, run: HandlerRun, reason: str) -> None:
        """Record that only a person can tell what became of a run's effect."""
        with self._transaction():
            self.node.mutations.mark_indeterminate(run.id, reason)
            self._pause(run, reason)

    def call_was_cut_off(self, run: HandlerRun, *, reconcile_at: int | None) -> None:
        """Record, of a run whose process ended during the call, that nobody knows what became of it."""
        reason = "the process ended before the answer was seen"
        with self._transaction():
            if reconcile_at is None:
                self.node.mutations.mark_indeterminate(run.id, reason)
            else:
                self.node.mutations.mark_needs_reconcile(run.id, at=reconcile_at, error=reason)
            self._pause(run, reason)

    def end_earlier(self, run: HandlerRun, status: RunStatus, reason: str, *, settle: Settling = "leave") -> None:
        """End a run of this node that nobody runs any more.

        Args:
            run: the run.
            status: how it ended.
            reason: for people.
            settle: what becomes of its events: leave them, release them, or skip them, as a person said.
        """
        with self._transaction():
            if settle == "skip":
                try:
                    self._events.skip(run.id)
                except LeaseLost:
                    settle = "release"
            if settle == "release":
                self._events.release(run.id)
            if run.status not in ENDED:
                self._runs.set_status(run.id, status, details={"ended_because": reason})

    def _pause(self, run: HandlerRun, reason: str) -> None:
        if run.status not in ENDED:
            self._runs.set_status(run.id, "paused:reconciliation", details={"error": reason})

    # --- Going on with the work of another run ------------------------------------------------------------------------

    def go_on(self, consumer: Consumer, holder: RunId, session: Session) -> Attempt | None:
        """Begin a run at emitting, beyond the effect of a run of this node whose reservation stays as it is.

        None when there is nothing left to go on with: its events are settled, or the effect did not happen after all.
        """
        try:
            with self._beginning(consumer, session) as attempt:
                effect = self._events.effect_behind(holder)
                reservation = self._events.reservation(holder)
                of = self._runs.get(holder)
                if effect is None or effect.outcome != "applied" or of is None:
                    raise _NothingToDo
                if reservation is None or reservation.state != "held":
                    raise _NothingToDo
                latest = self._runs.retry_chain(holder)[-1]
                for run in dict.fromkeys((holder, latest.id)):
                    self._supersede(run, "another run goes on with its work")
                result = self.node.mutations.result_of(effect.work)
                self._continue(attempt, of, holder, reservation.claims, result)
                self._create(attempt, "emitting", latest.id)
        except _NothingToDo:
            return None
        return attempt

    def take_over_to_go_on(self, consumer: Consumer, of: RunId, session: Session) -> Attempt | None:
        """Begin a run at emitting, beyond the effect of another node's run that has been silent for long enough.

        None when it owns nothing any more. Raises as `EventStore.take_over_run`.
        """
        try:
            with self._beginning(consumer, session) as attempt:
                effect = self._events.effect_behind(of)
                before = self._runs.get(of)
                if effect is None or effect.outcome != "applied" or before is None:
                    raise _NothingToDo
                events = self._events.take_over_run(
                    attempt.run, of, handler=consumer.name, default_mode=consumer.default_mode
                )
                if not events:
                    raise _NothingToDo
                result = self.node.mutations.result_of(effect.work)
                self._continue(attempt, before, attempt.run, [event.id for event in events], result)
                self._create(attempt, "emitting", of)
        except _NothingToDo:
            return None
        return attempt

    def take_over_to_free(self, consumer: Consumer, of: RunId, *, skip: bool, reason: str) -> int:
        """Claim what another node's run holds, which has been silent for long enough, and free it to be done anew (or
        skip it, when a person said so); returns how many events. Raises as `EventStore.take_over_run`."""
        with self._transaction():
            run = self._runs.new_id()
            events = self._events.take_over_run(run, of, handler=consumer.name, default_mode=consumer.default_mode)
            if not events:
                return 0
            self._runs.create(
                consumer.workflow, consumer.name, "consumer", run=run, retry_of=_known(self._runs.get(of))
            )
            if skip:
                self._events.skip(run)
            else:
                self._events.release(run)
            self._runs.set_status(run, "superseded", details={"error": reason})
        return len(events)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _transaction(self, *, durable: bool = False) -> AbstractContextManager[object]:
        """Begin a transaction that happens whole or not at all, or take part in the one that is open."""
        return self._database.transaction(durable=durable, parts=False)

    @contextmanager
    def _beginning(self, handler: Handler, session: Session) -> Iterator[Attempt]:
        """Begin a run in one transaction. It is under way before anybody can see its row: whoever looks for runs that
        nobody runs does not find it."""
        attempt = Attempt(handler, self._runs.new_id(), session)
        self._under_way[attempt.run] = attempt
        try:
            with self._transaction():
                if isinstance(handler, Producer) or handler.stateful:
                    found = self.node.handler_states.get(handler.workflow, handler.name)
                    if found is not None:
                        attempt.state, attempt.state_version = found.state, found.version
                yield attempt
        except BaseException:
            self.over(attempt)
            raise
        session.stored = True

    def _create(self, attempt: Attempt, phase: Phase, retry_of: RunId | None) -> None:
        handler, session = attempt.handler, attempt.session
        if not session.stored:
            self.node.script_runs.create(session.id, session.workflow, trigger=session.trigger)
        if retry_of is not None and phase != "emitting":
            self._supersede(retry_of, "tried again by another run")
        details: dict[str, Json] = {}
        if attempt.prepared is not None:
            details["prepared"] = attempt.prepared
        if attempt.holder not in (None, attempt.run):
            details["holder"] = attempt.holder
        self._runs.create(
            handler.workflow,
            handler.name,
            handler.kind,
            run=attempt.run,
            session=session.id,
            retry_of=retry_of,
            phase=phase,
            status=self._status_of_waiting(attempt) if phase == "prepared" else "active",
            details=details,
        )

    def _mode(self, consumer: Consumer) -> Literal["soft", "confirmed", "home"]:
        topics = [topic.name for topic in consumer.topics]
        return self.node.modes.claiming(consumer.workflow, topics, consumer.name, default=consumer.default_mode)

    def _reserve(self, attempt: Attempt, choice: Choice) -> None:
        """Reserve what was chosen, unless choosing did; with the event that stands for the handler's state."""
        consumer = _consumer(attempt)
        attempt.holder = attempt.run
        attempt.events = choice.events
        if not choice.reserved:
            wanted = [
                (topic, [event.message_id for event in events])
                for topic, events in groupby(sorted(choice.events, key=_topic), key=_topic)
            ]
            if consumer.stateful:
                token = state_token(self.node, consumer, attempt.state_version, attempt.run)
                if token is None:
                    raise NotAvailable({consumer.name: "at work on another device, and its runs share a state"})
                wanted.append((STATE_TOPIC, [token]))
            reserved = self._events.reserve(
                attempt.run,
                consumer.workflow,
                wanted,
                handler=consumer.name,
                default_mode=consumer.default_mode,
            )
            attempt.events = tuple(event for event in reserved if event.topic != STATE_TOPIC)
        if self._waits_for_permit(attempt):
            self.node.authority.ask(attempt.run)

    def _waits_for_permit(self, attempt: Attempt) -> bool:
        return attempt.mode == "confirmed" and _consumer(attempt).mutate_function is not None

    def _status_of_waiting(self, attempt: Attempt) -> RunStatus:
        waits = attempt.holder is not None and self._waits_for_permit(attempt)
        return "paused:confirmation" if waits else "active"

    def _continue(
        self, attempt: Attempt, of: HandlerRun, holder: RunId, claims: Iterable[EventId], result: Json
    ) -> None:
        found = (self._events.get(event) for event in claims)
        attempt.events = tuple(event for event in found if event is not None and event.topic != STATE_TOPIC)
        attempt.holder = holder
        attempt.prepared = of.details.get("prepared")
        attempt.result = result
        attempt.outcome = "applied"

    def _publish(self, attempt: Attempt) -> None:
        for (topic, cause), told in groupby(attempt.told.publications, key=lambda one: (one[0].name, one[2])):
            self._events.publish_many(
                attempt.handler.workflow,
                topic,
                [event for _, event, _ in told],
                created_by_run=attempt.run,
                caused_by=cause,
            )

    def _keep_state(self, attempt: Attempt, state: Json) -> dict[str, Json]:
        handler = attempt.handler
        try:
            self.node.handler_states.set(
                handler.workflow, handler.name, state, run=attempt.run, expected_version=attempt.state_version
            )
        except StaleVersion as error:
            if attempt.outcome != "applied":
                raise
            return {"state_lost": str(error)}  # its effect happened twice, too; that shows as a duplicate
        return {}

    def _set_wake_at(self, attempt: Attempt) -> None:
        if attempt.told.wake_at is None:
            return
        now = self._database.clock_ms()
        at = min(max(attempt.told.wake_at, now + WAKE_LEAST_MS), now + WAKE_MOST_MS)
        self.node.handler_states.set_wake_at(attempt.handler.workflow, attempt.handler.name, at)
        attempt.told.wake_at = None
        attempt.planned_at = at

    def _give_back(self, attempt: Attempt, *, bury: bool) -> int:
        assert attempt.holder is not None
        try:
            if bury and all(
                failed_claims(self.node, attempt.handler, event) + 1 >= CLAIMS_THAT_FAIL_MAX for event in attempt.events
            ):
                return self._events.bury(attempt.holder)
        except LeaseLost:
            pass  # whoever owns them now tries by itself
        self._events.release(attempt.holder)
        return 0

    def _count(self, attempt: Attempt) -> None:
        session = attempt.session
        room = SESSION_LOG_CHARACTERS_MAX - session.logged
        logs = "".join(f"{line}\n" for line in attempt.told.logs)[:room]
        self.node.script_runs.add_handler_run(session.id, cost=attempt.told.cost, logs=logs)
        session.logged += len(logs)

    def _told(self, attempt: Attempt) -> dict[str, Json]:
        told: dict[str, Json] = {}
        if attempt.told.logs:
            told["logs"] = attempt.told.logs
        if attempt.told.cost:
            told["cost"] = attempt.told.cost
        return told

    def _supersede(self, run: RunId, reason: str) -> None:
        found = self._runs.get(run)
        if found is not None and found.status not in ENDED:
            self._runs.set_status(run, "superseded", details={"ended_because": reason})


class _NothingToDo(Exception):
    """Leaves the transaction in which nothing was found."""


def classify(error: BaseException) -> Failure:
    """Tell what kind of failure an error is: one that goes away by itself, one of the handler's code or data, or one of
    this device's file."""
    if isinstance(error, DatabaseError):
        return "internal"
    return "transient" if is_transient(error) else "logic"


def _way_to_commit(attempt: Attempt) -> tuple[Phase, ...]:
    if isinstance(attempt.handler, Producer):
        return ("committed",)
    if attempt.outcome == "applied":
        return ("committed",)
    if attempt.holder is None:
        return ("emitting", "committed")
    return ("mutating", "mutated", "emitting", "committed")


def _consumer(attempt: Attempt) -> Consumer:
    assert isinstance(attempt.handler, Consumer)
    return attempt.handler


def _topic(event: Event) -> str:
    return event.topic


def _known(run: HandlerRun | None) -> RunId | None:
    return run.id if run is not None else None


def _text(error: BaseException) -> str:
    name = type(error).__name__
    text = str(error)
    return storable(f"{name}: {text}" if text else name)[:ERROR_CHARACTERS_MAX]
