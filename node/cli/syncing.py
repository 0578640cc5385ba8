"""Commands that talk to other devices: serve, verify, and the options by which `run` does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command, device_name
from leasemesh.node.cli.notifications import Printer, print_all, printing_warnings, stopping_on_signals
from leasemesh.node.cli.output import ExitCode, count_of, joined, styled
from leasemesh.node.model.ids import short
from leasemesh.node.replication.syncing import Comparison, SyncRefused
from leasemesh.sync.drivers.websocket import AddressError
from leasemesh.sync.version_vector import VersionVector

if TYPE_CHECKING:
    from rich.console import RenderableType

TOKEN_VARIABLE = "LEASEMESH_TOKEN"

ListenOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Let other devices dial this one. Port 0 takes a free one.")
]
PeersOption = Annotated[
    list[str] | None, typer.Option("--peer", metavar="URL", help="Dial this device; may be given again.")
]
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
    context: Context,
    listen: ListenOption = None,
    peers: PeersOption = None,
    token_file: TokenFileOption = None,
    token: TokenVariable = None,
) -> None:
    """Sync with other devices until Ctrl-C. What other programs write to the database meanwhile is synced too.

    The shared secret comes from --token-file or LEASEMESH_TOKEN. Listening on more than this machine needs one.
    """
    if listen is None and not peers:
        raise CommandError("serve needs --listen HOST:PORT, --peer URL, or both", ExitCode.USAGE)
    secret = read_token(token_file, token)
    address = parse_listen(listen) if listen is not None else None
    with printing_warnings(context), context.node:
        try:
            asyncio.run(_serve(context, address, peers or [], secret))
        except AddressError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
        except SyncRefused as error:
            raise CommandError(str(error), ExitCode.NOT_AVAILABLE) from error


async def _serve(context: Context, listen: tuple[str, int] | None, peers: list[str], token: str | None) -> None:
    stop = asyncio.Event()
    node = context.node
    with Printer(context.screen) as printer, stopping_on_signals(stop, printer.close):
        async with node.syncing(listen=listen, peers=peers, token=token) as sync:
            observer = sync.loop.observe()
            printer.began(node.name, node.workspace_id, sync, peers)
            notifying = asyncio.create_task(print_all(printer, observer))
            ended = asyncio.create_task(sync.wait())
            asked = asyncio.create_task(stop.wait())
            await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            printer.stopping = True
        await asyncio.gather(notifying, ended)
        printer.ended()


@command(
    app,
    "verify",
    panel="Devices",
    examples=["leasemesh verify 127.0.0.1:8787", "leasemesh verify 127.0.0.1:8787 --json"],
)
def verify(
    context: Context,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="The address of a device that listens.")],
    token_file: TokenFileOption = None,
    token: TokenVariable = None,
) -> None:
    """Compare all replicated content with a device that is running: digests only, nothing is sent or changed."""
    secret = read_token(token_file, token)
    try:
        comparison = asyncio.run(context.node.compare(peer, token=secret))
    except AddressError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except SyncRefused as error:
        raise CommandError(str(error), ExitCode.PEER) from error
    mine, theirs = comparison.mine.vector, comparison.theirs.vector
    names = context.names() | {comparison.node: comparison.name}  # which may not be known here yet
    lacks_here, lacks_there = _lacking(names, mine, theirs), _lacking(names, theirs, mine)
    document = {
        "equal": comparison.equal,
        "peer": comparison.name,
        "node": comparison.node,
        "different_tables": comparison.different_tables,
        "lacking_here": lacks_here,
        "lacking_there": lacks_there,
    }
    context.screen.show(document, lambda: _draw_comparison(comparison, lacks_here, lacks_there))
    if not comparison.equal:
        raise CommandError(_difference(comparison), ExitCode.DIFFERENT)


def _lacking(names: dict[str, str], ours: VersionVector, others: VersionVector) -> dict[str, int]:
    """Return of which devices `others` includes more than `ours`: name -> versions."""
    return {
        device_name(names, site.hex()): max(0, entry.version - ours.entry(site).version)
        for site, entry in sorted(others.items())
        if not ours.includes(site, entry) and entry.version >= ours.entry(site).version
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
    if comparison.same_vector:
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
