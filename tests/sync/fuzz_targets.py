"""What is fuzzed: a target takes an input and returns its outcome in words; whatever it raises is a failure.

decode: one message. Only RemoteProtocolError may come out, at any depth: body, rows, compressed rows.

session: all that a peer sends on one link, as an array of messages, to an engine with a second peer. The engine never
raises; when it refuses a message it closes this link alone, and nothing of the message is stored.

merge: rows of a piece, to a real database in which every kind of fact stands. Only a SyncError may come out, and then
nothing was stored; and what is derived from the facts is what a rebuild derives.
"""

import itertools
import tempfile
from contextlib import ExitStack, closing, suppress
from operator import itemgetter
from pathlib import Path
from random import Random

import msgpack
from helpers import World, keys

from leasemesh import NewEvent, Node
from leasemesh.node.database.derived import rebuild
from leasemesh.node.machine.environment import Environment
from leasemesh.node.model import ids
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.sync import wire
from leasemesh.sync.actions import Send
from leasemesh.sync.columns import decode_rows, encode_rows
from leasemesh.sync.errors import CloseCode, LocalProtocolError, RemoteProtocolError, SyncError
from leasemesh.sync.messages import Barrier, BarrierReply, Digest, DigestRequest, Goodbye, Greeting, SealedHello
from leasemesh.sync.ports import DatabaseDigest, Incoming, ReadRequest, TableDigest, TransferHeader
from leasemesh.sync.version_vector import NO_ERA, Entry, SiteId, VersionVector

REBUILT_EVERY = 50
"""A rebuild takes as long as many merges."""

CONVERSATION_MAX = 30
ALL_BYTES = 2**22


def conversation():
    """Return what a dialler sends on one link until it is caught up and said goodbye, and what the listener sends."""
    world = World()
    hub, laptop = world.node(1), world.node(2)
    laptop.store.unknown_tables = {"t3"}
    for number, node in enumerate((hub, laptop, hub)):
        world.commit(node, *keys(120, 50 * number), value=f"value {number}")
    world.commit(laptop, b"k", value=b"x" * 5000, table="t3")
    laptop.store.piece_rows = 30
    link, _ = world.connect(laptop, hub)
    world.advance(6_000)
    world.commit(laptop, *keys(3))
    world.call(hub, lambda engine: engine.request_digest(engine.peers()[0].link, now_ms=world.now_ms))
    world.call(laptop, lambda engine: engine.request_digest(link, now_ms=world.now_ms))
    for node in (laptop, hub):
        world.call(node, lambda engine, store=node.store: engine.begin_barrier(1, store.state(), world.now_ms))
    world.call(laptop, lambda engine: engine.close_all(world.now_ms))
    return [
        [action.data for action in node.actions if isinstance(action, Send)][:CONVERSATION_MAX]
        for node in (laptop, hub)
    ]


class DecodeTarget:
    """See the module."""

    is_structured = False

    def __init__(self):
        goodbye, request = Goodbye(4002, "another workspace", False), DigestRequest(1)
        digest = Digest(
            1, DatabaseDigest(VersionVector({SiteId(b"s" * 16): Entry(7, NO_ERA)}), {"t": TableDigest(4, b"D" * 16)})
        )
        markers = Barrier(bytes(range(16))), BarrierReply(bytes(range(16)), whole=False)
        extra = [wire.encode(message) for message in (goodbye, request, digest, *markers)]
        self.seeds = [*itertools.chain.from_iterable(conversation()), *extra]
        self._greeting = Greeting(bytes(16), SiteId(b"s" * 16))

    def __call__(self, data):
        try:
            message = wire.decode(data)
            if isinstance(message, SealedHello):
                message = wire.open_hello(
                    SealedHello(b"", message.body),
                    token=None,
                    role="dialer",
                    dialer=self._greeting,
                    listener=self._greeting,
                )
        except RemoteProtocolError as error:
            return str(error)
        return type(message).__name__

    def close(self):
        """Nothing is open."""


class SessionTarget:
    """See the module."""

    is_structured = True  # The array around the messages is this target's own; nobody sends it.

    def __init__(self):
        dialled, listened = conversation()
        self.seeds = [msgpack.packb([False, *dialled]), msgpack.packb([True, *listened])]
        self.seeds += [msgpack.packb([False, *dialled[:count]]) for count in (1, 2, 4)]

    def __call__(self, data):
        try:
            dialed, *messages = msgpack.unpackb(data, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            return "no conversation"
        world = World()
        node, good = world.node(5), world.node(9)
        node.store.piece_rows = 4  # many messages, so that the acks of the conversation are about something
        world.commit(node, *keys(60))
        world.connect(good, node)
        link = world.raw_link(node, dialed=bool(dialed))
        outcome = "still open"
        for message in messages[: 2 * CONVERSATION_MAX]:
            if not isinstance(message, bytes):
                continue
            with suppress(LocalProtocolError):  # once the link is open, so that an answer is not refused as unasked
                node.engine.request_digest(link, now_ms=world.now_ms)
            before = node.store.state()
            world.feed(node, link, message)
            assert node.engine.state == node.store.state()
            if link in node.closed:
                if node.closed[link].code == CloseCode.IDENTITY:
                    return "a claim about this node's own history that it takes a new site id for"  # E4 of the engine
                assert node.store.state() == before, "what was refused was stored"
                outcome = f"{node.closed[link].code}: {node.closed[link].reason}"
                break
        world.commit(good, b"afterwards")
        # No more than that: a peer that is let in and claims to have sent what it has not is believed, and others then
        # lack it as well.
        assert not good.closed and ("t", b"afterwards", "c") in node.store.content(), "the other link suffered"
        return outcome

    def close(self):
        """Nothing is open."""


def is_row(value):
    """Whether the value can be encoded as a row; what cannot is no matter of merging."""
    kinds = (str, bytes, str, object, int, int, bytes, int, int)
    return (
        isinstance(value, list)
        and len(value) == len(kinds)
        and all(map(isinstance, value, kinds))
        and not isinstance(value[3], list)
    )


class _Undo(Exception):
    """Ends the transaction of one input."""


class MergeTarget:
    """See the module."""

    is_structured = True

    def __init__(self):
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        with open_node(folder / "peer.db", seed=1) as peer:
            fill(peer)
            rows = read_all(peer)
        self._node = self._stack.enter_context(open_node(folder / "node.db", seed=2))
        fill(self._node)
        self._storage = ChangeStorage(self._node.database)
        self._count = 0
        tables = itertools.groupby(sorted(rows, key=itemgetter(0)), key=itemgetter(0))
        self.seeds = [msgpack.packb(list(group)) for _, group in tables] + [msgpack.packb(rows)]

    def close(self):
        self._stack.close()

    def __call__(self, data):
        try:
            rows = [tuple(row) for row in msgpack.unpackb(data, strict_map_key=False) if is_row(row)]
            rows = decode_rows(encode_rows(rows), len(rows))
        except (LocalProtocolError, RemoteProtocolError) as error:
            return str(error)
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError, msgpack.UnpackException):
            return "no rows"
        rows.sort(key=lambda row: (row[5], row[8]))
        try:
            with self._node.transaction():
                outcome = self._merge(rows)
                raise _Undo
        except _Undo:
            return outcome

    def _merge(self, rows):
        site = SiteId(b"the fuzzing peer")
        version = max((row[5] for row in rows), default=1)
        entry = Entry(version, NO_ERA)
        header = TransferHeader(entry, VersionVector({site: entry}), len(rows))
        before = self._storage.state()
        try:
            applied = self._storage.apply(Incoming(site, header, True, rows, entry, True, True))
        except SyncError as error:
            assert self._storage.state() == before, "what was refused was stored"
            return str(error)
        self._count += 1
        if self._count % REBUILT_EVERY == 0:
            assert rebuild(self._node.database).corrected == {}, "what is derived differs from what a rebuild derives"
        reasons = (
            self._node.query("SELECT DISTINCT reason FROM quarantined ORDER BY 1 LIMIT 1")
            if applied.quarantined
            else []
        )
        return f"merged into {sorted(applied.tables)}, quarantined because {reasons}"


def open_node(path, *, seed):
    """The same inputs are made from the same seed, so nothing here may be random."""
    ticks = itertools.count(1_700_000_000_000)
    return Node.open(
        path,
        workspace="w",
        name=path.stem,
        environment=Environment(clock_ms=lambda: next(ticks), random_bytes=Random(seed).randbytes),
    )


def fill(node):
    """Have every kind of fact in a file, the same ones in each."""
    node.publish_many("mail", "inbox", [NewEvent(f"{number}", "title", {"n": number}) for number in range(6)])
    with node.reserve("mail", "inbox", limit=2) as reservation:
        reservation.consume()
    node.reserve("mail", "inbox", limit=1).release()
    for tool in ("send", "call"):
        held = node.reserve("mail", "inbox", limit=1)
        node.handler_runs.create("mail", tool, "consumer")
        work = ids.work_id(ids.handler_id("mail", tool), [event.id for event in held])
        node.mutations.create(held.run, work, tool=tool)
        node.mutations.mark_in_flight(held.run)
    node.mutations.mark_indeterminate(held.run)
    node.mutations.resolve(work, "happened", by="Ann")
    node.handler_states.set("mail", "send", {"cursor": 1}, run=held.run, expected_version=0)


def read_all(node):
    with closing(ChangeStorage(node.database).open_reader()) as reader:
        return [list(row) for row in reader.begin(ReadRequest(0, VersionVector(), 0), ALL_BYTES).rows]


TARGETS = {"decode": DecodeTarget, "session": SessionTarget, "merge": MergeTarget}
