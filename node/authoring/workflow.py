"""Writing handlers: a workflow with its topics, producers and consumers, in plain Python.

    mail = Workflow("mail")
    inbox, sent = mail.topic("inbox"), mail.topic("sent")

    @mail.producer(every_s=60, publishes=[inbox])
    async def poll(run, state):
        run.publish(inbox, "message-1", title="Hello")
        return state

    @mail.consumer(inbox)
    def count(run):
        print([event.title for event in run.events])

Nothing runs by declaring it: `Node.running([mail])` does. The same code runs on every device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from leasemesh.node.authoring.effects import Effect, effects_named_in
from leasemesh.node.authoring.schedule import Cron, Every, Schedule
from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX, check_text, check_whole
from leasemesh.node.stores.base import CLAIMS_MAX, INTERNAL_PREFIX, is_internal
from leasemesh.node.stores.modes import Mode

F = TypeVar("F", bound=Callable[..., Any])

BATCH_MAX = CLAIMS_MAX - 1
"""One claim is left for the handler's state."""

ConsumerMode = Literal["soft", "confirmed"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of a workflow, to consume from and to publish to. Made by `Workflow.topic`."""

    workflow: str
    name: str

    def __str__(self) -> str:
        return f"{self.workflow}/{self.name}"


class Producer:
    """A handler on a schedule: it polls something outside, publishes events and returns its next state.

    Attributes:
        workflow, name: its identity, the same on every device.
        schedule: when it is due.
        publishes: the topics that it may publish to.
        function: `function(run, state)`, sync or async; returns the next state.
    """

    kind: Literal["producer"] = "producer"

    def __init__(
        self, workflow: str, name: str, schedule: Schedule, publishes: tuple[Topic, ...], function: Callable[..., Any]
    ) -> None:
        """Use `Workflow.producer`."""
        self.workflow = workflow
        self.name = name
        self.schedule = schedule
        self.publishes = publishes
        self.function = function

    def __str__(self) -> str:
        return f"{self.workflow}/{self.name}"


class Consumer:
    """A handler in up to three phases: prepare, mutate, next. Each may be sync or async.

    Made by `Workflow.consumer`, and used as a decorator: as it is for the phase `next`, or one phase at a time.

    Attributes:
        workflow: its workflow's name.
        topics: what it consumes.
        publishes: the topics that `next` may publish to.
        batch: events in one run at the most, when there is no prepare.
        mode: soft or confirmed, when nothing else is set for the topic or the handler. None: confirmed when it has an
            effect that is not idempotent, otherwise soft.
        stateful: whether it keeps a state. Its runs then never overlap on any connected device.
        prepare_function, mutate_function, next_function: the phases. None: not needed.
    """

    kind: Literal["consumer"] = "consumer"

    def __init__(
        self,
        workflow: Workflow,
        topics: tuple[Topic, ...],
        *,
        name: str | None,
        publishes: tuple[Topic, ...],
        batch: int,
        mode: ConsumerMode | None,
        stateful: bool,
        effects: Sequence[Effect[...]],
    ) -> None:
        """Use `Workflow.consumer`."""
        self.workflow = workflow.name
        self.topics = topics
        self.publishes = publishes
        self.batch = check_whole("batch", batch, least=1, most=BATCH_MAX)
        if mode not in (None, "soft", "confirmed"):
            raise InvalidInput("mode", f"{mode!r} is not soft or confirmed (a home is set on the device that is it)")
        self.mode = mode
        self.stateful = stateful
        self.prepare_function: Callable[..., Any] | None = None
        self.mutate_function: Callable[..., Any] | None = None
        self.next_function: Callable[..., Any] | None = None
        self._workflow = workflow
        self._name = name
        self._effects = list(effects)
        self._all_effects: dict[str, Effect[...]] | None = None
        if name is not None:
            workflow._add(self, name)

    @property
    def name(self) -> str:
        """Its name within the workflow."""
        if self._name is None:
            raise InvalidInput(
                "name", f"a consumer of {', '.join(map(str, self.topics))} has neither name nor function"
            )
        return self._name

    def prepare(self, function: F) -> F:
        """Declare the phase that chooses events and computes. It returns the prepare result, JSON."""
        return self._declare("prepare_function", function)

    def mutate(self, function: F) -> F:
        """Declare the phase that returns the one effect to perform, or None for none this time."""
        return self._declare("mutate_function", function)

    def next(self, function: F) -> F:
        """Declare the phase that publishes what follows. With `stateful` it returns the next state."""
        return self._declare("next_function", function)

    def __call__(self, function: Callable[..., Any]) -> Consumer:
        """Declare the phase `next`, and the name by the function's."""
        if self._name is None:
            self._name = check_handler_name(getattr(function, "__name__", ""))
            self._workflow._add(self, self._name)
        self.next(function)
        return self

    @property
    def effects(self) -> dict[str, Effect[...]]:
        """The effects that it may ask for, by name: those it was given, and those its mutate function names.

        Raises:
            InvalidInput: it has a mutate function and no effect, or two effects have one name.
        """
        if self._all_effects is None:
            self._all_effects = self._find_effects()
        return self._all_effects

    def _find_effects(self) -> dict[str, Effect[...]]:
        if self.mutate_function is None:
            return {}
        found: dict[str, Effect[...]] = {}
        for one in [*self._effects, *effects_named_in(self.mutate_function)]:
            if found.setdefault(one.name, one) is not one:
                raise InvalidInput(f"consumer {self}", f"has two effects called {one.name}; give one another name")
        if not found:
            raise InvalidInput(
                f"consumer {self}",
                "has a mutate function that names no effect; give it by consumer(effects=[...])",
            )
        return found

    @property
    def default_mode(self) -> Mode:
        """How its work is claimed where neither the topic nor the handler has a setting."""
        if self.mode is not None:
            return self.mode
        return "soft" if all(one.idempotent for one in self.effects.values()) else "confirmed"

    def check(self) -> None:
        """Make sure that it can run.

        Raises:
            InvalidInput: it has no phase, keeps a state that nothing returns, or its effects cannot be told.
        """
        if not (self.prepare_function or self.mutate_function or self.next_function):
            raise InvalidInput(f"consumer {self}", "has no function; decorate one with it, or with a phase of it")
        if self.stateful and self.next_function is None:
            raise InvalidInput(f"consumer {self}", "is stateful, and has no next phase that returns the next state")
        _ = self.effects

    def _declare(self, attribute: str, function: F) -> F:
        if getattr(self, attribute) is not None:
            raise InvalidInput(f"consumer {self}", f"has its {attribute.removesuffix('_function')} phase already")
        if not callable(function):
            raise InvalidInput(f"consumer {self}", f"{function!r} is not a function")
        setattr(self, attribute, function)
        self._all_effects = None
        return function

    def __str__(self) -> str:
        return f"{self.workflow}/{self._name or '?'}"


Handler = Producer | Consumer


class Workflow:
    """One automation: named topics, producers and consumers.

    Attributes:
        name: the same on every device. Scopes topics, events and handlers.
        title: for people.
    """

    def __init__(self, name: str, *, title: str = "") -> None:
        """Raises InvalidInput when a name cannot be accepted."""
        self.name = check_text("workflow", name)
        self.title = check_text("title", title or name, characters_max=TITLE_CHARACTERS_MAX)
        self._topics: dict[str, Topic] = {}
        self._handlers: dict[str, Handler] = {}

    def topic(self, name: str) -> Topic:
        """Return the topic of that name. The same one each time.

        Raises:
            InvalidInput: the name is empty, too long, or begins with ~.
        """
        if is_internal(check_text("topic", name)):
            raise InvalidInput(
                "topic", f"{name!r} begins with {INTERNAL_PREFIX}, which is for topics of leasemesh itself"
            )
        return self._topics.setdefault(name, Topic(self.name, name))

    def producer(
        self,
        *,
        every_s: float | None = None,
        cron: str | None = None,
        time_zone: str = "UTC",
        publishes: Iterable[Topic] = (),
        name: str | None = None,
    ) -> Callable[[Callable[..., Any]], Producer]:
        """Declare a producer, as a decorator of `function(run, state)`.

        Args:
            every_s: run every so many seconds, or
            cron: by this expression, for example "0 7 * * mon-fri".
            time_zone: of the cron expression, for example "Europe/Berlin".
            publishes: the topics that it may publish to.
            name: the function's name, if not given.

        Raises:
            InvalidInput: not just one of every_s and cron is given, or a value cannot be accepted.
        """
        if (every_s is None) == (cron is None):
            raise InvalidInput("every_s, cron", "give one of them")
        schedule: Schedule = Every(every_s) if every_s is not None else Cron(cron or "", time_zone)
        topics = self._own_topics("publishes", publishes)

        def declare(function: Callable[..., Any]) -> Producer:
            if len(inspect.signature(function).parameters) != 2:
                raise InvalidInput(f"producer {function.__name__}", "must take two parameters: run and state")
            found = Producer(self.name, check_handler_name(name or function.__name__), schedule, topics, function)
            self._add(found, found.name)
            return found

        return declare

    def consumer(
        self,
        *topics: Topic,
        name: str | None = None,
        publishes: Iterable[Topic] = (),
        batch: int = 1,
        mode: ConsumerMode | None = None,
        stateful: bool = False,
        effects: Sequence[Effect[...]] = (),
    ) -> Consumer:
        """Declare a consumer: a decorator for one function, or for each phase. See `Consumer`.

        Args:
            topics: what it consumes. At least one.
            name: the function's name, if not given. Needed to declare phases one by one.
            publishes: the topics that `next` may publish to.
            batch: events in one run at the most, 1 to 999, when there is no prepare.
            mode: see `Consumer`.
            stateful: `run.state` is what `next` returned the last time.
            effects: those that its mutate function may ask for, as far as it does not name them itself.

        Raises:
            InvalidInput: a value cannot be accepted, or the workflow has a handler of that name.
        """
        if not topics:
            raise InvalidInput("topics", "a consumer consumes from at least one")
        return Consumer(
            self,
            self._own_topics("topics", topics),
            name=None if name is None else check_handler_name(name),
            publishes=self._own_topics("publishes", publishes),
            batch=batch,
            mode=mode,
            stateful=stateful,
            effects=effects,
        )

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """Its handlers in the order of declaration."""
        return tuple(self._handlers.values())

    @property
    def producers(self) -> tuple[Producer, ...]:
        """Its producers."""
        return tuple(one for one in self.handlers if isinstance(one, Producer))

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Its consumers."""
        return tuple(one for one in self.handlers if isinstance(one, Consumer))

    def check(self) -> None:
        """Make sure that every handler can run. Raises InvalidInput, naming the one that cannot."""
        for one in self.consumers:
            one.check()

    def _add(self, handler: Handler, name: str) -> None:
        if name in self._handlers:
            raise InvalidInput("name", f"workflow {self.name} has a handler {name} already; give this one another name")
        self._handlers[name] = handler

    def _own_topics(self, argument: str, topics: Iterable[Topic]) -> tuple[Topic, ...]:
        found = tuple(dict.fromkeys(topics))
        for one in found:
            if not isinstance(one, Topic) or one.workflow != self.name:
                raise InvalidInput(
                    argument, f"{one} is not a topic of workflow {self.name}; use {self.name}.topic(...)"
                )
        return found

    def __str__(self) -> str:
        return self.name


def check_handler_name(name: str) -> str:
    """Return the name of a handler.

    Raises:
        InvalidInput: it is empty, too long, not printable, or has a slash (people write workflow/handler).
    """
    if not check_text("name", name).isprintable() or "/" in name or name == "<lambda>":
        raise InvalidInput("name", f"{name!r} is not a handler's name: printable, without a slash; give name=...")
    return name
