"""The host: one open file and its exchange with peers, as whoever works on it needs them.

Handlers, and what runs them, know a `Host`. An app knows a `Node`, which is a host with everything else.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.database.file import Database
from leasemesh.node.database.tables import tables_that_wake
from leasemesh.node.machine.environment import Environment
from leasemesh.node.machine.watch import Changes, ChangeWatch
from leasemesh.node.model.errors import IllegalState
from leasemesh.node.model.ids import RunId
from leasemesh.node.replication.peers import Peer, PeerStore
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.node.stores import Stores
from leasemesh.node.work.authority import Authority
from leasemesh.node.work.staleness import StalenessWatch

if TYPE_CHECKING:
    from leasemesh.node.replication.syncing import Syncing
    from leasemesh.sync.engine import EngineConfig

# Sync, with the network below it, is imported when it is first used: a command that reads ten events does without.

log = logging.getLogger("leasemesh.node")

AUTHORITY_TABLES = tables_that_wake("authority")
ASKED_AUTHORITY_TABLES = tables_that_wake("authority when asked")


class SyncArguments(TypedDict, total=False):
    """The arguments of `Host.start_sync`, which explains them."""

    listen: tuple[str, int] | None
    peers: Sequence[str]
    token: str | None
    listen_ssl: ssl_module.SSLContext | None
    dial_ssl: ssl_module.SSLContext | None


class Host(Stores):
    """One device's file, open, with all its stores and its links to peers.

    Attributes:
        environment: what the node takes from the machine that it runs on.
        authority: decides on permits, as far as this node does.
        staleness: since when other nodes' claims are watched, for take-over.
        calls_going_on: the runs whose effect is being called in this process, perhaps by a thread whose time is over.
        workspace_id: the workspace that the file belongs to.
        name: this node's name for people.
    """

    def __init__(self, database: Database, *, workspace_id: str, name: str, environment: Environment) -> None:
        """Use `Node.open`."""
        super().__init__(database)
        self.environment = environment
        self.workspace_id = workspace_id
        self.name = name
        self.authority = Authority(database)
        self.staleness = StalenessWatch(
            database, rule=environment.staleness, now_ms=environment.monotonic_ms, boot=environment.boot
        )
        self._storage = ChangeStorage(database, boot=environment.boot)
        self._watch = ChangeWatch(database, processes_looked_for_every_s=environment.processes_looked_for_every_s)
        self._sync: Syncing | None = None
        self._sync_begins = False
        self.calls_going_on: set[RunId] = set()
        self._tending: asyncio.Task[None] | None = None

    # --- Who it is ----------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file."""
        return self.database.path

    @property
    def site_id(self) -> str:
        """This node's id, 32 hexadecimal characters. Changes only when the file is re-identified."""
        return self.database.site_id.hex()

    @property
    def incarnation(self) -> str:
        """The random token of this opening of the file, as text."""
        return self.database.incarnation.hex()

    # --- Sync -------------------------------------------------------------------------------------------------------

    @property
    def sync(self) -> Syncing | None:
        """The sync that is running in this process, None when none is."""
        return self._sync

    async def start_sync(
        self,
        *,
        listen: tuple[str, int] | None = None,
        peers: Sequence[str] = (),
        token: str | None = None,
        listen_ssl: ssl_module.SSLContext | None = None,
        dial_ssl: ssl_module.SSLContext | None = None,
    ) -> Syncing:
        """Begin to exchange changes with other nodes, until `stop_sync`.

        Args:
            listen: host and port to listen on; port 0 takes a free one (`Syncing.url` tells it).
            peers: addresses to keep a link to: ws://…, wss://… or host:port. Who is away is dialled again and again.
            token: the workspace's shared secret. Needed to listen on more than this machine.
            listen_ssl: serve wss:// with this.
            dial_ssl: for wss:// peers with other than the system's certificates.

        Raises:
            SyncRefused: another process syncs this file.
            AddressError: an address is wrong, in use, or not to be opened without a token.
            IllegalState: this node is syncing.
        """
        from leasemesh.node.replication.syncing import Syncing, SyncOptions

        if self._sync is not None or self._sync_begins:
            raise IllegalState(f"node {self.name}", "syncing", "stop_sync comes before the next start_sync")
        options = SyncOptions(listen, tuple(peers), token, listen_ssl, dial_ssl)
        sync = Syncing(self.database, self._storage, self._watch, self._config(token), options, self.environment)
        self._sync_begins = True
        try:
            await sync.start(every_few_seconds=self._keep_house)
        finally:
            self._sync_begins = False
        self._sync = sync
        changes = self.changes()
        self._tending = asyncio.create_task(self._tend(changes), name="leasemesh authority")
        self._tending.add_done_callback(lambda _: changes.close())  # also when it is stopped before it has begun
        return sync

    def _keep_house(self) -> None:
        self.devices.announce(self.name)  # Again: a file that turns out to be a copy gets a new id.
        self.staleness.observe()
        # Most of what the authority waits for is a change; that this file includes more than before is not.
        self.authority.tend()

    async def _tend(self, changes: Changes) -> None:
        async for change in changes:
            try:
                awaited = not change.tables.isdisjoint(ASKED_AUTHORITY_TABLES) and self.permits.anyone_waits()
                if not change.tables.isdisjoint(AUTHORITY_TABLES) or awaited:
                    await asyncio.to_thread(self.authority.tend)
            except DatabaseError as error:
                log.warning("decisions on permits are put off: %s", error)
            except Exception:  # As in housekeeping, which tries again.
                log.exception("decisions on permits have failed")

    async def stop_sync(self) -> None:
        """Take leave of the peers and stop syncing. No effect when this node is not syncing."""
        sync = self._sync
        tending, self._tending = self._tending, None
        if tending is not None:
            tending.cancel()
        if sync is not None:
            await sync.stop()
            self._sync = None
        if tending is not None:
            await asyncio.gather(tending, return_exceptions=True)

    async def barrier(self) -> None:
        """Wait until every node within reach has what is committed here now, and this node what they had before that.

        Returns at once when nobody is within reach. See `start`, which is what it is for. `sync.barrier` has the
        argument. Use `asyncio.timeout` to bound it.

        Raises:
            SyncRefused: another process syncs this file. Only that one knows who is within reach.
            LocalProtocolError: sync was stopped meanwhile.
        """
        if self._sync is None and not self._sync_begins:
            from leasemesh.node.replication.syncing import SyncRefused, refuse_when_synced_elsewhere

            try:
                await asyncio.to_thread(refuse_when_synced_elsewhere, self.path, lock=self.environment.lock)
            except SyncRefused:
                if self._sync is None and not self._sync_begins:  # otherwise this process has begun to sync meanwhile
                    raise
        if self._sync is not None:  # when it only begins, nobody is within reach yet
            await self._sync.loop.barrier()

    def peers(self) -> list[Peer]:
        """Return the peers of the process that syncs this file, this one or another. None when nobody does."""
        return self._sync.peers() if self._sync is not None else PeerStore(self.database).list()

    def changes(self) -> Changes:
        """Return an async iterator of what is committed from now on: by this process, by peers, by other processes."""
        return self._watch.subscribe()

    def _config(self, token: str | None) -> EngineConfig:
        from leasemesh.sync.engine import EngineConfig

        return EngineConfig(self.workspace_id, self.name, self.database.incarnation, token)
