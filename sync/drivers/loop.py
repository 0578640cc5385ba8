"""Carries out what the engine decides, with asyncio: the engine's actions become sends, timers and jobs of worker
threads, and their answers go back to it as inputs.

All inputs are given in the event loop's thread, one at a time. Every method here without "any thread" in its
description is for that thread too. Threads:

| thread | does | order |
|---|---|---|
| storage | applies, state, resume points, new identity, relayed heartbeats | one job at a time, as asked |
| reader 1..n | reads changes and digests; each link stays with one of them | one job at a time per link |

Whatever goes wrong with one link ends that link with one sentence. Whatever goes wrong with the engine itself ends the
loop, and so does damage of the database. `wait` raises it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

from leasemesh.sync.actions import (
    Apply,
    BarrierDone,
    BeginRead,
    Close,
    ComputeDigest,
    ContinueRead,
    EndRead,
    LinkId,
    LoadResume,
    LoadState,
    Notify,
    RecordHeartbeats,
    Reidentify,
    Send,
    SetTimer,
)
from leasemesh.sync.drivers.links import LinkEnd, LoopLink
from leasemesh.sync.drivers.notifications import Announcer, Notifications
from leasemesh.sync.drivers.workers import Jobs, JobsFactory, Worker
from leasemesh.sync.engine import Engine, PeerStatus, Purpose
from leasemesh.sync.errors import CloseCode, LocalProtocolError, StorageDamaged
from leasemesh.sync.ports import ChangeReader, LocalState, ReadResult, Storage
from leasemesh.sync.transport import Transport
from leasemesh.sync.version_vector import Era, SiteId

READER_THREADS_MAX = 4
"""Reading is work for the processor, and Python runs one thread at a time: more readers than this would only wait."""

HEARTBEATS_WRITTEN_EVERY_S = 1.0
"""Presence comes from every peer every few seconds. Writing it down together costs one small transaction a second.
Take-over waits for a minute of silence, so a second that is lost in a crash does not matter."""

STATE_RETRY_S = 1.0
"""When the local state cannot be read (a disk error, a file locked for very long), it is tried again this much
later."""

log = logging.getLogger("leasemesh.sync")


class SyncLoop:
    """Runs one engine on one storage. Made and stopped in a running event loop. Used once.

    Attributes:
        peers_changed: set when what is to be said about peers may have changed. For one user, who clears it.
    """

    def __init__(self, engine: Engine, storage: Storage, *, make_worker: JobsFactory = Worker) -> None:
        """Args: `make_worker` makes what does the blocking work. Threads, if none is lent."""
        self._engine = engine
        self._storage = storage
        self._make_worker = make_worker
        self._loop = asyncio.get_running_loop()
        self._link_ids = itertools.count(1)
        self._links: dict[LinkId, LoopLink] = {}
        self._no_links = asyncio.Event()
        self._no_links.set()
        self._timers: dict[tuple[str, int], asyncio.TimerHandle] = {}
        self._announcer = Announcer()
        self.peers_changed = asyncio.Event()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._heartbeats: dict[SiteId, tuple[Era, int]] = {}  # not written down yet
        self._heartbeat_timer: asyncio.TimerHandle | None = None
        self._commit_notified = False
        self._barriers_begun = 0
        self._barriers_done = 0
        self._barriers_wanted = 0
        self._stopping = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._storage_worker = make_worker("leasemesh-storage", self._loop)
        self._readers: list[Jobs] = []
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Send: self._send,
            Close: self._close,
            LoadResume: self._load_resume,
            LoadState: self._load_state,
            BeginRead: self._begin_read,
            ContinueRead: self._continue_read,
            EndRead: self._end_read,
            Apply: self._apply,
            ComputeDigest: self._compute_digest,
            Reidentify: self._reidentify,
            SetTimer: self._set_timer,
            RecordHeartbeats: self._note_heartbeats,
            BarrierDone: self._barrier_done,
            Notify: self.tell,
        }

    # --- For whoever runs it ------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Take leave of all peers, let a running apply finish, end the threads. A second call does nothing.

        Whoever dials must have stopped dialling. Waits as long as the transports need to close.
        """
        if self._stopping:
            return
        self._stopping = True
        self._input(self._engine.close_all)
        await self._no_links.wait()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._record_heartbeats()
        for worker in (self._storage_worker, *self._readers):
            await worker.stop()
        self._announcer.close()
        if not self._ended.done():
            self._ended.set_result(None)

    async def wait(self) -> None:
        """Return when the loop has been stopped. Raise what it failed with, should it fail."""
        await asyncio.shield(self._ended)

    @property
    def failure(self) -> BaseException | None:
        """What the loop failed with, None when it did not."""
        return self._ended.exception() if self._ended.done() else None

    def notify_commit(self) -> None:
        """Something was committed here by this process's app or by another process. May be called from any thread.

        Cheap and coalesced: commits that come while the state is waiting to be read are covered by that reading.
        """
        if not self._commit_notified:
            self._commit_notified = True
            self._storage_worker.submit(
                self._read_committed_state,
                functools.partial(self._input, self._engine.local_commit),
                functools.partial(self._state_failed, self.notify_commit),
            )

    async def carry(
        self,
        transport: Transport,
        *,
        dialed: bool,
        purpose: Purpose = "sync",
        on_established: Callable[[LinkId], None] | None = None,
    ) -> LinkEnd:
        """Serve one open connection until it has ended.

        Args:
            transport: the connection.
            dialed: this node opened it.
            purpose: see `Engine.connected`.
            on_established: called once, when the peer has proven to belong to the workspace.
        """
        if self._stopping or self._ended.done():
            transport.close(CloseCode.STOPPING, "the node is stopping")
            end = await transport.pump(_drop)
            return LinkEnd(end.reason, retry=True, established=False)
        link = LoopLink(LinkId(next(self._link_ids)), transport, self._reader_worker(), on_established)
        self._links[link.id] = link
        self._no_links.clear()
        log.debug("link %d: open, %s %s", link.id, "dialled" if dialed else "accepted from", transport.remote)
        reason = "the connection was given up"
        try:
            self._link_input(
                link, self._engine.connected, dialed=dialed, purpose=purpose, compress=not transport.is_local
            )
            transport_end = await transport.pump(functools.partial(self._link_input, link, self._engine.received))
            reason = transport_end.reason
        finally:
            self._forget(link, reason)
        return link.end(transport_end)

    def note_peers_changed(self) -> None:
        """What a dialler has to say about its peer has changed."""
        self.peers_changed.set()
        self._look_again()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as `condition` holds. It is looked at after every input and every `note_peers_changed`.

        Raises:
            LocalProtocolError: the loop has been stopped. (What it failed with, should it have failed.)
        """
        if condition():
            return
        waiter = self._loop.create_future()
        entry = (condition, waiter)
        self._waiters.append(entry)
        try:
            await asyncio.wait((waiter, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.remove(entry)
        if not waiter.done():
            await self.wait()
            raise LocalProtocolError("sync has been stopped while something was waiting for it")

    async def barrier(self) -> None:
        """Return when everybody within reach has what is committed here now, and this node what they had before that.

        See `Engine.begin_barrier`. Who waits while a barrier runs shares the next one.

        Raises:
            LocalProtocolError: the loop has been stopped. (What it failed with, should it have failed.)
        """
        # One that runs already may have begun before the caller's commit.
        number = self._barriers_wanted = self._barriers_begun + 1
        if self._barriers_begun == self._barriers_done:
            self._begin_barrier()
        await self.until(lambda: self._barriers_done >= number)

    def peers(self) -> list[PeerStatus]:
        """Return all links as the engine sees them."""
        return self._engine.peers()

    @property
    def state(self) -> LocalState:
        """This node as the engine sees it: equal to the database, or a moment behind it."""
        return self._engine.state

    def request_digest(self, link: LinkId) -> None:
        """Ask a peer for its digest. It comes as a Tell.

        Raises:
            LocalProtocolError: the link is not open, or was asked and has not answered yet.
        """
        self._engine.request_digest(link, now_ms=self._now_ms())
        self._perform()

    def observe(self) -> Notifications:
        """Return an iterator of everything that is told from now on, until it is closed or the loop stops."""
        observer = self._announcer.observe()
        if self._ended.done():
            observer.close()
        return observer

    def tell(self, notification: Notify) -> None:
        """Pass a notification on to the log and the observers. A refusal that repeats is told once."""
        link = self._links.get(notification.link) if notification.link is not None else None
        remote = link.transport.remote if link is not None else ""
        if not self._announcer.tell(notification, remote=remote, quiet=self._stopping):
            return
        if notification.kind == "connected" and link is not None and not link.established:
            link.established = True
            if link.on_established is not None:
                link.on_established(link.id)
        self.peers_changed.set()

    # --- Inputs -------------------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def _input(self, method: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Give the engine an input and carry out what it decides. An exception of the engine ends the loop."""
        try:
            method(*arguments, **options, now_ms=self._now_ms())
            self._perform()
        except Exception as error:
            self._fail(error)

    def _link_input(self, link: LoopLink, method: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Give the engine an input about one link. An exception of the engine ends that link."""
        try:
            method(link.id, *arguments, **options, now_ms=self._now_ms())
        except Exception as error:
            self._end_link_internally(link, error)
        try:
            self._perform()
        except Exception as error:
            self._fail(error)

    def _perform(self) -> None:
        for action in self._engine.take_actions():
            self._handlers[type(action)](action)
        self._look_again()

    def _look_again(self) -> None:
        for condition, waiter in self._waiters:
            if not waiter.done() and condition():
                waiter.set_result(None)

    def _link_failure(
        self, link: LoopLink, method: Callable[..., None], *arguments: Any
    ) -> Callable[[Exception], None]:
        """Return what gives the engine the failure of a job of the storage."""

        def report(error: Exception) -> None:
            if isinstance(error, StorageDamaged):
                self._fail(error)
            else:
                self._link_input(link, method, *arguments, error)

        return report

    def _end_link_internally(self, link: LoopLink, error: Exception) -> None:
        if isinstance(error, StorageDamaged):
            self._fail(error)
            return
        log.error("link %d to %s: ended by an internal error: %s", link.id, link.transport.remote, error)
        log.debug("traceback", exc_info=error)
        self._close(Close(link.id, CloseCode.INTERNAL, "internal error, see the log of this node", retry=True))

    def _fail(self, error: Exception) -> None:
        """The engine cannot go on: end every link and raise the error to whoever waits."""
        log.error("sync has failed: %s", error)
        log.debug("traceback", exc_info=error)
        if not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # it is raised by `wait`; nobody has to wait
        for link in self._links.values():
            link.transport.close(CloseCode.INTERNAL, "internal error, see the log of this node")

    def _forget(self, link: LoopLink, reason: str) -> None:
        self._input(self._engine.disconnected, link.id, reason=reason)
        del self._links[link.id]
        link.worker.submit(link.close_reader)
        if not self._links:
            self._no_links.set()

    def _reader_worker(self) -> Jobs:
        if len(self._readers) < READER_THREADS_MAX:
            self._readers.append(self._make_worker(f"leasemesh-reader-{len(self._readers) + 1}", self._loop))
            return self._readers[-1]
        users = [link.worker for link in self._links.values()]
        return min(self._readers, key=users.count)

    def _read_committed_state(self) -> LocalState:
        self._commit_notified = False  # first: a commit from here on asks again
        return self._storage.state()

    def _state_failed(self, again: Callable[[], None], error: Exception) -> None:
        if isinstance(error, StorageDamaged):
            self._fail(error)
            return
        log.warning("cannot read the local state, trying again: %s", error)
        if not self._stopping:
            self._loop.call_later(STATE_RETRY_S, again)

    def _begin_barrier(self) -> None:
        self._barriers_begun += 1
        self._read_state_for_barrier()

    def _read_state_for_barrier(self) -> None:
        self._storage_worker.submit(
            self._storage.state,
            functools.partial(self._input, self._engine.begin_barrier, self._barriers_begun),
            functools.partial(self._state_failed, self._read_state_for_barrier),
        )

    # --- Effects ------------------------------------------------------------------------------------------------------

    def _send(self, action: Send) -> None:
        link = self._links.get(action.link)
        if link is not None:
            link.transport.send(action.data)

    def _close(self, action: Close) -> None:
        link = self._links.get(action.link)
        if link is not None:
            link.close = link.close or action
            link.transport.close(action.code, action.reason)

    def _load_resume(self, action: LoadResume) -> None:
        link = self._links.get(action.link)
        if link is not None:
            self._storage_worker.submit(
                functools.partial(self._storage.resume_point, action.site),
                functools.partial(self._link_input, link, self._engine.resume_loaded),
                functools.partial(self._end_link_internally, link),
            )

    def _load_state(self, action: LoadState) -> None:
        self._storage_worker.submit(
            self._storage.state,
            functools.partial(self._input, self._engine.state_loaded),
            functools.partial(self._state_failed, lambda: self._load_state(action)),
        )

    def _begin_read(self, action: BeginRead) -> None:
        self._read(action.link, lambda reader: reader.begin(action.request, action.rows_bytes_max))

    def _continue_read(self, action: ContinueRead) -> None:
        self._read(action.link, lambda reader: reader.read(action.rows_bytes_max))

    def _read(self, link_id: LinkId, read: Callable[[ChangeReader], ReadResult]) -> None:
        link = self._links.get(link_id)
        if link is not None:
            link.worker.submit(
                functools.partial(link.read, self._storage, read),
                functools.partial(self._link_input, link, self._engine.read_done),
                self._link_failure(link, self._engine.read_failed),
            )

    def _end_read(self, action: EndRead) -> None:
        link = self._links.get(action.link)
        if link is not None:
            link.worker.submit(link.end_read)

    def _apply(self, action: Apply) -> None:
        link = self._links.get(action.link)
        if link is not None:
            self._storage_worker.submit(
                functools.partial(self._storage.apply, action.incoming),
                functools.partial(self._link_input, link, self._engine.applied),
                self._link_failure(link, self._engine.apply_failed),
            )

    def _compute_digest(self, action: ComputeDigest) -> None:
        link = self._links.get(action.link)
        if link is not None:
            link.worker.submit(  # takes seconds on a large file, and merges must go on
                self._storage.digest,
                functools.partial(self._link_input, link, self._engine.digest_done, action.request),
                self._link_failure(link, self._engine.digest_failed, action.request),
            )

    def _reidentify(self, action: Reidentify) -> None:
        log.warning("taking a new site id: %s", action.reason)
        self._storage_worker.submit(
            self._storage.reidentify, functools.partial(self._input, self._engine.reidentified), self._fail
        )

    def _set_timer(self, action: SetTimer) -> None:
        previous = self._timers.pop(action.key, None)
        if previous is not None:
            previous.cancel()
        if not self._stopping:
            # One millisecond more, so that the engine's whole milliseconds have surely passed.
            when = (action.at_ms + 1) / 1000
            self._timers[action.key] = self._loop.call_at(when, self._timer_fired, action.key)

    def _timer_fired(self, key: tuple[str, int]) -> None:
        del self._timers[key]
        if key[0] == "presence":
            self._note_signs_of_life()
        self._input(self._engine.timer_fired, key)

    def _note_signs_of_life(self) -> None:
        """Before the engine ends what is silent: a large value on a slow link may arrive for minutes."""
        for link in self._links.values():
            if link.transport.has_received():
                self._engine.note_traffic(link.id, now_ms=self._now_ms())

    def _note_heartbeats(self, action: RecordHeartbeats) -> None:
        self._heartbeats.update(action.heartbeats)
        if self._heartbeat_timer is None:
            self._heartbeat_timer = self._loop.call_later(HEARTBEATS_WRITTEN_EVERY_S, self._record_heartbeats)

    def _barrier_done(self, action: BarrierDone) -> None:
        if self._stopping or self._ended.done():  # the links are gone because this node leaves, which is no answer
            return
        self._barriers_done = action.token
        if self._barriers_wanted > self._barriers_begun:
            self._begin_barrier()

    def _record_heartbeats(self) -> None:
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
            self._heartbeat_timer = None
        if self._heartbeats:
            heartbeats, self._heartbeats = self._heartbeats, {}
            self._storage_worker.submit(
                functools.partial(self._storage.record_heartbeats, heartbeats),
                failed=lambda error: log.warning("cannot record which nodes were heard of: %s", error),
            )


def _drop(_: bytes) -> None:
    """Nobody is interested any more."""
