"""Runs the demo and tells what happens as it happens: `scripts/demo --help`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from mail_source import Source

from demo_app import records, report
from demo_app.invariants import check
from demo_app.played import DEVICES, Played
from demo_app.scenario import play
from demo_app.screen import Printer
from leasemesh.node.cli.helping import Command
from leasemesh.node.cli.output import Screen, styled
from leasemesh.node.importers import check as check_records
from leasemesh.node.model.errors import InvalidInput, LeasemeshError

PLAYED_FILE = "demo.json"
LIMIT = 100
LIMIT_MAX = 2_000


def main(
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="A JSON Lines, CSV or mbox file; without it, a git history."),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Watch this folder; each file in it is an event.", file_okay=False),
    ] = None,
    history: Annotated[
        Path, typer.Option(metavar="DIR", help="The git checkout whose history is the input.", file_okay=False)
    ] = Path(),
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="Take so many events at most.")] = LIMIT,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep databases and mailbox in this folder, which must be new.")
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option("--check", metavar="DIR", help="Run nothing; check what an earlier --keep left there."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON documents, one a line.")] = False,
) -> None:
    """Three devices run an automation that sends real mail and calls a real HTTP service; two are cut off from the hub,
    each is killed once between an effect and its record, and one comes back late.

    Ends with 0 when everything that leasemesh promises held, otherwise with 1.
    """
    screen = Screen(as_json=as_json)
    try:
        if proof is not None:
            verdict, seconds = _judge(screen, proof, Played.read(proof / PLAYED_FILE)), None
        else:
            taken = _source(source, watch, history, limit)
            with _folder(keep) as folder:
                printer = Printer(screen)
                with printer.live():
                    played = asyncio.run(play(folder, taken, printer))
                played.write(folder / PLAYED_FILE)
                printer.heading("The databases and the services are held against each other")
                verdict = _judge(screen, folder, played)
                seconds = printer.seconds
    except (LeasemeshError, KeyboardInterrupt) as error:
        screen.error(str(error) or "stopped", 1)
        sys.exit(1)
    screen.show(report.document(verdict, seconds), lambda: report.draw(screen, verdict, seconds))
    if keep is not None and not as_json:
        screen.console().print(
            styled(f"kept: leasemesh status --db {keep / 'hub.db'}; the mail is in {keep}/mailbox", "dim")
        )
    sys.exit(1 if verdict.violated else 0)


def _judge(screen: Screen, folder: Path, played: Played) -> report.Verdict:
    with screen.progress("looking at the databases", len(DEVICES)) as progress:
        found = records.read(folder, played, progress)
    return report.judge(found, check(found))


def _source(file: Path | None, watch: Path | None, history: Path, limit: int) -> Source:
    """Return the source that was asked for; what cannot be used is told before anything is started."""
    if file is not None and watch is not None:
        raise InvalidInput("--watch", "is for a folder, and --input for a file; give one of them")
    chosen = (file or watch or history).absolute()
    if not chosen.exists():
        raise InvalidInput("--input", f"there is no {'file' if file is not None else 'folder'} {chosen}")
    source = Source("file" if file is not None else "folder" if watch is not None else "history", str(chosen), limit)
    with tempfile.TemporaryDirectory() as folder:
        checked = check_records(source.records(), folder=Path(folder))
        checked.close()
    if checked.count == 0:
        raise InvalidInput("--input", f"{chosen} holds no events; name another one")
    return source


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
        yield keep.absolute()
    except BaseException:
        shutil.rmtree(keep)
        raise


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(main)
    app(prog_name="scripts/demo")
