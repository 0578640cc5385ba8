"""The command publish: one event, or a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.events import TopicArgument, event_document
from leasemesh.node.cli.naming import split_topic
from leasemesh.node.cli.output import count_of, styled
from leasemesh.node.importers import (
    FORMATS,
    HEAD_BYTES,
    Checked,
    Fields,
    Format,
    ImportFailed,
    Record,
    check,
    guess_format,
    read,
)
from leasemesh.node.model.errors import InvalidInput, NotFound
from leasemesh.node.model.ids import short
from leasemesh.node.model.jsonvalue import Json
from leasemesh.node.stores import NewEvent
from leasemesh.node.stores.base import is_internal

PUBLISH_TRANSACTION_EVENTS = 1_000
"""Events of a file that are published in one transaction: cheap for each, and other writers get their turn."""

STANDARD_INPUT = "-"


@command(
    app,
    "publish",
    panel="Events",
    examples=[
        "leasemesh publish shop/orders --id order-17 --title 'Two chairs'",
        "leasemesh publish shop/orders --id order-18 --payload '{\"chairs\": 2}'",
        "leasemesh publish shop/orders orders.jsonl",
        "leasemesh publish shop/orders orders.csv --id-field number",
        "leasemesh publish mail/inbox archive.mbox --keep-going",
        "cat orders.jsonl | leasemesh publish shop/orders -",
    ],
)
def publish(
    context: Context,
    topic: TopicArgument,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="JSON Lines, CSV or mbox to read events from; - for standard input."),
    ] = None,
    message_id: Annotated[str | None, typer.Option("--id", help="Publish one event with this message id.")] = None,
    title: Annotated[str, typer.Option(help="Its title.")] = "",
    payload: Annotated[str | None, typer.Option(help="Its payload, as JSON.")] = None,
    source_format: Annotated[
        str | None,
        typer.Option("--format", help="jsonl, csv or mbox; by default told by the file's name or beginning."),
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The field with the message id (message_id or id).")] = None,
    title_field: Annotated[str | None, typer.Option(help="The field with the title (title, subject or name).")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave bad records out; without it, one of them stops everything.")
    ] = False,
) -> None:
    """Publish one event, or a file of them. What the topic has already stays as it is: publishing again is safe."""
    workflow, name = split_topic(topic)
    if is_internal(name):
        raise InvalidInput("topic", f"names that begin with ~, such as {name!r}, are leasemesh's own; choose another")
    if (file is None) == (message_id is None):
        raise InvalidInput("publish", "give either --id for one event or a FILE of events")
    if message_id is not None:
        _publish_one(context, workflow, name, NewEvent(message_id, title, _parse_payload(payload)))
        return
    if title or payload is not None:
        raise InvalidInput("publish", "--title and --payload go with --id; a FILE brings its own")
    assert file is not None
    fields = Fields(id_field, title_field)
    with _checked_file(context, file, _format_named(source_format), fields, keep_going) as checked:
        created = _publish_all(context, workflow, name, checked)
        _report_file(context, topic, file, checked, created)


def _publish_one(context: Context, workflow: str, topic: str, event: NewEvent) -> None:
    published = context.node.publish(workflow, topic, event.message_id, title=event.title, payload=event.payload)
    document = {"created": published.created, "event": event_document(published.event)}
    if published.created:
        text = f"published {workflow}/{topic}/{event.message_id} as event {short(published.event.id)}"
    else:
        text = (
            f"{workflow}/{topic} has {event.message_id} already (event {short(published.event.id)}, "
            f"{published.event.status}); nothing was changed"
        )
    context.screen.show(document, lambda: [styled(text)])


def _publish_all(context: Context, workflow: str, topic: str, checked: Checked) -> int:
    events = checked.events()
    created = done = 0
    with context.screen.progress("publishing", checked.count) as show:
        while chunk := list(islice(events, PUBLISH_TRANSACTION_EVENTS)):
            created += context.node.publish_many(workflow, topic, chunk).created
            done += len(chunk)
            show(done)
    return created


def _report_file(context: Context, topic: str, file: str, checked: Checked, created: int) -> None:
    existing = checked.count - created
    document = {
        "created": created,
        "existing": existing,
        "left_out": checked.problem_count,
        "problems": [{"line": problem.line, "text": problem.text} for problem in checked.problems],
    }
    text = f"published {count_of(created, 'event')} to {topic}"
    if existing:
        text += f"; it had {existing:,} already"
    if checked.problem_count:
        text += f"; left out {count_of(checked.problem_count, 'bad record')}:"
    listed = [styled(f"  {problem}", "yellow") for problem in checked.problems]
    unlisted = checked.problem_count - len(checked.problems)
    more = [styled(f"  and {unlisted:,} more", "yellow")] if unlisted else []
    context.screen.show(document, lambda: [styled(text), *listed, *more])


def _parse_payload(text: str | None) -> Json:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            "--payload", f"is not JSON ({error}); text needs quotes of its own, '\"like this\"'"
        ) from error


def _format_named(name: str | None) -> Format | None:
    if name is not None and name not in FORMATS:
        raise InvalidInput("--format", f"{name!r} is not one of {', '.join(FORMATS)}")
    return name


@contextmanager
def _checked_file(
    context: Context, file: str, source_format: Format | None, fields: Fields, keep_going: bool
) -> Iterator[Checked]:
    """Read a file to its end before anything is published. Gives what it holds."""
    name = "standard input" if file == STANDARD_INPUT else file
    with _opened(file) as (stream, size), context.screen.progress(f"reading {Path(file).name}", size) as show:
        head = stream.peek(HEAD_BYTES) if hasattr(stream, "peek") else b""
        chosen = source_format or guess_format(file, head)
        if chosen is None:
            raise InvalidInput("FILE", f"cannot tell the format of {name}; say --format {', '.join(FORMATS)}")
        records = _watched(read(stream, chosen, name, fields), stream if size else None, show)
        try:
            checked = check(records, keep_going=keep_going, folder=context.node.path.parent)
        except ImportFailed as error:
            raise CommandError(f"{error}; --keep-going leaves out what is bad") from error
    try:
        yield checked
    finally:
        checked.close()


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if file == STANDARD_INPUT:
        yield sys.stdin.buffer, None
        return
    try:
        stream = open(file, "rb")
    except FileNotFoundError as error:
        raise NotFound("file", [file]) from error
    with stream:
        yield stream, Path(file).stat().st_size


def _watched(records: Iterable[Record], stream: BinaryIO | None, show: Callable[[int], None]) -> Iterator[Record]:
    """Pass records on, showing now and then how far into the stream they go."""
    for number, record in enumerate(records):
        if stream is not None and number % 256 == 0:
            show(stream.tell())
        yield record
