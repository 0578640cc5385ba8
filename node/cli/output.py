"""What the commands print: one JSON document, or text for people, and the exit codes.

Rules:

1. Results go to standard output. Errors and progress to standard error.
2. Titles, names and ids come from other devices and mailboxes, so nothing of them is taken for markup, and control
   characters, which could move the cursor or rename the terminal, are shown as such.
3. Text fits 80 columns in a terminal. Into a pipe nothing is cut, and there are no colours (nor with NO_COLOR).
4. Rich is imported when something is first drawn. Without this rule it would take half of the time of `peek --json`.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

UNCUT_COLUMNS = 10_000
"""Width for output that does not go to a terminal."""

COLUMN_GAP = 2
FLEXIBLE_COLUMNS_MIN = 12

UNPRINTABLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
"""Unicode categories of controls. "Cf" holds those that turn the direction of writing."""

JOINERS = "\u200c\u200d"
"""Controls that names in some scripts, and emoji, are spelled with."""

STATUS_STYLES = {
    "pending": "cyan",
    "held": "yellow",
    "reserved": "yellow",
    "unknown": "bold red",
    "consumed": "green",
    "skipped": "bright_black",
    "released": "bright_black",
    "lost": "magenta",
    "dead": "red",
    "active": "cyan",
    "committed": "green",
    "crashed": "magenta",
    "superseded": "bright_black",
    "failed:logic": "bold red",
    "failed:internal": "bold red",
    "paused:transient": "yellow",
    "paused:confirmation": "yellow",
    "paused:reconciliation": "bold red",
    "applied": "green",
    "failed": "red",
    "in_flight": "yellow",
    "needs_reconcile": "bold red",
    "indeterminate": "bold red",
}


class ExitCode(IntEnum):
    """How a command ends. `leasemesh --help` tells the same."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_AVAILABLE = 4
    PEER = 5
    DIFFERENT = 6
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        right: align to the right, for numbers.
        flexible: the column may be cut when the table is too wide.
        wraps: instead of being cut, its text goes on in the next line.
    """

    title: str
    right: bool = False
    flexible: bool = False
    wraps: bool = False


class Screen:
    """Where a command prints.

    Standard output is the one of the moment when it is made: an app that `leasemesh run` runs may print, too.

    Attributes:
        as_json: documents instead of text.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = sys.stdout
        self._consoles: dict[TextIO, Console] = {}

    def show(self, document: dict[str, Any], draw: Callable[[], Iterable[RenderableType]]) -> None:
        """Print a command's result: the document as JSON, or what `draw` makes of it for people."""
        if self.as_json:
            self.document(document)
        else:
            for item in draw():
                self.console().print(item)

    def event(self, document: dict[str, Any], text: str, style: str = "") -> None:
        """Print one thing that happened, as one line, at once."""
        if self.as_json:
            self.document(document)
        else:
            self.console().print(styled(text, style), soft_wrap=not self._out.isatty())
        self._out.flush()

    def document(self, document: dict[str, Any]) -> None:
        """Print one JSON document on a line of its own.

        In ASCII: no line separator of Unicode splits the line, and no control of a title reaches a terminal.
        """
        self._out.write(json.dumps(document, separators=(",", ":")) + "\n")

    def warn(self, text: str) -> None:
        """Print a sentence on standard error."""
        self._sentence(styled(text, "yellow"))

    def error(self, text: str, code: int) -> None:
        """Print why the command failed on standard error."""
        if self.as_json:
            sys.stderr.write(json.dumps({"error": text, "exit_code": int(code)}) + "\n")
            return
        self._sentence(joined(styled("leasemesh: ", "bold red"), text))

    def _sentence(self, text: Text) -> None:
        """Print on standard error: one line, for programs. In a terminal, no word is broken."""
        self.console(sys.stderr).print(text, soft_wrap=not sys.stderr.isatty())

    def console(self, stream: TextIO | None = None) -> Console:
        """Return the console of a stream (standard output when None)."""
        from leasemesh.node.cli.console import CommandConsole

        stream = stream or self._out
        if stream not in self._consoles:
            width = None if stream.isatty() else UNCUT_COLUMNS
            self._consoles[stream] = CommandConsole(
                file=stream, width=width, highlight=False, markup=False, emoji=False
            )
        return self._consoles[stream]

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str | Text]]) -> RenderableType:
        """Return a table. Flexible columns are cut so that it fits the screen."""
        from rich.table import Table

        cells = [[styled(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        needed = [
            max([len(column.title), *(row[index].cell_len for row in cells)]) for index, column in enumerate(columns)
        ]
        room = self.console().width - COLUMN_GAP * (len(columns) - 1)
        widths = fit(needed, [column.flexible for column in columns], room)
        drawn = Table(box=None, padding=(0, COLUMN_GAP, 0, 0), pad_edge=False, header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.right else "left"
            overflow: Literal["fold", "ellipsis"] = "fold" if column.wraps else "ellipsis"
            drawn.add_column(column.title, justify=justify, no_wrap=not column.wraps, overflow=overflow, width=width)
        for row in cells:
            drawn.add_row(*row)
        return drawn

    def facts(self, facts: Iterable[tuple[str, str | Text]], *, indent: int = 0) -> RenderableType:
        """Return names with what there is to say of each. Long text goes on below itself. Without a name a line goes on
        with the fact before."""
        from rich.padding import Padding
        from rich.table import Table

        drawn = Table.grid(padding=(0, COLUMN_GAP, 0, 0))
        drawn.add_column(style="dim", no_wrap=True)
        drawn.add_column(overflow="fold")
        for name, text in facts:
            drawn.add_row(styled(name), styled(text) if isinstance(text, str) else text)
        return Padding(drawn, (0, 0, 0, indent), expand=False)

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar on standard error when that is a terminal. The block calls what it gets with how much is done.

        Args:
            title: what is being done.
            total: how much there is to do. None: unknown.
        """
        if self.as_json or not sys.stderr.isatty():
            yield lambda done: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TimeRemainingColumn(), console=self.console(sys.stderr), transient=True) as progress:
            task = progress.add_task(clean(title), total=total)
            yield lambda done: progress.update(task, completed=done)


def fit(needed: Sequence[int], flexible: Sequence[bool], room: int) -> list[int]:
    """Return the widths of a table's columns.

    Flexible columns share what the others leave, the narrow ones first. Each keeps FLEXIBLE_COLUMNS_MIN, however little
    room there is.
    """
    widths = list(needed)
    room -= sum(width for width, bends in zip(needed, flexible, strict=True) if not bends)
    bending = sorted((index for index, bends in enumerate(flexible) if bends), key=lambda index: needed[index])
    for position, index in enumerate(bending):
        share = max(room // (len(bending) - position), FLEXIBLE_COLUMNS_MIN)
        widths[index] = min(needed[index], share)
        room -= widths[index]
    return widths


def clean(text: str) -> str:
    """Return text on one line, control characters replaced by a visible mark."""
    return "".join(
        " " if character in "\t\n\r" else "\ufffd" if _is_control(character) else character for character in text
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in UNPRINTABLE and character not in JOINERS


def styled(text: str, style: str = "") -> Text:
    """Return text to print as it is, in a style."""
    from rich.text import Text

    return Text(clean(text), style=style)


def joined(*parts: str | Text) -> Text:
    """Return parts as one line."""
    from rich.text import Text

    return Text.assemble(*(styled(part) if isinstance(part, str) else part for part in parts))


def status_text(status: str) -> Text:
    """Return the name of a status in its colour."""
    return styled(status, STATUS_STYLES.get(status, ""))


def count_of(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 event", "2,000 events"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def ago(then_ms: int, now_ms: int) -> str:
    """Return how long ago that was, roughly: "now", "8 s ago", "3 min ago", "in 2 h"."""
    length = lasting(abs(now_ms - then_ms) // 1000 * 1000)
    if length == "0 ms":
        return "now"
    return f"{length} ago" if then_ms < now_ms else f"in {length}"


def lasting(length_ms: int) -> str:
    """Return how long that is, roughly: "40 ms", "1.5 s", "8 s", "3 min"."""
    if length_ms < 1_000:
        return f"{length_ms} ms"
    seconds = length_ms // 1_000
    if length_ms < 10_000 and length_ms % 1_000 >= 100:
        return f"{length_ms / 1_000:.1f} s"
    return next(
        (
            f"{seconds // size} {unit}"
            for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"))
            if seconds >= 2 * size
        ),
        f"{seconds} s",
    )


def iso(unix_ms: int) -> str:
    """Return a time in this machine's time zone, to the second: 2026-01-31T17:04:05+01:00."""
    return datetime.fromtimestamp(unix_ms / 1000).astimezone().isoformat(timespec="seconds")


def clock(unix_ms: int) -> str:
    """Return a time in this machine's time zone as tables show it: 2026-01-31 17:04:05."""
    return iso(unix_ms)[:19].replace("T", " ")


def brief(value: Any, characters_max: int = 200) -> str:
    """Return a JSON value on one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return text if len(text) <= characters_max else f"{text[: characters_max - 1]}…"
