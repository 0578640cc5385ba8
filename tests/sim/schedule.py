"""What is to happen in a run, drawn from its seed before it begins: so a step can be left out and the rest stays."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from sim.params import FAULT_KINDS, HANDLED_FAULT_KINDS, HANDLED_WORK_KINDS, WORK_KINDS, Params

EARLY_MS = 1_500
EARLY_PUBLICATIONS = 3
"""A run begins with some publications, so that devices have something to reach for when they are parted."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is tried: at a time, on a device, with a seed for whatever else it needs."""

    index: int
    at_ms: int
    kind: str
    device: int
    seed: int

    def __str__(self) -> str:
        return f"{self.index}: {self.at_ms} ms, {self.kind} on node-{self.device}"


def draw(seed: int, params: Params) -> list[Step]:
    """Draw a schedule. Each seed uses some kinds of faults only, so that those it uses meet each other."""
    random = Random(f"{seed} schedule")
    possible = FAULT_KINDS + HANDLED_FAULT_KINDS if params.handled else FAULT_KINDS
    faults = [*params.fault_kinds]
    if not faults:
        faults = [kind for kind in possible if random.random() < 0.5] or [random.choice(possible)]
        if {"restore", "clone"} & set(faults):
            faults.append("back up")
    work = WORK_KINDS | HANDLED_WORK_KINDS if params.handled else WORK_KINDS
    kinds = random.choices(list(work), list(work.values()), k=params.work_steps)
    kinds += random.choices(faults, k=params.fault_steps)
    times = [random.randrange(EARLY_MS, params.faulty_ms) for _ in kinds]
    kinds += ["publish"] * EARLY_PUBLICATIONS
    times += [random.randrange(EARLY_MS) for _ in range(EARLY_PUBLICATIONS)]
    drawn = [
        (at_ms, kind, random.randrange(params.nodes), random.getrandbits(32))
        for at_ms, kind in zip(times, kinds, strict=True)
    ]
    return [Step(index, *step) for index, step in enumerate(sorted(drawn))]
