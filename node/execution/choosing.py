"""Which events a run takes when its consumer has no prepare phase, and the event that stands for a handler's state.

The oldest pending events, with two exceptions: an event that the handler's code has failed on before is taken alone, so
that it does not take others down with it, and what stands in another run's permit is left alone, because somebody may
begin an effect for it at any time.

Topics of one consumer may have different modes. A run takes events of one mode only, and what is at home elsewhere is
left to that device.

A stateful consumer reserves, together with its events, an event that stands for the next version of its state. So the
ownership rule decides between devices about the state just as it does about work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from leasemesh.node.authoring.workflow import Consumer, Handler
from leasemesh.node.model.errors import HomeElsewhere, IllegalState
from leasemesh.node.model.ids import RunId
from leasemesh.node.stores import Event, NewEvent
from leasemesh.node.stores.base import INTERNAL_PREFIX
from leasemesh.node.stores.modes import Mode

if TYPE_CHECKING:
    from leasemesh.node.host import Host

STATE_TOPIC = f"{INTERNAL_PREFIX}state"


@dataclass(frozen=True, slots=True)
class Choice:
    """Events to work on.

    Attributes:
        events: at least one.
        reserved: whether the run has them already.
        mode: how they are claimed.
    """

    events: tuple[Event, ...]
    reserved: bool
    mode: Mode


class FailedBefore(Exception):
    """Among the next events is one that the handler has failed on before. Begin anew, and choose warily."""


def choose(node: Host, consumer: Consumer, run: RunId, *, wary: bool, skip: int = 0) -> Choice | None:
    """Return the events that a run takes, None when there are none. Call it in the transaction that begins the run.

    Args:
        node: the node.
        consumer: whose run it is.
        run: the run.
        wary: look at each event before it is reserved. Otherwise the usual case is one statement.
        skip: how many of the oldest to leave to others, as long as there are more: after a lost race.

    Raises:
        FailedBefore: not wary, and it should have been. Leave the transaction, which has reserved them already.
        HomeElsewhere, IllegalState: this device may claim in none of its topics now.
    """
    modes = open_topics(node, consumer)
    if len(consumer.topics) == 1 and not consumer.stateful and not wary and not skip:
        events = _reserve_next(node, consumer, run)
        return Choice(events, True, modes[consumer.topics[0].name]) if events else None
    found = _oldest(node, consumer, modes, skip)
    if not found:
        return None
    mode = modes[found[0].topic]
    alone = next((event for event in found if event.epoch and failed_claims(node, consumer, event)), None)
    if alone is None:
        return Choice(tuple(found), False, mode)
    if alone is found[0]:
        return Choice((alone,), False, mode)
    return Choice(tuple(found[: found.index(alone)]), False, mode)


def open_topics(node: Host, consumer: Consumer) -> dict[str, Mode]:
    """Return in which topics this device may claim for a consumer now, and how.

    Raises:
        HomeElsewhere, IllegalState: in none of them.
    """
    modes: dict[str, Mode] = {}
    refusals: list[HomeElsewhere | IllegalState] = []
    for topic in consumer.topics:
        try:
            modes[topic.name] = mode_of_topics(node, consumer, [topic.name])
        except (HomeElsewhere, IllegalState) as error:
            refusals.append(error)
    if not modes:
        raise refusals[0]
    return modes


def mode_of_topics(node: Host, consumer: Consumer, topics: Iterable[str]) -> Mode:
    """Return how a consumer claims events of these topics together. Raises as `ModeStore.claiming`."""
    return node.modes.claiming(consumer.workflow, topics, consumer.name, default=consumer.default_mode)


PendingMark = tuple[tuple[int, int], ...]
"""Which events are pending in a consumer's topics, in short."""


def any_pending(node: Host, consumer: Consumer) -> bool:
    """Tell whether a topic that a consumer consumes has pending events."""
    return any(node.events.any_pending(consumer.workflow, topic.name) for topic in consumer.topics)


def pending_mark(node: Host, consumer: Consumer) -> PendingMark:
    """Return a mark of what is pending for a consumer: a prepare phase that left all of that alone is not asked again
    until it is another one."""
    with node.database.snapshot():
        return tuple(node.events.pending_mark(consumer.workflow, topic.name) for topic in consumer.topics)


def _reserve_next(node: Host, consumer: Consumer, run: RunId) -> tuple[Event, ...]:
    events = node.events.reserve_next(
        run,
        consumer.workflow,
        consumer.topics[0].name,
        limit=consumer.batch,
        handler=consumer.name,
        default_mode=consumer.default_mode,
    )
    if len(events) > 1 and any(event.epoch > 1 and failed_claims(node, consumer, event) for event in events):
        raise FailedBefore
    return tuple(events)


def _oldest(node: Host, consumer: Consumer, modes: Mapping[str, Mode], skip: int) -> list[Event]:
    """Return the oldest events that can be claimed together, but for some of the very oldest."""
    batch = consumer.batch
    peeked = [
        event
        for topic in modes
        for event in node.events.peek(consumer.workflow, topic, limit=skip + batch, permitted=False)
    ]
    peeked.sort(key=lambda event: (event.created_at, event.id))
    peeked = peeked[max(0, min(skip, len(peeked) - batch)) :]
    return [event for event in peeked if modes[event.topic] == modes[peeked[0].topic]][:batch]


def failed_claims(node: Host, handler: Handler, event: Event) -> int:
    """Return how many runs of a handler, on whichever device, have failed on an event because of its code."""
    explanation = node.events.explain(event.id) if event.epoch else None
    if explanation is None:
        return 0
    runs = (node.handler_runs.get(claim.run) for claim in explanation.claims if claim.handler == handler.name)
    return sum(run is not None and run.status == "failed:logic" for run in runs)


def state_token(node: Host, consumer: Consumer, version: int, run: RunId) -> str | None:
    """Return the message id of the event that stands for the next version of a consumer's state, publishing it when it
    is not there. None while another run has it."""
    token = free_token(node, consumer, version)
    if token is not None:
        node.events.publish_many(consumer.workflow, STATE_TOPIC, [NewEvent(token)], created_by_run=run)
    return token


def free_token(node: Host, consumer: Consumer, version: int) -> str | None:
    """Return the message id of the event that is to stand for the next version of a consumer's state. None while
    another run has it."""
    for number in count():
        message_id = f"{consumer.name}/{version + 1}/{number}"
        found = node.events.get_by_message_id(consumer.workflow, STATE_TOPIC, message_id)
        if found is None or found.status == "pending":
            return message_id
        if found.status in ("reserved", "unknown"):
            return None
    raise AssertionError("unreachable")
