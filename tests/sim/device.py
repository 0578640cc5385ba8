"""A simulated device: its file, its clocks, and the process that runs on it.

`Device` is what survives a crash; `Process` is one start of the program: the real engine, storage, stores and staleness
watch on the real file, with what the engine has asked for waiting in queues as it does in the threads of `sync.loop`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import get_args

from node.changes import ChangeStorage
from node.database import Database
from node.leases import StalenessRule
from node.migrate import upgrade
from node.staleness import StalenessWatch
from node.stores import EventStore, TopicStore
from sim import files
from sim.network import End, Farewell
from sync import effects
from sync.backoff import Backoff
from sync.engine import Engine, EngineConfig
from sync.errors import CloseCode, SyncError, is_retryable
from sync.loop import HEARD_WRITTEN_EVERY_S

EPOCH_MS = 1_790_000_000_000
"""What every wall clock shows when the world begins, unless it is set wrong."""

RETRY_REFUSED_MS = 30_000
"""When a peer is dialled again that refused for a reason that dialling does not change."""

STABLE_MS = 10_000
"""A link that stood so long was a success; see `sync.backoff`."""

JOB_MS_MAX = 4
"""A job of the storage or of a reader takes up to so long."""

CRASHABLE = ("LoadResume", "LoadState", "BeginRead", "ContinueRead", "Apply", "Send", "Close", "SetTimer", "Hear")

EFFECTS = tuple(kind.__name__ for kind in get_args(effects.Effect))
"""Each needs a method of `Process`, in lower case behind "_do_"."""


class Crashed(Exception):
    """Leaves a transaction that the crash has cut off."""


class Clock:
    """The two clocks of a device. The monotonic one runs at its own rate, the wall clock is that plus an error."""

    def __init__(self, world) -> None:
        self._world = world
        self._from_ms = self._shown_ms = 0
        self._ppm = 0
        self.skew_ms = 0

    def monotonic(self) -> int:
        if self._ppm:
            self._world.fired["rate"] += 1
        passed_ms = self._world.now_ms - self._from_ms
        return self._shown_ms + passed_ms + passed_ms * self._ppm // 1_000_000

    def wall(self) -> int:
        if self.skew_ms:
            self._world.fired["skew"] += 1
        return EPOCH_MS + self.monotonic() + self.skew_ms

    def world_ms(self, monotonic_ms: int) -> int:
        """When the monotonic clock will show at least this."""
        at_ms = self._from_ms + (monotonic_ms - self._shown_ms) * 1_000_000 // (1_000_000 + self._ppm)
        return max(self._world.now_ms, at_ms + 1)

    def set_rate(self, ppm: int) -> None:
        self._shown_ms, self._from_ms, self._ppm = self.monotonic(), self._world.now_ms, ppm


class Device:
    """One machine."""

    def __init__(self, world, number: int, path: Path, level: int, dials: list[int]) -> None:
        self.world = world
        self.number = number
        self.name = f"node-{number}"
        self.path = path
        self.level = level
        self.dials = dials
        self.boot = f"boot-{number}"
        self.clock = Clock(world)
        self.random = Random(f"{world.seed} device {number}")
        self.paused_until_ms = 0
        self.dead = False
        self.crash_plan: tuple[str, str] | None = None  # (effect, "before", "inside" or "after")
        self.write_crash: str | None = None
        self.must_reset_identity = False
        self.process: Process | None = None

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Start the program on the file as it is."""
        if self.process is None and not self.dead:
            self.world.note(self, "start")
            self.process = Process(self)
            self.process.begin()

    def stop(self) -> None:
        """End the program in order."""
        if self.process is not None:
            process, self.process = self.process, None
            process.end()

    def crash(self) -> None:
        """Drop the process with all that it has not committed; the file stays as it is on the disk."""
        process, self.process = self.process, None
        assert process is not None
        self.world.note(self, "crash")
        image = files.Image(self.path)
        process.end()
        image.put_back()

    def restart_later(self, delay_ms: int) -> None:
        self.world.at(self.world.now_ms + delay_ms, self.start, device=self)


class Process:
    """One start of the program."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.world = device.world
        self.random = device.random
        self.alive = True
        self.held: dict[str, list[str]] = {}  # what the app remembers: run -> events
        self.ends: dict[int, End] = {}
        self.readers: dict[int, object] = {}
        self._free_at_ms: dict[int, int] = {}  # storage is 0, readers are their links
        self._timers: dict[tuple[str, int], int] = {}
        self._heard: dict = {}
        self._noticed = False
        self._backoffs = {number: Backoff(self.random.random) for number in device.dials}
        self._dialled: dict[int, tuple[int, int]] = {}  # link -> (device, since)
        self._handlers = {kind: getattr(self, f"_do_{kind.lower()}") for kind in EFFECTS}
        self.database = Database.open(device.path, clock_ms=device.clock.wall, random_bytes=self.random.randbytes)
        try:
            self._compose()
        except BaseException:
            self.database.close()
            raise

    def _compose(self) -> None:
        device = self.device
        if device.level == files.NEWEST:
            upgrade(self.database, files.sources(device.level))
        self.storage = ChangeStorage(self.database, boot=device.boot)
        self.storage.retry_parked()
        self.events = EventStore(self.database)
        self.topics = TopicStore(self.database)
        self.staleness = StalenessWatch(self.database, rule=self.rule, now_ms=device.clock.monotonic, boot=device.boot)
        config = EngineConfig("team", device.name, self.database.incarnation)
        self.engine = Engine(self.storage.state(), config, self.random.randbytes)

    @property
    def rule(self) -> StalenessRule:
        return self.world.params.rule

    def begin(self) -> None:
        self.world.recover(self)
        for number in self.device.dials:
            self.later(0, self.dial, number)
        self.later(self.random.randrange(5_000), self._keep_house)
        self.notify_commit()

    def end(self) -> None:
        """Stop existing. The peers notice when the network tells them."""
        self.alive = False
        for end in list(self.ends.values()):
            end.open = False
            self.world.network.cut(end, "the peer's process ended")
        for reader in self.readers.values():
            reader.close()
        self.database.close()

    def later(self, delay_ms: int, action, *arguments) -> None:
        self.world.at(self.world.now_ms + delay_ms, lambda: self._if_alive(action, arguments), device=self.device)

    def _if_alive(self, action, arguments) -> None:
        if self.alive:
            action(*arguments)

    def _keep_house(self) -> None:
        self.staleness.observe()
        self.later(5_000, self._keep_house)

    # --- Links --------------------------------------------------------------------------------------------------------

    def dial(self, number: int) -> None:
        device, target = self.device, self.world.devices[number]
        network, latency_ms = self.world.network, self.random.randint(1, self.world.params.latency_ms)
        for pair in ((device.number, number), (number, device.number)):
            if network.is_blocked(*pair):
                network.hit(*pair)
                self._dial_again(number, retry=True)
                return
        if target.process is None:
            self._dial_again(number, retry=True)
            return
        one, other = network.connect(self, target.process, latency_ms=latency_ms)
        self._dialled[one.number] = (number, self.world.now_ms)
        for end in (one, other):
            end.process.ends[end.number] = end
        accept = other.process
        accept.later(latency_ms, accept.link_input, other, accept.engine.connected)
        self.link_input(one, self.engine.connected)

    def _dial_again(self, number: int, *, retry: bool) -> None:
        delay_ms = int(self._backoffs[number].next_delay_s() * 1000) if retry else RETRY_REFUSED_MS
        self.later(delay_ms + 1, self.dial, number)

    def received(self, end: End, message: bytes) -> None:
        if self.alive:
            self.link_input(end, self.engine.received, message)

    def link_ended(self, end: End, farewell: Farewell) -> None:
        """The network tells that the other end is gone."""
        if self.alive and end.open:
            self._forget(end, farewell.code)
            self.input(self.engine.disconnected, end.number, reason=farewell.reason)

    def _forget(self, end: End, code: int | None) -> None:
        end.open = False
        del self.ends[end.number]
        self.later(0, self._close_reader, end.number)
        if code == CloseCode.CLONE:
            self.device.must_reset_identity = True
        if end.number in self._dialled:
            number, since_ms = self._dialled.pop(end.number)
            if self.world.now_ms - since_ms >= STABLE_MS:
                self._backoffs[number].reset()
            self._dial_again(number, retry=code is None or is_retryable(code))

    def _close_reader(self, link: int) -> None:
        # The jobs that were asked for before come first.
        if self._free_at_ms.get(link, 0) > self.world.now_ms:
            self.later(self._free_at_ms[link] - self.world.now_ms, self._close_reader, link)
            return
        reader = self.readers.pop(link, None)
        if reader is not None:
            reader.close()

    # --- Inputs -------------------------------------------------------------------------------------------------------

    def input(self, method, *arguments, **options) -> None:
        if self.alive:
            method(*arguments, **options, now_ms=self.device.clock.monotonic())
            self._perform()

    def link_input(self, end: End, method, *arguments) -> None:
        if end.open:
            options = {"dialed": end.dialed} if method == self.engine.connected else {}
            self.input(method, end.number, *arguments, **options)

    def notify_commit(self) -> None:
        """As in `sync.loop`: commits that come before the state is read are covered by that reading."""
        if not self._noticed:
            self._noticed = True
            self._job(0, "LoadState", self._read_committed_state, self.engine.local_commit)

    def _read_committed_state(self):
        self._noticed = False
        return self.storage.state()

    def _perform(self) -> None:
        for effect in self.engine.take_effects():
            kind = type(effect).__name__
            self.world.note_effect(self.device, kind, effect)
            if self._crashes(kind, "before"):
                return
            self._handlers[kind](effect)
            if self._crashes(kind, "after"):
                return

    def _crashes(self, kind: str, moment: str) -> bool:
        if self.alive and self.device.crash_plan == (kind, moment):
            self.device.crash_plan = None
            self.world.fired[f"crash {moment} {kind}"] += 1
            self.world.fired["crash at effect"] += 1
            self.device.crash()
            self.device.restart_later(2_000)
        return not self.alive

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    def _job(self, queue: int, kind: str, work, answer, *arguments, failed=None) -> None:
        """Do work when the jobs asked for before are done, and give its answer to the engine a moment later."""
        done_at_ms = max(self._free_at_ms.get(queue, 0), self.world.now_ms) + self.random.randint(0, JOB_MS_MAX)
        self._free_at_ms[queue] = done_at_ms
        self.later(done_at_ms - self.world.now_ms, self._do_job, kind, work, answer, arguments, failed)

    def _do_job(self, kind: str, work, answer, arguments, failed) -> None:
        if self._crashes(kind, "before"):
            return
        try:
            if self.device.crash_plan == (kind, "inside"):
                self._crash_inside(work)
            result = work()
        except Crashed:
            self.device.restart_later(2_000)
            return
        except SyncError as error:
            if failed is None:
                raise
            self.later(1, self.input, failed, *arguments, error)
            return
        if self._crashes(kind, "after"):
            return
        if answer is not None:
            self.later(1, self.input, answer, *arguments, result)

    def _crash_inside(self, work) -> None:
        """Do the work in a transaction that never ends."""
        self.world.fired["crash inside Apply"] += 1
        self.crash_in_transaction(work, "crash at effect")

    def crash_in_transaction(self, work, fault: str) -> None:
        """Crash after `work` has written and before it is committed. Raises Crashed."""
        image: list[files.Image] = []
        with suppress(_Torn), self.database.transaction():
            work()
            image.append(files.Image(self.device.path))
            raise _Torn
        self.device.process = self.device.crash_plan = self.device.write_crash = None
        self.world.fired[fault] += 1
        self.world.note(self.device, "crash inside a transaction")
        self.end()
        image[0].put_back()
        raise Crashed

    def committed(self) -> None:
        """Something was committed through this process: let the checkers look."""
        self.world.checks.after_commit(self)

    # --- Effects ------------------------------------------------------------------------------------------------------

    def _do_send(self, effect) -> None:
        end = self.ends.get(effect.link)
        if end is not None:
            self.world.network.send(end, effect.data)

    def _do_close(self, effect) -> None:
        end = self.ends.get(effect.link)
        if end is not None:
            self.world.network.close(end, Farewell(effect.code, effect.reason))
            self._forget(end, effect.code)
            self.world.closed[CloseCode(effect.code).name] += 1

    def _do_loadresume(self, effect) -> None:
        self._job(
            0, "LoadResume", lambda: self.storage.resume_point(effect.site), self.engine.resume_loaded, effect.link
        )

    def _do_loadstate(self, effect) -> None:
        self._job(0, "LoadState", self.storage.state, self.engine.state_loaded)

    def _do_beginread(self, effect) -> None:
        size = min(effect.rows_bytes_max, self.world.piece_bytes)
        self._read(effect.link, "BeginRead", lambda reader: reader.begin(effect.request, size))

    def _do_continueread(self, effect) -> None:
        size = min(effect.rows_bytes_max, self.world.piece_bytes)
        self._read(effect.link, "ContinueRead", lambda reader: reader.read(size))

    def _read(self, link: int, kind: str, read) -> None:
        if link in self.ends:
            self._job(
                link,
                kind,
                lambda: read(self._reader(link)),
                self.engine.read_done,
                link,
                failed=self.engine.read_failed,
            )

    def _reader(self, link: int):
        if link not in self.readers:
            self.readers[link] = self.storage.open_reader()
        return self.readers[link]

    def _do_endread(self, effect) -> None:
        if effect.link in self.ends:
            self._job(effect.link, "EndRead", lambda: self._reader(effect.link).end(), None)

    def _do_apply(self, effect) -> None:
        def apply():
            applied = self.storage.apply(effect.incoming)
            self.world.fired["parked by an older schema"] += applied.parked
            self.world.fired["staged"] += not effect.incoming.whole
            return applied

        def apply_and_check():
            applied = apply()
            if self.database._owner is None:
                self.committed()
            return applied

        if effect.link in self.ends:
            self._job(0, "Apply", apply_and_check, self.engine.applied, effect.link, failed=self.engine.apply_failed)

    def _do_computedigest(self, effect) -> None:
        self._job(effect.link, "Digest", self.storage.digest, self.engine.digest_done, effect.link, effect.request)

    def _do_reidentify(self, effect) -> None:
        self.world.fired["new site id"] += 1
        self._job(0, "Reidentify", self.storage.reidentify, self.engine.reidentified)

    def _do_settimer(self, effect) -> None:
        self._timers[effect.key] = effect.at_ms
        at_ms = self.device.clock.world_ms(effect.at_ms)
        self.later(at_ms - self.world.now_ms, self._timer_due, effect.key, effect.at_ms)

    def _timer_due(self, key: tuple[str, int], at_ms: int) -> None:
        if self._timers.get(key) != at_ms:
            return
        if self.device.clock.monotonic() < at_ms:  # The clock was slowed down meanwhile.
            self._do_settimer(effects.SetTimer(key, at_ms))
            return
        del self._timers[key]
        self.input(self.engine.timer_fired, key)

    def _do_hear(self, effect) -> None:
        if not self._heard:
            self.later(int(HEARD_WRITTEN_EVERY_S * 1000), self._write_heard)
        self._heard.update(effect.heard)

    def _write_heard(self) -> None:
        heard, self._heard = self._heard, {}
        self._job(0, "Heard", lambda: self.storage.record_heard(heard), None)

    def _do_barrierdone(self, effect) -> None:
        """Nobody waits for a barrier here yet."""

    def _do_tell(self, effect) -> None:
        self.world.told[effect.kind] += 1


class _Torn(Exception):
    """Ends a transaction whose content was photographed."""
