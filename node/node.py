"""The node: one file with everything that belongs to it, put together.

Nothing is decided here. The stores say what may be written, the engine what is sent. This is where an app gets hold of
them:

    with Node.open("app.db") as node:
        node.publish("inbox", "mail", "message-1", title="Hello")
        async with node.syncing(peers=["hub.example:8787"], token=token):
            async for change in node.changes():
                ...

Everything but sync is synchronous and may be called from any thread. `changes`, `syncing` and what belongs to them are
used in one event loop at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import ssl as ssl_module
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from leasemesh.node.database import derived, migrate
from leasemesh.node.database.file import Database
from leasemesh.node.doctor import Finding, examine
from leasemesh.node.host import Host, SyncArguments
from leasemesh.node.machine.environment import Environment
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, InvalidInput, LeasemeshError, NotFound, TooEarly
from leasemesh.node.model.ids import RunId
from leasemesh.node.model.jsonvalue import check_text
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.node.stores import (
    Permit,
)
from leasemesh.node.stores.settings import SettingStore
from leasemesh.node.work.reservation import Reservation
from leasemesh.node.work.starting import keep_owned, require_owned
from leasemesh.sync.limits import NAME_BYTES_MAX
from leasemesh.sync.ports import DatabaseDigest

if TYPE_CHECKING:
    from leasemesh.node.authoring.retry import RetryRule
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.node.replication.syncing import Comparison, Syncing
    from leasemesh.node.runtime.runner import Runner

# Sync, with the network below it, is imported when it is first used: a command that reads ten events does without.

log = logging.getLogger("leasemesh.node")

OWN_COMPONENT_OF_APPS = "app"
"""The name under which an app's migrations are recorded."""


class WorkspaceMismatch(LeasemeshError):
    """The file belongs to another workspace than the one asked for.

    Attributes:
        actual: the file's workspace.
        wanted: the one asked for.
    """

    def __init__(self, path: Path, actual: str, wanted: str) -> None:
        super().__init__(
            f"{path} belongs to workspace {actual}, not to {wanted}; a file stays in its workspace, "
            "so open it without naming one, or give the path of a new file"
        )
        self.actual = actual
        self.wanted = wanted


class Node(Host):
    """One device's file, open, with everything that an app does with it.

    Made by `Node.open`. A context manager, plain or async.

    | for | there are |
    |---|---|
    | events | `publish`, `publish_many`, `peek`, `explain` |
    | work | `reserve`, `start`, `take_over`, `permit` |
    | handlers | `running`, `run`, `runner` |
    | other devices | `syncing`, `start_sync`, `stop_sync`, `sync`, `peers`, `caught_up`, `barrier`, `compare` |
    | the file | `transaction`, `query`, `digest`, `changes`, `doctor`, `reset_identity`, `close` |
    | who it is | `path`, `name`, `site_id`, `workspace_id`, `incarnation` |
    | all else | the stores of `Host`: `events`, `topics`, `handler_runs`, `modes`, ... |
    """

    def __init__(self, database: Database, *, workspace_id: str, name: str, environment: Environment) -> None:
        """Use `Node.open`."""
        super().__init__(database, workspace_id=workspace_id, name=name, environment=environment)
        self._runner: Runner | None = None
        # What an app does most often, by a short name; signatures and descriptions are those of what is named.
        self.transaction = database.transaction
        """`Database.transaction`: what is called on this node in the block is one transaction."""
        self.query = database.query
        """`Database.query`: all rows of a SELECT, over the app's tables or leasemesh's own."""
        self.publish = self.events.publish
        """`EventStore.publish`: publish one event."""
        self.publish_many = self.events.publish_many
        """`EventStore.publish_many`: publish events in one transaction."""
        self.peek = self.events.peek
        """`EventStore.peek`: the oldest events of a topic with a status."""
        self.explain = self.events.explain
        """`EventStore.explain`: why an event is in its state."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        workspace: str | None = None,
        name: str | None = None,
        migrations: str | os.PathLike[str] | Traversable | None = None,
        create: bool = True,
        environment: Environment | None = None,
    ) -> Node:
        """Open a node's file, or create it. Bring its schema up to date.

        Args:
            path: the file. Its folder must exist.
            workspace: the workspace's id. Every device of a workspace gives the same one when its file is created.
                Without one a new workspace begins. An existing file knows its own.
            name: what people call this node. The machine's name, if never given.
            migrations: the folder with the app's own numbered SQL files. See `node.database.migrate`.
            create: False: the file must exist.
            environment: clocks, chance and network, for tests. The real machine's, if not lent.

        Raises:
            WorkspaceMismatch: the file belongs to another workspace.
            DatabaseError: the file cannot be used. MigrationError, when it is because of its schema.
            InvalidInput: workspace or name cannot be accepted.
        """
        file = Path(path)
        _check_name("workspace", workspace)
        _check_name("name", name)
        if not create and not file.exists():
            raise NotFound("file", [str(file)], "create it first (`leasemesh init`)")
        environment = environment or Environment()
        random_bytes = environment.random_bytes
        database = Database.open(file, clock_ms=environment.clock_ms, random_bytes=random_bytes)
        try:
            _upgrade(database, migrations)
            settings = SettingStore(database)
            actual = settings.get_or_set("workspace", workspace or random_bytes(16).hex())
            if workspace is not None and actual != workspace:
                raise WorkspaceMismatch(file, actual, workspace)
            if name is not None and settings.get("name") != name:
                settings.set("name", name)
            return cls(
                database,
                workspace_id=actual,
                name=settings.get_or_set("name", platform.node() or "node"),
                environment=environment,
            )
        except BaseException:
            database.close()
            raise

    # --- Work ---------------------------------------------------------------------------------------------------------

    def reserve(
        self,
        workflow: str,
        topic: str,
        *,
        limit: int = 100,
        message_ids: Sequence[str] | None = None,
        partial: bool = False,
        handler: str = "manual",
    ) -> Reservation:
        """Reserve events for a new run of this node.

        Args:
            workflow, topic: where the events are.
            limit: take the oldest pending ones, at most so many (when no message ids are given).
            message_ids: take these, all or none of them.
            partial: take those of `message_ids` that are pending, even if that is none.
            handler: who works on them.

        Raises:
            NotAvailable, NotFound, InvalidInput: see `EventStore.reserve`. Nothing is reserved.
            HomeElsewhere: another node alone claims there.
        """
        run = self._new_run()
        if message_ids is None:
            events = self.events.reserve_next(run, workflow, topic, limit=limit, handler=handler)
        else:
            events = self.events.reserve(run, workflow, [(topic, message_ids)], partial=partial, handler=handler)
        return Reservation(self.events, run, events)

    @asynccontextmanager
    async def start(
        self,
        workflow: str,
        topic: str,
        *,
        limit: int = 100,
        message_ids: Sequence[str] | None = None,
        partial: bool = False,
        handler: str = "manual",
    ) -> AsyncIterator[Reservation]:
        """Reserve events and begin work on them: the block runs when everybody within reach has received the claim.

        What another node's claim has won meanwhile is given back, so that the reservation may hold fewer events, or
        none, and tells of it as `lost`. Nodes that stay connected and begin like this never work on one event at the
        same time. See `node.work.starting` for what is not promised. Without sync, or without peers, the block runs at
        once. Otherwise it takes as long as the slowest peer needs to be level. Use `asyncio.timeout` to bound it,
        nothing is begun then. At the end of the block, what is not settled is released.

        Args:
            workflow, topic, limit, message_ids, partial, handler: see `reserve`.

        Raises:
            LeaseLost: with message ids and not `partial`, another node's claim won one of them. All are given back.
            NotAvailable, NotFound, InvalidInput: see `reserve`. Nothing is reserved.
            SyncRefused, LocalProtocolError: see `barrier`. What was reserved is released.
        """
        whole = message_ids is not None and not partial
        with self.reserve(
            workflow, topic, limit=limit, message_ids=message_ids, partial=partial, handler=handler
        ) as claimed:
            if claimed.events:
                await self.barrier()
            if whole:
                require_owned(self.database, self.events, claimed.run, claimed.events)
            run, kept = keep_owned(
                self.database, self.events, claimed.run, claimed.events, spare_run=self._new_run(), handler=handler
            )
            claimed.narrow_to(run, kept)
            yield claimed

    def take_over(self, events: Sequence[str], *, handler: str = "manual", force: bool = False) -> Reservation:
        """Reserve events, by id, that another node holds and has been silent about for long enough.

        When they are one run's whose effect happened, or is to be skipped, all that it still owns is reserved, to
        finish it and not to do it anew: consume it when what follows the effect is done, or skip it.

        Args:
            events: their ids.
            handler: the handler that the new run belongs to.
            force: do not ask for how long the holders have been silent.

        Raises:
            TooEarly: a holder may still be at work.
            NotFound, IllegalState: see `EventStore.take_over`.
        """
        wait_ms = 0 if force else self.staleness.longest_wait_ms(events)
        if wait_ms > 0:
            raise TooEarly(f"{len(events)} events" if len(events) != 1 else f"event {ids.short(events[0])}", wait_ms)
        run = self._new_run()
        with self.database.transaction():
            decided = self.events.decided_holder(events)
            if decided is None:
                taken = self.events.take_over(run, events, handler=handler)
            elif decided.node == self.site_id:
                raise IllegalState(f"run {ids.short_run(decided.run)}", "this node's own", "end it instead")
            else:
                taken = self.events.take_over_run(run, decided.run, handler=handler)
        return Reservation(self.events, run, taken)

    async def permit(self, run: str, *, work: str | None = None) -> Permit:
        """Wait for the authority's permit for all that a run holds. It waits for as long as that takes: who decides
        may be away, or not appointed yet. Use `asyncio.timeout` to bound it. The request stays, and asking again goes
        on with it.

        Args:
            run: a run of this node with a held reservation.
            work: the work id. See `PermitStore.request`.

        Raises:
            PermitRefused: the authority decided otherwise. It names who holds which event.
            NotFound, NotOwner, IllegalState, LeaseLost: see `PermitStore.request`.
        """
        async with self.changes() as changes:
            permit = await asyncio.to_thread(self.permits.request, run, work=work)
            await asyncio.to_thread(self.authority.tend)
            while (permit := self.permits.get(run) or permit).state == "waiting":
                async for _ in changes:
                    break
                else:
                    raise IllegalState(f"node {self.name}", "closed", "the request of the run stays")
        return self.permits.require(run)

    def digest(self) -> DatabaseDigest:
        """Compute the digest of all replicated tables. Equal on nodes that have converged."""
        return self._storage.digest()

    def doctor(self, *, rebuild: bool = False) -> list[Finding]:
        """Examine the file. See `node.doctor.examine`.

        Args:
            rebuild: first make the derived tables anew from the facts.
        """
        if rebuild:
            with self.database.much_temporary():
                derived.rebuild(self.database)
        return examine(self.database)

    def reset_identity(self) -> str:
        """Give this file a new site id, because it is a copy of another node's file, and return it.

        Raises:
            SyncRefused: a process syncs this file.
        """
        from leasemesh.node.replication.syncing import sync_lock

        with sync_lock(self.path, lock=self.environment.lock):
            return self._storage.reidentify().site.hex()

    def _new_run(self) -> RunId:
        return RunId(ids.ordered_id(self.database.clock_ms(), self.database.random_bytes))

    # --- Sync ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def syncing(self, **arguments: Unpack[SyncArguments]) -> AsyncIterator[Syncing]:
        """Sync during a block. See `start_sync` for arguments and errors. Raises what sync failed with, should it."""
        sync = await self.start_sync(**arguments)
        try:
            yield sync
        finally:
            await self.stop_sync()
        await sync.wait()

    # --- Handlers -----------------------------------------------------------------------------------------------------

    @property
    def runner(self) -> Runner | None:
        """What runs handlers in this process, None when nothing does."""
        return self._runner

    @asynccontextmanager
    async def running(
        self,
        workflows: Iterable[Workflow],
        *,
        concurrency: int = 8,
        drain_s: float = 10.0,
        retry: RetryRule | None = None,
    ) -> AsyncIterator[Runner]:
        """Run the handlers of workflows during a block.

        First it looks after what earlier runs have left behind. At the end nothing new is begun, and what runs has
        `drain_s` seconds to end. See `Runner.stop`. Raises what the runner failed with, should it fail.

        Args:
            workflows: their handlers run here. The same code on every device.
            concurrency: runs at a time, 1 to 1,000. Of one handler never more than one.
            drain_s: how long runs may take to end, in seconds.
            retry: when to try again. 10 seconds after a first failure, by default, and 5 times.

        Raises:
            InvalidInput: a handler cannot run, or a number is out of its range.
            RunRefused: another process runs handlers on this file.
            IllegalState: this node runs handlers already.
        """
        from leasemesh.node.authoring.retry import RetryRule
        from leasemesh.node.runtime.runner import Runner

        if self._runner is not None:
            raise IllegalState(f"node {self.name}", "running handlers", "give all workflows to one call of running")
        runner = Runner(self, workflows, concurrency=concurrency, drain_s=drain_s, retry=retry or RetryRule())
        self._runner = runner
        try:
            await runner.start()
            try:
                yield runner
            finally:
                await runner.stop()
            await runner.wait()
        finally:
            self._runner = None

    async def run(self, *workflows: Workflow, concurrency: int = 8, drain_s: float = 10.0) -> None:
        """Run the handlers of workflows until this is cancelled. See `running`."""
        async with self.running(workflows, concurrency=concurrency, drain_s=drain_s) as runner:
            await runner.wait()

    # --- More about peers ---------------------------------------------------------------------------------------------

    async def caught_up(self, peer: str | None = None) -> None:
        """Wait until this node and its peers are level. See `Syncing.caught_up`. Use `asyncio.timeout` to bound it."""
        await self._running_sync().caught_up(peer)

    async def compare(
        self, peer: str, *, token: str | None = None, dial_ssl: ssl_module.SSLContext | None = None
    ) -> Comparison:
        """Compare this file's content with a peer's, over a connection of its own. Works whoever syncs the file.

        Raises:
            SyncRefused: the peer cannot be reached, or refuses.
            AddressError: the address is wrong.
        """
        from leasemesh.node.replication.syncing import SyncOptions, compare

        options = SyncOptions(token=token, dial_ssl=dial_ssl)
        return await compare(self.database, self._storage, self._config(token), peer, options, self.environment)

    def _running_sync(self) -> Syncing:
        if self._sync is None:
            raise IllegalState(f"node {self.name}", "not syncing", "call start_sync first")
        return self._sync

    # --- The end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. A second call does nothing.

        Raises:
            IllegalState: this node is syncing, or runs handlers.
        """
        if self._sync is not None or self._sync_begins:
            raise IllegalState(f"node {self.name}", "syncing", "call stop_sync before close")
        if self._runner is not None:
            raise IllegalState(f"node {self.name}", "running handlers", "leave the block of running before close")
        self._watch.close()
        self._storage.close()
        self.database.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_sync()
        self.close()


def _check_name(name: str, value: str | None) -> None:
    if value is None:
        return
    if len(check_text(name, value).encode()) > NAME_BYTES_MAX or not value.isprintable():
        raise InvalidInput(name, f"must be printable and at most {NAME_BYTES_MAX} bytes long")


def _upgrade(database: Database, migrations: str | os.PathLike[str] | Traversable | None) -> None:
    sources = [migrate.own_migrations()]
    if migrations is not None:
        folder = migrations if isinstance(migrations, Traversable) else Path(migrations)
        sources.append((OWN_COMPONENT_OF_APPS, folder))
    before = migrate.schema_numbers(database)
    if migrate.upgrade(database, sources) != before and before:
        # What peers with a newer schema had sent before can be merged now.
        ChangeStorage(database).retry_quarantined()
