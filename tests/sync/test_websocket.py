"""Addresses, dialling, listening, and clients that mean no good, over real sockets on loopback."""

import asyncio
import contextlib
import logging
import os
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from leasemesh import NewEvent
from leasemesh.sync.address import AddressError, check_binding, is_loopback, parse_address
from leasemesh.sync.drivers.websocket import (
    SUBPROTOCOL,
    DialFailed,
    Listener,
    TransportLimits,
    WebSocketTransport,
    dial,
)
from leasemesh.sync.limits import MESSAGE_BYTES_MAX
from leasemesh.sync.transport import TransportEnd

LOOPBACK = ("127.0.0.1", 0)
IMPATIENT = TransportLimits(open_timeout_s=0.3, close_timeout_s=0.3)


@pytest.fixture
async def hub(open_node):
    """A node that listens and has something to lose."""
    node = open_node("hub")
    node.publish_many("inbox", "mail", [NewEvent("1")])
    async with node.syncing(listen=LOOPBACK):
        yield node


@pytest.fixture
def complaints(caplog):
    """What the log has said of at least a warning, as text."""
    caplog.set_level(logging.DEBUG, "leasemesh")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- Addresses ---------------------------------------------------------------------------------------------------


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("hub.example:8787", "ws://hub.example:8787"),
            ("127.0.0.1:1", "ws://127.0.0.1:1"),
            ("[::1]:8787", "ws://[::1]:8787"),
            ("ws://hub.example", "ws://hub.example"),
            ("wss://hub.example/mesh?x=1", "wss://hub.example/mesh?x=1"),
        ],
    )
    def test_a_url_or_host_and_port_can_be_dialled(self, text, url):
        assert parse_address(text) == url

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("hub", "names no port"),
            ("hub:", "names no port"),
            ("hub:0", "names no port"),
            ("hub:70000", "port out of range"),
            (":8787", "names no host"),
            ("", "names no host"),
            ("ws://", "names no host"),
            ("a b:1", "names no host"),
            ("http://hub:1", "the scheme http:// is not a websocket"),
            ("ws://user:pass@hub:1", "no user name or password"),
            ("ws://hub:1#part", "no part after #"),
            ("[::1:8787", "invalid ipv6"),
        ],
    )
    def test_anything_else_is_named_with_its_problem(self, text, problem):
        with pytest.raises(AddressError) as caught:
            parse_address(text)
        assert repr(text) in str(caught.value) and problem in str(caught.value)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
    def test_this_machine_alone_needs_no_token(self, host):
        assert is_loopback(host)
        check_binding(host, None)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.1", "hub.example"])
    def test_a_host_that_others_reach_needs_a_token(self, host):
        assert not is_loopback(host)
        with pytest.raises(AddressError, match="give a token, or listen on 127.0.0.1"):
            check_binding(host, None)
        check_binding(host, "secret")


# --- Dialling ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tcp_server(answer):
    """A server that is none of ours. Yields its URL."""

    async def serve_one(reader, writer):
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class TestDialling:
    async def test_nobody_there(self, unused_tcp_port, within):
        async with within():
            with pytest.raises(DialFailed, match="cannot be reached: connection refused$"):
                await dial(f"ws://127.0.0.1:{unused_tcp_port}", limits=TransportLimits())

    async def test_a_server_that_does_not_speak_tls(self, within):
        async def leaves(reader, writer):
            await reader.read(1)

        async with within(), tcp_server(leaves) as url:
            with pytest.raises(DialFailed, match="cannot be reached: .+"):
                await dial(url.replace("ws:", "wss:"), limits=TransportLimits())

    async def test_a_server_that_says_nothing(self, within):
        async def silent(reader, writer):
            await reader.read()

        async with within(), tcp_server(silent) as url:
            with pytest.raises(DialFailed, match="no answer within"):
                await dial(url, limits=IMPATIENT)

    async def test_a_server_that_speaks_something_else(self, within):
        async def greet(reader, writer):
            writer.write(b"220 mail.example ESMTP\r\n")
            await reader.read(1000)

        async with within(), tcp_server(greet) as url:
            with pytest.raises(DialFailed, match="does not answer as a leasemesh node"):
                await dial(url, limits=IMPATIENT)

    async def test_a_web_server(self, within):
        async def not_found(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

        async with within(), tcp_server(not_found) as url:
            with pytest.raises(DialFailed, match="HTTP status 404, which a leasemesh node does not"):
                await dial(url, limits=IMPATIENT)

    async def test_a_websocket_server_of_another_kind(self, within):
        async with within(), serve(lambda connection: connection.wait_closed(), *LOOPBACK) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(DialFailed, match="does not speak leasemesh.1"):
                await dial(f"ws://127.0.0.1:{port}", limits=IMPATIENT)

    async def test_a_node_whose_certificate_is_unknown(self, open_node, within):
        node = open_node("hub")
        async with within(), node.syncing(listen=LOOPBACK, listen_ssl=server_tls()) as serving:
            assert serving.url.startswith("wss://")
            with pytest.raises(DialFailed, match="certificate"):
                await dial(serving.url, limits=IMPATIENT)

    async def test_nodes_sync_over_tls(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        hub.publish("inbox", "mail", "1")
        client_tls = ssl.create_default_context(cafile=Path(__file__).with_name("tls.pem"))
        async with within(), hub.syncing(listen=LOOPBACK, listen_ssl=server_tls()) as serving:
            async with laptop.syncing(peers=[serving.url], dial_ssl=client_tls):
                await laptop.caught_up("hub")
                assert len(laptop.peek("inbox", "mail")) == 1


def server_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("tls.pem"))
    return context


# --- Clients that mean no good -----------------------------------------------------------------------------------


async def ends(connection):
    """Wait until the other side has ended the connection; return the close code."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()
    return connection.close_code


class TestHostileMessages:
    @pytest.mark.parametrize(
        ("message", "code"),
        [
            (b"", 4000),
            (b"\x00", 4000),
            (b"\x93\x01\xc4\x10", 4000),
            (os.urandom(200), 4000),
            (b"\xdc\xff\xff" + b"\x90" * 200, 4000),
            (b"x" * 10_000, 4000),
            (b"x" * (MESSAGE_BYTES_MAX + 1), 1009),
            ("text", 4000),
        ],
        ids=["empty", "one byte", "truncated", "garbage", "deep", "longer than a greeting", "oversized", "text"],
    )
    async def test_end_their_connection_with_one_sentence_and_change_nothing(
        self, hub, within, complaints, message, code
    ):
        version, digest = hub.database.version(), hub.digest()
        async with within():
            connection = await connect(hub.sync.url, subprotocols=[SUBPROTOCOL], max_size=None, compression=None)
            with contextlib.suppress(ConnectionClosed):
                await connection.send(message)
            assert await ends(connection) == code
            await hub.sync.loop.until(lambda: not hub.sync.loop.peers())
        assert len(complaints()) == 1, complaints()
        assert "127.0.0.1:" in complaints()[0] and "\n" not in complaints()[0]
        assert (hub.database.version(), hub.digest()) == (version, digest)

    async def test_half_of_a_real_greeting_is_refused(self, hub, within, complaints):
        async with within():
            connection = await connect(hub.sync.url, subprotocols=[SUBPROTOCOL])
            greeting = await connection.recv()
            await connection.send(greeting[: len(greeting) // 2])
            assert await ends(connection) == 4000
        assert len(complaints()) == 1

    async def test_garbage_after_a_good_greeting_is_refused(self, hub, within, complaints, open_node):
        async with within():
            async with Recorder() as recorder, open_node("laptop").syncing(peers=[recorder.url]):
                greeting = await recorder.first_message
            connection = await connect(hub.sync.url, subprotocols=[SUBPROTOCOL])
            await connection.send(greeting)
            await connection.send(os.urandom(5000))
            assert await ends(connection) == 4000
        assert "not a leasemesh message" in complaints()[-1]

    async def test_a_good_node_is_served_all_the_same(self, hub, within, open_node):
        laptop = open_node("laptop")
        async with within():
            bad = [await connect(hub.sync.url, subprotocols=[SUBPROTOCOL]) for _ in range(10)]
            for connection in bad[:5]:
                await connection.send(os.urandom(100))
            async with laptop.syncing(peers=[hub.sync.url]):
                await laptop.caught_up()
            for connection in bad:
                await connection.close()


class Recorder:
    """A websocket server that records the first message of a real node."""

    async def __aenter__(self):
        self.first_message = asyncio.get_running_loop().create_future()

        async def record(connection):
            async for message in connection:
                if not self.first_message.done():
                    self.first_message.set_result(message)

        self._server = await serve(record, *LOOPBACK, subprotocols=[SUBPROTOCOL])
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()


class TestHostileConnections:
    async def test_a_web_page_may_not_connect(self, hub, within):
        async with within():
            with pytest.raises(InvalidStatus) as caught:
                await connect(hub.sync.url, subprotocols=[SUBPROTOCOL], origin="http://page.example")
            assert caught.value.response.status_code == 403

    async def test_a_client_without_the_sub_protocol_may_not_connect(self, hub, within):
        async with within():
            with pytest.raises(InvalidStatus) as caught:
                await connect(hub.sync.url)
            assert caught.value.response.status_code == 400

    async def test_a_browser_that_looks_in_is_told_what_this_is(self, hub, within):
        async with within():
            reader, writer = await asyncio.open_connection(*hub.sync.url.removeprefix("ws://").split(":"))
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = await reader.read()
            writer.close()
        assert b"426 Upgrade Required" in answer and b"This is a leasemesh node" in answer

    @pytest.mark.parametrize("first_bytes", [b"", b"GET / HT", b"\x16\x03\x01\x02\x00"], ids=["silent", "drip", "tls"])
    async def test_a_client_that_takes_its_time_is_dropped(self, hub, within, first_bytes):
        async with within(), Listener(hub.sync.loop, *LOOPBACK, limits=IMPATIENT) as listener:
            reader, writer = await asyncio.open_connection(*listener.address)
            writer.write(first_bytes)
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()

    async def test_strangers_are_counted_and_turned_away_while_peers_stay(self, hub, within, complaints, open_node):
        laptop = open_node("laptop")
        limits = TransportLimits(unauthenticated_max=2)
        async with within(), Listener(hub.sync.loop, *LOOPBACK, limits=limits) as listener:
            async with laptop.syncing(peers=[listener.url]):
                await laptop.caught_up()  # it has proven to belong here, and does not count
                strangers = [await asyncio.open_connection(*listener.address) for _ in range(3)]
                with contextlib.suppress(OSError):
                    assert await strangers[2][0].read() == b""
                assert "turned away a connection" in complaints()[0]
                for _, writer in strangers:
                    writer.close()
                await laptop.caught_up()

    async def test_no_more_connections_than_allowed(self, hub, within, complaints):
        limits = TransportLimits(connections_max=1)
        async with within(), Listener(hub.sync.loop, *LOOPBACK, limits=limits) as listener:
            first = await connect(listener.url, subprotocols=[SUBPROTOCOL])
            with pytest.raises((OSError, InvalidMessage)):
                await connect(listener.url, subprotocols=[SUBPROTOCOL])
            assert "all 1 connections are taken" in complaints()[0]
            await first.close()

    async def test_stopping_does_not_wait_for_half_open_connections(self, hub, within):
        listener = Listener(hub.sync.loop, *LOOPBACK)
        async with within(5):
            await listener.start()
            reader, writer = await asyncio.open_connection(*listener.address)
            await listener.stop()
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()


# --- One connection ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def transport_to_a_client_that_does_not_read(limits):
    accepted = asyncio.get_running_loop().create_future()

    async def handle(connection):
        accepted.set_result(connection)
        await connection.wait_closed()

    async with serve(handle, *LOOPBACK, compression=None, ping_interval=None, write_limit=2**30) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", max_size=None, max_queue=1, ping_interval=None) as client:
            transport = WebSocketTransport(await accepted, limits)
            yield transport
            client.transport.abort()


class TestTransport:
    async def test_ends_when_too_much_waits_to_be_sent(self, within):
        limits = TransportLimits(write_buffer_bytes_max=1_000_000)
        async with within(), transport_to_a_client_that_does_not_read(limits) as transport:
            pumping = asyncio.ensure_future(transport.pump(lambda _: None))
            for _ in range(64):
                transport.send(b"x" * 1_000_000)
            end = await pumping
        assert end.code is None and end.reason.startswith("the peer does not read: ")

    async def test_closes_in_time_though_the_peer_reads_nothing(self, within):
        async with within(), transport_to_a_client_that_does_not_read(IMPATIENT) as transport:
            for _ in range(32):
                transport.send(b"x" * 1_000_000)
            transport.close(4012, "the node is stopping")
            assert await transport.pump(lambda _: None) == TransportEnd(4012, "the node is stopping")

    async def test_a_long_reason_is_cut_between_characters(self, within):
        async with within(), serve(lambda connection: connection.wait_closed(), *LOOPBACK) as server:
            port = server.sockets[0].getsockname()[1]
            connection = await connect(f"ws://127.0.0.1:{port}")
            transport = WebSocketTransport(connection, TransportLimits())
            transport.close(4000, "ä" * 100)
            end = await transport.pump(lambda _: None)
        assert end.reason == "ä" * 100
        assert connection.protocol.close_sent.reason == "ä" * 60
