"""What a simulated run is made of: one knob a line, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from node.leases import StalenessRule

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
        one_less_in_odd_seeds: every other run has one device less: two find most that three find, in half the time.
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
        handlers_every: in every so many-th seed devices run handlers, with effects; 0: in none.
        batch_rows_max: rows of a transaction that must become visible as a whole.
        check_every: every so many commits of a device its facts are compared with what was derived from them.
        devices_max: no clone is made beyond.
    """

    nodes: int = 3
    one_less_in_odd_seeds: bool = False
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
    handlers_every: int = 0
    batch_rows_max: int = 12
    check_every: int = 12
    devices_max: int = 6

    def handled(self, seed: int) -> bool:
        """Whether devices run handlers in the run of a seed."""
        return self.handlers_every > 0 and seed % self.handlers_every == 0


LITE = Params(one_less_in_odd_seeds=True, handlers_every=16)
"""Many short runs: a few devices, half a minute of world time, a time to live of eight seconds."""

SWARM = Params(
    nodes=5,
    handlers_every=2,
    work_steps=80,
    fault_steps=24,
    faulty_ms=240_000,
    rule=StalenessRule(),
    idle_ms=10_000,
    check_every=8,
    devices_max=9,
)
"""Longer runs with the real staleness rule."""

SOAK = replace(SWARM, nodes=8, work_steps=1_000, fault_steps=200, faulty_ms=3_600_000, heal_ms=180_000, devices_max=14)
"""An hour of world time."""

PRESETS = {"lite": LITE, "swarm": SWARM, "soak": SOAK}
