"""JSON Lines and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import BinaryIO

from leasemesh.node.importers.records import (
    LINE_BYTES_MAX,
    BadRecord,
    Fields,
    Problem,
    Record,
    TooLong,
    identify,
    make_record,
    numbered_lines,
)
from leasemesh.node.stores.events.publications import NewEvent

_JSON_NAMES: dict[type, str] = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
_DELIMITERS = ",;\t"


def read_json_lines(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Record]:
    """Read one JSON object from each line. Empty lines are passed over.

    An object with no other fields than message_id, title and payload is taken as that event. Of any other object the
    whole is the payload.
    """
    for number, line in numbered_lines(stream):
        if isinstance(line, TooLong):
            yield Problem(name, number, str(line))
        elif line.strip():
            yield make_record(name, number, _event_of_json, line, fields)


def _event_of_json(line: bytes, fields: Fields) -> NewEvent:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecord("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadRecord(f"is not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise BadRecord("is nested too deeply") from error
    except ValueError as error:
        raise BadRecord(f"cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise BadRecord(f"is {_JSON_NAMES.get(type(value), 'a number')}, not a JSON object")
    message_id, title = identify(value, fields)
    whole = "payload" in value and value.keys() <= {"message_id", "title", "payload"}
    return NewEvent(message_id, title, value["payload"] if whole else value)


def read_csv(stream: BinaryIO, name: str, fields: Fields) -> Iterator[Record]:
    """Read one event from each row. The first row names the columns.

    Columns are separated by commas, semicolons or tabs, whichever the first line has most of. The payload is an object
    with all columns, as text.
    """
    csv.field_size_limit(LINE_BYTES_MAX)
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=lines.delimiter, strict=True)
    header: list[str] | None = None
    while True:
        begin = lines.number + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(name, begin, f"is not CSV ({error})")
            if header is None:
                return
            continue
        if header is not None:
            if row:
                yield make_record(name, begin, _event_of_row, header, row, fields)
        elif problem := _problem_with_header(row, fields):
            yield Problem(name, begin, problem)
            return
        else:
            header = row


def _problem_with_header(header: list[str], fields: Fields) -> str | None:
    missing = [wanted for wanted in (fields.id, fields.title) if wanted is not None and wanted not in header]
    if missing:
        return f"the first row has no column {missing[0]!r}; it has {', '.join(header)}"
    twice = sorted({column for column in header if header.count(column) > 1})
    return f"the first row names the column {twice[0]!r} twice" if twice else None


def _event_of_row(header: list[str], row: list[str], fields: Fields) -> NewEvent:
    if len(row) != len(header):
        raise BadRecord(f"has {len(row)} fields, the first row has {len(header)}")
    value = dict(zip(header, row, strict=True))
    message_id, title = identify(value, fields)
    return NewEvent(message_id, title, value)


class _Lines:
    """Text lines for csv.reader. What is not UTF-8 becomes lone surrogates, which the check of the event refuses."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = numbered_lines(stream)
        self._first = next(self._lines, None)
        first = self._first[1] if self._first else b""
        head = b"" if isinstance(first, TooLong) else first
        self.delimiter = max(_DELIMITERS, key=lambda delimiter: head.count(delimiter.encode()))
        self.number = 0
        """Lines handed out."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        numbered, self._first = self._first or next(self._lines), None
        self.number, line = numbered
        if isinstance(line, TooLong):
            raise csv.Error(str(line))
        return line.decode(errors="surrogateescape")
