"""The beginning half of the manager: how runs begin, from the start or beyond the effect of another run, and what is
reserved with that. See `node.execution.manager` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from leasemesh.node.authoring.retry import RetryRule
from leasemesh.node.authoring.workflow import Consumer, Handler, Producer
from leasemesh.node.execution.attempt import Attempt, RunSession
from leasemesh.node.execution.choosing import (
    STATE_TOPIC,
    Choice,
    FailedBefore,
    choose,
    free_token,
    mode_of_topics,
    open_topics,
    state_token,
)
from leasemesh.node.model.errors import NotAvailable
from leasemesh.node.model.ids import EventId, NodeId, RunId
from leasemesh.node.model.jsonvalue import Json, encode
from leasemesh.node.stores import Event, HandlerRun
from leasemesh.node.stores.phases import ENDED, Phase, RunStatus

if TYPE_CHECKING:
    from leasemesh.node.host import Host

PREPARED_BYTES_MAX = 512 * 1024
"""A run's details as a whole are one cell of at most a megabyte."""

WAKE_LEAST_MS, WAKE_MOST_MS = 30_000, 24 * 3600 * 1000
"""A handler that asks to be woken at once would never let its device rest. One that sleeps for ever is a mistake."""

PROCESS_ENDED = "the process that ran it ended"


class Beginnings:
    """The part of the manager that begins runs.

    Attributes:
        calls_hang: whether so many calls to the outside hang beyond their time that no further one is to be begun.
    """

    def __init__(self, node: Host, retry: RetryRule) -> None:
        self.node = node
        self.retry = retry
        self._database = node.database
        self._events = node.events
        self._runs = node.handler_runs
        self._under_way: dict[RunId, Attempt] = {}
        self.calls_hang: Callable[[], bool] = lambda: False

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

    def begin(
        self, consumer: Consumer, session: RunSession, *, retry_of: RunId | None = None, skip: int = 0
    ) -> Attempt | None:
        """Begin a run without a prepare phase on the oldest pending events. None, and nothing is written, when there
        are none that it may have.

        Raises:
            HomeElsewhere, IllegalState, NotAvailable: this device may not claim them now.
        """
        try:
            return self._begin(consumer, session, retry_of, wary=False, skip=skip)
        except FailedBefore:
            return self._begin(consumer, session, retry_of, wary=True, skip=skip)

    def _begin(
        self, consumer: Consumer, session: RunSession, retry_of: RunId | None, *, wary: bool, skip: int
    ) -> Attempt | None:
        try:
            with self._beginning(consumer, session) as attempt:
                attempt.skip = skip
                choice = choose(self.node, consumer, attempt.run, wary=wary, skip=skip)
                if choice is None:
                    raise _NothingToDo
                self._reserve(attempt, choice)
                self._create(attempt, "prepared", retry_of)
        except _NothingToDo:
            return None
        return attempt

    def begin_preparing(self, consumer: Consumer, session: RunSession, *, retry_of: RunId | None = None) -> Attempt:
        """Begin a run with its prepare phase.

        Raises:
            HomeElsewhere, IllegalState: this device may claim in none of its topics now.
            NotAvailable: another run has the handler's state.
        """
        with self._beginning(consumer, session) as attempt:
            modes = open_topics(self.node, consumer)
            attempt.closed = frozenset(topic.name for topic in consumer.topics if topic.name not in modes)
            if consumer.stateful and free_token(self.node, consumer, attempt.state_version) is None:
                raise _state_taken(consumer)
            self._create(attempt, "preparing", retry_of)
        return attempt

    def wake_up_has_come(self, consumer: Consumer) -> None:
        """Forget the time that a handler wanted to run again."""
        self.node.handler_states.set_wake_at(consumer.workflow, consumer.name, None)

    def begin_producing(self, producer: Producer, session: RunSession, *, retry_of: RunId | None = None) -> Attempt:
        """Begin a run of a producer.

        As a poll, which becomes a run that others see when it has something to tell: a producer that looks every ten
        seconds would leave three million runs a year, on every device. Not after one that went wrong: that this one
        did not is to be seen.
        """
        newest = self._runs.recent(producer.workflow, producer.name, node=self.node.site_id, limit=1)
        is_poll = retry_of is None and [run.status for run in newest] == ["committed"]
        with self._beginning(producer, session, replicated=not is_poll) as attempt:
            attempt.is_poll = is_poll
            if is_poll:
                self._runs.begin_poll(producer.workflow, producer.name, run=attempt.run, session=session.id)
            else:
                self._create(attempt, "executing", retry_of)
        return attempt

    def poll_was_cut_off(self, run: RunId, began_as: NodeId) -> HandlerRun | None:
        """Record that the process ended in which this device, called `began_as` then, had begun a poll. None when there
        is nothing to record: it is over, or this file is a copy, and the poll was that of another device."""
        with self._transaction():
            if began_as != self.node.site_id:
                self._runs.forget_poll(run)
                return None
            found = self._runs.record_poll(run)
            if found is None:
                return None
            assert found.session is not None
            sessions = self.node.script_runs
            sessions.create(found.session, found.workflow, trigger="schedule")
            sessions.add_handler_run(found.session)
            sessions.end(found.session, error=PROCESS_ENDED)
            return self._runs.set_status(run, "crashed", details={"ended_because": PROCESS_ENDED})

    def prepared(self, attempt: Attempt, result: Json) -> None:
        """Store what prepare returned, and reserve what it chose.

        Raises:
            InvalidInput: the result is not JSON or too large.
            NotAvailable: an event that it chose is not free any more.
            HomeElsewhere, IllegalState: this device may not claim now.
        """
        consumer = consumer_of(attempt)
        encode("prepare result", result, PREPARED_BYTES_MAX)
        with self._transaction():
            if attempt.told.reserve or consumer.stateful:
                chosen = tuple((attempt.told.reserve or {}).values())
                mode = mode_of_topics(self.node, consumer, dict.fromkeys(event.topic for event in chosen))
                self._reserve(attempt, Choice(chosen, False, mode))
            status = self._status_of_waiting(attempt)
            self._runs.advance(attempt.run, "prepared", status=status, details={"prepared": result})
        attempt.prepared = result

    # --- Going on with the work of another run ------------------------------------------------------------------------

    def go_on(self, consumer: Consumer, holder: RunId, session: RunSession) -> Attempt | None:
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
                chain = self._runs.retry_chain(holder)
                latest = [run for run in chain if holder in (run.id, run.details.get("holder"))][-1]
                for run in dict.fromkeys((holder, latest.id)):
                    self._supersede(run, "another run goes on with its work")
                result = self.node.mutations.result_of(effect.work)
                self._continue(attempt, of, holder, reservation.claims, result)
                self._create(attempt, "emitting", latest.id)
        except _NothingToDo:
            return None
        return attempt

    def take_over_to_go_on(self, consumer: Consumer, of: RunId, session: RunSession) -> Attempt | None:
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
        skip it, when a person said so). Returns how many events. Raises as `EventStore.take_over_run`."""
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

    def _transaction(self, *, durable: bool = False, replicated: bool = True) -> AbstractContextManager[object]:
        """Begin a transaction that happens whole or not at all, or take part in the one that is open."""
        return self._database.transaction(durable=durable, replicated=replicated, parts=False)

    @contextmanager
    def _beginning(self, handler: Handler, session: RunSession, *, replicated: bool = True) -> Iterator[Attempt]:
        """Begin a run in one transaction. It is under way before anybody can see its row: whoever looks for runs that
        nobody runs does not find it."""
        attempt = Attempt(handler, self._runs.new_id(), session)
        self._under_way[attempt.run] = attempt
        try:
            with self._transaction(replicated=replicated):
                if isinstance(handler, Producer) or handler.stateful:
                    found = self.node.handler_states.get(handler.workflow, handler.name)
                    if found is not None:
                        attempt.state, attempt.state_version = found.state, found.version
                yield attempt
        except BaseException:
            self.over(attempt)
            raise
        session.stored |= not attempt.is_poll

    def _record(self, attempt: Attempt) -> None:
        """Let a poll be a run that others see, if it is one."""
        session = attempt.session
        if attempt.is_poll and self._runs.record_poll(attempt.run) is not None:
            self.node.script_runs.create(session.id, session.workflow, trigger=session.trigger)

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

    def _reserve(self, attempt: Attempt, choice: Choice) -> None:
        """Reserve what was chosen, unless choosing did. With the event that stands for the handler's state."""
        consumer = consumer_of(attempt)
        attempt.holder = attempt.run
        attempt.events = choice.events
        attempt.mode = choice.mode
        if not choice.reserved:
            wanted = [
                (topic, [event.message_id for event in events])
                for topic, events in groupby(sorted(choice.events, key=_topic), key=_topic)
            ]
            if consumer.stateful:
                token = state_token(self.node, consumer, attempt.state_version, attempt.run)
                if token is None:
                    raise _state_taken(consumer)
                wanted.append((STATE_TOPIC, [token]))
            reserved = self._events.reserve(
                attempt.run,
                consumer.workflow,
                wanted,
                handler=consumer.name,
                default_mode=consumer.default_mode,
            )
            attempt.events = tuple(event for event in reserved if event.topic != STATE_TOPIC)
        if self.waits_for_permit(attempt):
            self.node.permits.request(attempt.run)

    def waits_for_permit(self, attempt: Attempt) -> bool:
        """Whether a run that has reserved begins nothing before somebody has granted it a permit."""
        effect_follows = bool(attempt.events) and consumer_of(attempt).mutate_function is not None
        return attempt.mode == "confirmed" and effect_follows

    def _status_of_waiting(self, attempt: Attempt) -> RunStatus:
        return "paused:confirmation" if self.waits_for_permit(attempt) else "active"

    def _continue(
        self, attempt: Attempt, of: HandlerRun, holder: RunId, claims: Iterable[EventId], result: Json
    ) -> None:
        found = (self._events.get(event) for event in claims)
        attempt.events = tuple(event for event in found if event is not None and event.topic != STATE_TOPIC)
        attempt.holder = holder
        attempt.prepared = of.details.get("prepared")
        attempt.result = result
        attempt.outcome = "applied"

    def _plan(self, attempt: Attempt) -> None:
        """Store when the handler is to run again, and forget the time that has come.

        Not before the run has done its work, or others will: after a crash before that it is woken once more.
        """
        key = (attempt.handler.workflow, attempt.handler.name)
        now = self._database.clock_ms()
        if attempt.told.wake_at is not None:
            attempt.planned_at = min(max(attempt.told.wake_at, now + WAKE_LEAST_MS), now + WAKE_MOST_MS)
            self.node.handler_states.set_wake_at(*key, attempt.planned_at)
        elif consumer_of(attempt).prepare_function is not None and has_come(
            self.node.handler_states.wake_at(*key), now
        ):
            self.node.handler_states.set_wake_at(*key, None)

    def _supersede(self, run: RunId, reason: str) -> None:
        found = self._runs.get(run)
        # Of another node it may be when this one got a new identity since: nothing is written of those.
        if found is not None and found.status not in ENDED and found.node == self.node.site_id:
            self._runs.set_status(run, "superseded", details={"ended_because": reason})


class _NothingToDo(Exception):
    """Leaves the transaction in which nothing was found."""


def consumer_of(attempt: Attempt) -> Consumer:
    assert isinstance(attempt.handler, Consumer)
    return attempt.handler


def has_come(wake_at: int | None, now_ms: int) -> bool:
    """Whether the time has come that a handler wanted to run at, or lies so far ahead that the clock was set back."""
    return wake_at is not None and not now_ms < wake_at <= now_ms + WAKE_MOST_MS


def _state_taken(consumer: Consumer) -> NotAvailable:
    return NotAvailable({consumer.name: "in the hands of another run, and its runs share a state"})


def _topic(event: Event) -> str:
    return event.topic


def _known(run: HandlerRun | None) -> RunId | None:
    return run.id if run is not None else None
