"""Locks that processes of one machine hold while they do something with a file that only one of them may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class LockHeld(Exception):
    """Another process has the lock."""


@contextmanager
def file_lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock during a block. The operating system gives it up for a process that dies.

    Args:
        path: the lock's file. Made when absent.
        wait_s: how long to wait for whoever has it.

    Raises:
        LockHeld: somebody has it still.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise LockHeld(f"{path} is held by another process") from error
    try:
        yield
    finally:
        lock.release()
