"""Processes to be killed. They come from a server that has imported everything, so that one takes milliseconds."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

WITHIN_S = 60

PRELOADED = [
    "leasemesh.node.replication.syncing",
    "leasemesh.node.runtime.runner",
    "websockets.asyncio.client",
    "websockets.asyncio.server",
    "confirmed_child",
    "handled_child",
    "staged_child",
]


class Child:
    """A process that runs a function of `crash_child`, and the pipe on which it speaks."""

    def __init__(self, context, target, arguments):
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, other_end), daemon=True)
        self.process.start()
        other_end.close()

    def words(self):
        """What the child says, until it has ended."""
        try:
            while True:
                yield self.hear()
        except (EOFError, ConnectionResetError):  # the latter when it has died with words unheard
            self.process.join(WITHIN_S)

    def hear(self, kind=None):
        """Wait for its next word, which must be of this kind; returns (kind, content), or the content alone."""
        assert self.pipe.poll(WITHIN_S), "the child says nothing"
        said = self.pipe.recv()
        if kind is None:
            return said
        assert said[0] == kind, said
        return said[1]

    def sleep(self):
        """Stop it, and return when it stands still."""
        os.kill(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(") ")[2][0] != "T":
            os.sched_yield()

    def wake(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self):
        if self.process.is_alive():
            self.process.kill()
        self.process.join(WITHIN_S)
        self.process.close()
        self.pipe.close()


@pytest.fixture(scope="session")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # the server does not get this process's path for modules
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def start(context):
    """Starts children by function and arguments; ends them after the test."""
    children = []

    def start_it(target, *arguments):
        children.append(Child(context, target, arguments))
        return children[-1]

    yield start_it
    for child in children:
        child.end()


@pytest.fixture
def child(context):
    """One child in a `with` block."""

    @contextmanager
    def run(target, *arguments):
        one = Child(context, target, arguments)
        try:
            yield one
        finally:
            one.end()

    return run
