"""Links over websockets: a listener, dialling, and the pump between a connection and the sync loop.

One leasemesh message is one binary websocket message. The library's own pings and compression are off: liveness is the
engine's business (its frames carry more than "alive"), and batches are compressed before they get here, where it pays.

Sending is synchronous (`broadcast` to one connection): no task has to wake up between the engine's decision and the
socket. What holds memory down is the engine's window of unacknowledged bytes. The bound on the write buffer here is
only a safety net.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import http
import logging
import os
import socket
import ssl as ssl_module
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection, broadcast
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from leasemesh.sync.actions import LinkId
from leasemesh.sync.address import AddressError as AddressError
from leasemesh.sync.address import is_loopback
from leasemesh.sync.drivers.loop import SyncLoop
from leasemesh.sync.errors import CloseCode
from leasemesh.sync.limits import MESSAGE_BYTES_MAX
from leasemesh.sync.transport import DialFailed, Transport, TransportEnd

SUBPROTOCOL = Subprotocol("leasemesh.1")

log = logging.getLogger("leasemesh.websocket")


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What a node lets strangers cost it before the engine has its say.

    Attributes:
        connections_max: connections that a listener holds at once. A workspace is a person or a team, not a public
            service. Each connection may hold a read snapshot and one window of unacknowledged bytes.
        unauthenticated_max: connections that have not yet proven to belong to the workspace, enough for all devices of
            a team that come back at the same moment.
        open_timeout_s: time for TCP, TLS and the websocket handshake, the library's own default.
        close_timeout_s: time that a peer has to answer a close. A stop must not wait longer for a peer that is stuck.
        write_buffer_bytes_max: unsent bytes after which a link is ended. Must be above the engine's window, which is
            what normally stops sending to a peer that does not read.
    """

    connections_max: int = 128
    unauthenticated_max: int = 32
    open_timeout_s: float = 10.0
    close_timeout_s: float = 2.0
    write_buffer_bytes_max: int = 64 * 1024 * 1024


# --- One connection ---------------------------------------------------------------------------------------------------


class _Noticing(Connection):
    """A connection that notices each arriving packet, long before the message is whole."""

    has_received = False

    def data_received(self, data: bytes) -> None:
        self.has_received = True
        super().data_received(data)


class _DialledConnection(_Noticing, ClientConnection):
    """A client connection that notices."""


class WebSocketTransport:
    """A websocket connection as the sync loop uses it. Use it in the event loop's thread only."""

    def __init__(self, connection: Connection, limits: TransportLimits) -> None:
        self.remote = _remote_name(connection)
        self.is_local = is_loopback(self.remote.rpartition(":")[0])
        self._connection = connection
        self._limits = limits
        self._closing: asyncio.Task[None] | None = None
        self._end: TransportEnd | None = None

    def send(self, data: bytes) -> None:
        """Send one message, or end the connection when the peer has not been reading for too long."""
        broadcast((self._connection,), data)
        waiting = self._connection.transport.get_write_buffer_size()
        if waiting > self._limits.write_buffer_bytes_max:
            self._end = self._end or TransportEnd(None, f"the peer does not read: {waiting} bytes wait to be sent")
            self._connection.transport.abort()

    def close(self, code: int, reason: str) -> None:
        """Begin to close. The first call wins."""
        if self._closing is None:
            self._end = self._end or TransportEnd(code, reason)
            self._closing = asyncio.get_running_loop().create_task(self._close(code, reason))

    def has_received(self) -> bool:
        """Tell whether a packet has come since this was last asked."""
        connection = self._connection
        if not isinstance(connection, _Noticing):
            return False
        has_received, connection.has_received = connection.has_received, False
        return has_received

    async def pump(self, received: Callable[[bytes], None]) -> TransportEnd:
        """Hand each message to `received` until the connection has ended. Return how it ended."""
        try:
            while True:
                message = await self._connection.recv()
                if self._closing is not None:
                    continue
                if isinstance(message, str):
                    self.close(CloseCode.PROTOCOL, "a text message was received; leasemesh messages are binary")
                else:
                    received(message)
        except ConnectionClosed as closed:
            return self._end or _end_of(closed)
        finally:
            if self._closing is not None:
                await self._closing
            await self._connection.close()  # not closed yet when this was cancelled

    async def _close(self, code: int, reason: str) -> None:
        """Close within the time-out, even when the peer reads nothing."""
        try:
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._connection.close(code, _close_frame_text(reason))
        except TimeoutError:
            self._connection.transport.abort()


def _close_frame_text(reason: str) -> str:
    """Cut to what a close frame can carry (123 bytes), at a character's border."""
    return reason.encode()[:120].decode(errors="ignore")


def _end_of(closed: ConnectionClosed) -> TransportEnd:
    if closed.rcvd is not None and (closed.sent is None or closed.rcvd_then_sent):
        return TransportEnd(closed.rcvd.code, f"closed by the peer: {closed.rcvd.reason or f'code {closed.rcvd.code}'}")
    if closed.sent is not None and closed.sent.code != 1006:
        return TransportEnd(
            closed.sent.code, f"closed because of the peer: {closed.sent.reason or f'code {closed.sent.code}'}"
        )
    return TransportEnd(None, "the connection broke off")


# --- Listening --------------------------------------------------------------------------------------------------------


class Listener:
    """A websocket server that hands its connections to the sync loop. Async context manager."""

    def __init__(
        self,
        sync_loop: SyncLoop,
        host: str,
        port: int,
        *,
        limits: TransportLimits | None = None,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self._sync_loop = sync_loop
        self._host = host
        self._port = port
        self._limits = limits or TransportLimits()
        self._ssl = ssl
        self._server: Server | None = None
        self._address: tuple[str, int] | None = None
        self._open: dict[Connection, bool] = {}  # connection -> whether it has proven to belong to the workspace

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that were bound (port 0 asks for a free one)."""
        assert self._address is not None, "the listener is started first"
        return self._address

    @property
    def url(self) -> str:
        """What a peer on this machine dials."""
        host, port = self.address
        return f"{'wss' if self._ssl else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            AddressError: the address cannot be bound.
        """
        try:
            self._server = await serve(
                self._serve_connection,
                self._host,
                self._port,
                ssl=self._ssl,
                # A browser sends its page's origin: no web page may talk to a node, not even to one on its own machine.
                origins=[None],
                subprotocols=[SUBPROTOCOL],
                compression=None,
                server_header=None,
                process_request=self._process_request,
                open_timeout=self._limits.open_timeout_s,
                create_connection=cast(type[ServerConnection], functools.partial(_CountedConnection, self)),
                **_connection_options(self._limits),
            )
        except (OSError, OverflowError) as error:
            raise AddressError(f"cannot listen on {self._host}:{self._port}: {_os_error_text(error)}") from error
        self._address = next(iter(self._server.sockets)).getsockname()[:2]
        log.info("listening on %s", self.url)

    async def stop(self) -> None:
        """Stop listening and end all connections. Links are closed by the sync loop before this, with its own
        reason."""
        if self._server is not None:
            self._server.close(code=1001, reason="the node is stopping")
            for connection in self._open:
                if connection.request is None:  # still in its handshake: nobody else would end it before its time-out
                    connection.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Listener:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection, or tell that there is no room for it."""
        strangers = sum(not proven for proven in self._open.values())
        if len(self._open) >= self._limits.connections_max:
            problem = f"all {self._limits.connections_max} connections are taken"
        elif strangers >= self._limits.unauthenticated_max:
            problem = f"{strangers} connections have not identified themselves yet"
        else:
            self._open[connection] = False
            return True
        log.warning("turned away a connection from %s: %s", _remote_name(connection), problem)
        return False

    def forget(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._open.pop(connection, None)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Sec-WebSocket-Key") is None:
            return connection.respond(
                http.HTTPStatus.UPGRADE_REQUIRED, "This is a leasemesh node; it speaks websocket.\n"
            )
        return None

    async def _serve_connection(self, connection: ServerConnection) -> None:
        def established(_: LinkId) -> None:
            self._open[connection] = True

        transport = WebSocketTransport(connection, self._limits)
        await self._sync_loop.carry(transport, dialed=False, on_established=established)


class _CountedConnection(_Noticing, ServerConnection):
    """A server connection that its listener counts from the first TCP packet on, long before any handshake."""

    def __init__(self, listener: Listener, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._listener.admit(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.forget(self)
        super().connection_lost(exc)


# --- Dialling ---------------------------------------------------------------------------------------------------------


class WebSockets:
    """The network as `node.replication.syncing` uses it (`sync.transport.Network`)."""

    def __init__(
        self,
        limits: TransportLimits,
        *,
        listen_ssl: ssl_module.SSLContext | None = None,
        dial_ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._listen_ssl = listen_ssl
        self._dial_ssl = dial_ssl

    def listener(self, sync_loop: SyncLoop, host: str, port: int) -> Listener:
        """Make a listener. Nothing is opened yet."""
        return Listener(sync_loop, host, port, limits=self._limits, ssl=self._listen_ssl)

    async def dial(self, url: str) -> Transport:
        """Open a connection. Raises DialFailed as `dial`."""
        return WebSocketTransport(await dial(url, limits=self._limits, ssl=self._dial_ssl), self._limits)


async def dial(url: str, *, limits: TransportLimits, ssl: ssl_module.SSLContext | None = None) -> ClientConnection:
    """Open a connection.

    Raises:
        DialFailed: there is nobody, or somebody else.
    """
    options = _connection_options(limits)
    if ssl is not None and url.startswith("wss:"):
        options["ssl"] = ssl
    if is_loopback(urlsplit(url).hostname or ""):
        options["proxy"] = None
    try:
        connection = await connect(
            url,
            subprotocols=[SUBPROTOCOL],
            compression=None,
            open_timeout=limits.open_timeout_s,
            create_connection=_DialledConnection,
            **options,
        )
    except InvalidStatus as error:
        raise DialFailed(_http_problem(error.response.status_code)) from error
    except TimeoutError as error:
        raise DialFailed(f"no answer within {limits.open_timeout_s:.0f} s") from error
    except OSError as error:
        raise DialFailed(f"cannot be reached: {_os_error_text(error)}") from error
    except (WebSocketException, ValueError, EOFError) as error:
        raise DialFailed(f"does not answer as a leasemesh node: {error}") from error
    if connection.subprotocol != SUBPROTOCOL:
        await connection.close(1002, f"sub-protocol {SUBPROTOCOL} expected")
        raise DialFailed(f"is a websocket server, but does not speak {SUBPROTOCOL}")
    return connection


def _http_problem(status: int) -> str:
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return "has no room for another connection, or is just being stopped"
    return f"answers with HTTP status {status}, which a leasemesh node does not"


def _connection_options(limits: TransportLimits) -> dict[str, Any]:
    return {
        "ping_interval": None,
        "close_timeout": limits.close_timeout_s,
        "max_size": MESSAGE_BYTES_MAX,
        # Never reached by our own sending, so that `close` does not wait for a peer that does not read.
        "write_limit": limits.write_buffer_bytes_max * 2,
    }


def _remote_name(connection: Connection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "an unknown address"


def _os_error_text(error: Exception) -> str:
    """Return what the system says, without the addresses that asyncio puts around it."""
    number: int = getattr(error, "errno", None) or 0
    if number in errno.errorcode and not isinstance(error, (ssl_module.SSLError, socket.gaierror)):
        return os.strerror(number).lower()  # those two count their errors differently
    text = getattr(error, "strerror", None) or str(error) or "the connection was closed at once"
    return str(text).lower()
