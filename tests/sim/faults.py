"""The faults. Each tries to happen and says whether it could; that it made a difference is counted where it does."""

from __future__ import annotations

from random import Random

from leasemesh.node.testing.crashes import CrashPlan
from leasemesh.node.testing.files import back_up as copy_of
from leasemesh.node.testing.files import replace_file
from sim import files

PARTITION_MS = (500, 45_000)
"""Some heal before anybody notices, some outlast the engines' patience of 30 s."""

FULL_MS = (200, 15_000)

NOTIFIED_MS = 50
"""Some partitions both sides notice, because their links break; others are silence."""

PAUSE_MS = (100, 50_000)

STEPS = (
    "commit",
    "commit",
    "send",
    "apply",
    "read",
    "_read_committed_state",
    "state",
    "resume_point",
    "record_heartbeats",
)
"""Where a process can be killed; but for the first two these are jobs of sync's threads."""


def partition(world, device, random: Random) -> bool:
    """Cut a device off from another, or from all."""
    return _block(world, device, random, both_ways=True)


def one_way_partition(world, device, random: Random) -> bool:
    """What a device sends does not arrive; what is sent to it does."""
    return _block(world, device, random, both_ways=False)


def _block(world, device, random: Random, *, both_ways: bool) -> bool:
    others = [other.number for other in world.devices if other is not device]
    if random.random() < 0.5:
        others = [random.choice(others)]
    duration_ms = random.randint(*PARTITION_MS)
    noticed = random.random() < 0.5
    for other in others:
        pairs = [(device.number, other), (other, device.number)][: 2 if both_ways else 1]
        if noticed:
            for end in [end for end in world.network.ends if (end.source, end.target) in pairs]:
                world.network.cut(end)
        for pair in pairs:
            fault = "partition" if both_ways else "one-way partition"
            begin_ms = world.now_ms + (NOTIFIED_MS if noticed else 0)
            world.at(begin_ms, lambda pair=pair, fault=fault: _begin(world, pair, fault))
            world.at(begin_ms + duration_ms, lambda pair=pair: world.network.unblock(*pair))
    return True


def _begin(world, pair: tuple[int, int], fault: str) -> None:
    if not world.healing:
        world.disturb()
        world.network.block(*pair, fault)


def cut(world, device, random: Random) -> bool:
    """Break one link, of this device if it has one."""
    ends = [end for end in world.network.ends if end.source == device.number] or world.network.ends
    if not ends:
        return False
    world.fired["cut"] += 1
    world.fired["cut mid-batch"] += world.network.cut(random.choice(ends))
    return True


def crash(world, device, random: Random) -> bool:
    """Kill the process between two things that it does."""
    if device.process is None:
        return False
    world.fired["crash"] += 1
    device.crash()
    device.start_later(random.randint(1, 20_000))
    return True


def crash_at_step(world, device, random: Random) -> bool:
    """Kill the process at one of the next steps of some kind: right before it is done, or right after."""
    device.crash_plan = CrashPlan(random.choice(STEPS), random.choice(["before", "after"]), random.randint(1, 3))
    return True


def crash_in_write(world, device, random: Random) -> bool:
    """Kill the process in the next transaction of its app: before the commit, or right after."""
    world.write_crashes[device.number] = random.choice(["before", "after"])
    return True


def pause(world, device, random: Random) -> bool:
    """Stop the process for a while (SIGSTOP, a closed lid); its clocks go on."""
    device.pause(random.randint(*PAUSE_MS) * 1000)
    return True


def skew(world, device, random: Random) -> bool:
    """Set the wall clock wrong, by seconds or by days."""
    scale = random.choice([5_000, 3_600_000, world.params.skew_ms_max])
    device.clock.skew_ms = random.randint(-scale, scale)
    return True


def rate(world, device, random: Random) -> bool:
    """Let both clocks run faster or slower from now on."""
    most = world.params.drift_ppm_max
    device.clock.set_rate(random.randint(-most, most))
    return True


def back_up(world, device, random: Random) -> bool:
    """Copy the file, for a later restore or clone."""
    path = world.folder / f"backup-{len(world.backups)}.db"
    if device.process is None:
        return False
    copy_of(device.path, path)
    world.backups.append((path, device.number))
    world.fired["back up"] += 1
    return True


def restore(world, device, random: Random) -> bool:
    """Put a backup in the place of the file that it was made of, whichever device that is."""
    if not world.backups:
        return False
    path, number = random.choice(world.backups)
    device = world.devices[number]
    if device.destroyed:
        return False
    device.crash()
    replace_file(device.path, path)
    world.checks.forget_file(device)
    world.fired["restore"] += 1
    device.start()
    return True


def clone(world, device, random: Random) -> bool:
    """Start a copy of another device's file on a new device."""
    if not world.backups or len(world.devices) >= world.params.devices_max:
        return False
    path, number = random.choice(world.backups)
    copy = world.add(world.levels[number], path)
    world.fired["clone started"] += 1
    copy.start()
    return True


def slow_link(world, device, random: Random) -> bool:
    """Make the links that this device has now slow, both ways."""
    world.network.set_bandwidth(world.params.slow_bytes_per_ms, device.number)
    return True


def kill(world, device, random: Random) -> bool:
    """Destroy a device for good; a third of all at most, and not the hub, whose place only a person can fill."""
    dead = sum(other.destroyed for other in world.devices)
    if device.number == 0 or dead >= world.params.nodes // 3 or device.process is None:
        return False
    device.crash()
    device.destroyed = True
    world.fired["kill"] += 1
    return True


def upgrade(world, device, random: Random) -> bool:
    """Bring the app's schema up to date in the middle of everything."""
    if world.levels[device.number] == files.NEWEST or device.process is None:
        return False
    world.upgrade(device)
    world.fired["upgrade"] += 1
    return True


def reboot(world, device, random: Random) -> bool:
    """Let a machine lose its power: the process dies, and its monotonic clock begins anew."""
    if device.process is None:
        return False
    world.fired["reboot"] += 1
    device.reboot()
    device.start_later(random.randint(500, 20_000))
    return True


def full_disk(world, device, random: Random) -> bool:
    """Let nothing be written on a device for a while."""
    device.disk_is_full = True
    world.at(world.now_ms + random.randint(*FULL_MS), lambda: setattr(device, "disk_is_full", False))
    return True


def lying_service(world, device, random: Random) -> bool:
    """Let the service outside lie about what became of calls, from now on."""
    world.lying = True
    return True


FAULTS = {
    "reboot": reboot,
    "full disk": full_disk,
    "lying service": lying_service,
    "partition": partition,
    "one-way partition": one_way_partition,
    "cut": cut,
    "crash": crash,
    "crash at step": crash_at_step,
    "crash in write": crash_in_write,
    "pause": pause,
    "skew": skew,
    "rate": rate,
    "back up": back_up,
    "restore": restore,
    "clone": clone,
    "slow link": slow_link,
    "kill": kill,
    "upgrade": upgrade,
}
