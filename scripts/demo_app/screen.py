"""What a person sees of the demo while it runs: lines that scroll, and below them how far the work has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mail_handlers import EVERYBODY, SUBSCRIBER
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo_app.ledger import Ledger
from demo_app.mail_server import MailServer
from demo_app.played import DESKTOP, DEVICES, HUB, LAPTOP, Played
from leasemesh.node.cli.output import Screen, count_of, joined, styled

STYLES = {HUB: "yellow", LAPTOP: "cyan", DESKTOP: "magenta", "mail": "blue", "ledger": "blue"}
BAR_COLUMNS = 28
FRAMES_EACH_SECOND = 8
NAME_COLUMNS = 8


class Printer:
    """Tells what happens: to people, each device in its colour, or one JSON document a line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._console = screen.console()
        self._began = time.monotonic()
        self._states: dict[str, str] = {}
        self._watched: tuple[MailServer, Ledger, Played] | None = None

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the progress on the screen during the block, when it is a terminal."""
        if self._screen.as_json or not self._console.is_terminal:
            yield
            return
        # Transient: what stays is the story; the numbers come again, in the table at the end.
        with Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=FRAMES_EACH_SECOND, transient=True
        ):
            yield

    def heading(self, text: str) -> None:
        """Begin the next act."""
        if self._screen.as_json:
            self._screen.event({"at_s": round(self.seconds, 2), "act": text}, text)
            return
        self._console.print()
        self._console.print(styled(text, "bold"), soft_wrap=True)

    def line(self, device: str, text: str, *, bad: bool = False) -> None:
        """Tell what a device did, or what was done to it."""
        head = joined(styled(f"{self.seconds:6.2f} s  ", "dim"), styled(f"{device:<{NAME_COLUMNS}} ", STYLES[device]))
        if self._screen.as_json:
            self._screen.event({"at_s": round(self.seconds, 2), "device": device, "text": text}, text)
            return
        self._console.print(joined(head, styled(text, "bold red" if bad else "")), soft_wrap=True)

    def state(self, device: str, text: str) -> None:
        """Say what a device is at, until it is said anew."""
        self._states[device] = text

    def watch(self, mail: MailServer, ledger: Ledger, played: Played) -> None:
        """From now on, show how far the work has come, by the services' own counts."""
        self._watched = (mail, ledger, played)

    def _draw(self) -> RenderableType:
        if self._watched is None:
            return Text()
        mail, ledger, played = self._watched
        letters, headlines = len(played.inbox), len(played.headlines)
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(*_bar("letters", mail.events(SUBSCRIBER), letters), _shares(mail, SUBSCRIBER))
        grid.add_row(*_bar("headlines", mail.events(EVERYBODY), headlines), _shares(mail, EVERYBODY))
        repeated = styled(f"{count_of(ledger.repeated, 'call')} repeated", "dim")
        grid.add_row(*_bar("entries", ledger.entered, letters + headlines), repeated)
        states = [joined(styled(name, STYLES[name]), f" {text}   ") for name, text in self._states.items() if text]
        return Group(Text(), grid, joined(*states))


def _bar(name: str, done: int, total: int) -> tuple[RenderableType, ...]:
    bar = ProgressBar(total=max(total, 1), completed=done, width=BAR_COLUMNS)
    return styled(name, "bold"), bar, styled(f"{done:,} of {total:,}")


def _shares(mail: MailServer, to: str) -> Text:
    sent = {name: mail.sent(to, name) for name in DEVICES}
    parts = [joined(styled(name, STYLES[name]), f" {count:,}  ") for name, count in sent.items() if count]
    return joined(*parts)
