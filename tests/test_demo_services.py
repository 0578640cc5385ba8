"""The services and the network of the demo count right, and do what the story needs of them."""

import asyncio
import http.client
import itertools
import json
import smtplib
from collections import Counter
from email.message import EmailMessage

import pytest
from demo_app.ledger import Call, Ledger, read_calls
from demo_app.mail_server import Letter, Mailbox, MailServer
from demo_app.network import Link

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def send(port, key, event, device="laptop"):
    mail = EmailMessage()
    mail["Message-ID"], mail["To"], mail["From"], mail["X-Event"] = (
        f"<{key}@demo>",
        "a@example.com",
        f"{device}@c.d",
        event,
    )
    mail["Subject"] = "Grüße, so lang, dass die Zeile umgebrochen wird " * 3
    mail.set_content("Zeile\n.\n" + "ä" * 2000)
    with smtplib.SMTP("127.0.0.1", port, local_hostname=device, timeout=10) as connection:
        connection.send_message(mail)


def post(port, key, entry, device="laptop", method="POST", path="/entries"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = entry if isinstance(entry, str) else json.dumps(entry)
        headers = {"User-Agent": device} | ({"Idempotency-Key": key} if key else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


async def test_the_mail_server_puts_every_mail_into_the_mailbox_and_counts_repeated_ones(tmp_path):
    async with MailServer(tmp_path) as server:
        for key, event in (("k1", "e1"), ("k1", "e1"), ("k2", "e2")):
            await asyncio.to_thread(send, server.port, key, event)
        assert server.events("a@example.com") == 2
        assert (server.sent("a@example.com", "laptop"), server.sent("a@example.com", "desktop")) == (3, 0)
        assert server.events("nobody@example.com") == 0
    letters = Mailbox(tmp_path).letters()
    first, second = (Letter(f"k{n}", "a@example.com", f"e{n}", "laptop") for n in (1, 2))
    assert Counter(letters) == {first: 2, second: 1}
    assert Mailbox(tmp_path).holds("k2")
    assert not Mailbox(tmp_path).holds("k3")


async def test_a_mail_whose_answer_is_withheld_is_in_the_mailbox_and_its_sender_waits(tmp_path):
    async with MailServer(tmp_path) as server:
        happened = server.withheld.arm("laptop")
        await asyncio.to_thread(send, server.port, "k1", "e1", device="desktop")  # somebody else's is answered
        sending = asyncio.create_task(asyncio.to_thread(send, server.port, "k2", "e2"))
        assert await happened == "e2"
        assert Mailbox(tmp_path).holds("k2")
        assert not sending.done()
        await asyncio.to_thread(send, server.port, "k3", "e3")  # only one is withheld
        server.withheld.let_go()
        await sending


async def test_the_ledger_makes_one_entry_for_a_key_and_repeats_its_answer(tmp_path):
    async with Ledger(tmp_path) as ledger:
        entry = {"event": "e1", "title": "Hello"}
        assert await asyncio.to_thread(post, ledger.port, "k1", entry) == (201, entry)
        assert await asyncio.to_thread(post, ledger.port, "k1", entry, "desktop") == (200, entry)
        assert (ledger.entered, ledger.repeated) == (1, 1)
        assert await asyncio.to_thread(post, ledger.port, "", "", method="GET", path="/entries/k1") == (200, entry)
        status, _ = await asyncio.to_thread(post, ledger.port, "", "", method="GET", path="/entries/k2")
        assert status == 404
    assert list(read_calls(tmp_path)) == [Call("k1", "e1", "laptop", False), Call("k1", "e1", "desktop", True)]


@pytest.mark.parametrize(("key", "entry", "status"), [("", {}, 400), ("k", "{", 400), ("k", [], 400), ("k1", {}, 422)])
async def test_the_ledger_refuses_what_it_cannot_enter(tmp_path, key, entry, status):
    async with Ledger(tmp_path) as ledger:
        await asyncio.to_thread(post, ledger.port, "k1", {"event": "e1"})
        answered, content = await asyncio.to_thread(post, ledger.port, key, entry)
        assert answered == status
        assert content["error"]
        assert (ledger.entered, ledger.repeated) == (1, 0)


async def test_a_withheld_entry_is_made_and_a_caller_that_goes_away_does_no_harm(tmp_path, capfd):
    async with Ledger(tmp_path) as ledger:
        happened = ledger.withheld.arm("laptop")
        _, writer = await asyncio.open_connection("127.0.0.1", ledger.port)
        body = b'{"event": "e1"}'
        head = (
            f"POST /entries HTTP/1.0\r\nUser-Agent: laptop\r\nIdempotency-Key: k\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        assert await happened == "e1"
        assert ledger.entered == 1
        writer.transport.abort()
    assert capfd.readouterr().err == ""


async def test_a_cut_link_breaks_connections_off_and_lets_new_ones_through_once_it_is_mended():
    async def echo(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async def ask(reader, writer, text):
        writer.write(text)
        async with asyncio.timeout(5):
            return await reader.read(100)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Link(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as link:
        port = int(link.url.rpartition(":")[2])
        before = await asyncio.open_connection("127.0.0.1", port)
        assert await ask(*before, b"one") == b"one"
        assert link.cut() == 1
        with pytest.raises(ConnectionResetError):
            await ask(*before, b"two")
        after = await asyncio.open_connection("127.0.0.1", port)
        asking = asyncio.create_task(ask(*after, b"three"))
        await asyncio.sleep(0)
        assert not asking.done()
        link.mend()
        assert await asking == b"three"
        for _, writer in (before, after):
            writer.close()


async def test_who_dialled_a_cut_link_and_died_is_not_passed_on():
    heartbeats = asyncio.Queue()

    async def hear(reader, writer):
        heartbeats.put_nowait(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server, Link(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as link:
        port = int(link.url.rpartition(":")[2])
        link.cut()
        assert link.is_cut
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"dead")
        async with asyncio.timeout(5):
            for _ in itertools.takewhile(lambda _: link.forget_diallers() == 0, itertools.count()):
                await asyncio.sleep(0)  # until the link has accepted it
        with pytest.raises(ConnectionResetError):
            await reader.read(100)
        link.mend()
        _, alive = await asyncio.open_connection("127.0.0.1", port)
        alive.write(b"alive")
        async with asyncio.timeout(5):
            assert await heartbeats.get() == b"alive"
        writer.close()
        alive.close()
