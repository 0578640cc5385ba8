"""The command run: an app's handlers, until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leasemesh.node.authoring.errors import RunRefused
from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.apps import load_workflows
from leasemesh.node.cli.notifications import Printer, WholeLines, print_all, printing_warnings, stopping_on_signals
from leasemesh.node.cli.output import ExitCode
from leasemesh.node.cli.syncing import (
    ListenOption,
    PeersOption,
    TokenFileOption,
    TokenVariable,
    parse_listen,
    read_token,
)
from leasemesh.node.cli.watching import RunScreen
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.replication.syncing import SyncRefused
from leasemesh.sync.drivers.websocket import AddressError

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow
    from leasemesh.node.node import Node
    from leasemesh.node.replication.syncing import Syncing
    from leasemesh.node.runtime.runner import Runner

TOLD_AFTER_S = 0.3
"""Stopping is not worth a word when it takes no longer."""

LAST_WORDS_S = 2.0
"""How long it takes at the most to send what the last runs came to. Whoever is away gets it another time."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the handlers are to be run.

    Attributes:
        listen, peers, token: for sync. Without the first two there is none.
        concurrency: runs at a time.
        drain_s: how long runs may take to end.
        until_idle: stop when nothing is left to do.
    """

    listen: tuple[str, int] | None
    peers: list[str]
    token: str | None
    concurrency: int
    drain_s: float
    until_idle: bool


@command(
    app,
    "run",
    panel="Handlers",
    examples=[
        "leasemesh run app.py",
        "leasemesh run app.py --peer 127.0.0.1:8787",
        "leasemesh run app.py --listen 0.0.0.0:8787 --token-file secret",
        "leasemesh run app.py --drain 60 --json",
        "leasemesh run app.py --until-idle",
        "leasemesh run app.py --migrations migrations",
    ],
)
def run(
    context: Context,
    file: Annotated[Path, typer.Argument(metavar="APP", help="A Python file that declares workflows.")],
    listen: ListenOption = None,
    peers: PeersOption = None,
    concurrency: Annotated[int, typer.Option(metavar="N", help="Runs at a time; of one handler never two.")] = 8,
    drain: Annotated[float, typer.Option(metavar="SECONDS", help="When stopping: how long runs may take to end.")] = 10,
    until_idle: Annotated[
        bool,
        typer.Option("--until-idle", help="Stop when nothing is left to do here, and peers have what was done."),
    ] = False,
    migrations: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="The app's own tables: 0001_name.sql, 0002_name.sql, ...",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    token: TokenVariable = None,
) -> None:
    """Run an app's handlers, and sync with other devices if there is --listen or --peer, until Ctrl-C.

    Ctrl-C lets what runs end within --drain seconds, or gives it back. A second one stops at once. What was under way
    then is looked after by the next start.
    """
    options = Options(
        listen=parse_listen(listen) if listen is not None else None,
        peers=peers or [],
        token=read_token(token_file, token),
        concurrency=concurrency,
        drain_s=drain,
        until_idle=until_idle,
    )
    node = context.open(migrations)  # first of all: without a file nothing of the app needs to be imported
    printed = WholeLines(sys.stderr if context.screen.as_json else sys.stdout)
    with printing_warnings(context), node, redirect_stdout(printed):
        try:
            asyncio.run(_run(context, load_workflows(file), options))
            printed.flush()
        except AddressError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
        except (SyncRefused, RunRefused) as error:
            raise CommandError(str(error), ExitCode.NOT_AVAILABLE) from error


async def _run(context: Context, workflows: list[Workflow], options: Options) -> None:
    node, stop = context.node, asyncio.Event()
    async with AsyncExitStack() as stack:
        screen = stack.enter_context(RunScreen(context.screen, drain_s=options.drain_s))
        stack.enter_context(stopping_on_signals(stop, screen.at_once))
        printer = stack.enter_context(Printer(context.screen, transfers=False))
        sync, observer = None, None
        if options.listen is not None or options.peers:
            sync = await stack.enter_async_context(
                node.syncing(listen=options.listen, peers=options.peers, token=options.token)
            )
            observer = sync.loop.observe()  # at once: it connects while the handlers are being read
            stack.push_async_callback(_pass_on, node)
        else:
            await _refuse_when_synced_elsewhere(node)
        runner = await stack.enter_async_context(
            node.running(workflows, concurrency=options.concurrency, drain_s=options.drain_s)
        )
        screen.began(context, workflows, runner, sync.url if sync is not None else None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(screen.print_all(runner.observe()))
            drawing = tasks.create_task(screen.keep_drawing())
            notifying = tasks.create_task(print_all(printer, observer)) if observer is not None else None
            idle = asyncio.create_task(_idle(node, runner, sync)) if options.until_idle else None
            await _until_asked_or_ended(stop, runner, sync, idle)
            printer.stopping = True
            ending = asyncio.create_task(runner.stop())
            if not (await asyncio.wait([ending], timeout=TOLD_AFTER_S))[0]:
                screen.stopping()
            await ending
            for task in (drawing, notifying):
                if task is not None:
                    task.cancel()
    screen.ended()


async def _refuse_when_synced_elsewhere(node: Node) -> None:
    """Only the process that syncs a file knows who is within reach, so only that one may begin work."""
    try:
        await node.barrier()
    except SyncRefused as error:
        wanted = "stop it, and give its --listen or --peer to `leasemesh run`, which syncs as well"
        raise CommandError(
            f"another process syncs {node.path}, and would not know what is done here: {wanted}", ExitCode.NOT_AVAILABLE
        ) from error


async def _idle(node: Node, runner: Runner, sync: Syncing | None) -> None:
    """Return when all that the peers had is here, and nothing that could be done is left."""
    if sync is not None:
        await node.caught_up()
    await runner.idle(permits=True)


async def _until_asked_or_ended(
    stop: asyncio.Event, runner: Runner, sync: Syncing | None, idle: asyncio.Task[None] | None
) -> None:
    """Return at a signal, when nothing is left to do (`idle`), or when handlers or sync have failed: leaving their
    blocks raises with what."""
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(runner.wait())]
    if idle is not None:
        waits.append(idle)
    if sync is not None:
        waits.append(asyncio.ensure_future(sync.wait()))
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for one in waits:
        one.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def _pass_on(node: Node) -> None:
    """Let those who are connected hear what the last runs came to, so that nobody must wait for our return."""
    if any(peer.state == "connected" for peer in node.peers()):
        with suppress(TimeoutError, LeasemeshError):
            async with asyncio.timeout(LAST_WORDS_S):
                await node.caught_up()
