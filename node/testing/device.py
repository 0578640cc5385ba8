"""A simulated device, and its processes: one start of the program each, a whole `Node` in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import apsw

from leasemesh.node.machine.environment import Environment
from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.node import Node
from leasemesh.node.testing import files
from leasemesh.node.testing.crashes import Crashed, CrashPlan, Moment
from leasemesh.node.testing.locks import Locks
from leasemesh.node.testing.network import ProcessNetwork, VirtualNetwork, address, url
from leasemesh.node.testing.storage import LentStorage, WatchedConnection
from leasemesh.node.testing.virtual_loop import VirtualLoop, VirtualWorker
from leasemesh.node.testing.virtual_time import Clock, Scheduler

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.sync.ports import Applied, Incoming

JOB_US_MAX = 4_000
"""A job of a thread takes up to so long."""

OTHERS_LOOKED_FOR_S = 1.0
"""How often a process looks whether another one on the same file has committed: seldom, for there is none but where a
test opens a second node."""

Result = TypeVar("Result")


class Stage(Protocol):
    """What a device knows of the world that it is in."""

    scheduler: Scheduler
    seed: int | str
    workspace: str
    staleness: StalenessRule
    piece_bytes: int
    network: VirtualNetwork
    locks: Locks
    dead: list[VirtualLoop]
    running_options: dict[str, Any]

    def note(self, device: Device, text: str) -> None:
        """Something has happened on a device."""

    def hit(self, fault: str) -> None:
        """A fault has made a difference."""

    def failed(self, device: Device, text: str, error: BaseException | None) -> None:
        """Something went wrong in a process and nobody handled it."""

    def applied(self, process: Process, incoming: Incoming, applied: Applied) -> None:
        """A device has merged a piece."""

    def committed(self, process: Process) -> None:
        """Something was committed on a device."""

    def process_started(self, process: Process) -> None:
        """A program has opened its file and is about to begin."""

    def planned_crash(self, device: Device, plan: CrashPlan) -> None:
        """A process dies where it was planned."""


class Process:
    """One start of the program.

    Attributes:
        loop: its event loop.
        node: the node.
        started: sync has begun.
        stopping: it ends in order.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.world = device.world
        self.loop = VirtualLoop(  # type: ignore[abstract]
            self.world.scheduler,
            device.clock,
            job_us=lambda: device.random.randrange(JOB_US_MAX),
            on_error=lambda text, error: self.world.failed(device, text, error),
        )
        if device.paused:
            self.loop.pause()
        self.stopping = False
        self.node = Node.open(
            device.path,
            workspace=self.world.workspace,
            name=device.name,
            migrations=device.migrations,
            environment=self.environment(),
        )
        self.storage = LentStorage(
            self.node._storage,
            piece_bytes=self.world.piece_bytes,
            on_applied=lambda incoming, applied: self.world.applied(self, incoming, applied),
            on_reidentify=lambda: self.world.hit("new site id"),
        )
        self.node._storage = self.storage  # type: ignore[assignment]
        self.node.database.on_commit(self._committed)
        self._serving: asyncio.Task[None] | None = None
        self._idling: tuple[int, asyncio.Task[None]] | None = None
        self.started = False
        self.watch_commits()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.loop.alive

    def begin(self) -> None:
        """Run until the end."""
        self.loop.call_soon(self._begin)

    def is_idle(self) -> bool:
        """Tell whether its handlers have nothing to do. Asked again and again, it becomes true."""
        runner = self.node.runner
        if runner is None:
            return not self.device.workflows
        version = self.node.database.version()
        if self._idling is None or self._idling[0] != version:
            if self._idling is not None:
                self._idling[1].cancel()
            self._idling = version, self.loop.create_task(runner.idle(), name="idle")
        return self._idling[1].done()

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run a coroutine in the process."""
        return self.loop.create_task(work)

    def end(self, then: Callable[[], None] | None = None) -> None:
        """End in order."""
        if not self.stopping:
            self.stopping = True
            self.loop.create_task(self._end(then), name="end")

    def kill(self, *, keep_file: bool = True) -> None:
        """Die between two callbacks, or in the middle of one.

        Args:
            keep_file: the file stays as it is now. False: nobody needs it any more.
        """
        image = files.Image(self.device.path) if keep_file else None
        self.device.process = None
        self.world.network.drop_process(self.loop)
        self.world.locks.drop(self.loop)
        self.world.dead.append(self.loop)
        self.loop.die(lambda: self._leave(image))

    def around(self, job: Callable[[], Result]) -> Result:
        """Do a job of a thread of sync, and crash around it when that is planned."""
        name = getattr(getattr(job, "func", job), "__name__", "")
        self.reach(name, "before")
        result = job()
        self.reach(name, "after")
        return result

    def reach(self, what: str, moment: Moment) -> None:
        """Come to a point where the process may have to die.

        Raises:
            Crashed: it does.
        """
        plan = self.device.crash_plan
        if plan is None or plan.what != what or plan.moment != moment or not self.alive:
            return
        if plan.count > 1:
            self.device.crash_plan = CrashPlan(what, moment, plan.count - 1)
            return
        self.device.crash_plan = None
        self.world.planned_crash(self.device, plan)
        self.kill()
        raise Crashed(f"{self.device.name} has crashed {moment} {what}")

    def watch_commits(self) -> None:
        """Stand between the database and its writing connection, while something is to go wrong at a commit."""
        plan, database = self.device.crash_plan, self.node.database
        if isinstance(database._writer, WatchedConnection):
            database._writer = database._writer.connection
        if self.device.disk_is_full or (plan is not None and plan.what == "commit"):
            database._writer = WatchedConnection(database._writer, self._at_commit)  # type: ignore[assignment]

    def _at_commit(self, moment: Moment) -> None:
        if self.alive and self.device.disk_is_full and moment == "before":
            self.world.hit("full disk")
            raise apsw.FullError("database or disk is full")
        self.reach("commit", moment)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def environment(self) -> Environment:
        """What a node of this device is lent. A second one on the same file stands for a second process."""
        device = self.device
        return Environment(
            clock_ms=device.clock.wall_ms,
            monotonic_ms=device.clock.monotonic_ms,
            boot=device.boot,
            random_bytes=device.random.randbytes,
            staleness=self.world.staleness,
            lock=lambda path, wait_s: self.world.locks.hold(self.loop, path),
            network=ProcessNetwork(self.world.network, self.loop, device.number),
            make_worker=lambda name, _: VirtualWorker(name, self.loop, self.around),
            processes_looked_for_every_s=OTHERS_LOOKED_FOR_S,
        )

    def _begin(self) -> None:
        self.world.process_started(self)
        self._serving = self.loop.create_task(self._serve(), name="serve")
        self._serving.add_done_callback(self._served)

    async def _serve(self) -> None:
        peers = [url(number) for number in self.device.dials]
        sync = await self.node.start_sync(listen=address(self.device.number), peers=peers)
        self.started = True
        if self.device.workflows:
            async with self.node.running(self.device.workflows, **self.world.running_options):
                await sync.wait()
        else:
            await sync.wait()

    def _served(self, serving: asyncio.Task[None]) -> None:
        if self.alive and not self.loop.is_disposed and not self.stopping and not serving.cancelled():
            self.world.failed(self.device, "sync has ended", serving.exception())

    async def _end(self, then: Callable[[], None] | None) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        await self.node.stop_sync()
        self.storage.close_readers()
        self.node.close()
        self.device.process = None
        self.world.network.drop_process(self.loop)
        self.world.locks.drop(self.loop)
        self.world.dead.append(self.loop)
        self.world.note(self.device, "end")
        self.loop.die(then)

    def _committed(self, source: str) -> None:
        if self.alive:
            self.world.committed(self)

    def _leave(self, image: files.Image | None) -> None:
        self.storage.close_readers()
        # The file is put back, or nobody needs it: closing need not tidy it up.
        self.node.database._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self.node.database._reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self.node.database.close()
        if image is not None:
            image.put_back()


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
        world: Stage,
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
        """End the program in order. `then` is called when it has ended, at once when it does not run."""
        if self.process is not None:
            self.process.end(then)
        elif then is not None:
            then()

    def crash(self) -> None:
        """Drop the process with all that it has not committed. The file stays as it is on the disk. No effect when it
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
        """Where the process is to die. None: nowhere."""
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
