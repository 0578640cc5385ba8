"""Commands that talk to other devices: serve, verify."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.app import CommandError, Session, app, command
from node.cli.output import ExitCode, Screen, clean, count_of, joined, styled
from node.ids import short
from node.syncing import Comparison, Syncing, SyncRefused
from sync.effects import Tell
from sync.knowledge import Knowledge
from sync.websocket import AddressError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

TOKEN_VARIABLE = "LEASEMESH_TOKEN"

TELL_STYLES = {
    "connected": "green",
    "caught_up": "green",
    "disconnected": "yellow",
    "refused": "bold red",
    "parked": "yellow",
    "identity": "bold yellow",
}
PROGRESS_KINDS = frozenset({"sending", "receiving"})

TokenFileOption = Annotated[
    Path | None, typer.Option(help="A file with the workspace's shared secret.", metavar="PATH")
]
TokenVariable = Annotated[
    str | None, typer.Option("--token", envvar=TOKEN_VARIABLE, hidden=True, help="For the environment only.")
]


@command(
    app,
    "serve",
    panel="Devices",
    examples=[
        "leasemesh serve --listen 127.0.0.1:8787",
        "leasemesh serve --peer 127.0.0.1:8787",
        "leasemesh serve --listen 0.0.0.0:8787 --token-file secret",
        "leasemesh serve --peer wss://hub.example.org --token-file secret",
    ],
)
def serve(
    session: Session,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Let other devices dial this one. Port 0 takes a free one.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", metavar="URL", help="Dial this device; may be given again.")
    ] = None,
    token_file: TokenFileOption = None,
    token: TokenVariable = None,
) -> None:
    """Sync with other devices until Ctrl-C. What other programs write to the database meanwhile is synced too.

    The shared secret comes from --token-file or LEASEMESH_TOKEN; listening on more than this machine needs one.
    """
    if listen is None and not peers:
        raise CommandError("serve needs --listen HOST:PORT, --peer URL, or both", ExitCode.USAGE)
    secret = read_token(token_file, token)
    address = parse_listen(listen) if listen is not None else None
    _log(session)
    with session.node:
        try:
            asyncio.run(_serve(session, address, peers or [], secret))
        except AddressError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
        except SyncRefused as error:
            raise CommandError(str(error), ExitCode.NOT_AVAILABLE) from error


async def _serve(session: Session, listen: tuple[str, int] | None, peers: list[str], token: str | None) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    node = session.node
    with Teller(session.screen) as teller:
        async with node.syncing(listen=listen, peers=peers, token=token) as sync:
            observer = sync.loop.observe()
            teller.began(node.name, node.workspace_id, sync, peers)
            telling = asyncio.create_task(_tell_all(teller, observer))
            ended = asyncio.create_task(sync.wait())
            asked = asyncio.create_task(stop.wait())
            await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            teller.stopping = True
        await asyncio.gather(telling, ended)
        teller.ended()


def _log(session: Session) -> None:
    """Have warnings printed that are not told as well: connections that were turned away, for example."""
    if session.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
        return
    handler = _PrintWarnings(session.screen)
    handler.addFilter(lambda record: not record.name.startswith("leasemesh.sync"))
    logging.getLogger("leasemesh").addHandler(handler)


class _PrintWarnings(logging.Handler):
    """Prints warnings as `serve` prints what is told."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        document = {"event": "warning", "at": _now_ms(), "text": text}
        self._screen.event(document, f"{time.strftime('%H:%M:%S')}  {text}", "yellow")


async def _tell_all(teller: Teller, observer: Any) -> None:
    async for tell in observer:
        teller.tell(tell)


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Stop cleanly at the first Ctrl-C (or SIGTERM), at once at the second."""
    loop = asyncio.get_running_loop()

    def stop_soon(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_soon, number)


class Teller:
    """Prints what sync tells: a line for each thing that happened, a bar for each transfer that is under way.

    Attributes:
        stopping: this node was asked to stop; that its links end now is no news.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.stopping = False
        self._level: set[str] = set()
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def began(self, name: str, workspace: str, sync: Syncing, peers: list[str]) -> None:
        """Sync has started."""
        document = {"event": "started", "at": _now_ms(), "name": name, "workspace": workspace, "url": sync.url}
        where = [f"listening on {sync.url}"] if sync.url else []
        where += [f"dialling {peer}" for peer in peers]
        if self._screen.as_json:
            self._screen.event(document, "")
        else:
            self._screen.event({}, f"{name} of workspace {workspace}", "bold")
            self._screen.event({}, f"{', '.join(where)}; Ctrl-C stops")

    def ended(self) -> None:
        """Sync was stopped."""
        self._screen.event({"event": "stopped", "at": _now_ms()}, "stopped", "bold")

    def tell(self, tell: Tell) -> None:
        """Something happened."""
        if self._screen.as_json:
            if tell.rows or tell.kind not in ("sent", "received", "digest"):
                self._screen.event(_document(tell), "")
            return
        self._show_progress(tell)
        if self._is_news(tell):
            self._screen.event({}, f"{time.strftime('%H:%M:%S')}  {tell.text}", TELL_STYLES.get(tell.kind, ""))

    def _is_news(self, tell: Tell) -> bool:
        """Transfers are told when they brought something, "caught up" once for each connection."""
        if tell.kind in PROGRESS_KINDS or tell.kind == "digest" or (self.stopping and tell.kind == "disconnected"):
            return False
        if tell.kind in ("sent", "received"):
            return tell.rows > 0
        if tell.kind == "disconnected":
            self._level.discard(tell.name)
        if tell.kind == "caught_up":
            if tell.name in self._level:
                return False
            self._level.add(tell.name)
        return True

    def _show_progress(self, tell: Tell) -> None:
        if not self._screen.console().is_terminal:
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


def _document(tell: Tell) -> dict[str, Any]:
    return {
        "event": tell.kind,
        "at": _now_ms(),
        "peer": tell.name,
        "node": tell.site.hex() if tell.site else None,
        "text": tell.text,
        "rows": tell.rows,
        "rows_total": tell.rows_total,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@command(
    app,
    "verify",
    panel="Devices",
    examples=["leasemesh verify 127.0.0.1:8787", "leasemesh verify 127.0.0.1:8787 --json"],
)
def verify(
    session: Session,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="The address of a device that listens.")],
    token_file: TokenFileOption = None,
    token: TokenVariable = None,
) -> None:
    """Compare all replicated content with a device that is running: digests only, nothing is sent or changed."""
    secret = read_token(token_file, token)
    try:
        comparison = asyncio.run(session.node.compare(peer, token=secret))
    except AddressError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except SyncRefused as error:
        raise CommandError(str(error), ExitCode.PEER) from error
    mine, theirs = comparison.mine.knowledge, comparison.theirs.knowledge
    lacks_here, lacks_there = _lacking(session, mine, theirs), _lacking(session, theirs, mine)
    document = {
        "equal": comparison.equal,
        "peer": comparison.name,
        "node": comparison.node,
        "different_tables": comparison.different_tables,
        "lacking_here": lacks_here,
        "lacking_there": lacks_there,
    }
    session.screen.show(document, lambda: _draw_comparison(comparison, lacks_here, lacks_there))
    if not comparison.equal:
        raise CommandError(_difference(comparison), ExitCode.DIFFERENT)


def _lacking(session: Session, ours: Knowledge, others: Knowledge) -> dict[str, int]:
    """Return of which devices `others` includes more than `ours`: name -> versions."""
    return {
        session.device_name(site.hex()): max(0, point.version - ours.point(site).version)
        for site, point in sorted(others.items())
        if not ours.includes(site, point) and point.version >= ours.point(site).version
    }


def _draw_comparison(
    comparison: Comparison, lacks_here: dict[str, int], lacks_there: dict[str, int]
) -> Iterable[RenderableType]:
    peer = f"{comparison.name} ({short(comparison.node)})"
    if comparison.equal:
        cells = sum(table.cells for table in comparison.mine.tables.values())
        yield joined(styled("equal ", "bold green"), f"to {peer}: {count_of(cells, 'cell')} compared")
        return  # Versions may differ all the same: merging what the other one has counts as one, too.
    for lacking, who in ((lacks_here, "this device lacks"), (lacks_there, f"{comparison.name} lacks")):
        for device, versions in lacking.items():
            yield styled(f"{who} {count_of(versions, 'version')} of {device}", "yellow")


def _difference(comparison: Comparison) -> str:
    tables = comparison.different_tables
    first = tables[0]
    mine, theirs = comparison.mine.tables.get(first), comparison.theirs.tables.get(first)
    counts = f"{mine.cells if mine else 0:,} cells here, {theirs.cells if theirs else 0:,} there"
    more = f", and {count_of(len(tables) - 1, 'more table')}" if len(tables) > 1 else ""
    text = f"different from {comparison.name}, first in table {first} ({counts}){more}"
    if comparison.same_knowledge:
        return f"{text}, although both have absorbed the same: run `leasemesh doctor` on both"
    return f"{text}; sync has not finished, so compare again when both have caught up"


def read_token(file: Path | None, from_environment: str | None) -> str | None:
    """Return the shared secret, None when there is none.

    Raises:
        CommandError: the file cannot be read or is empty.
    """
    if file is None:
        return from_environment or None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"cannot read the token from {file}: {getattr(error, 'strerror', error)}", ExitCode.USAGE
        ) from error
    if not token:
        raise CommandError(f"the token file {file} is empty", ExitCode.USAGE)
    return token


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, :PORT (this machine) or [IPV6]:PORT.

    Raises:
        CommandError: it is none of these.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in host and host[0] != "["):
        raise CommandError(f"--listen: {text!r} is not HOST:PORT, such as 127.0.0.1:8787", ExitCode.USAGE)
    return host.strip("[]") or "127.0.0.1", int(port)
