"""What a command tells while it runs on: notifications of sync, warnings, and the end by Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from leasemesh.node.cli.app import Context
from leasemesh.node.cli.output import ExitCode, Screen, clean
from leasemesh.sync.actions import Notify

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from leasemesh.node.replication.syncing import Syncing

TELL_STYLES = {
    "connected": "green",
    "caught_up": "green",
    "disconnected": "yellow",
    "refused": "bold red",
    "quarantined": "yellow",
    "identity": "bold yellow",
}
TOLD_TOO = ("leasemesh.sync", "leasemesh.runtime.progress")
"""Loggers whose warnings are told as well."""

PROGRESS_KINDS = frozenset({"sending", "receiving"})


@contextmanager
def printing_warnings(context: Context) -> Iterator[None]:
    """In a block, have warnings printed that are not told as well: connections that were turned away, for example."""
    if context.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
        yield
        return
    handler = _PrintWarnings(context.screen)
    handler.addFilter(lambda record: not record.name.startswith(TOLD_TOO))
    logger = logging.getLogger("leasemesh")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _PrintWarnings(logging.Handler):
    """Prints warnings as `serve` prints what is told."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        document = {"event": "warning", "at": now_ms(), "text": text}
        self._screen.event(document, f"{time.strftime('%H:%M:%S')}  {text}", "yellow")


class WholeLines(io.TextIOBase):
    """Standard output for the threads of an app: what they print arrives a line at a time, and not torn by others'
    lines, because `print` writes the end of a line by itself."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Pass on the lines that are complete. Returns how many characters were taken."""
        whole, end, self._begun.text = (getattr(self._begun, "text", "") + text).rpartition("\n")
        if end:
            self._out.write(whole + end)
            self._out.flush()
        return len(text)

    def flush(self) -> None:
        """Pass on the line that this thread has begun."""
        begun, self._begun.text = getattr(self._begun, "text", ""), ""
        if begun:
            self._out.write(begun)
            self._out.flush()

    def isatty(self) -> bool:
        """Whether it goes to a terminal."""
        return self._out.isatty()


async def print_all(printer: Printer, observer: Any) -> None:
    """Pass on what is told until nothing more comes."""
    async for tell in observer:
        printer.tell(tell)


@contextmanager
def stopping_on_signals(stop: asyncio.Event, at_once: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block the first Ctrl-C (or SIGTERM) sets an event, and the second one ends this process at once.

    At once, whatever goes on: code of an app that blocks everything else is no exception. The file is always ready for
    that. What was under way is looked after by the next start.

    Args:
        stop: set by the first signal.
        at_once: called before the process is ended, to leave the terminal as it was.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            at_once()
            os._exit(ExitCode.INTERRUPTED)
        asked = True
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Printer:
    """Prints what sync tells: a line for each thing that happened, a bar for each transfer that is under way.

    Attributes:
        stopping: this node was asked to stop. That its links end now is no news.
    """

    def __init__(self, screen: Screen, *, transfers: bool = True) -> None:
        """Args: where to print, and whether people are told of transfers, too, and shown bars."""
        self._screen = screen
        self._transfers = transfers
        self.stopping = False
        self._level: set[str] = set()
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away."""
        self._stack.close()

    def began(self, name: str, workspace: str, sync: Syncing, peers: list[str]) -> None:
        """Sync has started."""
        document = {"event": "started", "at": now_ms(), "name": name, "workspace": workspace, "url": sync.url}
        where = [f"listening on {sync.url}"] if sync.url else []
        where += [f"dialling {peer}" for peer in peers]
        if self._screen.as_json:
            self._screen.event(document, "")
        else:
            self._screen.event({}, f"{name} of workspace {workspace}", "bold")
            self._screen.event({}, f"{', '.join(where)}; Ctrl-C stops")

    def ended(self) -> None:
        """Sync was stopped."""
        self._screen.event({"event": "stopped", "at": now_ms()}, "stopped", "bold")

    def tell(self, tell: Notify) -> None:
        """Something happened."""
        if self._screen.as_json:
            if tell.rows or tell.kind not in ("sent", "received", "digest"):
                self._screen.event(_document(tell), "")
            return
        self._show_progress(tell)
        if self._is_news(tell):
            self._screen.event({}, f"{time.strftime('%H:%M:%S')}  {tell.text}", TELL_STYLES.get(tell.kind, ""))

    def _is_news(self, tell: Notify) -> bool:
        """Transfers are told when they brought something, "caught up" once for each connection."""
        if tell.kind in PROGRESS_KINDS or tell.kind == "digest" or (self.stopping and tell.kind == "disconnected"):
            return False
        if tell.kind in ("sent", "received"):
            return self._transfers and tell.rows > 0
        if tell.kind == "disconnected":
            self._level.discard(tell.name)
        if tell.kind == "caught_up":
            if tell.name in self._level:
                return False
            self._level.add(tell.name)
        return True

    def _show_progress(self, tell: Notify) -> None:
        if not self._transfers or not self._screen.console().is_terminal:
            return
        if tell.kind in PROGRESS_KINDS:
            bars = self._opened_bars()
            key = (tell.name, tell.kind)
            if key not in self._tasks:
                self._tasks[key] = bars.add_task(clean(f"{tell.name}: {tell.kind}"), total=tell.rows_total)
            bars.update(self._tasks[key], completed=tell.rows, total=max(tell.rows, tell.rows_total))
        elif tell.kind in ("sent", "received", "disconnected"):
            finished = {"sent": {"sending"}, "received": {"receiving"}}.get(tell.kind, PROGRESS_KINDS)
            for ended in [key for key in self._tasks if key[0] == tell.name and key[1] in finished]:
                self._opened_bars().remove_task(self._tasks.pop(ended))
            if not self._tasks:
                # Without tasks the bars are stopped: they would wake up ten times a second for nothing.
                self._stack.close()
                self._bars = None

    def _opened_bars(self) -> Progress:
        if self._bars is None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,} of {task.total:,} rows"),
            )
            bars = Progress(*columns, console=self._screen.console(), transient=True)
            self._bars = self._stack.enter_context(bars)
        return self._bars


def _document(tell: Notify) -> dict[str, Any]:
    return {
        "event": tell.kind,
        "at": now_ms(),
        "peer": tell.name,
        "node": tell.site.hex() if tell.site else None,
        "text": tell.text,
        "rows": tell.rows,
        "rows_total": tell.rows_total,
    }


def now_ms() -> int:
    """Return the wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000
