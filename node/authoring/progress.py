"""What a runner tells while it works, for a screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProgressKind = Literal[
    "started", "committed", "failed", "lost", "waiting", "unknown", "reconciled", "continued", "released", "taken_over",
    "blocked", "stopped", "trouble",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """Something happened to a run or to a handler.

    Attributes:
        kind: what.
        workflow, handler: whose.
        run: the run, None when it is about the handler.
        text: one sentence.
        events: how many events the run is about.
        at: Unix milliseconds.
    """

    kind: ProgressKind
    workflow: str
    handler: str
    run: str | None
    text: str
    events: int
    at: int
