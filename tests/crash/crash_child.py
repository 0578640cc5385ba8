"""What runs in the processes that the tests of this folder kill, stop and starve.

A child says on its pipe what has happened, each thing before it begins the next. What it has said of a write is an
acknowledgement: whatever befalls the process from then on, that write must be found again.

A step is one thing that a process does to its files: a statement that does not only read, a write, a sync, a
truncation, a deletion. Statements are seen by APSW's tracer, the rest by a VFS that stands before the system's. A write
that is a step to be killed at does half of its work first: torn pages are what a crash leaves behind. The short header
of a page in the log is no step of its own, because without its page it says nothing.
"""

import asyncio
import ctypes
import itertools
import os
import resource
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import apsw

from leasemesh import DatabaseError, LeaseLost, NewEvent, Node
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.sync.ports import Incoming, ReadRequest
from leasemesh.sync.version_vector import START

PIECE_BYTES = 1_000
"""Small, so that a transfer takes several transactions."""

PAGE_BYTES_MIN = 512

OPTIONS = {"workspace": "team"}


class Steps(apsw.VFS):
    """Counts steps, once it is armed, and kills this process at one of them. The name of a step begins with the part of
    the operation, where it has several.

    Args:
        pipe: where the step is told of.
        kill_at: the number of a step; or a name, for the first one of that name; or (name, how many of them).
        loses_power: it is the machine that dies: what the disk had not been waited for is gone from the log.
    """

    def __init__(self, pipe, kill_at, *, loses_power=False):
        super().__init__("steps", "unix", makedefault=True)
        self.kill_at = kill_at
        self.armed = False
        self.part = ""
        self._pipe = pipe
        self._count = 0
        self._counts = Counter()
        self._loses_power = loses_power
        self.safe_bytes = {}  # of each log, by its name
        apsw.connection_hooks.append(self._trace)

    def take(self, name, tear=None):
        """A step is about to be taken; `tear` does a part of it."""
        if not self.armed:
            return
        self._count += 1
        part = self.part_now()
        name = f"{part}: {name}" if part else name
        self._counts[name] += 1
        if self.kill_at in (self._count, name, (name, self._counts[name])):
            if tear is not None:
                tear()
            if self._loses_power:
                for log, safe_bytes in self.safe_bytes.items():
                    os.truncate(log, safe_bytes)
            self._pipe.send(("killed", name))
            os.kill(os.getpid(), signal.SIGKILL)

    def part_now(self):
        return self.part

    def saw(self, words, bindings):
        """A statement that does not only read begins with these words."""

    def xOpen(self, name, flags):
        return SteppingFile(self, name, flags)

    def xDelete(self, filename, sync_folder):
        self.take(f"delete {kind_of(filename)}")
        super().xDelete(filename, sync_folder)
        self.safe_bytes.pop(filename, None)

    def _trace(self, connection):
        def trace(_, sql, bindings):
            words = sql.split()[:3]
            reads = words[0] == "COMMIT" and connection.txn_state("main") != apsw.SQLITE_TXN_WRITE
            if not reads and words != ["BEGIN"] and words[0].upper() not in ("SELECT", "PRAGMA"):
                self.saw(words, bindings)
                self.take(" ".join(words))
            return True

        connection.set_exec_trace(trace)


class SteppingFile(apsw.VFSFile):
    """A file whose changes are steps. Temporary files have no name and die with the process: no steps."""

    def __init__(self, steps, name, flags):
        super().__init__("unix", name, flags)
        self._steps = steps
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._kind = kind_of(self._name)
        if self._kind == "log":
            steps.safe_bytes.setdefault(self._name, 0)

    def xWrite(self, data, offset):
        if self._kind and len(data) >= PAGE_BYTES_MIN:
            write = super().xWrite
            self._steps.take(f"write {self._kind}", lambda: write(data[: len(data) // 2], offset))
        super().xWrite(data, offset)

    def xSync(self, flags):
        if self._kind:
            self._steps.take(f"sync {self._kind}")
        super().xSync(flags)
        if self._kind == "log":
            self._steps.safe_bytes[self._name] = self.xFileSize()

    def xTruncate(self, size):
        if self._kind:
            self._steps.take(f"truncate {self._kind}")
        super().xTruncate(size)


def kind_of(name):
    return "" if name is None else "log" if name.endswith("-wal") else "file"


# --- Operations that are killed ---------------------------------------------------------------------------------------


def run_operation(path, name, number, kill_at, pipe):
    """Do one operation of OPERATIONS on the file, and be killed at its step `kill_at` if it has so many."""
    steps = Steps(pipe, kill_at)
    OPERATIONS[name](Path(path), number, steps, pipe)
    steps.armed = False
    pipe.send(("done", None))


def names_of(number, kind="p"):
    return [f"{kind}{number}-{index}" for index in range(3)]


def publish(path, number, steps, pipe):
    with Node.open(path) as node:
        steps.armed = True
        node.publish_many("mail", "inbox", [NewEvent(name, name, {"text": "x" * 500}) for name in names_of(number)])
        pipe.send(("published", names_of(number)))
        steps.armed = False


def reserve(path, number, steps, pipe):
    with Node.open(path) as node:
        publish_some(node, number, pipe)
        steps.armed = True
        reservation = node.reserve("mail", "inbox", message_ids=names_of(number))
        pipe.send(("reserved", (reservation.run, names_of(number))))
        steps.armed = False


def settle(path, number, steps, pipe):
    with Node.open(path) as node:
        publish_some(node, number, pipe)
        reservation = node.reserve("mail", "inbox", message_ids=names_of(number))
        pipe.send(("reserved", (reservation.run, names_of(number))))
        steps.armed = True
        reservation.consume()
        pipe.send(("consumed", names_of(number)))
        steps.armed = False


def checkpoint(path, number, steps, pipe):
    """Closing the last connection folds the log into the file and deletes it."""
    node = Node.open(path)
    publish_some(node, number, pipe)
    steps.armed = True
    node.close()


def merge(path, number, steps, pipe):
    """Take over what a peer has (its file lies beside this one)."""
    with Node.open(path) as node, Node.open(path.with_name("peer.db")) as peer:
        transfer(peer, node, steps)


def create(path, number, steps, pipe):
    steps.armed = True
    Node.open(path, name="victim", **OPTIONS).close()


OPERATIONS = {operation.__name__: operation for operation in (publish, reserve, settle, checkpoint, merge, create)}


def publish_some(node, number, pipe):
    node.publish_many("mail", "inbox", [NewEvent(name, name, {"text": "x" * 500}) for name in names_of(number)])
    pipe.send(("published", names_of(number)))


# --- Processes that live longer ---------------------------------------------------------------------------------------


def hold_an_event(path, peer, pipe):
    """Reserve an event, say so, and settle it when the pipe says go."""
    asyncio.run(_hold_an_event(path, peer, pipe))


async def _hold_an_event(path, peer, pipe):
    async with Node.open(path, name="holder", **OPTIONS) as node, node.syncing(peers=[peer]):
        await node.caught_up()
        reservation = node.reserve("mail", "inbox", limit=1)
        await node.caught_up()
        pipe.send(("reserved", reservation.run))
        await asyncio.to_thread(pipe.recv)
        try:
            pipe.send(("consumed", reservation.consume()))
        except LeaseLost as error:
            pipe.send(("lost", error.owners))


def publish_and_sync(path, peer, pipe):
    """Sync with a peer and publish all the time, saying so after each event; until killed."""
    asyncio.run(_publish_and_sync(path, peer, pipe))


async def _publish_and_sync(path, peer, pipe):
    async with Node.open(path, name="publisher", **OPTIONS) as node, node.syncing(peers=[peer]):
        await node.caught_up()
        for number in itertools.count():
            name = f"{node.incarnation}-{number}"
            await asyncio.to_thread(node.publish, "mail", "inbox", name, payload="x" * 300)
            pipe.send(("published", name))


def work_on_one_file(path, number, rounds, pipe):
    """Publish, reserve and consume beside other processes; say each thing when it is done."""
    with Node.open(path) as node:
        for turn in range(rounds):
            names = [f"{number}-{turn}-{index}" for index in range(4)]
            node.publish_many("mail", "inbox", [NewEvent(name, name, None) for name in names])
            pipe.send(("published", names))
            with node.reserve("mail", "inbox", limit=4) as reservation:
                taken = [event.message_id for event in reservation]
                reservation.consume()
            pipe.send(("consumed", taken))
    pipe.send(("done", None))


def fill_the_disk(path, size_max, pipe):
    """Publish until it fails, say how, and go on for a little when the pipe says that there is room."""
    if size_max is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_max, resource.RLIM_INFINITY))
    with Node.open(path) as node:
        numbers = itertools.count()
        try:
            for number in numbers:
                node.publish("mail", "inbox", f"before-{number}", payload="x" * 10_000)
                pipe.send(("published", f"before-{number}"))
        except DatabaseError as error:
            pipe.send(("refused", str(error)))
        pipe.send(("readable", len(node.peek("mail", "inbox", limit=10_000))))
        pipe.recv()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for number in range(5):
            node.publish("mail", "inbox", f"after-{number}", payload="x" * 10_000)
            pipe.send(("published", f"after-{number}"))


def write_without_privileges(path, pipe):
    """Open and write a file as a user who may not do everything would."""
    drop_capabilities()
    try:
        with Node.open(path) as node:
            node.publish("mail", "inbox", "one more")
    except DatabaseError as error:
        pipe.send(("refused", str(error)))
    else:
        pipe.send(("written", None))


def drop_capabilities():
    """Make this process, should it be root's, heed the permissions of files. (capset of Linux, version 3.)"""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


# --- Sync without a network -------------------------------------------------------------------------------------------


def transfer(sender, receiver, steps=None, piece_bytes=PIECE_BYTES):
    """Send what the receiver lacks, piece by piece, as the engine would: on from where the last transfer was cut.

    `steps` are armed while the receiver merges.
    """
    source, target = ChangeStorage(sender.database), ChangeStorage(receiver.database)
    mine, theirs = source.state(), target.state()
    known, resume = theirs.vector.entry(mine.site), target.resume_point(mine.site)
    points = ((known.version, known), (resume.version, resume.snapshot), (0, START))
    after = max(version for version, point in points if mine.lineage.owns(point, mine.version))
    with closing(source.open_reader()) as reader:
        result = reader.begin(ReadRequest(after, theirs.vector, 0), piece_bytes)
        while True:
            piece = Incoming(
                mine.site, result.header, result.first, result.rows, result.upto, result.whole, result.last
            )
            if steps is not None:
                steps.armed = True
            target.apply(piece)
            if steps is not None:
                steps.armed = False
            if result.last:
                return
            result = reader.read(piece_bytes)
