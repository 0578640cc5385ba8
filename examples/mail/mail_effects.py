"""What the automation does to the world outside: it sends mail, and it makes entries in a ledger.

Each effect says what it knows of its outcome. Whatever else goes wrong leaves it unknown, and an unknown outcome is
never tried again by itself.
"""

from __future__ import annotations

import http.client
import json
import smtplib
from contextlib import closing
from dataclasses import dataclass
from email.message import EmailMessage
from http import HTTPStatus

from leasemesh import Applied, DidNotHappen, Effect, Json, NotApplied, effect
from leasemesh.node.cli.output import clean

KEY_HEADER = "Idempotency-Key"
ENTRIES_PATH = "/entries"
EVENT_HEADER = "X-Event"

CALL_SECONDS_MAX = 20
EFFECT_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True)
class Services:
    """Where the services are, and who calls them.

    Attributes:
        device: the calling device's name.
        mail_port: the mail server's, on this machine.
        ledger_port: the ledger's, on this machine.
    """

    device: str
    mail_port: int
    ledger_port: int


def mailing(services: Services) -> Effect[...]:
    """Return the effect that sends a mail. Nobody can be asked afterwards whether it left."""

    @effect(timeout_s=EFFECT_SECONDS_MAX)
    def send_mail(key: str, *, to: str, subject: str, body: str, event: str) -> Json:
        mail = EmailMessage()
        mail["Message-ID"] = f"<{key}@example.com>"
        mail["From"] = f"{services.device}@example.com"
        mail["To"] = to
        mail["Subject"] = clean(subject)
        mail[EVENT_HEADER] = event
        mail.set_content(body)
        try:
            connection = smtplib.SMTP(
                "127.0.0.1", services.mail_port, local_hostname=services.device, timeout=CALL_SECONDS_MAX
            )
        except OSError as error:
            raise DidNotHappen("the mail server cannot be reached") from error
        with connection:
            try:
                connection.send_message(mail)
            except smtplib.SMTPResponseException as error:
                raise DidNotHappen(f"the mail server refuses the mail: {error.smtp_code}") from error
        return {"message_id": key}

    return send_mail


def entering(services: Services) -> Effect[...]:
    """Return the effect that makes an entry in the ledger, once for a key, and can be asked for."""

    @effect(timeout_s=EFFECT_SECONDS_MAX, idempotent=True)
    def enter(key: str, *, event: str, title: str) -> Json:
        status, answer = _request(services, "POST", ENTRIES_PATH, key=key, content={"event": event, "title": title})
        if status not in (HTTPStatus.CREATED, HTTPStatus.OK):
            raise DidNotHappen(f"the ledger refuses the entry: {answer}")
        return {"status": int(status)}

    @enter.reconcile
    def was_entered(key: str, *, event: str, title: str) -> Applied | NotApplied:
        status, _ = _request(services, "GET", f"{ENTRIES_PATH}/{key}")
        return Applied({"status": int(status)}) if status is HTTPStatus.OK else NotApplied()

    return enter


def _request(
    services: Services, method: str, path: str, *, key: str = "", content: Json = None
) -> tuple[HTTPStatus, Json]:
    headers = {"User-Agent": services.device} | ({KEY_HEADER: key} if key else {})
    connection = http.client.HTTPConnection("127.0.0.1", services.ledger_port, timeout=CALL_SECONDS_MAX)
    with closing(connection):
        connection.request(method, path, json.dumps(content) if content is not None else None, headers)
        answer = connection.getresponse()
        return HTTPStatus(answer.status), json.loads(answer.read())
