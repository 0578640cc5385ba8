"""What all readers share: records and problems, the check before publishing, and lines of bounded length."""

from __future__ import annotations

import hashlib
import json
import marshal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, cast

from leasemesh.node.model.errors import InvalidInput, LeasemeshError
from leasemesh.node.model.jsonvalue import PAYLOAD_BYTES_MAX
from leasemesh.node.stores.events.publications import NewEvent, encode_event

LINE_BYTES_MAX = 8 * PAYLOAD_BYTES_MAX
"""A payload at its limit may take six bytes for each of its own when all of it is written as \\u escapes."""

SPOOL_MEMORY_BYTES_MAX = 8 * 1024 * 1024
"""Up to this much checked input is kept in memory, more of it on disk."""

PROBLEMS_KEPT_MAX = 100
"""Problems listed by place. Beyond it they are counted only."""

ID_FIELDS = ("message_id", "id")
TITLE_FIELDS = ("title", "subject", "name")

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that cannot become an event.

    Attributes:
        source: the file's name.
        line: where the record begins, from 1. For a git history, the number of the commit.
        text: what is wrong with it.
    """

    source: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.text}"


Record = NewEvent | Problem


class ImportFailed(LeasemeshError):
    """A source holds records that cannot become events. Nothing of it was published.

    Attributes:
        problems: the first PROBLEMS_KEPT_MAX of them.
        count: how many there are.
    """

    def __init__(self, problems: list[Problem], count: int) -> None:
        more = f" (and {count - 1:,} more)" if count > 1 else ""
        super().__init__(f"{problems[0]}{more}; nothing was published")
        self.problems = problems
        self.count = count


class BadRecord(Exception):
    """A record that cannot become an event. The text says why. Readers turn it into a `Problem`."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are its message id and its title.

    Attributes:
        id: the field that every record must have. None: "message_id" or "id" when the record has it, else a hash of its
            content.
        title: the field with the title. None: "title", "subject" or "name", else no title.
    """

    id: str | None = None
    title: str | None = None


@dataclass
class Checked:
    """What a source was found to hold. `events` may be read any number of times. `close` frees the disk space.

    Attributes:
        spool: the good records, marshalled.
        count: how many good records there are.
        problems: the first PROBLEMS_KEPT_MAX bad ones.
        problem_count: how many bad ones there are.
    """

    spool: BinaryIO
    count: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0

    def events(self) -> Iterator[NewEvent]:
        """Yield the good records in order."""
        self.spool.seek(0)
        for _ in range(self.count):
            yield NewEvent(*marshal.load(self.spool))

    def close(self) -> None:
        """Free the disk space."""
        self.spool.close()


def check(records: Iterable[Record], *, keep_going: bool = False, folder: Path | None = None) -> Checked:
    """Read a source to its end, before anything of it is published.

    Args:
        records: from one of the readers.
        keep_going: leave bad records out instead of refusing the source.
        folder: where to keep what is read when it is large. None: the system's folder for temporary files.

    Raises:
        ImportFailed: there are bad records.
    """
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES_MAX, dir=str(folder) if folder else None)
    checked = Checked(cast(BinaryIO, spool))
    try:
        for record in records:
            if isinstance(record, NewEvent):
                marshal.dump((record.message_id, record.title, record.payload), spool)
                checked.count += 1
            else:
                checked.problem_count += 1
                if len(checked.problems) < PROBLEMS_KEPT_MAX:
                    checked.problems.append(record)
        if checked.problems and not keep_going:
            raise ImportFailed(checked.problems, checked.problem_count)
    except BaseException:
        checked.close()
        raise
    return checked


def make_record(
    source: str,
    line: int,
    make: Callable[Arguments, NewEvent],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Record:
    """Make an event and check it as publishing does."""
    try:
        event = make(*arguments, **options)
        encode_event(event)
    except (BadRecord, InvalidInput) as error:
        return Problem(source, line, str(error))
    return event


def identify(value: dict[str, Any], fields: Fields) -> tuple[str, str]:
    """Return the message id and the title of a record.

    Raises:
        BadRecord: the field that was asked for is missing, or no text and no whole number.
    """
    identifier = _field(value, fields.id, ID_FIELDS)
    if not identifier and fields.id is not None:
        raise BadRecord(f"has no {fields.id!r}")
    if not identifier:
        identifier = content_id(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
    return identifier, _field(value, fields.title, TITLE_FIELDS)


def content_id(content: bytes) -> str:
    """Return a message id for a record that has none of its own."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _field(value: dict[str, Any], chosen: str | None, usual: tuple[str, ...]) -> str:
    name = chosen or next((name for name in usual if name in value), "")
    found = value.get(name)
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise BadRecord(f"{name!r} must be text or a whole number")
    return str(found)


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line that was passed over because of its `size` in bytes."""

    size: int

    def __str__(self) -> str:
        return f"the line has {self.size:,} bytes, the limit is {LINE_BYTES_MAX:,}"


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | TooLong]]:
    """Yield each line with its number from 1, ends of lines included, a byte order mark left out."""
    number = 0
    while line := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) <= LINE_BYTES_MAX:
            yield number, line
            continue
        size = len(line)
        while not line.endswith(b"\n") and (line := stream.readline(LINE_BYTES_MAX)):
            size += len(line)
        yield number, TooLong(size)
