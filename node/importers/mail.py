"""Mail archives in the mbox format."""

from __future__ import annotations

import email.parser
import email.policy
import re
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message
from typing import Any, BinaryIO

from leasemesh.node.importers.records import Problem, Record, TooLong, content_id, make_record, numbered_lines
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX
from leasemesh.node.stores.events.publications import NewEvent

MAIL_BYTES_MAX = 64 * 1024 * 1024
"""A mail with its attachments, as large as mail services accept at most. Only its headers and text are kept."""

_MAIL_BEGINS = re.compile(rb"From \S.*\d{1,2}:\d{2}")
"""With a time of day, because paragraphs begin with "From" too. It also has to follow an empty line."""

_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_HEADERS = ("From", "To", "Cc", "Date", "Subject", "In-Reply-To")


def read_mbox(stream: BinaryIO, name: str) -> Iterator[Record]:
    """Read one event from each mail: its Message-ID, its subject, and a payload of its headers and its plain text.

    Attachments are named, not kept.
    """
    mail = _Mail(0)
    after_empty = True
    for number, line in numbered_lines(stream):
        text = b"" if isinstance(line, TooLong) else line
        if after_empty and _MAIL_BEGINS.match(text):
            if mail.line:
                yield mail.record(name)
            mail = _Mail(number)
        elif not mail.line:
            yield Problem(name, number, 'an mbox file begins with a line "From ADDRESS DATE"')
            return
        else:
            mail.add(text, line.size if isinstance(line, TooLong) else len(text))
        after_empty = not isinstance(line, TooLong) and not line.strip(b"\r\n")
    if mail.line:
        yield mail.record(name)


class _Mail:
    """One mail while it is being read."""

    def __init__(self, line: int) -> None:
        self.line = line
        self._size = 0
        self._lines: list[bytes] = []

    def add(self, line: bytes, size: int) -> None:
        self._size += size
        if self._size <= MAIL_BYTES_MAX:
            self._lines.append(line)
        else:
            self._lines.clear()

    def record(self, name: str) -> Record:
        if self._size > MAIL_BYTES_MAX:
            return Problem(name, self.line, f"the mail has {self._size:,} bytes, the limit is {MAIL_BYTES_MAX:,}")
        raw = _ESCAPED_FROM.sub(rb"\1", b"".join(self._lines))
        return make_record(name, self.line, _event_of_mail, raw)


def _event_of_mail(raw: bytes) -> NewEvent:
    # compat32, because the newer policy raises on some malformed headers, and real archives are full of them.
    mail = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(raw)
    headers = {name: _header(mail, name) for name in _HEADERS}
    payload: dict[str, Any] = {name.lower().replace("-", "_"): value for name, value in headers.items() if value}
    parts = [part for part in mail.walk() if not part.is_multipart()]
    payload["text"] = next((_text(part) for part in parts if _is_text(part)), "")
    attachments = [_clean(part.get_filename() or part.get_content_type()) for part in parts if _is_attachment(part)]
    if attachments:
        payload["attachments"] = attachments
    message_id = _header(mail, "Message-ID").strip("<> ") or content_id(raw)
    return NewEvent(message_id, headers["Subject"][:TITLE_CHARACTERS_MAX], payload)


def _is_attachment(part: Message) -> bool:
    return part.get_content_disposition() == "attachment" or part.get_filename() is not None


def _is_text(part: Message) -> bool:
    return part.get_content_type() == "text/plain" and not _is_attachment(part)


def _header(mail: Message, name: str) -> str:
    value = mail.get(name)
    if value is None:
        return ""
    try:
        text = str(make_header(decode_header(value)))
    except (ValueError, LookupError):
        text = str(value)
    return " ".join(_clean(text).split())


def _text(part: Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    try:
        return _clean(content.decode(part.get_content_charset("utf-8"), errors="replace"))
    except LookupError:
        return content.decode(errors="replace")


def _clean(text: str) -> str:
    """Return text without what cannot be UTF-8: the parser keeps undeclared bytes as lone surrogates."""
    return text.encode(errors="replace").decode()
