"""The faults. Each tries to happen and says whether it could; that it made a difference is counted where it does."""

from __future__ import annotations

from random import Random

from sim import files
from sim.device import CRASHABLE

PARTITION_MS = (500, 45_000)
"""Some heal before anybody notices, some outlast the engines' patience of 30 s."""

PAUSE_MS = (100, 50_000)


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
    for other in others:
        pairs = [(device.number, other), (other, device.number)]
        for pair in pairs if both_ways else pairs[:1]:
            world.network.block(*pair, kind="partition" if both_ways else "one-way partition")
            world.at(world.now_ms + duration_ms, lambda pair=pair: world.network.unblock(*pair))
    return True


def cut(world, device, random: Random) -> bool:
    """Break one link, of this device if it has one."""
    ends = world.network.ends
    ends = [end for end in ends if end.process.device is device] or ends
    if not ends:
        return False
    world.fired["cut"] += 1
    world.fired["cut mid-batch"] += world.network.cut(random.choice(ends), "the connection was reset")
    return True


def crash(world, device, random: Random) -> bool:
    """Kill the process between two things that it does."""
    if device.process is None:
        return False
    world.fired["crash"] += 1
    device.crash()
    device.restart_later(random.randint(1, 20_000))
    return True


def crash_at_effect(world, device, random: Random) -> bool:
    """Kill the process at the next effect of some kind: before it is carried out, half-way, or before its answer."""
    kind = random.choice(CRASHABLE)
    device.crash_plan = (kind, random.choice(["before", "after"]))
    if random.random() < 0.3:
        device.crash_plan = ("Apply", "inside")
    return True


def crash_in_write(world, device, random: Random) -> bool:
    """Kill the process in the next transaction of its app: before the commit, or right after."""
    device.write_crash = random.choice(["before the commit", "after the commit"])
    return True


def pause(world, device, random: Random) -> bool:
    """Stop the process for a while (SIGSTOP, a closed lid); its clocks go on."""
    device.paused_until_ms = world.now_ms + random.randint(*PAUSE_MS)
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
    files.back_up(device.path, path)
    world.backups.append((path, device.number))
    world.fired["back up"] += 1
    return True


def restore(world, device, random: Random) -> bool:
    """Put a backup in the place of the file that it was made of, whichever device that is."""
    if not world.backups:
        return False
    path, number = random.choice(world.backups)
    device = world.devices[number]
    if device.dead:
        return False
    if device.process is not None:
        device.stop()
    files.replace_file(device.path, path)
    world.checks.forget_file(device)
    world.fired["restore"] += 1
    device.start()
    return True


def clone(world, device, random: Random) -> bool:
    """Start a copy of another device's file on a new device."""
    if not world.backups or len(world.devices) >= world.params.devices_max:
        return False
    path, number = random.choice(world.backups)
    copy = world.add_device(world.devices[number].level, path)
    world.fired["clone started"] += 1
    copy.start()
    return True


def slow_link(world, device, random: Random) -> bool:
    """Make the links that this device has now slow, both ways."""
    for end in world.network.ends:
        if device in (end.process.device, end.peer.process.device):
            end.outgoing.bytes_per_ms = world.params.slow_bytes_per_ms
    return True


def kill(world, device, random: Random) -> bool:
    """Destroy a device for good; a third of all at most, and not the hub, whose place only a person can fill."""
    dead = sum(other.dead for other in world.devices)
    if device.number == 0 or dead >= world.params.nodes // 3 or device.process is None:
        return False
    device.crash()
    device.dead = True
    world.fired["kill"] += 1
    return True


def upgrade(world, device, random: Random) -> bool:
    """Bring the app's schema up to date in the middle of everything."""
    if device.level == files.NEWEST or device.process is None:
        return False
    device.stop()
    device.level = files.NEWEST
    device.start()
    world.fired["upgrade"] += 1
    return True


FAULTS = {
    "partition": partition,
    "one-way partition": one_way_partition,
    "cut": cut,
    "crash": crash,
    "crash at effect": crash_at_effect,
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
