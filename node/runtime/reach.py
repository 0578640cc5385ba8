"""Hearing what the others have done, before work begins that they may have done: at a start, and after a sleep.

A node that is alone begins at once; that is what offline means. But a device whose program starts, or wakes up, is
alone for a moment only because its links are not open yet.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from node.errors import LeasemeshError
from sync.errors import SyncError

if TYPE_CHECKING:
    from node.service import Node

DIAL_S = 1.0
"""How long a start waits for peers to answer. Who does not is away: offline means at once."""

LEVEL_S = 5.0
"""How long it waits for peers that answer: to be level with them takes less, unless there is very much to send."""

AFTER_SLEEP_S = 15.0
"""How long is waited for a link after a sleep: a wireless network takes some seconds to be there again."""


async def hear_peers(node: Node) -> None:
    """At a start: wait until this node is level with the peers that it dials, as far as they can be reached."""
    sync = node.sync
    if sync is None:
        return
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(DIAL_S):
                await sync.loop.until(lambda: all(peer.state != "dialling" for peer in node.peers()))
        if _is_connected(node):
            async with asyncio.timeout(LEVEL_S):
                await sync.caught_up()
    except (TimeoutError, SyncError, LeasemeshError):
        pass  # very much to send, or stopped meanwhile


async def hear_after_sleep(node: Node) -> None:
    """After a sleep: find out which links still live, wait for one if there is none, and for what came through it."""
    await node.barrier()  # a link that died in the meantime ends here
    sync = node.sync
    if sync is None or _is_connected(node) or not node.peers():
        return
    try:
        async with asyncio.timeout(AFTER_SLEEP_S):
            await sync.loop.until(lambda: _is_connected(node))
    except (TimeoutError, SyncError):
        return
    await node.barrier()


def _is_connected(node: Node) -> bool:
    return any(peer.state == "connected" for peer in node.peers())
