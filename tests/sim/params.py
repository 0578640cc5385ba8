"""What a simulated run is made of: one knob a line, and the presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from leasemesh.node.model.leases import StalenessRule

WORKSPACE = "team"

WORK_KINDS = {
    "publish": 4,
    "reserve": 9,
    "settle": 4,
    "release": 1,
    "take over": 4,
    "write foreign": 1,
    "edit notes": 3,
    "write batch": 2,
    "delete topic": 1,
    "start": 1,
    "race": 2,
    "other process": 1,
}
"""What apps do, and how often."""

HANDLED_WORK_KINDS = {"hand over": 14, "move authority": 2, "give verdict": 2}
"""What comes on top where handlers run."""

FAULT_KINDS = (
    "partition",
    "one-way partition",
    "cut",
    "crash",
    "crash at step",
    "crash in write",
    "pause",
    "skew",
    "rate",
    "back up",
    "restore",
    "clone",
    "slow link",
    "kill",
    "upgrade",
    "reboot",
    "full disk",
)
"""What happens to devices and networks. A seed draws the kinds that it uses, so that rare ones meet often."""


HANDLED_FAULT_KINDS = ("lying service",)
"""What comes on top where handlers run."""


@dataclass(frozen=True, slots=True)
class Params:
    """One run's knobs.

    Attributes:
        nodes: devices at the start; clones come on top.
        second_link: how likely a device has a link to another one than the hub.
        fault_kinds: only these kinds of faults; without them each seed draws some of all.
        work_steps: how many things the apps do in the first phase.
        fault_steps: how many faults are tried in the first phase.
        faulty_ms: length of the first phase, in world time.
        rule: the staleness rule of all devices.
        heal_ms: what the second phase may take until all is settled, beyond time to live and margin.
        idle_ms: how long the settled mesh is watched for rows that nobody asked for.
        latency_ms: greatest one-way latency of a normal link; each link draws its own.
        slow_bytes_per_ms: bandwidth of a link made slow.
        drift_ppm_max: how much faster or slower than the world a monotonic clock may run.
        skew_ms_max: how far a wall clock may be set wrong.
        handled: devices run handlers, with effects.
        batch_rows_max: rows of a transaction that must become visible as a whole.
        check_every: every so many commits of a device its facts are compared with what was derived from them.
        devices_max: no clone is made beyond.
    """

    nodes: int = 3
    second_link: float = 0.3
    fault_kinds: tuple[str, ...] = ()
    work_steps: int = 13
    fault_steps: int = 5
    faulty_ms: int = 18_000
    rule: StalenessRule = StalenessRule(ttl_ms=8_000, margin_ms=2_000)
    heal_ms: int = 60_000
    idle_ms: int = 5_000
    latency_ms: int = 40
    slow_bytes_per_ms: int = 1
    drift_ppm_max: int = 20_000
    skew_ms_max: int = 10 * 24 * 3600 * 1000
    handled: bool = False
    batch_rows_max: int = 12
    check_every: int = 12
    devices_max: int = 6


LITE = Params()
"""A few devices, half a minute of world time, a time to live of eight seconds."""

SOAK = Params(
    nodes=8,
    work_steps=1_000,
    fault_steps=200,
    faulty_ms=3_600_000,
    rule=StalenessRule(),
    heal_ms=180_000,
    idle_ms=10_000,
    check_every=8,
    devices_max=14,
    handled=True,
)
"""An hour of world time with the real staleness rule."""


def lite(seed: int) -> Params:
    """Many short runs. In two of three there are two devices: they find most that three find, in half the time."""
    return replace(LITE, nodes=3 if seed % 3 == 0 else 2, handled=seed % 16 == 0)


def swarm(seed: int) -> Params:
    """Runs of all sizes and shapes: most are short and some are long, so that tens of thousands can be made.

    Which shapes find what cannot be known before, so each seed draws its own (swarm testing: Groce et al., "Swarm
    Testing", ISSTA 2012, who leave out features at random; here `schedule.draw` does that with the faults).
    """
    random = Random(f"{seed} shape")
    handled = random.random() < 0.06
    size = min(random.paretovariate(2.8), 6.0)  # a seventh is of size two and more
    nodes = random.choice([2, 2, 2, 2, 2, 3, 3, 4, 5])
    ttl_ms = random.choice([8_000, 8_000, 8_000, 20_000])  # presence is told every five seconds
    return Params(
        nodes=nodes,
        second_link=random.choice([0.0, 0.0, 0.3, 1.0]),
        work_steps=int(random.randint(5, 11) * size),
        fault_steps=int(random.randint(2, 7) * size),
        faulty_ms=int(random.randint(5_000, 12_000) * size),
        rule=StalenessRule(ttl_ms=ttl_ms, margin_ms=ttl_ms // 4),
        latency_ms=random.choice([5, 40, 300]),
        slow_bytes_per_ms=random.choice([1, 10]),
        drift_ppm_max=random.choice([100, 20_000]),
        handled=handled,
        batch_rows_max=random.choice([3, 12, 60]),
        check_every=random.choice([4, 12]),
        devices_max=nodes + 3,
    )


def soak(seed: int) -> Params:
    """Long runs; for a night."""
    return SOAK


COPIES_KINDS = (
    "back up", "restore", "clone", "partition", "crash at step", "crash in write", "crash", "kill", "cut",
    "lying service",
)  # fmt: skip


def copies(seed: int) -> Params:
    """Runs with handlers, in which files are often backed up, restored and copied: then two processes have been at one
    run, and one of them did not know it. Swarm seeds seldom have so much of that together."""
    random = Random(f"{seed} copies")
    return replace(
        swarm(seed),
        handled=True,
        nodes=random.choice([2, 2, 3]),
        devices_max=6,
        fault_kinds=COPIES_KINDS,
        fault_steps=random.randint(6, 20),
        work_steps=random.randint(8, 26),
        faulty_ms=random.randint(8_000, 30_000),
    )


PRESETS: dict[str, Callable[[int], Params]] = {"lite": lite, "swarm": swarm, "copies": copies, "soak": soak}
