"""What the parts of a runner share, and what they ask of it.

The loops of handlers, reconciliation and housekeeping know this, and not the runner that is made of them.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from leasemesh.node.authoring.progress import Progress, ProgressKind
from leasemesh.node.execution.attempt import Attempt
from leasemesh.node.execution.manager import Manager
from leasemesh.node.execution.recovery import HandlerKey
from leasemesh.node.host import Host
from leasemesh.node.model.ids import RunId
from leasemesh.node.runtime.driving import Driver
from leasemesh.node.runtime.performing import in_thread
from leasemesh.node.runtime.sessions import Sessions
from leasemesh.sync.drivers.queues import Subscription

T = TypeVar("T")

log = logging.getLogger("leasemesh.runtime.progress")
"""A logger of its own: a screen that shows the progress leaves out what is logged here."""


class Coordination(ABC):
    """Used in one event loop, but for what says that it may be called from a thread.

    Attributes:
        node: the node.
        manager: makes all transitions.
        driver: drives runs.
        sessions: the open sessions.
        stopping: whether nothing new is begun any more.
    """

    driver: Driver
    sessions: Sessions
    _loop: asyncio.AbstractEventLoop

    def __init__(self, node: Host, manager: Manager) -> None:
        self.node = node
        self.manager = manager
        self.stopping = False
        self._observers: list[Subscription[Progress]] = []
        self._activity = asyncio.Event()

    # --- Shared -------------------------------------------------------------------------------------------------------

    def observe(self) -> Subscription[Progress]:
        """Return an iterator over what happens from now on."""
        observer = Subscription[Progress]()
        self._observers.append(observer)
        return observer

    def clock_ms(self) -> int:
        """Return the wall clock, Unix milliseconds."""
        return self.node.database.clock_ms()

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        """Call a function in a thread: what touches the file does not hold up the event loop."""
        return await in_thread(self.driver.executor, function, *args)

    def tell(self, kind: ProgressKind, key: HandlerKey, attempt: Attempt | None, text: str) -> None:
        """Tell the observers."""
        run = attempt.run if attempt is not None else None
        self._tell(kind, key, run, text, len(attempt.events) if attempt is not None else 0)

    def tell_from_thread(self, kind: ProgressKind, key: HandlerKey, run: RunId, text: str) -> None:
        """Tell the observers, from a thread."""
        self._loop.call_soon_threadsafe(self._tell, kind, key, run, text, 0)

    def activity_changed(self) -> None:
        """A loop has become quiet, perhaps."""
        self._activity.set()

    def _tell(self, kind: ProgressKind, key: HandlerKey, run: RunId | None, text: str, events: int) -> None:
        level = logging.WARNING if kind in ("failed", "unknown", "blocked", "trouble") else logging.DEBUG
        log.log(level, "%s/%s: %s", *key, text)
        if self._observers:
            progress = Progress(kind, key[0], key[1], run, text, events, self.clock_ms())
            for observer in self._observers:
                observer.put(progress)

    # --- Asked of the runner ------------------------------------------------------------------------------------------

    @abstractmethod
    def look(self, *, silent: bool = False) -> None:
        """Look after what was left behind by this node's runs, and (silent) by nodes that have been silent too long."""

    @abstractmethod
    def look_for_unknown(self) -> None:
        """The ledger may have something to find out about."""

    @abstractmethod
    def look_for_events(self, *, from_outside: bool = False) -> None:
        """Find out which consumers have something to do."""

    @abstractmethod
    async def peers_caught_up(self) -> None:
        """Return when this node has what its peers had done before it started, as far as they can be reached."""

    @abstractmethod
    async def refused_here(self) -> str:
        """Return why this process must leave the work to others. "" when it need not."""

    @abstractmethod
    def failures_changed_in_thread(self, key: HandlerKey) -> None:
        """A run of a handler turned out, in a thread, to have failed after it had stopped."""

    @abstractmethod
    async def block(self, key: HandlerKey, reason: str, run: RunId) -> None:
        """Keep a handler from running on this device until a person lets it."""

    @abstractmethod
    async def plan_anew(self) -> None:
        """Find out when producers are due: another device has run one, or the clock has jumped."""

    @abstractmethod
    async def read_gates(self) -> None:
        """Find out which handlers are blocked or disabled."""
