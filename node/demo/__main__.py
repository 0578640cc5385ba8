"""Runs the demo and prints what happens as it happens: `python -m node.demo --help`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from node.cli.naming import split_topic
from node.cli.output import Column, Screen, count_of, joined, styled
from node.demo.invariants import Verdict, judge
from node.demo.scenario import DEVICES, Played, play
from node.demo.source import Source
from node.errors import InvalidInput, LeasemeshError

PLAYED_FILE = "demo.json"
STYLES = dict(zip(DEVICES, ("yellow", "cyan", "magenta"), strict=True))
DIGEST_CHARACTERS = 12


class Teller:
    """Prints what happens, each device in its colour."""

    def __init__(self, screen: Screen) -> None:
        self._console = screen.console()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began

    def heading(self, text: str) -> None:
        """Begin the next act."""
        self._console.print()
        self._console.print(styled(text, "bold"), soft_wrap=True)

    def line(self, device: str, text: str, *, bad: bool = False) -> None:
        """Tell what a device did or was told."""
        head = joined(styled(f"{self.seconds:6.2f} s  ", "dim"), styled(f"{device:<8} ", STYLES[device]))
        self._console.print(joined(head, styled(text, "bold red" if bad else "")), soft_wrap=True)


def main(
    source: Annotated[
        Path | None, typer.Option("--input", help="A JSON Lines, CSV or mbox file; without it, a git history.")
    ] = None,
    history: Annotated[
        Path, typer.Option(help="The git checkout whose history is the input.", file_okay=False)
    ] = Path(),
    topic: Annotated[
        str | None, typer.Option(metavar="WORKFLOW/TOPIC", help="Where to publish; by default named after the input.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the three databases in this folder, which must be new.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run nothing; check what an earlier --keep left there.")
    ] = None,
) -> None:
    """Three devices share real work; two go offline, reach for the same events, and come back.

    Ends with 0 when everything that leasemesh promises held, otherwise with 1.
    """
    screen = Screen(as_json=False)
    try:
        if check is not None:
            verdict, seconds = judge(check, Played.read(check / PLAYED_FILE)), None
        else:
            chosen = (source if source is not None else history).absolute()
            if not chosen.exists():
                raise InvalidInput("--input", f"there is no file {chosen}")
            taken = Source(str(chosen), *split_topic(topic if topic is not None else _topic_of(chosen)))
            _check_not_empty(taken)
            with _folder(keep) as folder:
                teller = Teller(screen)
                played = asyncio.run(play(folder, taken, teller))
                played.write(folder / PLAYED_FILE)
                teller.heading("The databases are looked at")
                with screen.progress("looking at the events", played.count) as progress:
                    verdict = judge(folder, played, progress)
                seconds = teller.seconds
    except (LeasemeshError, KeyboardInterrupt) as error:
        screen.error(str(error) or "stopped", 1)
        sys.exit(1)
    _report(screen, verdict, seconds)
    if keep is not None:
        _show(screen, styled(f"kept: leasemesh status --db {keep / 'hub.db'}", "dim"))
    sys.exit(1 if verdict.violated else 0)


def _check_not_empty(source: Source) -> None:
    if next(source.records(), None) is None:
        raise InvalidInput("--input", f"{source.path} holds no events; name another file")


def _topic_of(source: Path) -> str:
    return f"demo/{'commits' if source.is_dir() else source.stem}"


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="leasemesh-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise InvalidInput("--keep", f"cannot make the folder {keep} ({error.strerror}); it must be new") from error
    try:
        yield keep
    except BaseException:
        shutil.rmtree(keep)
        raise


def _report(screen: Screen, verdict: Verdict, seconds: float | None) -> None:
    for invariant in verdict.invariants:
        mark = styled("  BAD ", "bold red") if invariant.violations else styled("  ok  ", "green")
        _show(screen, joined(mark, invariant.name))
        for violation in invariant.violations[:5]:
            _show(screen, styled(f"        {violation}", "red"))
    _show(screen, "")
    columns = [Column("device")]
    columns += [Column(name, right=True) for name in ("reserved", "kept", "lost", "consumed", "duplicates")]
    columns += [Column("digest")]
    rows: list[list[str | Text]] = [
        [
            styled(one.device, STYLES[one.device]),
            *(f"{number:,}" for number in (one.reserved, one.kept, one.lost, one.consumed, one.duplicates)),
            styled(one.digest[:DIGEST_CHARACTERS]),
        ]
        for one in verdict.tallies
    ]
    _show(screen, screen.table(columns, rows))
    _show(screen, "")
    took = f" ({seconds:.1f} s)" if seconds is not None else ""
    if verdict.violated:
        count = count_of(len(verdict.violated), "promise was broken", "promises were broken")
        _show(screen, styled(f"FAILED: {count}: {'; '.join(one.name for one in verdict.violated)}{took}.", "bold red"))
        return
    _show(screen, styled(f"{_summary(verdict)}{took}.", "bold green"))


def _summary(verdict: Verdict) -> str:
    parts = [f"all {count_of(verdict.events, 'event')} were consumed"]
    if verdict.duplicates:
        parts.append(f"{verdict.duplicates:,} of them on both sides of the partition, reported as duplicates")
    parts += [f"{device} was told that it had lost its lease" for device in verdict.told_lost]
    text = "; ".join([*parts, "the three databases have the same content"])
    return f"{text[0].upper()}{text[1:]}"


def _show(screen: Screen, item: RenderableType) -> None:
    screen.console().print(item)


if __name__ == "__main__":
    typer.run(main)
