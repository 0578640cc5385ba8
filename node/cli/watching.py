"""What `leasemesh run` shows: a table that is kept up to date, in a terminal. Otherwise a line for each thing that
happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leasemesh.node.cli.notifications import now_ms
from leasemesh.node.cli.output import Column, Screen, ago, count_of, styled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from leasemesh.node.authoring.progress import Progress
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.node.cli.app import Context
    from leasemesh.node.runtime.loops import HandlerStatus
    from leasemesh.node.runtime.runner import Runner
    from leasemesh.sync.drivers.queues import Subscription

DRAWN_EVERY_S = 0.25
"""Four pictures a second look alive, and cost little. None is drawn while nothing changes but the time."""

REDRAWN_EVERY_S = 5.0
"""So that "in 40 s" stays true."""

STATE_STYLES = {
    "idle": "dim",
    "running": "cyan",
    "waiting": "yellow",
    "retrying": "yellow",
    "blocked": "bold red",
    "disabled": "dim",
    "elsewhere": "dim",
    "stopped": "dim",
}
KIND_STYLES = {
    "failed": "red",
    "unknown": "bold red",
    "blocked": "bold red",
    "trouble": "bold red",
    "lost": "magenta",
    "waiting": "yellow",
    "committed": "green",
    "reconciled": "green",
    "continued": "green",
}
COUNTED = frozenset({"started", "committed"})
"""What the table counts: thousands a second, perhaps, and no news. Without a table, runs with events are told."""

IN_TABLE = COUNTED | {"waiting"}
"""What the table shows by itself."""


@dataclass(slots=True)
class Tally:
    """What a handler has done since the start, what was last told of it, and when it last committed (Unix ms)."""

    committed: int = 0
    failed: int = 0
    events: int = 0
    last: str = ""
    committed_at: int = 0


class RunScreen:
    """Prints what runs of handlers tell, and draws the table."""

    def __init__(self, screen: Screen, *, drain_s: float) -> None:
        self._screen = screen
        self._drain_s = drain_s
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._runner: Runner | None = None
        self._live: Live | None = None
        self._changed = asyncio.Event()

    @property
    def is_live(self) -> bool:
        """Whether there is a table that is kept up to date."""
        console = self._screen.console()
        return not self._screen.as_json and console.is_terminal and not console.is_dumb_terminal

    def __enter__(self) -> RunScreen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the table away."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    # --- Beginning and ending -----------------------------------------------------------------------------------------

    def began(self, context: Context, workflows: Sequence[Workflow], runner: Runner, url: str | None) -> None:
        """The handlers have been started."""
        self._runner = runner
        keys = [(handler.workflow, handler.name) for workflow in workflows for handler in workflow.handlers]
        handlers = ["/".join(key) for key in keys]
        self._tallies = {key: Tally() for key in keys}
        node = context.node
        document = {
            "event": "started",
            "at": now_ms(),
            "name": node.name,
            "workspace": node.workspace_id,
            "url": url,
            "handlers": handlers,
        }
        self._screen.event(document, f"{node.name} of workspace {node.workspace_id}", "bold")
        if self._screen.as_json:
            return
        if url:
            self._screen.event({}, f"listening on {url}")
        self._screen.event({}, f"runs {count_of(len(handlers), 'handler')}: {', '.join(handlers)}; Ctrl-C stops")
        if self.is_live:
            from rich.live import Live

            self._live = Live(console=self._screen.console(), auto_refresh=False, transient=True)
            self._live.start()
            self._draw()

    def stopping(self) -> None:
        """The node was asked to stop."""
        under_way = self._runner.status.under_way if self._runner is not None else 0
        if under_way and not self._screen.as_json:
            runs = f"{count_of(under_way, 'run')} may take {self._drain_s:g} s to end"
            self._screen.event({}, f"stopping: {runs}; Ctrl-C again stops at once", "yellow")

    def at_once(self) -> None:
        """This process ends now."""
        self.close()
        self._screen.event({"event": "stopped_at_once", "at": now_ms()}, "stopped at once", "bold yellow")

    def ended(self) -> None:
        """All has stopped."""
        self.close()
        committed = sum(tally.committed for tally in self._tallies.values())
        failed = sum(tally.failed for tally in self._tallies.values())
        document = {"event": "stopped", "at": now_ms(), "committed": committed, "failed": failed}
        text = f"stopped; {count_of(committed, 'run')} committed"
        self._screen.event(document, text + (f", {failed:,} failed" if failed else ""), "bold")

    # --- While it runs ------------------------------------------------------------------------------------------------

    async def print_all(self, observer: Subscription[Progress]) -> None:
        """Tell what happens until the runner has stopped."""
        async for progress in observer:
            self.tell(progress)

    def tell(self, progress: Progress) -> None:
        """Something happened to a run or a handler."""
        tally = self._tallies.setdefault((progress.workflow, progress.handler), Tally())
        tally.committed += progress.kind == "committed"
        tally.events += progress.events if progress.kind == "committed" else 0
        tally.failed += progress.kind == "failed"
        tally.last = progress.text
        if progress.kind == "committed":
            tally.last, tally.committed_at = "", progress.at
        self._changed.set()
        if self._screen.as_json:
            self._screen.event(_document(progress), "")
        elif self._is_told(progress):
            at = time.strftime("%H:%M:%S", time.localtime(progress.at / 1000))
            events = f", {count_of(progress.events, 'event')}" if progress.kind == "committed" else ""
            name = f"{progress.workflow}/{progress.handler}"
            self._screen.event({}, f"{at}  {name}: {progress.text}{events}", KIND_STYLES.get(progress.kind, ""))

    def _is_told(self, progress: Progress) -> bool:
        """Whether it is worth a line."""
        if self.is_live:
            return progress.kind not in IN_TABLE
        return progress.kind not in COUNTED or (progress.kind == "committed" and progress.events > 0)

    async def keep_drawing(self) -> None:
        """Keep the table up to date, for ever."""
        while self._live is not None:
            self._draw()
            await asyncio.sleep(DRAWN_EVERY_S)
            try:
                async with asyncio.timeout(REDRAWN_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    def _draw(self) -> None:
        if self._live is not None and self._runner is not None:
            self._live.update(self._table(self._runner.status.handlers), refresh=True)

    def _table(self, handlers: Sequence[HandlerStatus]) -> RenderableType:
        from rich.console import Group

        columns = [
            Column("handler", flexible=True), Column("state"), Column("runs", right=True), Column("events", right=True),
            Column("failed", right=True), Column("now", flexible=True),
        ]  # fmt: skip
        rows = [self._row(one, self._tallies.get((one.workflow, one.handler), Tally())) for one in handlers]
        # The cursor rests on a line of its own, where the ^C of somebody who stops us shifts nothing.
        return Group(self._screen.table(columns, rows), "")

    def _row(self, handler: HandlerStatus, tally: Tally) -> list[Any]:
        now = now_ms()
        due = f"due {ago(handler.next_at, now)}" if handler.next_at is not None and handler.state == "idle" else ""
        last = tally.last or (f"last run {ago(tally.committed_at, now)}" if tally.committed_at else "")
        return [
            f"{handler.workflow}/{handler.handler}",
            styled(handler.state, STATE_STYLES.get(handler.state, "")),
            f"{tally.committed:,}",
            f"{tally.events:,}",
            styled(f"{tally.failed:,}", "red" if tally.failed else "dim"),
            styled(handler.text or due or last, "dim"),
        ]


def _document(progress: Progress) -> dict[str, Any]:
    return {
        "event": "run",
        "kind": progress.kind,
        "at": progress.at,
        "workflow": progress.workflow,
        "handler": progress.handler,
        "run": progress.run,
        "events": progress.events,
        "text": progress.text,
    }
