"""DeviceLab: several devices in one test, with faults, in virtual time. See `node.testing` for an example."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.node import Node
from leasemesh.node.testing import files
from leasemesh.node.testing.crashes import CrashPlan, Moment
from leasemesh.node.testing.device import Device, Process
from leasemesh.node.testing.network import BYTES_PER_MS
from leasemesh.node.testing.world import World

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow

Result = TypeVar("Result")
Topology = Literal["mesh", "star"]

WITHIN_S = 300.0
"""How much virtual time something may take, unless said otherwise: five minutes outlast a partition that nobody heals,
every time-out of the protocol and the time until a silent device's work is taken over."""

STEP_US = 50_000
"""How often a condition is looked at, in virtual microseconds."""

QUIET_STEP_US = 1_000_000
"""How often, while nothing happens."""

SETTLED_FOR_S = 1.0
"""So long all must be level and idle to be settled: what was just received may make somebody write."""


class DeviceDown(Exception):
    """The device does not run. Start it with `lab.restart`."""


class LabTimeout(AssertionError):
    """Something has not happened in the virtual time that it was given."""


class LabError(AssertionError):
    """Code on a device has failed and nobody there has handled it."""


class Spawned(Future[Result]):
    """What comes of a coroutine that runs on a device: `done()`, `result()`, `cancel()`. Time passes only while the lab
    is told so. Asking for the result of what is not done waits for ever.
    """

    task: asyncio.Task[Result]

    def cancel(self) -> bool:
        """Ask the coroutine to end, which it does when time passes."""
        return self.task.cancel()

    def _end(self, task: asyncio.Task[Result]) -> None:
        if task.cancelled():
            super().cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


class LabDevice:
    """One device of a lab.

    Attributes:
        name: its name.
        number: its place in `lab.devices`.
    """

    def __init__(self, lab: DeviceLab, device: Device) -> None:
        self._lab = lab
        self._device = device
        self.name = device.name
        self.number = device.number

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.is_running else ', down'}>"

    @property
    def is_running(self) -> bool:
        """Whether the device's program runs."""
        return self._device.process is not None

    @property
    def node(self) -> Node:
        """The device's node: another one after each restart. Everything that is not a coroutine may be called.

        Raises:
            DeviceDown: the device does not run.
        """
        return self._process().node

    def run(self, work: Coroutine[Any, Any, Result], *, within_s: float = WITHIN_S) -> Result:
        """Run a coroutine on the device, let time pass until it has ended, and return what it returns.

        Raises:
            DeviceDown: the device does not run, or crashed meanwhile.
            LabTimeout: it has not ended within so many seconds of virtual time. It is cancelled then.
            Exception: whatever the coroutine raises.
        """
        outcome = self.spawn(work)
        try:
            self._lab.until(
                lambda: outcome.done() or not self.is_running, within_s=within_s, what="the coroutine's end"
            )
        except LabTimeout:
            outcome.cancel()
            self._lab.advance(0)
            raise
        if not outcome.done():
            raise DeviceDown(f"{self.name} crashed before the coroutine had ended")
        return outcome.result()

    def spawn(self, work: Coroutine[Any, Any, Result]) -> Spawned[Result]:
        """Begin a coroutine on the device and return its outcome to come.

        Raises:
            DeviceDown: the device does not run.
        """
        try:
            process = self._process()
        except DeviceDown:
            work.close()
            raise
        return self._lab._in_world(lambda: _spawn(process, work))

    def _process(self) -> Process:
        process = self._device.process
        if process is None:
            raise DeviceDown(f"{self.name} does not run; start it with `lab.restart`")
        return process


class Backup:
    """A copy of a device's file, made by `DeviceLab.backup`."""

    def __init__(self, path: Path, device: LabDevice) -> None:
        self.path = path
        self.device = device


Chosen = LabDevice | int | str
Group = Chosen | Iterable[Chosen]


class DeviceLab:
    """Several devices with one workspace, and the network between them. A context manager, plain or async.

    Each device is a whole node on a real file. Time is virtual: it passes while `advance`, `until`, `settle` or
    `LabDevice.run` are called, and at no other time. An hour takes as long as what happens in it. All calls block, in
    plain tests and in a running event loop alike. Make them from one thread. The same seed and the same calls
    give the same run.

    Attributes:
        devices: the devices. `lab[0]` is the first one, `lab["phone"]` the one of that name.
        now_s: virtual seconds since the lab began.
        trace: a hash over all that has happened. Equal when two runs were.
    """

    def __init__(
        self,
        *,
        devices: int | Sequence[str] = 3,
        seed: int = 0,
        workflows: Sequence[Workflow] | Callable[[str], Sequence[Workflow]] = (),
        migrations: str | Path | None = None,
        topology: Topology = "mesh",
        latency_s: float = 0.02,
        staleness: StalenessRule | None = None,
        running: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a lab. Entering it starts the devices.

        Args:
            devices: how many there are at the start, or their names.
            seed: chance, for ids, latencies and the order of what happens at one moment.
            workflows: whose handlers run on each device, or a function that says it by the device's name.
            migrations: the folder with the app's own migrations. See `Node.open`.
            topology: "mesh": each device keeps a link to every other one. "star": all to the first one.
            latency_s: greatest one-way latency of a link. Each draws its own.
            staleness: when a silent device's work may be taken over. The product's rule if not given.
            running: how handlers are run. See `Node.running`.
        """
        names = [f"device-{number}" for number in range(devices)] if isinstance(devices, int) else list(devices)
        if not names or len({*names}) < len(names):
            raise ValueError(f"a lab has at least one device, and each has a name of its own: {devices!r}")
        self._folder = files.temporary_folder()
        self._world = World(Path(self._folder.name), seed=seed, staleness=staleness, latency_ms=int(latency_s * 1000))
        self._world.running_options.update(running or {})
        self._topology = topology
        self._workflows = workflows
        self._names = names
        self._migrations = None if migrations is None else Path(migrations)
        self._backups = 0
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="leasemesh-lab", daemon=True)
        self.devices: list[LabDevice] = []

    # --- Beginning and ending -----------------------------------------------------------------------------------------

    def __enter__(self) -> DeviceLab:
        self._thread.start()
        try:
            for name in self._names:
                self._add_device(name)
            self.settle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self._raise_errors()

    async def __aenter__(self) -> DeviceLab:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def close(self) -> None:
        """End all devices and remove their files. A second call does nothing."""
        if self._thread.is_alive():
            try:
                self._in_world(self._world.stop)
            finally:
                self._jobs.put(None)
                self._thread.join()
        self._folder.cleanup()

    def __getitem__(self, chosen: int | str) -> LabDevice:
        """Return a device by its number or its name."""
        if isinstance(chosen, int):
            return self.devices[chosen]
        for device in self.devices:
            if device.name == chosen:
                return device
        raise KeyError(f"{chosen} is none of {', '.join(device.name for device in self.devices)}")

    def __len__(self) -> int:
        return len(self.devices)

    # --- Time ---------------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the lab began."""
        return self._world.scheduler.now_us / 1_000_000

    @property
    def trace(self) -> str:
        """A hash over all that has happened."""
        return self._world.trace

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            LabError: something failed on a device meanwhile.
        """
        self._in_world(lambda: self._world.run_for(ceil(seconds * 1_000_000)))
        self._raise_errors()

    def until(self, condition: Callable[[], bool], *, within_s: float = WITHIN_S, what: str = "the condition") -> None:
        """Let time pass until a condition holds.

        Raises:
            LabTimeout: it does not hold within so many seconds of virtual time.
            LabError: something failed on a device meanwhile.
        """
        if not self._in_world(lambda: self._wait(condition, ceil(within_s * 1_000_000))):
            self._raise_errors()
            raise LabTimeout(f"{what} has not come within {within_s:g} s; {self._story()}")

    def settle(self, *, within_s: float = WITHIN_S) -> None:
        """Let time pass until all running devices have what those have that they can reach, and nothing goes on.

        Raises:
            LabTimeout: they do not get there within so many seconds of virtual time.
            LabError: something failed on a device meanwhile.
        """
        since: tuple[float, list[int]] | None = None

        def settled() -> bool:
            nonlocal since
            versions = self._settled_versions()
            if versions is None or since is None or since[1] != versions:
                since = None if versions is None else (self.now_s, versions)
            return since is not None and self.now_s - since[0] >= SETTLED_FOR_S

        self.until(settled, within_s=within_s, what="the end of all that goes on")

    # --- Faults -------------------------------------------------------------------------------------------------------

    def partition(self, *groups: Group) -> None:
        """Cut devices off from each other until `heal`.

        Args:
            groups: a device or several. Nothing passes from one group to another. One group alone is cut off from all
                other devices.
        """
        chosen = [self._numbers(group) for group in groups]
        if not chosen:
            raise ValueError("partition needs at least one device")
        if len(chosen) == 1:
            chosen.append([device.number for device in self.devices if device.number not in chosen[0]])
        for one in chosen:
            for other in chosen:
                if one is not other:
                    self._block(one, other)

    def block(self, source: Chosen, target: Chosen) -> None:
        """Let nothing through from one device to another. What goes the other way arrives. Until `heal`."""
        self._block([self._device(source).number], [self._device(target).number])

    def heal(self) -> None:
        """End all partitions, give every link its normal speed, and every disk room."""

        def heal() -> None:
            self._world.network.unblock_all()
            self._world.network.set_bandwidth(BYTES_PER_MS)
            for device in self._world.devices:
                device.disk_is_full = False

        self._in_world(heal)

    def slow_down(self, device: Chosen, *, bytes_per_s: int) -> None:
        """Let the links that a device has now carry little, until `heal`."""
        number = self._device(device).number
        self._in_world(lambda: self._world.network.set_bandwidth(max(1, bytes_per_s // 1000), number))

    def cut(self, device: Chosen) -> None:
        """Break the links that a device has, with what is under way on them. They are made anew by themselves."""
        number = self._device(device).number

        def cut() -> None:
            for end in [end for end in self._world.network.ends if end.source == number]:
                self._world.network.cut(end)

        self._in_world(cut)

    def crash(self, device: Chosen, *, at: str | None = None, moment: Moment = "before", count: int = 1) -> None:
        """Kill a device's process, as the operating system does: no code of it runs any more.

        Args:
            device: which one.
            at: not now, but when it comes to this point: "commit" (the end of a transaction), "send" (of a message).
            moment: right before the point, or right after.
            count: at the so many-th of them, from 1.
        """
        found = self._device(device)._device
        if at is None:
            self._in_world(found.crash)
            return
        if at not in ("commit", "send"):
            raise ValueError(f"a device can crash at a commit or a send, not at {at!r}")
        found.crash_plan = CrashPlan(at, moment, count)

    def restart(self, device: Chosen) -> None:
        """Start a device's program: after a crash, or anew after an orderly end."""
        found = self._device(device)
        if found.is_running:
            ended = threading.Event()
            self._in_world(lambda: found._device.stop(ended.set))
            self.until(ended.is_set, what=f"the end of {found.name}")
        self._in_world(found._device.start)

    def reboot(self, device: Chosen) -> None:
        """Let a device lose its power and start again: its process dies, its monotonic clock begins anew."""
        found = self._device(device)._device
        self._in_world(found.reboot)
        self._in_world(found.start)

    def reset_identity(self, device: Chosen) -> None:
        """Give a clone's file a new site id, as a person is asked to (`leasemesh identity reset`); start it anew."""
        found = self._device(device)._device
        self._in_world(found.crash)
        self._in_world(found.reset_identity)
        self._in_world(found.start)

    def pause(self, device: Chosen, seconds: float) -> None:
        """Let a device stand still (a closed lid, SIGSTOP) for a time from now on; its clocks go on."""
        found = self._device(device)._device
        self._in_world(lambda: found.pause(int(seconds * 1_000_000)))

    def set_clock(self, device: Chosen, *, wrong_by_s: float) -> None:
        """Set a device's wall clock wrong."""
        self._device(device)._device.clock.skew_ms = int(wrong_by_s * 1000)

    def set_clock_rate(self, device: Chosen, *, ppm: int) -> None:
        """Let a device's clocks run faster (or slower, below 0) by so many millionths."""
        self._device(device)._device.clock.set_rate(ppm)

    def fill_disk(self, device: Chosen) -> None:
        """Let a device's disk be full: nothing can be written there until `heal`."""
        found = self._device(device)._device
        self._in_world(lambda: setattr(found, "disk_is_full", True))

    def backup(self, device: Chosen) -> Backup:
        """Copy a running device's file."""
        found = self._device(device)
        self._backups += 1
        path = self._world.folder / f"backup-{self._backups}.db"
        self._in_world(lambda: files.back_up(found._device.path, path))
        return Backup(path, found)

    def restore(self, backup: Backup) -> None:
        """Put a backup in the place of the device's file, as if nothing had happened since, and start the device."""
        device = backup.device._device

        def restore() -> None:
            device.crash()
            files.replace_file(device.path, backup.path)
            device.start()

        self._in_world(restore)

    def clone(self, device: Chosen) -> LabDevice:
        """Start a copy of a device's file on a new device, beside the original.

        Other devices let only one of the two in, until `reset_identity`.
        """
        backup = self.backup(device)
        copies = sum(device.name.startswith(f"copy of {backup.device.name}") for device in self.devices)
        name = f"copy of {backup.device.name}" + (f" ({copies + 1})" if copies else "")
        return self._add_device(name, backup.path)

    # --- Looking ------------------------------------------------------------------------------------------------------

    def assert_converged(self) -> None:
        """Compare the content of all running devices.

        Raises:
            AssertionError: two differ. The text names them and the first table that differs.
        """
        running = [device for device in self.devices if device.is_running]
        digests = self._in_world(lambda: [device.node.digest().tables for device in running])
        for device, tables in zip(running[1:], digests[1:], strict=True):
            for name in sorted({*tables, *digests[0]}):
                if tables.get(name) != digests[0].get(name):
                    sizes = [content[name].cells if name in content else 0 for content in (digests[0], tables)]
                    raise AssertionError(
                        f"{running[0].name} and {device.name} differ in table {name} "
                        f"({sizes[0]} and {sizes[1]} cells); let them meet with `lab.heal()` and `lab.settle()` first"
                    )

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _add_device(self, name: str, content: Path | None = None) -> LabDevice:
        number = len(self.devices)
        dials: Sequence[int] = range(number) if self._topology == "mesh" else range(min(number, 1))

        workflows = self._workflows(name) if callable(self._workflows) else self._workflows

        def add() -> Device:
            device = self._world.add_device(
                name=name, dials=dials, migrations=self._migrations, workflows=workflows, content=content
            )
            device.start()
            return device

        device = LabDevice(self, self._in_world(add))
        self.devices.append(device)
        return device

    def _device(self, chosen: Chosen) -> LabDevice:
        return chosen if isinstance(chosen, LabDevice) else self[chosen]

    def _numbers(self, group: Group) -> list[int]:
        chosen = [group] if isinstance(group, int | str | LabDevice) else group
        return [self._device(device).number for device in chosen]

    def _block(self, sources: Iterable[int], targets: Sequence[int]) -> None:
        for source in sources:
            for target in targets:
                self._world.network.block(source, target)

    def _wait(self, condition: Callable[[], bool], within_us: int) -> bool:
        """In the lab's thread: let time pass until a condition holds, or something fails, or the time is over."""
        world = self._world
        end_us = world.scheduler.now_us + within_us
        while not condition():
            if world.errors or world.scheduler.now_us >= end_us:
                return False
            # When nothing happens, only a condition about time itself can change.
            next_us = min(world.scheduler.next_us(), world.scheduler.now_us + QUIET_STEP_US)
            world.scheduler.run_until(min(end_us, max(next_us, world.scheduler.now_us + STEP_US)))
        return True

    def _settled_versions(self) -> list[int] | None:
        processes = self._world.processes()
        if not self._world.is_level() or not all([process.is_idle() for process in processes]):
            return None
        return [process.node.database.version() for process in processes]

    def _story(self) -> str:
        parts = []
        for device in self.devices:
            if device._device.process is None:
                parts.append(f"{device.name} is down")
            else:
                links = [" ".join((peer.name or peer.peer, peer.state, peer.text)) for peer in device.node.peers()]
                parts.append(f"{device.name} has links: {', '.join(links) or 'none'}")
        return "; ".join(parts)

    def _raise_errors(self) -> None:
        errors, self._world.errors = self._world.errors, []
        if errors:
            name, text, error = errors[0]
            raise LabError(f"on {name}: {text}: {error}") from error

    def _in_world(self, work: Callable[[], Result]) -> Result:
        """Do something in the lab's thread."""
        if not self._thread.is_alive():
            raise RuntimeError("the lab is not open; use it inside its `with` block")
        if threading.current_thread() is self._thread:
            return work()
        answer: Future[Result] = Future()
        self._jobs.put((work, answer))
        return answer.result()

    def _live(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, answer = job
            try:
                answer.set_result(work())
            except BaseException as error:
                answer.set_exception(error)


def _spawn(process: Process, work: Coroutine[Any, Any, Result]) -> Spawned[Result]:
    outcome: Spawned[Result] = Spawned()
    task = process.spawn(work)

    outcome.task = task
    task.add_done_callback(outcome._end)
    return outcome
