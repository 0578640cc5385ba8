"""Keeping a link to one address: dial, serve, wait, dial again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from leasemesh.sync.actions import LinkId, Notify
from leasemesh.sync.backoff import Backoff
from leasemesh.sync.drivers.links import LinkEnd
from leasemesh.sync.drivers.loop import SyncLoop
from leasemesh.sync.transport import DialFailed, Transport

STABLE_S = 10.0
"""A link that stayed for so long was a success: the next failure starts with short waits again. One that breaks at
once, again and again, must not be redialled at the shortest wait for ever."""

log = logging.getLogger("leasemesh.dialler")

DialState = Literal["dialling", "connected", "waiting", "refused"]


class Dialler:
    """Keeps one link to one address open: dials, serves, waits, dials again.

    Attributes:
        url: the address.
        state: "connected" while the peer has proven to belong to the workspace. "refused" when somebody has to change
            something before dialling can help (it is tried now and then all the same).
        text: one sentence on why it is not connected, "" when there is nothing to say.
        link: the link, while connected.

    Args:
        sync_loop: what the link is for.
        url: from `parse_address`.
        random: numbers in [0, 1), for the waiting times.
        dial: opens a connection. See `sync.transport.Network.dial`.
    """

    def __init__(
        self,
        sync_loop: SyncLoop,
        url: str,
        *,
        random: Callable[[], float],
        dial: Callable[[str], Awaitable[Transport]],
    ) -> None:
        self.url = url
        self._sync_loop = sync_loop
        self._dial = dial
        self._backoff = Backoff(random)
        self.state: DialState = "dialling"
        self.text = ""
        self.link: LinkId | None = None
        self._carrying = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"dial {self.url}")

    def stop_dialling(self) -> None:
        """Dial no more. A link that is open stays. The sync loop ends it."""
        self._stopping = True
        if self._task is not None and not self._carrying:
            self._task.cancel()

    async def stop(self) -> None:
        """Dial no more and wait until the link, if any, has ended."""
        self.stop_dialling()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            self._set_state("dialling", self.text)
            opened_at = clock()
            end = await self._dial_and_carry()
            if end.established and clock() - opened_at >= STABLE_S:
                self._backoff.reset()
            if not self._stopping:
                await self._wait_after(end)

    async def _dial_and_carry(self) -> LinkEnd:
        try:
            transport = await self._dial(self.url)
        except DialFailed as failure:
            self._sync_loop.tell(Notify("refused", f"{self.url}: {failure}", name=self.url))
            return LinkEnd(str(failure), retry=True, established=False)
        self._carrying = True
        try:
            return await self._sync_loop.carry(transport, dialed=True, on_established=self._established)
        except Exception as error:
            log.error("the link to %s ended by an internal error: %s", self.url, error)
            log.debug("traceback", exc_info=error)
            return LinkEnd(f"internal error: {error}", retry=True, established=False)
        finally:
            self._carrying = False

    def _established(self, link: LinkId) -> None:
        self._set_state("connected", "", link)

    def _set_state(self, state: DialState, text: str, link: LinkId | None = None) -> None:
        self.state, self.text, self.link = state, text, link
        self._sync_loop.note_peers_changed()

    async def _wait_after(self, end: LinkEnd) -> None:
        self._set_state("waiting" if end.retry else "refused", end.reason)
        delay_s = self._backoff.next_delay_s() if end.retry else self._backoff.delay_max_s
        log.debug("%s: %s; dialling again in %.1f s", self.url, end.reason, delay_s)
        await asyncio.sleep(delay_s)
