"""What a runner tells while it works: a bounded queue of sentences, for a screen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

PROGRESS_QUEUE_MAX = 1_000
"""A screen that is slower loses the oldest."""

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


class ProgressObserver:
    """A bounded queue of notifications; iterate over it. Ends when the runner has stopped."""

    def __init__(self) -> None:
        self._waiting: deque[Progress] = deque(maxlen=PROGRESS_QUEUE_MAX)
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, progress: Progress) -> None:
        """Add a notification; the oldest goes when there is no room."""
        self._waiting.append(progress)
        self._changed.set()

    def end(self) -> None:
        """Let the iteration end after what is there."""
        self._ended = True
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[Progress]:
        return self

    async def __anext__(self) -> Progress:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()
