"""A simulated device: its file, its clocks, and the process that runs on it.

`Device` is what survives a crash; `Process` is one start of the program, a whole `Node` in an event loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import apsw

from node.changes import ChangeReader, ChangeStorage
from node.locks import LockHeld
from node.service import Node
from node.surroundings import Surroundings
from node.testing import files
from node.testing.network import ProcessNetwork, address, url
from node.testing.virtual_time import Clock, Crashed, VirtualLoop, VirtualWorker
from sync import ports
from sync.knowledge import Era, Resume, SiteId
from sync.ports import Applied, DatabaseDigest, Incoming, LocalState, ReadRequest, ReadResult

if TYPE_CHECKING:
    from node.runtime.workflow import Workflow
    from node.testing.world import World

JOB_US_MAX = 4_000
"""A job of a thread takes up to so long."""

OTHERS_LOOKED_FOR_S = 1.0
"""How often a process looks whether another one on the same file has committed: seldom, for there is none but where a
test opens a second node."""

Result = TypeVar("Result")
Moment = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class CrashPlan:
    """Where a process is to die: at the next (count 1) or a later job, message or commit.

    Attributes:
        what: "commit", "send", or the name of a job of sync's storage ("apply", "state", "read", ...).
        moment: right before it, or right after.
        count: at which one, from 1.
    """

    what: str
    moment: Moment = "before"
    count: int = 1


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
        """Start the program after a time."""
        self.world.scheduler.at(self.world.scheduler.now_us + delay_ms * 1000, self.start)


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
            surroundings=self.surroundings(),
        )
        self.storage = _Storage(self.node._storage, self)
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
        if isinstance(database._writer, _WatchedConnection):
            database._writer = database._writer.connection
        if self.device.disk_is_full or (plan is not None and plan.what == "commit"):
            database._writer = _WatchedConnection(database._writer, self._at_commit)  # type: ignore[assignment]

    def _at_commit(self, moment: Moment) -> None:
        if self.alive and self.device.disk_is_full and moment == "before":
            self.world.hit("full disk")
            raise apsw.FullError("database or disk is full")
        self.reach("commit", moment)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def surroundings(self) -> Surroundings:
        """What a node of this device is lent. A second one on the same file stands for a second process."""
        device = self.device
        return Surroundings(
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
        if self.alive and not self.loop.buried and not self.stopping and not serving.cancelled():
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


class _WatchedConnection:
    """A connection that tells before and after each commit."""

    def __init__(self, connection: apsw.Connection, on_commit: Callable[[Moment], None]) -> None:
        self.connection = connection
        self._on_commit = on_commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, sql: str, *arguments: Any) -> apsw.Cursor:
        if sql != "COMMIT":
            return self.connection.execute(sql, *arguments)
        self._on_commit("before")
        cursor = self.connection.execute(sql, *arguments)
        self._on_commit("after")
        return cursor


class _Storage:
    """A node's storage; reads in small pieces, and knows its readers, which a crash must close."""

    def __init__(self, storage: ChangeStorage, process: Process) -> None:
        self._storage = storage
        self._process = process
        self._readers: dict[int, ChangeReader] = {}  # all that are open, by their identity
        self._free: list[ChangeReader] = []

    def state(self) -> LocalState:
        return self._storage.state()

    def resume_point(self, site: SiteId) -> Resume:
        return self._storage.resume_point(site)

    def open_reader(self) -> ports.ChangeReader:
        return _Reader(self, self._process.world.piece_bytes)

    def apply(self, incoming: Incoming) -> Applied:
        applied = self._storage.apply(incoming)
        self._process.world.applied(self._process, incoming, applied)
        return applied

    def digest(self) -> DatabaseDigest:
        reader = self.lend()
        try:
            return reader.digest()
        finally:
            self.take_back(reader)

    def reidentify(self) -> LocalState:
        self._process.world.hit("new site id")
        while self._free:  # they hold on to the old id
            self._close(self._free.pop())
        return self._storage.reidentify()

    def record_heard(self, heard: dict[SiteId, tuple[Era, int]]) -> None:
        self._storage.record_heard(heard)

    def close_readers(self) -> None:
        self._free.clear()
        for reader in list(self._readers.values()):
            self._close(reader)

    def lend(self) -> ChangeReader:
        """Lend a reader for one transfer: opening one takes longer than most of these."""
        if self._free:
            return self._free.pop()
        reader = self._storage.open_reader()
        self._readers[id(reader)] = reader
        return reader

    def take_back(self, reader: ChangeReader, *, sound: bool = True) -> None:
        """Keep it for others, unless it has failed."""
        if id(reader) not in self._readers:
            return
        if sound:
            reader.end()
            self._free.append(reader)
        else:
            self._close(reader)

    def _close(self, reader: ChangeReader) -> None:
        del self._readers[id(reader)]
        reader.close()


class _Reader:
    """A link's reader. It makes pieces no longer than the world has them, and has a connection only for as long as a
    transfer takes."""

    def __init__(self, storage: _Storage, piece_bytes: int) -> None:
        self._storage = storage
        self._piece_bytes = piece_bytes
        self._lent: ChangeReader | None = None

    def begin(self, request: ReadRequest, rows_bytes_max: int) -> ReadResult:
        self.end()
        lent = self._lent = self._storage.lend()
        return self._watched(lambda: lent.begin(request, min(rows_bytes_max, self._piece_bytes)))

    def read(self, rows_bytes_max: int) -> ReadResult:
        lent = self._lent
        assert lent is not None, "a transfer has begun"
        return self._watched(lambda: lent.read(min(rows_bytes_max, self._piece_bytes)))

    def end(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            self._storage.take_back(lent)

    def close(self) -> None:
        self.end()

    def digest(self) -> DatabaseDigest:
        return self._storage.digest()

    def _watched(self, read: Callable[[], ReadResult]) -> ReadResult:
        try:
            result = read()
        except BaseException:
            lent, self._lent = self._lent, None
            if lent is not None:
                self._storage.take_back(lent, sound=False)
            raise
        if result.last:
            self.end()
        return result


class Locks:
    """The lock files of a world: each held by a process, until it gives it up or dies."""

    def __init__(self) -> None:
        self._holders: dict[Path, VirtualLoop] = {}

    @contextmanager
    def hold(self, loop: VirtualLoop, path: Path) -> Iterator[None]:
        """See `node.locks.file_lock`; nobody waits here."""
        if path in self._holders:
            raise LockHeld(f"{path} is held by another process")
        self._holders[path] = loop
        try:
            yield
        finally:
            if self._holders.get(path) is loop:
                del self._holders[path]

    def drop(self, loop: VirtualLoop) -> None:
        """Give up what a process held that has died."""
        for path in [path for path, holder in self._holders.items() if holder is loop]:
            del self._holders[path]
