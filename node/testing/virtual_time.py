"""Virtual time: one scheduler for all simulated processes, and the clocks of devices."""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

EPOCH_MS = 1_790_000_000_000
"""What a wall clock shows when the world begins, in Unix milliseconds, unless it is set wrong."""

Action = Callable[[], None]


class RunsHandles(Protocol):
    """What the scheduler knows of a process's event loop."""

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""

    def is_early(self, handle: asyncio.Handle) -> bool:
        """Put a timer off that is not due yet by the device's own clock, and tell whether that was so."""

    def run_handle(self, handle: asyncio.Handle) -> None:
        """Run a callback."""


class Scheduler:
    """World time, and all that is to happen in it.

    Attributes:
        now_us: microseconds since the world began.
        steps: callbacks that have run.
    """

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._ready: deque[tuple[RunsHandles, asyncio.Handle] | Action] = deque()
        self._timers: list[tuple[int, int, RunsHandles | None, asyncio.Handle | Action]] = []
        self._numbers = count()
        self._stopped = False

    def soon(self, action: Action) -> None:
        """Do something of the world after what is ready now."""
        self._ready.append(action)

    def at(self, at_us: int, action: Action) -> None:
        """Do something of the world at a time. Things of one time are done in the order they were asked for."""
        heapq.heappush(self._timers, (at_us, next(self._numbers), None, action))

    def handle_soon(self, loop: RunsHandles, handle: asyncio.Handle) -> None:
        """Run a loop's callback after what is ready now."""
        self._ready.append((loop, handle))

    def handle_at(self, at_us: int, loop: RunsHandles, handle: asyncio.Handle) -> None:
        """Run a loop's callback at a time."""
        heapq.heappush(self._timers, (at_us, next(self._numbers), loop, handle))

    def stop(self) -> None:
        """Let `run_until` return after the callback that runs now."""
        self._stopped = True

    def next_us(self) -> int:
        """When the next thing happens, as far as is known."""
        return self._timers[0][0] if self._timers and not self._ready else self.now_us

    def run_until(self, end_us: int) -> bool:
        """Let everything happen up to a time, which it is then.

        Returns:
            False: `stop` was called before.
        """
        self._stopped = False
        ready, timers = self._ready, self._timers
        with _closing_generators():
            while not self._stopped:
                if ready:
                    self._run(ready.popleft())
                elif timers and timers[0][0] <= end_us:
                    self._fire(*heapq.heappop(timers))
                else:
                    self.now_us = max(self.now_us, end_us)
                    return True
        return False

    def _fire(self, at_us: int, _: int, loop: RunsHandles | None, due: asyncio.Handle | Action) -> None:
        if loop is None:
            assert not isinstance(due, asyncio.Handle), "a handle has its loop"
            self.now_us = max(self.now_us, at_us)
            self._ready.append(due)
        elif isinstance(due, asyncio.Handle) and not due.cancelled() and loop.alive:
            self.now_us = max(self.now_us, at_us)
            if not loop.is_early(due):
                self._ready.append((loop, due))

    def _run(self, due: tuple[RunsHandles, asyncio.Handle] | Action) -> None:
        self.steps += 1
        if isinstance(due, tuple):
            due[0].run_handle(due[1])
        else:
            due()


class Clock:
    """The two clocks of a device. The monotonic one runs at its own rate, the wall clock is that plus an error.

    Attributes:
        skew_ms: how wrong the wall clock is set.
        ppm: how much faster than the world the monotonic clock runs, in millionths.
    """

    def __init__(self, scheduler: Scheduler, *, on_wrong: Callable[[str], None] = lambda _: None) -> None:
        """Args: `on_wrong` is told each time that a wrong clock is read: "skew" or "rate"."""
        self._scheduler = scheduler
        self._on_wrong = on_wrong
        self._from_us = self._shown_us = 0
        self._booted_ms = 0
        self.ppm = 0
        self.skew_ms = 0

    def monotonic_us(self) -> int:
        """Microseconds since the machine was started."""
        passed_us = self._scheduler.now_us - self._from_us
        if not self.ppm:
            return self._shown_us + passed_us
        self._on_wrong("rate")
        return self._shown_us + passed_us + passed_us * self.ppm // 1_000_000

    def monotonic_ms(self) -> int:
        """Milliseconds since the machine was started."""
        return self.monotonic_us() // 1000

    def wall_ms(self) -> int:
        """What the device takes for the time, in Unix milliseconds."""
        if self.skew_ms:
            self._on_wrong("skew")
        return EPOCH_MS + self._booted_ms + self.monotonic_us() // 1000 + self.skew_ms

    def world_us(self, monotonic_us: int) -> int:
        """When the monotonic clock will show this, if its rate stays."""
        left_us = monotonic_us - self._shown_us
        at_us = self._from_us - -left_us * 1_000_000 // (1_000_000 + self.ppm) if self.ppm else self._from_us + left_us
        return max(self._scheduler.now_us, at_us)

    def set_rate(self, ppm: int) -> None:
        """Let both clocks run faster or slower from now on."""
        self._shown_us, self._from_us, self.ppm = self.monotonic_us(), self._scheduler.now_us, ppm

    def reboot(self) -> None:
        """Begin the monotonic clock anew. The wall clock goes on."""
        self._booted_ms += self.monotonic_us() // 1000
        self._shown_us, self._from_us = 0, self._scheduler.now_us


@contextmanager
def _closing_generators() -> Iterator[None]:
    """Let async generators that nobody finishes be closed by the loop that they began in, as asyncio does."""
    loops: dict[int, Any] = {}

    def begin(generator: AsyncGenerator[Any, Any]) -> None:
        loop = asyncio._get_running_loop()
        if loop is not None:
            loops[id(generator)] = loop

    def finish(generator: AsyncGenerator[Any, Any]) -> None:
        loop = loops.pop(id(generator), None)
        if loop is not None and loop.alive and not loop.is_closed():
            loop.create_task(generator.aclose())

    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(begin, finish)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*before)
