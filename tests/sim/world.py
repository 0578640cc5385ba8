"""A run: apps at work on simulated devices, faults, and then the proof that all is well.

The devices, their clocks, processes and links are those of `node.testing`, each process a whole node. A run has two
phases. First a schedule drawn from the seed: apps at work, and faults. Then the faults end, older schemas are upgraded,
the apps finish all work that they can reach, and the devices must converge in bounded time; and then they must stay
silent.

Nothing is iterated in the order of a set, and each user of chance has a generator of its own. So two runs of a seed are
equal to the last byte of each message, which `trace` proves.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.testing import world
from leasemesh.node.testing.crashes import CrashPlan
from leasemesh.node.testing.device import Device, Process
from leasemesh.node.testing.network import BYTES_PER_MS
from leasemesh.sync.errors import CloseCode
from sim import files
from sim.faults import FAULTS
from sim.handling import AUTOMATION, CONFIRMED, HANDLED_WORK, RUNNING, SOFT, Service, begin, tidy_up, workflow_of
from sim.invariants import Checks
from sim.params import WORKSPACE, Params
from sim.schedule import Step
from sim.workload import WORK as APPS_WORK
from sim.workload import App, finish_work, held_by_hand

log = logging.getLogger("sim")

HUB = 0
WORK = APPS_WORK | HANDLED_WORK

ROUND_US = 2_000_000
"""In the second phase all is looked at so often."""

HOUSEKEEPING_US = 6_000_000
"""After so long every node has kept house once."""

LOOK_US = 1_000_000
"""How often it is looked whether all is calm."""

WAKES_WITHIN_US = 4_000_000
"""An event wakes its consumer on another device within this: below the rhythm of housekeeping, which would find it."""

AWAY_US, BACK_WITHIN_US = 12_000_000, 60_000_000

CLONES_ARE_KNOWN_AFTER_MS = 6_000
"""Time for the devices to find out themselves which of them is a copy; what is left then a person has to decide."""

RESTART_MS = 2_500
"""After a planned crash the device starts again so much later."""


class World(world.World):
    """Devices, links and time; one run.

    Attributes:
        did: each kind of work, with how it ended.
        closes: how often links were closed, for which reason.
        levels: the schema that each device has.
        apps_by_device: the app on each device that runs, by number.
        handled: devices run handlers.
        lying: the service outside lies.
        gone: the nodes of which a person has said that they never come back.
        calm_since_us: since when all devices run and are connected, undisturbed; None: they are not.
        write_crashes: devices that are to crash in the next write of their app: "before" its commit or "after" it.
    """

    def __init__(self, seed: int, params: Params, folder: Path) -> None:
        self.checks = Checks(self)
        self.params = params
        self.healing = False
        self.did: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()
        self.backups: list[tuple[Path, int]] = []
        self.levels: dict[int, int] = {}
        self.apps_by_device: dict[int, App] = {}
        self.write_crashes: dict[int, str] = {}
        self.handled = params.handled
        self.gone: set[str] = set()
        self.tidied_at_ms = 0
        self.calm_since_us: int | None = None
        self._calm_processes: list[Process] = []
        random = Random(f"{seed} run")
        super().__init__(
            folder,
            seed=seed,
            workspace=WORKSPACE,
            staleness=params.rule,
            latency_ms=params.latency_ms,
            piece_bytes=random.choice([150, 400, 2_000, *[512 * 1024] * 3]),
        )
        self.service = Service(self)
        self.workflow = workflow_of(self)
        self.running_options.update(RUNNING)
        self.lying = self.handled and random.random() < 0.3
        older = random.random() < 0.3
        for _ in range(params.nodes):
            self.add(1 if older and random.random() < 0.5 else files.NEWEST)

    def add(self, level: int, content: Path | None = None) -> Device:
        """Add a device with an empty file, or with a copy of another one's."""
        number = len(self.devices)
        dials = [HUB] if number else []
        if number > 1 and self.random.random() < self.params.second_link:
            dials.append(self.random.randrange(1, number))
        device = self.add_device(
            dials=dials,
            name=f"node-{number}",
            migrations=files.app_migrations(level),
            # One device is a phone, on which no handlers run.
            workflows=[self.workflow] if self.handled and number != self.params.nodes - 1 else [],
            content=content,
        )
        self.levels[number] = level
        if content is None:
            files.new_file(device.path, level, self.random.randbytes(16))
        return device

    def upgrade(self, device: Device) -> None:
        """End a device's program and start one with the newest schema."""

        def start() -> None:
            self.levels[device.number] = files.NEWEST
            device.migrations = files.app_migrations(files.NEWEST)
            device.start()

        device.stop(start)

    def at(self, at_ms: int, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self.scheduler.at(at_ms * 1000, action)

    def apps(self) -> list[App]:
        """Return the apps whose process runs."""
        apps = (self.apps_by_device.get(process.device.number) for process in self.processes())
        return [app for app in apps if app is not None and app.process is app.device.process]

    # --- Told by the parts --------------------------------------------------------------------------------------------

    def process_started(self, process: Process) -> None:
        app = self.apps_by_device[process.device.number] = App(process, self)
        if self.handled and process.device.number == HUB and not self.now_ms:
            begin(app)
        self._recover(app)

    def _recover(self, app: App) -> None:
        """Give back what an earlier process of this node held when it died."""
        try:
            with self.checks.recovery(app, at_start=True):
                for run in held_by_hand(app):
                    reservation = app.events.reservation(run)
                    if reservation is not None and reservation.incarnation != app.database.incarnation.hex():
                        app.events.release(run)
                        self.did["recover"] += 1
        except DatabaseError:
            if not app.device.disk_is_full:
                raise
            app.process.loop.call_later(1, self._recover, app)

    def committed(self, process: Process) -> None:
        app = self.apps_by_device.get(process.device.number)
        if app is not None and app.process is process:
            self.note(process.device, "commits")
            self.checks.after_commit(app)

    def failed(self, device: Device, text: str, error: BaseException | None) -> None:
        """A program that cannot even begin on a full disk ends, and is started again."""
        if isinstance(error, DatabaseError) and "disk is full" in str(error) and device.process is not None:
            self.did["ended on a full disk"] += 1
            device.crash()
            device.start_later(RESTART_MS)
        else:
            super().failed(device, text, error)

    def planned_crash(self, device: Device, plan: CrashPlan) -> None:
        super().planned_crash(device, plan)
        self.disturb()
        self.fired["crash at step"] += 1
        self.fired[f"crash {plan.moment} {plan.what}"] += 1
        device.start_later(RESTART_MS)

    def closed(self, number: int, code: int) -> None:
        super().closed(number, code)
        self.closes[CloseCode(code).name if code in [*CloseCode] else str(code)] += 1

    def promises_one_effect(self) -> bool:
        """Whether modes confirmed and home promise one effect at the most: not beyond copies of files that do not know
        that they are copies, nor when a person has said that a node is gone which had known more."""
        return not self.gone and not self.fired["restore"] and not self.fired["clone started"]

    def disturb(self) -> None:
        """It is calm no more."""
        self.calm_since_us = None

    def _look_whether_calm(self) -> None:
        processes = self.processes()
        calm = (
            not self.network.is_blocked_anywhere
            and not any(device.disk_is_full for device in self.devices)
            and len(processes) == sum(not device.destroyed for device in self.devices)
            and all(
                process.started and not process.stopping and not process.device.paused and self.is_linked(process)
                for process in processes
            )
        )
        if not calm or processes != self._calm_processes:
            self.calm_since_us = None
        elif self.calm_since_us is None:
            self.calm_since_us = self.scheduler.now_us
        self._calm_processes = processes
        self.scheduler.at(self.scheduler.now_us + LOOK_US, self._look_whether_calm)

    # --- Phases -------------------------------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> None:
        """Run both phases; what is wrong is in `checks.violations`."""
        try:
            for device in self.devices:
                device.start()
            self._look_whether_calm()
            for step in steps:
                self.at(step.at_ms, lambda step=step: self._do(step))
            self.scheduler.run_until(self.params.faulty_ms * 1000)
            self._heal()
            self._stay_idle()
            if self.handled and not self.checks.violations:
                self._probe_wakes()
                self._probe_authority()
        finally:
            self.stop()

    def _do(self, step: Step) -> None:
        device = self.devices[step.device % len(self.devices)]
        if step.kind not in WORK:
            self.disturb()
            fired = FAULTS[step.kind](self, device, Random(step.seed))
            self.note(device, f"{step.kind}: {'yes' if fired else 'no'}")
            return
        for process in self.processes() if step.kind == "race" else [device.process]:
            if process is not None and not process.stopping:
                process.loop.call_soon(self._work, step, process)

    def _work(self, step: Step, process: Process) -> None:
        app = self.apps_by_device.get(process.device.number)
        if self.healing or process.stopping or app is None or app.process is not process:
            return  # It waited for a device that was paused, or came before the program had begun.
        outcome = "crashed"
        try:
            outcome = WORK[step.kind](app, Random(step.seed))
        except DatabaseError as error:
            if not process.device.disk_is_full:
                raise
            outcome = "no room on the disk"
            log.debug("%s", error)
        finally:
            self.did[f"{step.kind}: {outcome}"] += 1
            self.note(process.device, f"{step.kind}: {outcome}")

    def _heal(self) -> None:
        """End all faults, let everybody finish, and demand that all is well."""
        self.healing = True
        self.disturb()
        self.service.honest = True
        self.tidied_at_ms = self.now_ms
        self.network.unblock_all()
        self.network.set_bandwidth(BYTES_PER_MS)
        self.write_crashes.clear()
        for device in self.devices:
            device.resume()
            device.crash_plan = None
            device.disk_is_full = False
            if self.levels[device.number] < files.NEWEST and not device.destroyed:
                self.upgrade(device)
            device.start()
        self.run_for(0)
        self.checks.note_durable()
        rule = self.params.rule
        patience_ms = (rule.ttl_ms + rule.margin_ms) * 1_100_000 // 1_000_000 + self.params.heal_ms
        if self.handled:  # People are asked, and answer one after the other.
            patience_ms += self.params.heal_ms
        began_ms = self.now_ms
        while self.now_ms < began_ms + patience_ms:
            self.run_for(ROUND_US)
            if self.now_ms - began_ms >= CLONES_ARE_KNOWN_AFTER_MS:
                self._reset_clones()
            working = [app for app in self.apps() if finish_work(app)]
            if self.handled:
                self.checks.effects.unknown_items_say_all(self.apps()[0])
                working += [app for app in self.apps()[:1] if tidy_up(app)]
            if not working and self.is_level() and self.checks.all_settled():
                break
        self.checks.after_heal()

    def _stay_idle(self) -> None:
        self.run_for(HOUSEKEEPING_US)  # a node whose site id has changed says its name again
        before = [app.database.version() for app in self.apps()]
        self.run_for(self.params.idle_ms * 1000)
        after = [app.database.version() for app in self.apps()]
        self.checks.idle(before, after)
        for app in self.apps():
            if app.device.workflows:
                self.checks.effects.runs_have_ended(app)

    def _probe_wakes(self) -> None:
        """An event that arrives by sync wakes its consumer."""
        apps = self.apps()
        publishers = [app for app in apps if not app.device.workflows]
        if not publishers or len(publishers) == len(apps):
            return
        publishers[0].node.publish(AUTOMATION, SOFT, "probe of wakes")
        self.run_for(WAKES_WITHIN_US)
        self.checks.effects.woke(publishers[0], "probe of wakes")
        self.run_for(ROUND_US)

    def _probe_authority(self) -> None:
        """While the authority is away soft handlers go on and confirmed ones wait, to go on when it is back."""
        apps = self.apps()
        info = apps[0].node.authorities.info()
        if info.next is not None:  # It is on its way to a device that has another identity by now.
            return
        deciding = [app for app in apps if app.database.site_id.hex() == info.authority]
        working = [app for app in apps if app.device.workflows and app not in deciding]
        if not deciding or not working:
            return
        app = working[0]
        deciding[0].device.crash()
        for topic in (SOFT, CONFIRMED):
            app.node.publish(AUTOMATION, topic, "probe of the authority")
        self.run_for(AWAY_US)
        self.checks.effects.went_on_without_authority(app, "probe of the authority")
        deciding[0].device.start()
        end_us = self.scheduler.now_us + BACK_WITHIN_US
        while self.scheduler.now_us < end_us and not self.checks.effects.is_done(
            app, CONFIRMED, "probe of the authority"
        ):
            self.run_for(ROUND_US)
        self.checks.effects.resumed(app, "probe of the authority")

    def _reset_clones(self) -> None:
        """Do what a person is asked to do when two devices run with one site id."""
        sites: set[bytes] = set()
        for app in self.apps():
            site = app.database.site_id
            if site in sites and not app.process.stopping:
                self.fired["clone"] += 1
                app.device.crash()
                app.device.reset_identity()
                app.device.start()
            sites.add(site)
