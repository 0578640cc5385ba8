"""A real mail server on this machine: it receives mail by SMTP and puts it into a mailbox that any mail program reads.

Like every mail server it takes whatever it is given: the same letter twice is two letters. What it accepted cannot be
asked of it by SMTP, so whoever lost its answer has to look into the mailbox (`Mailbox.holds`).
"""

from __future__ import annotations

import asyncio
import email.policy
import mailbox
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from types import TracebackType

from aiosmtpd.smtp import SMTP, Envelope, Session
from mail_effects import EVENT_HEADER

from demo_app.withheld import Withheld

MAILBOX_FOLDER = "mailbox"
ACCEPTED = "250 Message accepted for delivery"


@dataclass(frozen=True, slots=True)
class Letter:
    """What matters of a mail.

    Attributes:
        key: its Message-ID, up to the "@".
        to: the recipient.
        event: the id of the event that it is about.
        device: who sent it.
    """

    key: str
    to: str
    event: str
    device: str


class Mailbox:
    """A folder of mails in the Maildir format.

    Args:
        folder: where the demo keeps everything; the mailbox is a folder in there.
    """

    def __init__(self, folder: Path) -> None:
        self._box = mailbox.Maildir(folder / MAILBOX_FOLDER, create=True)

    def add(self, content: bytes) -> None:
        """Put a mail in."""
        self._box.add(content)

    def letters(self) -> Iterator[Letter]:
        """Read all mails, in no order."""
        parser = BytesHeaderParser(policy=email.policy.default)
        for key in self._box.iterkeys():
            yield _letter(parser.parsebytes(self._box.get_bytes(key)))

    def holds(self, key: str) -> bool:
        """Tell whether a mail with this Message-ID has arrived."""
        return any(letter.key == key for letter in self.letters())


class MailServer:
    """Receives mail; an async context manager.

    Attributes:
        port: where it listens on this machine.
        withheld: makes it keep an answer to itself.
    """

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self.withheld = Withheld()
        self._box = Mailbox(folder)
        self._parser = BytesHeaderParser(policy=email.policy.default)
        self._told: set[tuple[str, str]] = set()  # (recipient, event)
        self._sent: Counter[tuple[str, str]] = Counter()  # (recipient, device) -> how many mails

    def events(self, to: str) -> int:
        """Return how many events a recipient was told of."""
        return sum(recipient == to for recipient, _ in self._told)

    def sent(self, to: str, device: str) -> int:
        """Return how many mails a device sent to a recipient."""
        return self._sent[to, device]

    async def __aenter__(self) -> MailServer:
        loop = asyncio.get_running_loop()
        # With a host name, because without one each connection would ask the name service for it.
        self._server = await loop.create_server(lambda: SMTP(self, hostname="localhost", loop=loop), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.withheld.let_go()
        self._server.close()
        await self._server.wait_closed()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Accept a mail; aiosmtpd calls this when all of it has arrived, and sends what it returns."""
        content = envelope.content
        assert isinstance(content, bytes), "the server was told to decode nothing"
        self._box.add(content)
        letter = _letter(self._parser.parsebytes(content))
        self._told.add((letter.to, letter.event))
        self._sent[letter.to, letter.device] += 1
        await self.withheld.pass_answer(letter.device, letter.event)
        return ACCEPTED


def _letter(mail: Message) -> Letter:
    key = str(mail["Message-ID"]).strip("<> ")
    return Letter(_before_at(key), str(mail["To"]), str(mail[EVENT_HEADER]), _before_at(str(mail["From"])))


def _before_at(address: str) -> str:
    return address.partition("@")[0]
