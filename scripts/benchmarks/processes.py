"""Processes of their own: one that does something and tells, one that serves a file, and waiting for them."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from leasemesh import Node

WAIT_SECONDS_MAX = 300


@contextmanager
def child(worker: Callable[..., None], *arguments: Any) -> Iterator[tuple[Connection, BaseProcess]]:
    """Run `worker(pipe, *arguments)` in a process of its own; gives this end of the pipe and the process."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield mine, process
    finally:
        mine.close()
        process.join(WAIT_SECONDS_MAX)


def run_in_child(worker: Callable[..., None], *arguments: Any) -> Any:
    """Run `worker(pipe, *arguments)` in a process of its own and return what it sends."""
    with child(worker, *arguments) as (pipe, _):
        return pipe.recv()


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Serve a file from a process of its own; gives its address and a function that stops it and returns its
    megabytes."""
    with child(_server, path) as (pipe, _):
        stopped: list[float] = []

        def stop() -> float:
            if not stopped:
                pipe.send("stop")
                stopped.append(pipe.recv())
            return stopped[0]

        try:
            yield pipe.recv(), stop
        finally:
            stop()


def _server(pipe: Connection, path: Path) -> None:
    async def serve() -> None:
        with Node.open(path, workspace="bench", name="hub") as node:
            async with node.syncing(listen=("127.0.0.1", 0)) as sync:
                pipe.send(sync.url)
                await readable(pipe)
        pipe.recv()
        pipe.send(megabytes())

    asyncio.run(serve())


async def readable(pipe: Connection) -> None:
    """Wait until there is something to receive, while the event loop goes on."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pipe.fileno(), _finish, ready)
    try:
        await asyncio.wait_for(ready, WAIT_SECONDS_MAX)
    finally:
        loop.remove_reader(pipe.fileno())


def _finish(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def megabytes() -> float:
    """Return the peak memory of this process. Not from getrusage, whose value a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
