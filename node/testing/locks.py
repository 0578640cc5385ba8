"""The lock files of a world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leasemesh.node.machine.locks import LockHeld
from leasemesh.node.testing.virtual_loop import VirtualLoop


class Locks:
    """Each is held by a process, until it gives it up or dies."""

    def __init__(self) -> None:
        self._holders: dict[Path, VirtualLoop] = {}

    @contextmanager
    def hold(self, loop: VirtualLoop, path: Path) -> Iterator[None]:
        """See `node.machine.locks.file_lock`. Nobody waits here."""
        if path in self._holders:
            raise LockHeld(f"{path} is held by another process")
        self._holders[path] = loop
        try:
            yield
        finally:
            if self._holders.get(path) is loop:
                del self._holders[path]

    def drop(self, loop: VirtualLoop) -> None:
        """Give up what a process held that has died."""
        for path in [path for path, holder in self._holders.items() if holder is loop]:
            del self._holders[path]
