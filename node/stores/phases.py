"""The life of a handler run. Its *phase* says how far it got and only moves forward, its *status* why it is not moving.

`PHASES` is the whole of the legal transitions.
"""

from __future__ import annotations

from typing import Literal, get_args

RunKind = Literal["producer", "consumer"]
Phase = Literal["pending", "executing", "preparing", "prepared", "mutating", "mutated", "emitting", "committed"]
RunStatus = Literal[
    "active",
    "paused:transient",
    "paused:reconciliation",
    "paused:confirmation",
    "failed:logic",
    "failed:internal",
    "lost",
    "crashed",
    "superseded",
    "committed",
]

PHASES: dict[RunKind, dict[Phase, tuple[Phase, ...]]] = {
    "producer": {
        "pending": ("executing",),
        "executing": ("committed",),
        "committed": (),
    },
    "consumer": {
        "pending": ("preparing",),
        "preparing": ("prepared",),
        "prepared": (
            "mutating",
            "emitting",
        ),  # emitting: nothing was reserved, or the effect is known from an earlier run
        "mutating": ("mutated",),
        "mutated": ("emitting",),
        "emitting": ("committed",),
        "committed": (),
    },
}

STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
ENDINGS: dict[RunStatus, int] = {
    "crashed": 0,
    "failed:internal": 1,
    "failed:logic": 2,
    "lost": 3,
    "superseded": 4,
    "committed": 5,
}
"""The number that precedes the word in the column `ended`: of two that copies of one file wrote, the truth wins. A
later start of the node says crashed of what the process itself knew better. Nothing is as certain as a commit."""
ENDED: frozenset[RunStatus] = frozenset(ENDINGS)
"""A run in one of these never moves again. A retry is a new run. Superseded: another run goes on with its work, or a
person ended it."""

INCOMPLETE = tuple(status for status in STATUSES if status not in ENDED)
"""A run in one of these may still move."""

BEGINNINGS: dict[RunKind, tuple[Phase, ...]] = {
    "producer": ("pending", "executing"),
    "consumer": ("pending", "preparing", "prepared"),
}
"""Where a new run may begin."""
