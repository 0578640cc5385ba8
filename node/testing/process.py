"""One start of the program on a simulated device: a whole `Node`, in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from leasemesh.node.machine.environment import Environment
from leasemesh.node.node import Node
from leasemesh.node.testing import files
from leasemesh.node.testing.crashes import Crashed, CrashPlan, Moment
from leasemesh.node.testing.network import ProcessNetwork, address, url
from leasemesh.node.testing.storage import LentStorage, WatchedConnection
from leasemesh.node.testing.virtual_loop import VirtualLoop, VirtualWorker

if TYPE_CHECKING:
    from leasemesh.node.testing.device import Device

JOB_US_MAX = 4_000
"""A job of a thread takes up to so long."""

OTHERS_LOOKED_FOR_S = 1.0
"""How often a process looks whether another one on the same file has committed: seldom, for there is none but where a
test opens a second node."""

Result = TypeVar("Result")


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
        self.storage = LentStorage(self.node._storage, self)
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
        """Tell whether its handlers have nothing to do; asked again and again, it becomes true."""
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
            keep_file: the file stays as it is now; False: nobody needs it any more.
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
        if self.alive and not self.loop.is_dead_letter and not self.stopping and not serving.cancelled():
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
