"""The limit for whole runs of handlers: the very statements that a node ran, run again by plain APSW.

What is left out is everything that is not SQLite: handlers, threads, the event loop, checks, JSON, objects. The
statements are recorded from a node as it is now, so that the limit cannot fall behind the code; how much the statements
themselves cost is to be seen beside DBOS.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw

from leasemesh.node.database.connection import connect, disconnect


class Recording:
    """Statements in the order in which they began, each with its connection's number and its values."""

    def __init__(self) -> None:
        self.statements: list[tuple[int, str, Any]] = []
        self._on = False

    def begin(self) -> None:
        """Record from now on: what opening the file needs is left out."""
        self._on = True

    def end(self) -> None:
        """Record no more."""
        self._on = False

    def replay(self, path: Path) -> float:
        """Run the statements on a file that is as the recorded one was, and return the seconds."""
        numbers = {number for number, _, _ in self.statements}
        with ExitStack() as stack:
            connections = {number: connect(path) for number in numbers}
            for connection in connections.values():
                stack.callback(disconnect, connection)
            began = time.perf_counter()
            for number, sql, values in self.statements:
                connections[number].execute(sql, values).fetchall()
            return time.perf_counter() - began

    def follow(self, number: int, connection: apsw.Connection) -> None:
        """Record what this connection runs."""

        def note(_: object, sql: str, values: Any) -> bool:
            if self._on:
                self.statements.append((number, sql, values))
            return True

        connection.exec_trace = note


@contextmanager
def recording() -> Iterator[Recording]:
    """Record what the connections run that are opened in the block, once `begin` is called."""
    recorded = Recording()
    count = 0

    def follow(connection: apsw.Connection) -> None:
        nonlocal count
        recorded.follow(count, connection)
        count += 1

    apsw.connection_hooks.append(follow)
    try:
        yield recorded
    finally:
        apsw.connection_hooks.remove(follow)
        recorded.end()
