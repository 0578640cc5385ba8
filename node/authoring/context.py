"""What a handler's function gets: one `Run` for each phase, which allows what the phase allows and nothing else.

| call | allowed in |
|---|---|
| `peek`, `get_many`, `reserve` | prepare |
| `publish` | a producer and next, to declared topics |
| `wake_at` | prepare and next of a consumer |
| `log`, `cost` | all |

Nothing is allowed after the phase has ended. A call that is not allowed raises PhaseViolation, which names the call and
the phase.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from leasemesh.node.authoring.errors import PhaseViolation, storable
from leasemesh.node.authoring.workflow import Handler, Producer, Topic
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.ids import RunId
from leasemesh.node.model.jsonvalue import TIME_MS_MAX, Json, check_whole
from leasemesh.node.stores import Event, EventStore, NewEvent
from leasemesh.node.stores.events.publications import encode_event

FunctionPhase = Literal["producer", "prepare", "mutate", "next"]
EffectOutcome = Literal["none", "applied"]

LOG_CHARACTERS_MAX = 50_000
"""Of one run. Its details as a whole are one cell of at most a megabyte."""

COST_MAX = 2**53

_RULES = {
    "peek": "reading events is for prepare",
    "get_many": "reading events is for prepare",
    "reserve": "choosing events is for prepare",
    "publish": "publishing is for producers and next",
    "wake_at": "planning the next run is for prepare and next",
}
_ALLOWED: dict[FunctionPhase, frozenset[str]] = {
    "producer": frozenset({"publish"}),
    "prepare": frozenset({"peek", "get_many", "reserve", "wake_at"}),
    "mutate": frozenset(),
    "next": frozenset({"publish", "wake_at"}),
}


@dataclass(slots=True)
class Told:
    """What the functions of one run have told so far.

    Attributes:
        logs: lines.
        cost: millionths of the app's currency.
        wake_at: when to run again, Unix milliseconds.
        reserve: the events chosen by prepare, None when it chose none.
        publications: what is to be published at the run's end: topic, event, the event that caused it.
    """

    logs: list[str] = field(default_factory=list)
    cost: int = 0
    wake_at: int | None = None
    reserve: dict[str, Event] | None = None
    publications: list[tuple[Topic, NewEvent, str | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Given:
    """What a phase is given to work on. The attributes of `Run`."""

    events: tuple[Event, ...] = ()
    prepared: Json = None
    result: Json = None
    outcome: EffectOutcome = "none"
    state: Json = None


class Run:
    """One phase of one attempt of a handler, as its function sees it.

    Attributes:
        id: the attempt.
        workflow, handler: what runs.
        phase: producer, prepare, mutate or next.
        events: the reserved events (mutate and next).
        prepared: what prepare returned.
        result: what the effect returned (next).
        outcome: "applied" when an effect happened, "none" when none was asked for (next).
        state: the handler's state as the run before left it. None at first, and for consumers that keep none.
    """

    def __init__(
        self,
        run: RunId,
        handler: Handler,
        phase: FunctionPhase,
        *,
        given: Given,
        told: Told,
        events: EventStore,
        clock_ms: Callable[[], int],
        closed: Collection[str] = (),
    ) -> None:
        """Made by the runtime. A test of a handler uses a node."""
        self.id = run
        self.workflow = handler.workflow
        self.handler = handler.name
        self.phase = phase
        self.events = given.events
        self.prepared = given.prepared
        self.result = given.result
        self.outcome = given.outcome
        self.state = given.state
        self._declared = handler
        self._told = told
        self._store = events
        self._clock_ms = clock_ms
        self._closed = closed
        self._ended = False

    # --- Everywhere ---------------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Add a line to the run's log, which `leasemesh run show` shows. Beyond 50,000 characters it is cut off."""
        self._check("log")
        room = LOG_CHARACTERS_MAX - sum(map(len, self._told.logs))
        if room > 0:
            self._told.logs.append(storable(str(text)[:room]))

    def cost(self, millionths: int) -> None:
        """Add to what the run has cost, in millionths of whatever currency the app counts in."""
        self._check("cost")
        self._told.cost += check_whole("cost", millionths, least=0, most=COST_MAX)

    def now_ms(self) -> int:
        """Return this device's wall clock, Unix milliseconds."""
        self._check("now_ms")
        return self._clock_ms()

    # --- Prepare ------------------------------------------------------------------------------------------------------

    def peek(self, topic: Topic | str, *, limit: int = 100) -> list[Event]:
        """Return the oldest pending events of a topic of the workflow that the run may have. Changes nothing.

        What stands in another run's permit is left out, and what is at home on another device.
        """
        self._check("peek")
        if _name(topic) in self._closed:
            return []
        return self._store.peek(self.workflow, _name(topic), limit=limit, permitted=False)

    def get_many(self, topic: Topic | str, message_ids: Sequence[str]) -> list[Event]:
        """Return those of the named events that exist, whatever their status."""
        self._check("get_many")
        return self._store.get_many(self.workflow, _name(topic), message_ids)

    def reserve(self, events: Event | Iterable[Event]) -> None:
        """Choose the events to work on. They are reserved, all or none, when prepare has returned.

        Raises:
            PhaseViolation: not in prepare, or an event is of a topic that the consumer does not consume.
        """
        self._check("reserve")
        chosen = [events] if isinstance(events, Event) else list(events)
        topics = {one.name for one in getattr(self._declared, "topics", ())}
        for event in chosen:
            if not isinstance(event, Event):
                raise InvalidInput("events", f"{event!r} is not an event; reserve what peek returns")
            if event.workflow != self.workflow or event.topic not in topics:
                raise PhaseViolation(
                    "reserve", self.phase, f"{self.handler} does not consume {event.topic}; name it in consumer(...)"
                )
            if event.status in ("consumed", "skipped", "dead"):
                raise InvalidInput("events", f"{event.message_id} is {event.status}; reserve what is pending")
        self._told.reserve = (self._told.reserve or {}) | {event.id: event for event in chosen}

    # --- Producer and next --------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: Topic | str,
        message_id: str,
        *,
        title: str = "",
        payload: Json = None,
        caused_by: Event | None = None,
    ) -> None:
        """Publish an event when the run commits. A message id that the topic has already is left as it is.

        Args:
            topic: a topic that the handler declared as `publishes`.
            message_id: the event's identity in the topic.
            title: for people.
            payload: JSON, at most 1 MiB.
            caused_by: the event this follows from. By default the run's only one.

        Raises:
            PhaseViolation: not in a producer or next, or to a topic that was not declared.
            InvalidInput: the event cannot be accepted.
        """
        self._check("publish")
        name = _name(topic)
        found = next((one for one in self._declared.publishes if one.name == name), None)
        if found is None or (isinstance(topic, Topic) and topic.workflow != self.workflow):
            raise PhaseViolation(
                "publish", self.phase, f"{self.handler} does not declare topic {topic}; name it in publishes=[...]"
            )
        event = NewEvent(message_id, title, payload)
        encode_event(event)  # so that what is wrong is told where it is
        cause = caused_by or (self.events[0] if len(self.events) == 1 else None)
        self._told.publications.append((found, event, cause.id if cause is not None else None))

    def wake_at(self, at_ms: int) -> None:
        """Run the handler again at a time (Unix ms), whatever arrives: from 30 seconds to 24 hours from now."""
        self._check("wake_at")
        self._told.wake_at = check_whole("wake_at", at_ms, least=0, most=TIME_MS_MAX)

    # --- The end of the phase -----------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._ended = True

    def _check(self, call: str) -> None:
        if self._ended:
            raise PhaseViolation(call, self.phase, "the phase has ended; a phase's calls are made before it returns")
        if call in _RULES and call not in _ALLOWED[self.phase]:
            what = "a producer" if isinstance(self._declared, Producer) else self.phase
            raise PhaseViolation(call, what, _RULES[call])


def _name(topic: Topic | str) -> str:
    return topic.name if isinstance(topic, Topic) else topic
