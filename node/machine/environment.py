"""What a node takes from the machine that it runs on: clocks, chance, threads, locks and the network.

A real node takes the real ones. `node.testing` lends others, and so runs the whole node, unchanged, in virtual time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from leasemesh.node.machine.locks import file_lock
from leasemesh.node.model.leases import StalenessRule

if TYPE_CHECKING:
    from leasemesh.sync.drivers.loop import SyncLoop
    from leasemesh.sync.drivers.workers import JobsFactory
    from leasemesh.sync.transport import Transport

PROCESSES_LOOKED_FOR_EVERY_S = 0.03
"""How often other processes' commits are looked for: below what people notice, for half a percent of a processor."""


class Listening(Protocol):
    """What accepts connections for one sync loop."""

    @property
    def url(self) -> str:
        """What a peer dials."""

    async def start(self) -> None:
        """Begin to listen. Raises AddressError when the address cannot be had."""

    async def stop(self) -> None:
        """Stop listening and end what is still open."""


class Network(Protocol):
    """What connects nodes."""

    def listener(self, sync_loop: SyncLoop, host: str, port: int) -> Listening:
        """Make a listener that gives its connections to a loop. Nothing is opened yet."""

    async def dial(self, url: str) -> Transport:
        """Open a connection. Raises `sync.transport.DialFailed`."""


def boot_id() -> str:
    """Return a name of this boot of the machine, the same in all its processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # Elsewhere: the wall-clock time of the boot, to the minute, for it is the difference of two clocks.
        return str(int((time.time() - time.monotonic()) // 60))


def wall_clock_ms() -> int:
    """Return the wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Return this machine's monotonic clock in milliseconds. Processes of one boot share it."""
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Environment:
    """What is lent to a node. Without values it is the real machine.

    Attributes:
        clock_ms: the wall clock, in Unix milliseconds.
        monotonic_ms: the clock that silence is measured with. The event loop's clock must be the same one.
        boot: a name of this run of the machine. Times of `monotonic_ms` mean nothing in another one.
        random_bytes: where ids and tokens come from.
        staleness: when a silent node's work may be taken over.
        lock: holds a lock file. See `node.machine.locks.file_lock`.
        network: what connects nodes. None: websockets, with the options that sync was started with.
        make_worker: what does the blocking work of sync. None: threads.
        processes_looked_for_every_s: how often other processes' commits on the file are looked for.
    """

    clock_ms: Callable[[], int] = wall_clock_ms
    monotonic_ms: Callable[[], int] = monotonic_ms
    boot: str = field(default_factory=boot_id)
    random_bytes: Callable[[int], bytes] = os.urandom
    staleness: StalenessRule = StalenessRule()
    lock: Callable[[Path, float], AbstractContextManager[None]] = file_lock
    network: Network | None = None
    make_worker: JobsFactory | None = None
    processes_looked_for_every_s: float = PROCESSES_LOOKED_FOR_EVERY_S
