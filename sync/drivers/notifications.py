"""What the loop tells: to the log, and to whoever observes it."""

from __future__ import annotations

import logging

from leasemesh.sync.actions import Notify
from leasemesh.sync.drivers.queues import Subscription

PROGRESS_KINDS = frozenset({"sending", "receiving"})

REFUSALS_MAX = 256
"""Different refusals remembered, in order not to say each of them every few seconds."""

LOG_LEVELS = {
    "connected": logging.INFO,
    "disconnected": logging.INFO,
    "refused": logging.WARNING,
    "sending": logging.DEBUG,
    "sent": logging.DEBUG,
    "receiving": logging.DEBUG,
    "received": logging.DEBUG,
    "caught_up": logging.INFO,
    "quarantined": logging.WARNING,
    "identity": logging.WARNING,
    "digest": logging.DEBUG,
}

log = logging.getLogger("leasemesh.sync")


class Notifications(Subscription[Notify]):
    """What the loop tells. For a reader that falls behind, progress of transfers is dropped first."""

    def _drop_one(self) -> None:
        progress = (index for index, item in enumerate(self._items) if item.kind in PROGRESS_KINDS)
        del self._items[next(progress, 0)]


class Announcer:
    """Passes notifications on. A refusal that repeats is told once, until a link opens."""

    def __init__(self) -> None:
        self._observers: list[Subscription[Notify]] = []
        self._refusals: set[str] = set()

    def observe(self) -> Notifications:
        """Return an iterator of everything that is told from now on, until it is closed."""
        observer = Notifications(self._observers.remove)
        self._observers.append(observer)
        return observer

    def close(self) -> None:
        """Let all iterators end after what is there."""
        for observer in list(self._observers):
            observer.close()

    def tell(self, notification: Notify, *, remote: str = "", quiet: bool = False) -> bool:
        """Pass a notification on. False when it only repeats a refusal.

        Args:
            notification: what is told.
            remote: the other end's address.
            quiet: to the log as a detail only.
        """
        if notification.kind == "refused" and not self._is_news(notification.text):
            log.debug("again: %s", notification.text)
            return False
        if notification.kind == "connected":
            self._refusals.clear()
        level = logging.DEBUG if quiet else LOG_LEVELS[notification.kind]
        log.log(level, "%s%s", notification.text, f" ({remote})" if remote else "")
        for observer in self._observers:
            observer.put(notification)
        return True

    def _is_news(self, refusal: str) -> bool:
        if refusal in self._refusals:
            return False
        if len(self._refusals) >= REFUSALS_MAX:
            self._refusals.clear()
        self._refusals.add(refusal)
        return True
