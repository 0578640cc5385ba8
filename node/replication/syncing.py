"""Sync of one node while it runs: composes the engine, the loop, the listener and the diallers with the node's
database."""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.database.file import CommitSource, Database
from leasemesh.node.machine.environment import Environment, Listening, Network
from leasemesh.node.machine.locks import LockHeld, file_lock
from leasemesh.node.machine.watch import ChangeWatch
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.model.ids import NodeId
from leasemesh.node.replication.peers import Direction, Peer, PeerStore
from leasemesh.node.stores.devices import DeviceStore
from leasemesh.sync.actions import LinkId, Notify
from leasemesh.sync.address import check_binding, parse_address
from leasemesh.sync.drivers.dialler import Dialler
from leasemesh.sync.drivers.loop import SyncLoop
from leasemesh.sync.drivers.notifications import Notifications
from leasemesh.sync.drivers.websocket import TransportLimits, WebSockets
from leasemesh.sync.drivers.workers import Worker
from leasemesh.sync.engine import Engine, EngineConfig, PeerStatus
from leasemesh.sync.ports import Applied, DatabaseDigest, Incoming, Storage
from leasemesh.sync.transport import DialFailed
from leasemesh.sync.version_vector import SiteId

PEERS_WRITTEN_EVERY_S = 1.0
"""At most so often the table of peers is written: enough for people who look, nothing for the disk."""

PEERS_SETTLE_S = 0.1
"""Dialling, meeting and catching up come in one burst, of which only the end is worth writing down."""

HOUSEKEEPING_EVERY_S = 5.0
"""The rhythm of presence frames: nothing that housekeeping looks at changes faster."""

LOOK_S = 1.0
"""How long somebody may hold the lock of a file only in order to look whether it is free."""

log = logging.getLogger("leasemesh.node")


class SyncRefused(LeasemeshError):
    """Syncing cannot start, or not like this. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How a node syncs.

    Attributes:
        listen: host and port to listen on. Port 0 takes a free one. None: nobody can dial this node.
        peers: addresses to dial: ws://…, wss://… or host:port.
        token: the workspace's shared secret, needed to listen on more than this machine.
        listen_ssl: serve wss:// with this.
        dial_ssl: for wss:// peers with other than the system's certificates.
        limits: what strangers may cost.
    """

    listen: tuple[str, int] | None = None
    peers: Sequence[str] = ()
    token: str | None = field(default=None, repr=False)
    listen_ssl: ssl_module.SSLContext | None = None
    dial_ssl: ssl_module.SSLContext | None = None
    limits: TransportLimits = field(default_factory=TransportLimits)

    def network(self, environment: Environment) -> Network:
        """Return what connects nodes: what was lent, or websockets with these options."""
        if environment.network is not None:
            return environment.network
        return WebSockets(self.limits, listen_ssl=self.listen_ssl, dial_ssl=self.dial_ssl)


Lock = Callable[[Path, float], AbstractContextManager[None]]
Since = dict[tuple[str, str, LinkId | None], int]
"""When a peer came into its state (Unix milliseconds), by peer, state, and the link when it is connected."""


@contextmanager
def sync_lock(path: Path, *, lock: Lock = file_lock) -> Iterator[None]:
    """Hold the right to sync a file, or to change its identity: one process at a time has it.

    Raises:
        SyncRefused: another one has it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(_lock_path(path), 0))
        except LockHeld as error:
            raise SyncRefused(
                f"another process syncs {path} already; stop it first, or just use the file: "
                "what is written there is synced by that process"
            ) from error
        yield


def refuse_when_synced_elsewhere(path: Path, *, lock: Lock = file_lock) -> None:
    """Make sure that no other process syncs a file.

    Raises:
        SyncRefused: one does.
    """
    try:
        # Whoever else only looks, as this function does, is done in a moment.
        with lock(_lock_path(path), LOOK_S):
            return
    except LockHeld as error:
        raise SyncRefused(
            f"another process syncs {path}, and only that one knows which nodes are within reach; "
            "begin the work in that process, or stop it first"
        ) from error


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sync-lock")


class _NoticingStorage:
    """The node's storage. Every merge is noticed with the tables that it changed."""

    def __init__(self, storage: Storage, watch: ChangeWatch) -> None:
        self._storage = storage
        self._watch = watch
        self.state = storage.state
        self.resume_point = storage.resume_point
        self.open_reader = storage.open_reader
        self.digest = storage.digest
        self.reidentify = storage.reidentify
        self.record_heartbeats = storage.record_heartbeats

    def apply(self, incoming: Incoming) -> Applied:
        applied = self._storage.apply(incoming)
        if applied.tables:
            self._watch.notify("peer", applied.tables)
        return applied


class Syncing:
    """The sync of one node, from `start` to `stop`. Used once, in one event loop.

    Attributes:
        loop: the sync loop.
        url: where this node can be dialled, None when it does not listen.
    """

    loop: SyncLoop

    def __init__(
        self,
        database: Database,
        storage: Storage,
        watch: ChangeWatch,
        config: EngineConfig,
        options: SyncOptions,
        environment: Environment,
    ) -> None:
        """Check the options. Nothing is opened.

        Raises:
            AddressError: an address is wrong, or would open the workspace to the network without a token.
        """
        self._database = database
        self._storage = _NoticingStorage(storage, watch)
        self._watch = watch
        self._config = config
        self._options = options
        self._environment = environment
        self._network = options.network(environment)
        self._peer_urls = [parse_address(text) for text in options.peers]
        if options.listen is not None:
            check_binding(options.listen[0], options.token)
        self._random = Random(int.from_bytes(database.random_bytes(8), "big"))
        self._stack = AsyncExitStack()
        self._diallers: list[Dialler] = []
        self._listener: Listening | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._since: Since = {}

    @property
    def url(self) -> str | None:
        """Where a node on this machine can dial this one. None when it does not listen."""
        return self._listener.url if self._listener is not None else None

    async def start(self, *, every_few_seconds: Callable[[], None]) -> None:
        """Listen and dial.

        Args:
            every_few_seconds: housekeeping that somebody who runs must do. Called in a thread.

        Raises:
            SyncRefused: another process syncs this file.
            AddressError: the address cannot be listened on.
            DatabaseDamaged: the file is damaged. Nothing of it may reach other nodes.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(sync_lock(self._database.path, lock=self._environment.lock))
            await asyncio.to_thread(self._database.check)
            with suppress(DatabaseError):  # A full disk can still be read from; housekeeping tells the name later.
                await asyncio.to_thread(DeviceStore(self._database).announce, self._config.name)
            state = await asyncio.to_thread(self._storage.state)
            self.loop = SyncLoop(
                Engine(state, self._config, self._database.random_bytes),
                self._storage,
                make_worker=self._environment.make_worker or Worker,
            )
            self._make_transports()
            self._arrange_stop(stack)
            if self._listener is not None:
                await self._listener.start()
            for dialler in self._diallers:
                dialler.start()
            self._tasks += [
                asyncio.create_task(self._write_peers_while_running(), name="leasemesh peers"),
                asyncio.create_task(_repeat(every_few_seconds), name="leasemesh housekeeping"),
            ]
            self.loop.notify_commit()  # for what came between reading the state and listening to commits
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Take leave of the peers and stop. A second call does nothing."""
        await self._stack.aclose()

    async def wait(self) -> None:
        """Return when sync has been stopped. Raise what it failed with, should it fail."""
        await self.loop.wait()

    async def caught_up(self, peer: str | None = None) -> None:
        """Return when this node and a peer have all that the other had told of, and all that is committed here now.

        Args:
            peer: its name, id or address. None: every connected peer, of which there must be one.
        """
        version = await asyncio.to_thread(self._database.version)
        self.loop.notify_commit()

        def level() -> bool:
            peers = [status for status in self._connected() if peer is None or peer in self._names_of(status)]
            return self.loop.state.version >= version and bool(peers) and all(map(_is_level, peers))

        await self.loop.until(level)

    def peers(self) -> list[Peer]:
        """Return all peers: the addresses that are dialled, and the nodes that dialled this one."""
        by_link = {status.link: status for status in self.loop.peers()}
        dialled = {dialler.link for dialler in self._diallers}
        accepted = [one for one in self._connected() if one.link not in dialled]
        before, self._since = self._since, {}  # of a peer that has gone nothing is kept
        return [
            *(self._dialled_peer(dialler, by_link, before) for dialler in self._diallers),
            *(self._peer(one.site.hex(), "accepted", "connected", "", one, before) for one in accepted),
        ]

    # --- Starting and stopping ----------------------------------------------------------------------------------------

    def _make_transports(self) -> None:
        options = self._options
        if options.listen is not None:
            host, port = options.listen
            self._listener = self._network.listener(self.loop, host, port)
        self._diallers = [
            Dialler(self.loop, url, random=self._random.random, dial=self._network.dial) for url in self._peer_urls
        ]

    def _arrange_stop(self, stack: AsyncExitStack) -> None:
        """What is to be done when sync stops, or fails to start. The last line is done first."""
        stack.push_async_callback(self._forget_peers)
        if self._listener is not None:
            stack.push_async_callback(self._listener.stop)
        for dialler in self._diallers:
            stack.push_async_callback(dialler.stop)
        stack.push_async_callback(self.loop.stop)
        for dialler in self._diallers:
            stack.callback(dialler.stop_dialling)
        stack.push_async_callback(self._stop_tasks)
        stack.callback(self._database.on_commit(self._committed))
        stack.callback(self._watch.on_process_commit(self.loop.notify_commit))

    def _committed(self, source: CommitSource) -> None:
        if source == "local":  # the engine knows about merges before anybody
            self.loop.notify_commit()

    # --- Peers --------------------------------------------------------------------------------------------------------

    def _connected(self) -> list[PeerStatus]:
        return [status for status in self.loop.peers() if status.purpose == "sync" and status.state == "open"]

    def _names_of(self, status: PeerStatus) -> set[str]:
        urls = {dialler.url for dialler in self._diallers if dialler.link == status.link}
        return {status.name, status.site.hex(), *urls}

    def _dialled_peer(self, dialler: Dialler, by_link: dict[LinkId, PeerStatus], before: Since) -> Peer:
        status = by_link.get(dialler.link) if dialler.link is not None else None
        return self._peer(dialler.url, "dialled", dialler.state, dialler.text, status, before)

    def _peer(
        self, peer: str, direction: Direction, state: str, text: str, status: PeerStatus | None, before: Since
    ) -> Peer:
        key = (peer, state, status.link if status is not None and state == "connected" else None)
        since_at = self._since[key] = before.get(key) or self._database.clock_ms()
        if status is None:
            return Peer(peer, direction, None, "", state, text, since_at, None)
        return Peer(peer, direction, NodeId(status.site.hex()), status.name, state, text, since_at, status.vector)

    async def _write_peers_while_running(self) -> None:
        """Write the table of peers down when it has changed, at most once a second."""
        store = PeerStore(self._database)
        written: list[Peer] = []
        while True:
            await self.loop.peers_changed.wait()
            await asyncio.sleep(PEERS_SETTLE_S)
            self.loop.peers_changed.clear()
            peers = self.peers()
            if peers != written:
                try:
                    await asyncio.to_thread(store.replace, peers)
                    written = peers
                except DatabaseError as error:
                    log.warning("cannot write down the peers: %s", error)
            await asyncio.sleep(PEERS_WRITTEN_EVERY_S)

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forget_peers(self) -> None:
        try:
            await asyncio.to_thread(PeerStore(self._database).replace, [])
        except DatabaseError as error:  # Sync stops all the same.
            log.warning("cannot write down that there are no peers any more: %s", error)


async def _repeat(work: Callable[[], None]) -> None:
    while True:
        try:
            await asyncio.to_thread(work)
        except DatabaseError as error:
            log.warning("housekeeping is put off: %s", error)
        except Exception:  # A fault of ours, or a row that we did not think of, must not end it for the days to come.
            log.exception("housekeeping has failed")
        await asyncio.sleep(HOUSEKEEPING_EVERY_S)


def _is_level(status: PeerStatus) -> bool:
    return status.ahead == 0 and status.behind == 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two nodes' digests, side by side.

    Attributes:
        name, site: the peer.
        own_site: this node.
        mine, theirs: the digests.
    """

    name: str
    site: SiteId
    own_site: SiteId
    mine: DatabaseDigest
    theirs: DatabaseDigest

    @property
    def node(self) -> NodeId:
        """The peer, as people write it."""
        return NodeId(self.site.hex())

    @property
    def equal(self) -> bool:
        """Whether both have the same content in every replicated table."""
        return self.mine.tables == self.theirs.tables

    @property
    def different_tables(self) -> list[str]:
        """The tables that differ, sorted."""
        mine, theirs = self.mine.tables, self.theirs.tables
        return sorted(table for table in mine.keys() | theirs.keys() if mine.get(table) != theirs.get(table))

    @property
    def same_vector(self) -> bool:
        """Whether each had all that the other had. If not, a difference means only that sync has not finished."""
        mine, theirs = self.mine.vector, self.theirs.vector
        # What they have heard of third nodes may differ for long: it is passed on together with rows.
        return mine.includes(self.site, theirs.entry(self.site)) and theirs.includes(
            self.own_site, mine.entry(self.own_site)
        )


async def compare(
    database: Database,
    storage: Storage,
    config: EngineConfig,
    peer: str,
    options: SyncOptions,
    environment: Environment,
) -> Comparison:
    """Compare this file with a peer, over a connection of its own. Works while another process syncs the file.

    Raises:
        SyncRefused: the peer cannot be reached, or refuses.
        AddressError: the address is wrong.
    """
    url = parse_address(peer)
    state = await asyncio.to_thread(storage.state)
    loop = SyncLoop(
        Engine(state, config, database.random_bytes), storage, make_worker=environment.make_worker or Worker
    )
    observer = loop.observe()
    try:
        transport = await options.network(environment).dial(url)
        carrying = asyncio.create_task(
            loop.carry(transport, dialed=True, purpose="inspect", on_established=loop.request_digest)
        )
        answer = asyncio.create_task(_digest_told(observer))
        await asyncio.wait((carrying, answer), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise SyncRefused(f"{url}: {carrying.result().reason}")
        tell = answer.result()
        assert tell.digest is not None and tell.site is not None, "a notification of a digest has both"
        mine = await asyncio.to_thread(storage.digest)
        return Comparison(tell.name, tell.site, state.site, mine, tell.digest)
    except DialFailed as error:
        raise SyncRefused(f"{url}: {error}") from error
    finally:
        await loop.stop()


async def _digest_told(observer: Notifications) -> Notify:
    async for tell in observer:
        if tell.kind == "digest":
            return tell
    raise SyncRefused("the peer gave no digest")
