"""What people type for topics, events, runs, works, handlers and devices: WORKFLOW/TOPIC, WORKFLOW/TOPIC/MESSAGE_ID,
WORKFLOW/HANDLER, names, ids or their beginnings."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from typing import TYPE_CHECKING

from leasemesh.node.model.errors import Ambiguous, InvalidInput, NotFound
from leasemesh.node.model.ids import ID_BYTES, NodeId, WorkId

if TYPE_CHECKING:
    from leasemesh.node.cli.app import Context
    from leasemesh.node.model.ids import RunId
    from leasemesh.node.node import Node
    from leasemesh.node.stores import Event


def split_topic(text: str) -> tuple[str, str]:
    """Return workflow and topic of WORKFLOW/TOPIC. The workflow ends at the first slash.

    Raises:
        InvalidInput: there is no slash, or nothing on one side of it.
    """
    return _sides("topic", "shop/orders", text, *text.partition("/")[::2])


def existing_topic(node: Node, text: str) -> tuple[str, str]:
    """Return workflow and topic of WORKFLOW/TOPIC, wherever the slash is that makes it a topic of this workspace.

    Raises:
        InvalidInput: it is not of that form.
        NotFound: this device knows no such topic.
    """
    split_topic(text)
    for workflow, topic in _splits(text):
        if node.topics.get_by_name(workflow, topic) is not None:
            return workflow, topic
    raise NotFound("topic", [text], "`leasemesh topics` lists them; a topic that was published elsewhere comes by sync")


def find_event(node: Node, text: str) -> Event:
    """Return the event that `text` names: WORKFLOW/TOPIC/MESSAGE_ID, an id or the beginning of one.

    Raises:
        InvalidInput: it is none of these.
        NotFound, Ambiguous: it names no event, or several.
    """
    found = _event_by_key(node, text) if "/" in text else _event_by_id(node, text)
    if found is None:
        raise NotFound("event", [text], "`leasemesh peek WORKFLOW/TOPIC` lists events with their ids")
    return found


def find_run(node: Node, text: str) -> RunId:
    """Return the id of the run whose reservation `text` names by id or the beginning of one.

    Raises:
        InvalidInput: it is no id.
        NotFound, Ambiguous: it names no run, or several.
    """
    found = node.events.find_run(text)
    if found is None:
        raise NotFound("run", [text], "`leasemesh status` lists the runs that hold events")
    return found


def find_node(context: Context, text: str) -> NodeId:
    """Return the id of the device that `text` names: its name, its id or the beginning of that.

    Raises:
        NotFound, Ambiguous: it names no device that is known here, or several.
    """
    names = context.names()
    known = sorted(context.node.authorities.known_nodes() | names.keys())
    named = [one for one in known if text in (names.get(one), context.device_name(one))]
    found = named or [one for one in known if text and one.startswith(text)]
    if not found:
        raise NotFound("device", [text], "`leasemesh status` lists those that this one knows, by id")
    if len(found) > 1:
        raise Ambiguous("device", text, found)
    return NodeId(found[0])


def split_handler(text: str) -> tuple[str, str]:
    """Return workflow and handler of WORKFLOW/HANDLER. The handler begins after the last slash.

    Raises:
        InvalidInput: there is no slash, or nothing on one side of it.
    """
    return _sides("handler", "shop/pack", text, *text.rpartition("/")[::2])


def warn_when_unknown(context: Context, workflow: str, handler: str) -> None:
    """Say so when no run of a handler is known here.

    What is said of it counts all the same: it may run only on devices that were not met yet. But people mistype names.
    """
    if not context.node.handler_runs.recent(workflow, handler, limit=1):
        context.screen.warn(f"no run of {workflow}/{handler} is known here: is that its name?")


def find_work(text: str, known: set[WorkId]) -> WorkId:
    """Return the work that `text` names: a whole id, or the beginning of one that is known.

    Raises:
        InvalidInput: it is no id.
        NotFound, Ambiguous: it is the beginning of none of those, or of several.
    """
    prefix = text.lower()
    if not 4 <= len(prefix) <= 2 * ID_BYTES or prefix.strip("0123456789abcdef"):
        raise InvalidInput("work", f"{text!r} is not the beginning of an id (4 to 32 hexadecimal characters)")
    if len(prefix) == 2 * ID_BYTES:
        return WorkId(prefix)
    found = sorted(one for one in known if one.startswith(prefix))
    if not found:
        hint = "`leasemesh unknown` lists those that wait; one that was decided before needs its whole id"
        raise NotFound("work", [text], hint)
    if len(found) > 1:
        raise Ambiguous("work", text, found)
    return found[0]


def person() -> str:
    """Return who sits at this machine, for people elsewhere."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process without a name or a login
        return "somebody"


def _sides(what: str, such_as: str, text: str, workflow: str, name: str) -> tuple[str, str]:
    if not workflow or not name:
        raise InvalidInput(what, f"{text!r} is not of the form WORKFLOW/{what.upper()}, such as {such_as}")
    return workflow, name


def _event_by_id(node: Node, text: str) -> Event | None:
    try:
        return node.events.find(text)
    except InvalidInput as error:
        forms = "WORKFLOW/TOPIC/MESSAGE_ID nor the beginning of an id (4 to 32 hexadecimal characters)"
        raise InvalidInput("event", f"{text!r} is neither {forms}") from error


def _event_by_key(node: Node, text: str) -> Event | None:
    for workflow, rest in _splits(text):
        for topic, message_id in _splits(rest):
            found = node.events.get_by_message_id(workflow, topic, message_id)
            if found is not None:
                return found
    return None


def _splits(text: str) -> Iterator[tuple[str, str]]:
    """Yield the two sides of each slash, the first one first."""
    for index, character in enumerate(text):
        if character == "/" and 0 < index < len(text) - 1:
            yield text[:index], text[index + 1 :]
