"""A simulated device: what survives the death of a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from leasemesh.node.testing.crashes import CrashPlan
from leasemesh.node.testing.process import Process
from leasemesh.node.testing.virtual_time import Clock

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.node.testing.world import World


class Device:
    """One machine.

    Attributes:
        number, name: which one.
        path: its file.
        dials: the numbers of the devices that it keeps a link to.
        migrations: the folder with the app's own migrations.
        workflows: their handlers run on the device.
        clock: its clocks.
        process: the program, while it runs.
        destroyed: it never starts again.
    """

    def __init__(
        self,
        world: World,
        number: int,
        path: Path,
        *,
        dials: Sequence[int],
        name: str,
        migrations: Path | None,
        workflows: Sequence[Workflow],
    ) -> None:
        self.world = world
        self.number = number
        self.name = name
        self.path = path
        self.dials = list(dials)
        self.migrations = migrations
        self.workflows = tuple(workflows)
        self.clock = Clock(world.scheduler, on_wrong=world.hit)
        self.random = Random(f"{world.seed} device {number}")
        self.boots = 1
        self.destroyed = False
        self.paused = False
        self.process: Process | None = None
        self._starts = 0
        self._crash_plan: CrashPlan | None = None
        self._disk_is_full = False

    @property
    def boot(self) -> str:
        """The name of this run of the machine."""
        return f"boot {self.boots} of {self.name}"

    def start(self) -> None:
        """Start the program on the file as it is. No effect when it runs."""
        if self.process is None and not self.destroyed:
            self.world.note(self, "start")
            self._starts += 1
            self.process = Process(self)
            self.process.begin()

    def stop(self, then: Callable[[], None] | None = None) -> None:
        """End the program in order; `then` is called when it has ended, at once when it does not run."""
        if self.process is not None:
            self.process.end(then)
        elif then is not None:
            then()

    def crash(self) -> None:
        """Drop the process with all that it has not committed; the file stays as it is on the disk. No effect when it
        does not run."""
        if self.process is not None:
            self.world.note(self, "crash")
            self.process.kill()

    def reboot(self) -> None:
        """Let the machine lose its power: the process dies, the monotonic clock begins anew."""
        self.crash()
        self.boots += 1
        self.clock.reboot()

    def reset_identity(self) -> None:
        """Do what a person is asked to do when two devices run with one site id. The program does not run."""
        process = Process(self)
        process.node.reset_identity()
        process.kill(keep_file=False)

    def pause(self, duration_us: int) -> None:
        """Stop the process for a while (SIGSTOP, a closed lid); its clocks go on."""
        self.paused = True
        if self.process is not None:
            self.process.loop.pause()
        self.world.scheduler.at(self.world.scheduler.now_us + duration_us, self.resume)

    def resume(self) -> None:
        """Let the process go on."""
        self.paused = False
        if self.process is not None and self.process.loop.resume():
            self.world.hit("pause")

    @property
    def crash_plan(self) -> CrashPlan | None:
        """Where the process is to die; None: nowhere."""
        return self._crash_plan

    @crash_plan.setter
    def crash_plan(self, plan: CrashPlan | None) -> None:
        self._crash_plan = plan
        if self.process is not None:
            self.process.watch_commits()

    @property
    def disk_is_full(self) -> bool:
        """Whether every commit fails."""
        return self._disk_is_full

    @disk_is_full.setter
    def disk_is_full(self, full: bool) -> None:
        self._disk_is_full = full
        if self.process is not None:
            self.process.watch_commits()

    def start_later(self, delay_ms: int) -> None:
        """Start the program after a time, unless it was started before: it may be down again by then, on purpose."""
        starts = self._starts

        def start() -> None:
            if self._starts == starts:
                self.start()

        self.world.scheduler.at(self.world.scheduler.now_us + delay_ms * 1000, start)
