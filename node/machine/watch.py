"""Notification of changes: what was committed here, by whom, and in which tables.

Three sources: this process's app ("local"), transfers that this process merged ("peer"), and other processes on the
same file ("process"), which are noticed by asking SQLite for `PRAGMA data_version` now and then, which reads no page.
Notifications coalesce: a subscriber that is slow gets fewer and larger ones, never an endless queue, and of an app that
commits all the time there is a notification every few milliseconds, because each has to look up what changed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.database.file import CommitSource, Database
from leasemesh.node.machine.environment import PROCESSES_LOOKED_FOR_EVERY_S
from leasemesh.sync.drivers.queues import Subscription

RETRY_S = 1.0
"""After an error of the file (a full disk, a lock that somebody holds for very long) it is looked at again this much
later."""

LOOK_UPS_APART_S = 0.005
"""The first commit after a pause is told at once. A handler that commits a thousand times a second would spend a
quarter of its time on telling."""

ChangeSource = Literal["local", "peer", "process"]

log = logging.getLogger("leasemesh.watch")


@dataclass(frozen=True, slots=True)
class Changed:
    """Something was committed.

    Attributes:
        tables: the replicated tables that changed since the notification before. When commits of several sources
            come at one moment, each source's notification may name tables of the others. A table that changed is never
            left out.
        source: "local" for this process's app, "peer" for a merge, "process" for another process on the same file.
    """

    tables: frozenset[str]
    source: ChangeSource


class Changes(Subscription[Changed]):
    """An async iterator of changes from the moment it was made. Ends with the node's closing, or with `close`.

    It holds one item for each source: what is not taken yet and what comes become one.
    """

    def _add(self, item: Changed) -> None:
        for index, waiting in enumerate(self._items):
            if waiting.source == item.source:
                self._items[index] = Changed(waiting.tables | item.tables, item.source)
                return
        self._items.append(item)


class ChangeWatch:
    """Watches one database on behalf of subscribers in one event loop. Costs nothing while there are none.

    Everything but `notify` is for the event loop's thread.
    """

    def __init__(
        self, database: Database, *, processes_looked_for_every_s: float = PROCESSES_LOOKED_FOR_EVERY_S
    ) -> None:
        self._database = database
        self._poll_s = processes_looked_for_every_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: list[Changes] = []
        self._on_process_commit: list[Callable[[], None]] = []
        self._stop_listening: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._data_version = 0
        self._version = 0
        self._sources: dict[ChangeSource, None] = {}  # ordered; those whose tables are still to be looked up
        self._looking = False  # or about to
        self._look_timer: asyncio.TimerHandle | None = None
        self._looked_at = -math.inf
        self._local_notified = False  # and not looked up yet: another notification would tell nothing more

    def subscribe(self) -> Changes:
        """Return an iterator of the changes from now on."""
        self._begin()
        subscription = Changes(self._unsubscribe)
        self._subscriptions.append(subscription)
        return subscription

    def on_process_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` soon after another process has committed. Returns a function that ends this."""
        self._begin()
        self._on_process_commit.append(callback)

        def end() -> None:
            self._on_process_commit.remove(callback)
            self._end_when_unused()

        return end

    def notify(self, source: ChangeSource, tables: frozenset[str] | None = None) -> None:
        """Something was committed, in these tables if known. May be called from any thread."""
        loop = self._loop
        if loop is None or not self._subscriptions or loop.is_closed():
            return
        if source == "local" and tables is None:
            if self._local_notified:
                return
            self._local_notified = True
        loop.call_soon_threadsafe(self._notified, source, tables)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in list(self._subscriptions):
            subscription.close()
        self._on_process_commit.clear()
        self._end_when_unused()

    # --- Beginning and ending -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            if not self._loop.is_closed():
                raise DatabaseError("This node is in use by another event loop; open the file again for this one.")
            self._forget_closed_loop()
        if self._loop is None:
            self._loop = loop
            self._stop_listening = self._database.on_commit(self._committed)
            self._data_version = self._database.data_version()
            self._version = self._database.version()
            self._timer = loop.call_later(self._poll_s, self._poll)

    def _forget_closed_loop(self) -> None:
        self._subscriptions.clear()
        self._on_process_commit.clear()
        self._end_when_unused()

    def _unsubscribe(self, subscription: Subscription[Changed]) -> None:
        self._subscriptions[:] = [one for one in self._subscriptions if one is not subscription]
        self._end_when_unused()

    def _end_when_unused(self) -> None:
        if self._subscriptions or self._on_process_commit:
            return
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        if self._stop_listening is not None:
            self._stop_listening()
        self._loop = self._timer = self._look_timer = self._stop_listening = None
        self._sources.clear()
        self._looking = self._local_notified = False
        self._looked_at = -math.inf  # another loop may count its time from elsewhere

    # --- Noticing -----------------------------------------------------------------------------------------------------

    def _committed(self, source: CommitSource) -> None:
        if source == "local":  # a merge gives its own notification, with its tables
            self.notify("local")

    def _poll(self) -> None:
        assert self._loop is not None
        wait_s = self._poll_s
        try:
            data_version = self._database.data_version()
        except DatabaseError as error:
            log.warning("cannot look for other processes' changes: %s", error)
            data_version, wait_s = self._data_version, RETRY_S
        self._timer = self._loop.call_later(wait_s, self._poll)
        if data_version != self._data_version:
            self._data_version = data_version
            self.notify("process")
            for callback in self._on_process_commit:
                callback()

    def _notified(self, source: ChangeSource, tables: frozenset[str] | None) -> None:
        if tables is not None:
            self._publish(tables, (source,))
            return
        self._sources[source] = None
        if not self._looking:
            self._look_up_soon()

    def _look_up_soon(self) -> None:
        if self._loop is None:
            return
        self._looking = True
        wait_s = self._looked_at + LOOK_UPS_APART_S - self._loop.time()
        if wait_s > 0:
            self._look_timer = self._loop.call_later(wait_s, self._look_up)
        else:
            self._look_up()

    def _look_up(self) -> None:
        """Find out in a thread which tables changed. Commits that come meanwhile are looked up together afterwards."""
        if self._loop is None:
            return
        self._local_notified = (
            False  # before the file is read: what is committed from here on is a notification of its own
        )
        self._looked_at = self._loop.time()
        sources = tuple(self._sources)
        self._sources.clear()
        future = self._loop.run_in_executor(None, self._read_changed, self._version)
        future.add_done_callback(functools.partial(self._looked_up, sources))

    def _read_changed(self, since: int) -> tuple[int, frozenset[str]]:
        with self._database.snapshot():
            return self._database.version(), self._database.tables_changed_since(since)

    def _looked_up(self, sources: tuple[ChangeSource, ...], future: asyncio.Future[tuple[int, frozenset[str]]]) -> None:
        self._looking = False
        if future.cancelled():
            return
        error = future.exception()  # first: an error that nobody looks at would be reported when it is collected
        if self._loop is None:
            return
        if error is not None:
            log.warning("cannot look up what has changed: %s", error)
            self._sources = dict.fromkeys(sources) | self._sources
            self._looking = True
            self._look_timer = self._loop.call_later(RETRY_S, self._look_up)
            return
        self._version, tables = future.result()
        if tables:
            self._publish(tables, sources)
        if self._sources:
            self._look_up_soon()

    def _publish(self, tables: frozenset[str], sources: tuple[ChangeSource, ...]) -> None:
        for source in sources:
            for subscription in self._subscriptions:
                subscription.put(Changed(tables, source))
