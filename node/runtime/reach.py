"""Hearing what the others have done, before work begins that they may have done: at a start, and after a sleep.

A node that is alone begins at once. That is what offline means. But a device whose program starts, or wakes up, is
alone for a moment only because its links are not open yet.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from leasemesh.node.authoring.errors import message_of
from leasemesh.node.execution.script import NotReached
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.sync.errors import SyncError

if TYPE_CHECKING:
    from leasemesh.node.host import Host

DIAL_S = 1.0
"""How long a start waits for peers to answer. Who does not is away: offline means at once."""

LEVEL_S = 5.0
"""How long it waits for peers that answer: to be level with them takes less, unless there is very much to send."""

AFTER_SLEEP_S = 15.0
"""How long is waited for a link after a sleep: a wireless network takes some seconds to be there again."""


def why_unreachable(node: Host) -> str:
    """Tell why this process cannot know who is within reach. "" when it can, or only asking would show.

    A node whose sync has failed is not offline: no link comes back by itself, so that what it claimed would be unheard
    of for as long as the program runs, and the file may be damaged.
    """
    failure = node.sync.loop.failure if node.sync is not None else None
    return f"sync has failed, and must be started anew: {message_of(failure)}" if failure is not None else ""


async def reach(node: Host, *, slept: bool = False) -> None:
    """Wait until everybody within reach has heard of what is committed here, and this node of what they had before.

    Args:
        node: this node.
        slept: the machine seems to have slept: the links must be found again first.

    Raises:
        NotReached: nobody can tell who is within reach: another process syncs this file, or sync has stopped or failed.
    """
    try:
        await (hear_after_sleep(node) if slept else node.barrier())
    except (LeasemeshError, SyncError) as error:
        raise NotReached(why_unreachable(node) or str(error)) from error
    except Exception as error:
        if node.sync is None or error is not node.sync.loop.failure:
            raise
        raise NotReached(why_unreachable(node)) from error


async def catch_up_with_peers(node: Host) -> None:
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


async def hear_after_sleep(node: Host) -> None:
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


def _is_connected(node: Host) -> bool:
    return any(peer.state == "connected" for peer in node.peers())
