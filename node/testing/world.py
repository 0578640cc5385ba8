"""A world of simulated devices.

The model. *Time* jumps from one thing to the next. Nothing happens between, and nobody waits for real. Each *device*
has a monotonic and a wall clock made from it, which may run at another rate or be set wrong. A device is one real
SQLite file with the real cr-sqlite, and at most one *process*: a whole `Node`, with sync and all that belongs to it,
in an event loop of its own. What it would give to a thread is done in the loop, some milliseconds later. *Links* are
ordered pipes with a latency and a bandwidth. Cut, they lose their tail. Blocked, they hold it. A *crash* drops a
process and what it has not committed: the bytes of file and log at that moment are what the next process finds.

Everything random comes from the seed, each user of chance with a generator of its own. So two runs of the same code are
equal to the last byte of each message, which `trace` proves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.testing import files
from leasemesh.node.testing.crashes import CrashPlan
from leasemesh.node.testing.device import Device, Process
from leasemesh.node.testing.locks import Locks
from leasemesh.node.testing.network import VirtualNetwork, url
from leasemesh.node.testing.virtual_loop import VirtualLoop
from leasemesh.node.testing.virtual_time import Scheduler
from leasemesh.sync.version_vector import NO_ERA

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.sync.ports import Applied, Incoming

PIECE_BYTES = 512 * 1024


class World:
    """Devices, links and time.

    Attributes:
        fired: each kind of fault, and how often it made a difference.
        errors: what went wrong in a process and nobody handled: (device's name, sentence, exception).
        log: what happened, line by line, when it is a list.
        running_options: how handlers are run. See `Node.running`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int | str,
        workspace: str = "lab",
        staleness: StalenessRule | None = None,
        latency_ms: int = 20,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """Make a world without devices.

        Args:
            folder: where the files are.
            seed: what chance is made of.
            workspace: the devices' workspace.
            staleness: when a silent device's work may be taken over.
            latency_ms: greatest one-way latency of a link. Each draws its own.
            piece_bytes: greatest size of a piece of a transfer.
        """
        self.folder = folder
        self.seed = seed
        self.workspace = workspace
        self.staleness = staleness or StalenessRule()
        self.piece_bytes = piece_bytes
        self.scheduler = Scheduler()
        self.random = Random(f"{seed} world")
        self.network = VirtualNetwork(Random(f"{seed} network"), self, latency_us_max=latency_ms * 1000)
        self.locks = Locks()
        self.running_options: dict[str, Any] = {}
        self.devices: list[Device] = []
        self.dead: list[VirtualLoop] = []
        self.fired: Counter[str] = Counter()
        self.errors: list[tuple[str, str, BaseException | None]] = []
        self.log: list[str] | None = None
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def now_ms(self) -> int:
        """Milliseconds since the world began."""
        return self.scheduler.now_us // 1000

    @property
    def trace(self) -> str:
        """A hash over everything that has happened."""
        return self._hash.hexdigest()

    def processes(self) -> list[Process]:
        """Return the processes that run."""
        return [device.process for device in self.devices if device.process is not None]

    def add_device(
        self,
        *,
        dials: Sequence[int],
        name: str = "",
        migrations: Path | None = None,
        workflows: Sequence[Workflow] = (),
        content: Path | None = None,
    ) -> Device:
        """Add a device that does not run yet.

        Args:
            dials: the devices that it keeps a link to.
            name: its name.
            migrations: the app's.
            workflows: whose handlers run there.
            content: begin with a copy of this file.
        """
        number = len(self.devices)
        path = self.folder / f"device-{number}.db"
        if content is not None:
            files.replace_file(path, content)
        device = Device(
            self,
            number,
            path,
            dials=dials,
            name=name or f"device-{number}",
            migrations=migrations,
            workflows=workflows,
        )
        self.devices.append(device)
        return device

    def run_for(self, duration_us: int) -> None:
        """Let time pass."""
        self.scheduler.run_until(self.scheduler.now_us + duration_us)

    def stop(self) -> None:
        """End all processes, and let what is left of dead ones go."""
        for device in self.devices:
            if device.process is not None:
                device.process.kill(keep_file=False)
        while self.dead:
            self.dead.pop().dispose()

    def is_level(self) -> bool:
        """Tell whether every device has what those have that it can reach, and nothing is under way."""
        processes = self.processes()
        by_number = {process.device.number: process for process in processes}
        states = {number: process.storage.state() for number, process in by_number.items()}
        for number, process in by_number.items():
            sync, mine = process.node.sync, states[number]
            if sync is None or not process.started or sync.loop.state.version != mine.version:
                return False
            if mine.version and mine.vector.entry(mine.site).era == NO_ERA:
                return False
            if not self.is_linked(process):
                return False
            if any(status.ahead or status.behind for status in sync.loop.peers() if status.state == "open"):
                return False
        for end in self.network.ends:
            if not end.is_open:
                continue
            if end.source not in states or end.target not in states:
                return False
            source, target = states[end.source], states[end.target]
            if source.vector.entry(target.site) != target.vector.entry(target.site):
                return False
        return True

    def is_linked(self, process: Process) -> bool:
        """Whether it has a link to each device that it is to dial and that can be reached."""
        assert process.node.sync is not None, "only a process that has started is asked"
        number = process.device.number
        linked = {peer.peer for peer in process.node.sync.peers() if peer.state == "connected"}
        return all(
            url(target) in linked
            for target in process.device.dials
            if self.devices[target].process is not None
            and not self.network.is_blocked(number, target)
            and not self.network.is_blocked(target, number)
        )

    # --- Told by the parts --------------------------------------------------------------------------------------------

    def note(self, device: Device, text: str) -> None:
        """Something has happened on a device."""
        line = f"{self.scheduler.now_us} {device.name} {text}"
        self._hash.update(line.encode())
        if self.log is not None:
            self.log.append(line)

    def sending(self, number: int, data: bytes) -> None:
        """A device is about to send a message."""
        self._hash.update(data)
        self.note(self.devices[number], f"sends {len(data)} bytes")
        process = self.devices[number].process
        if process is not None:
            process.reach("send", "before")

    def sent(self, number: int) -> None:
        """It has."""
        process = self.devices[number].process
        if process is not None:
            process.reach("send", "after")

    def closed(self, number: int, code: int) -> None:
        """A device has closed a link."""
        self.note(self.devices[number], f"closes with {code}")

    def applied(self, process: Process, incoming: Incoming, applied: Applied) -> None:
        """A device has merged a piece."""
        self.fired["quarantined by an older schema"] += applied.quarantined
        self.fired["staged"] += not incoming.whole

    def hit(self, fault: str) -> None:
        """A fault has made a difference."""
        self.fired[fault] += 1

    def failed(self, device: Device, text: str, error: BaseException | None) -> None:
        """Something went wrong in a process and nobody handled it."""
        self.note(device, f"fails: {text}: {error}")
        self.errors.append((device.name, text, error))

    def committed(self, process: Process) -> None:
        """Something was committed on a device. For whoever checks."""

    def process_started(self, process: Process) -> None:
        """A program has opened its file and is about to begin. For whoever has something to do then."""

    def planned_crash(self, device: Device, plan: CrashPlan) -> None:
        """A process dies where it was planned."""
        self.note(device, f"crashes {plan.moment} {plan.what}")
