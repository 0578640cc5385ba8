"""A world of simulated devices.

The model. *Time* is an integer of world milliseconds that jumps from one thing to the next; nothing happens between,
and nobody waits for real. Each *device* has a monotonic and a wall clock made from it, which may run at another rate or
be set wrong. A device is one real SQLite file with the real cr-sqlite, and at most one *process*: the real engine, the
real storage and stores. What its engine asks for is a job that takes some milliseconds, one at a time for the
storage and one at a time for each link's reader, as in the threads of `sync.loop`. *Links* are ordered pipes with a
latency and a bandwidth; cut, they lose their tail; blocked, they hold it. A *crash* drops a process and what it has not
committed: the bytes of file and log at that moment are what the next process finds.

A run has two phases. First a schedule drawn from the seed: apps at work, and faults. Then the faults end, older
schemas are upgraded, the apps finish all work that they can reach, and the devices must converge in bounded time; and
then they must stay silent.

Everything random comes from the seed, each user of chance with a generator of its own; nothing is iterated in the order
of a set. So two runs are equal to the last byte of each message, which `trace` proves.
"""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

from sim import files
from sim.device import Crashed, Device, Process
from sim.faults import FAULTS
from sim.invariants import Checks
from sim.network import Network
from sim.params import Params
from sim.schedule import Step
from sim.workload import WORK, finish_work
from sync.knowledge import NO_ERA

HUB = 0


class World:
    """Devices, links and time; one run.

    Attributes:
        fired: each kind of fault, and how often it made a difference.
        did: each kind of work, with how it ended.
        events: things that happened.
        trace: a hash over all of them.
    """

    def __init__(self, seed: int, params: Params, folder: Path) -> None:
        self.seed = seed
        self.params = params
        self.folder = folder
        self.random = Random(f"{seed} world")
        self.now_ms = 0
        self.events = 0
        self.healing = False
        self.fired: Counter[str] = Counter()
        self.did: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.backups: list[tuple[Path, int]] = []
        self.piece_bytes = self.random.choice([150, 400, 2_000, 512 * 1024])
        self.log: list[str] | None = None
        self._queue: list = []
        self._numbers = count()
        self._links = count(1)
        self._hash = hashlib.blake2b(digest_size=16)
        self.network = Network(self)
        self.checks = Checks(self)
        self.devices: list[Device] = []
        older = self.random.random() < 0.3
        for _ in range(params.nodes):
            self.add_device(1 if older and self.random.random() < 0.5 else files.NEWEST)

    def add_device(self, level: int, content: Path | None = None) -> Device:
        """Add a device with an empty file, or with a copy of another one's."""
        number = len(self.devices)
        path = self.folder / f"{number}.db"
        if content is None:
            files.new_file(path, level, self.random.randbytes(16))
        else:
            files.replace_file(path, content)
        dials = [HUB] if number else []
        if number > 1 and self.random.random() < 0.3:
            dials.append(self.random.randrange(1, number))
        device = Device(self, number, path, level, dials)
        self.devices.append(device)
        return device

    # --- Time ---------------------------------------------------------------------------------------------------------

    def at(self, at_ms: int, action: Callable[[], None], *, device: Device | None = None) -> None:
        """Do something at a time; things of one time are done in the order they were asked for."""
        heapq.heappush(self._queue, (at_ms, next(self._numbers), device, action))

    def run_until(self, end_ms: int) -> None:
        while self._queue and self._queue[0][0] <= end_ms:
            at_ms, _, device, action = heapq.heappop(self._queue)
            self.now_ms = max(self.now_ms, at_ms)
            if device is not None and device.paused_until_ms > self.now_ms:
                self.fired["pause"] += 1
                self.at(device.paused_until_ms, action, device=device)
                continue
            self.events += 1
            action()
        self.now_ms = max(self.now_ms, end_ms)

    # --- For the parts ------------------------------------------------------------------------------------------------

    def next_link(self) -> int:
        return next(self._links)

    def note(self, device: Device, text: str) -> None:
        line = f"{self.now_ms} {device.name} {text}"
        self._hash.update(line.encode())
        if self.log is not None:
            self.log.append(line)

    def note_effect(self, device: Device, kind: str, effect) -> None:
        match kind:
            case "Send":
                self._hash.update(effect.data)
                self.note(device, f"Send {effect.link} {len(effect.data)}")
            case "Tell":
                self.note(device, f"Tell {effect.text}")
            case _:
                self.note(device, f"{kind} {getattr(effect, 'link', '')}")

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    def processes(self) -> list[Process]:
        return [device.process for device in self.devices if device.process is not None]

    def recover(self, process: Process) -> None:
        """At the start of a process: give back what an earlier one of this node held when it died."""
        with self.checks.recovery(process):
            for run in process.events.held_runs(own=True):
                reservation = process.events.reservation(run)
                if reservation is not None and reservation.incarnation != process.database.incarnation.hex():
                    process.events.release(run)
                    self.did["recover"] += 1
        self.checks.after_commit(process)

    # --- Phases -------------------------------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> None:
        """Run both phases; what is wrong is in `checks.violations`."""
        try:
            for device in self.devices:
                device.start()
            for step in steps:
                device = self.devices[step.device % len(self.devices)]
                self.at(step.at_ms, lambda step=step: self._do(step), device=device if step.kind in WORK else None)
            self.run_until(self.params.faulty_ms)
            self._heal()
            self._stay_idle()
        finally:
            for device in self.devices:
                device.stop()

    def _do(self, step: Step) -> None:
        if self.healing:  # It waited for a device that was paused.
            return
        device, random = self.devices[step.device % len(self.devices)], Random(step.seed)
        if step.kind in WORK:
            if device.process is None:
                return
            try:
                outcome = WORK[step.kind](device.process, random)
            except Crashed:
                outcome = "crashed"
            self.did[f"{step.kind}: {outcome}"] += 1
            self.note(device, f"{step.kind}: {outcome}")
        else:
            fired = FAULTS[step.kind](self, device, random)
            self.note(device, f"{step.kind}: {'yes' if fired else 'no'}")

    def _heal(self) -> None:
        """End all faults, let everybody finish, and demand that all is well."""
        self.healing = True
        self.network.unblock_all()
        self.network.speed_up()
        for device in self.devices:
            device.paused_until_ms = 0
            device.crash_plan = device.write_crash = None
            if device.level < files.NEWEST and not device.dead:
                device.stop()
                device.level = files.NEWEST
            device.start()
        self.checks.note_durable()
        rule = self.params.rule
        patience_ms = (rule.ttl_ms + rule.margin_ms) * 1_100_000 // 1_000_000 + self.params.heal_ms
        deadline_ms = self.now_ms + patience_ms
        while self.now_ms < deadline_ms:
            self.run_until(self.now_ms + 2_000)
            self._reset_clones()
            working = [process for process in self.processes() if finish_work(process)]
            if not working and self.is_level() and self.checks.all_settled():
                break
        self.checks.after_heal()

    def _stay_idle(self) -> None:
        before = [process.database.version() for process in self.processes()]
        self.run_until(self.now_ms + self.params.idle_ms)
        after = [process.database.version() for process in self.processes()]
        self.checks.idle(before, after)

    def _reset_clones(self) -> None:
        """Do what a person is asked to do when two devices run with one site id."""
        for device in self.devices:
            process = device.process
            if process is not None and device.must_reset_identity:
                device.must_reset_identity = False
                site = process.database.site_id
                if sum(other.database.site_id == site for other in self.processes()) > 1:
                    self.fired["clone"] += 1
                    process.storage.reidentify()
                    device.stop()
                    device.start()

    def is_level(self) -> bool:
        """Whether every device has what its peers have, and nothing is under way."""
        processes = self.processes()
        states = {process.device.number: process.storage.state() for process in processes}
        for process in processes:
            mine = states[process.device.number]
            peers = [status for status in process.engine.peers() if status.state == "open"]
            if process.device.number != HUB and not any(status.dialed for status in peers):
                return False
            if any(status.ahead or status.behind for status in peers):
                return False
            if process.engine.state.version != mine.version:
                return False
            for end in process.ends.values():
                if not end.peer.process.alive:
                    return False
                theirs = states[end.peer.process.device.number]
                if mine.knowledge.point(theirs.site) != theirs.knowledge.point(theirs.site):
                    return False
        return all(state.knowledge.point(state.site).era != NO_ERA or not state.version for state in states.values())


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one run's files."""
    return tempfile.TemporaryDirectory(prefix="leasemesh-sim-", dir=files.memory_folder())
