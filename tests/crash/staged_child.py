"""Processes that send or take a transaction of many pieces, and are killed in the middle of it."""

import asyncio

from crash_child import OPTIONS, Steps, transfer

from leasemesh import NewEvent, Node
from leasemesh.node.replication.reading import ChangeReader
from leasemesh.sync import limits

PARTS = 5
PIECE_BYTES = 2_000


def publish_much(node, name):
    """Publish in one transaction what takes several pieces; returns the message ids."""
    with node.transaction():
        for part in range(PARTS):
            node.publish_many("mail", "inbox", [NewEvent(one, "", "x" * 800) for one in ids_of(name)[part::PARTS]])
    return ids_of(name)


def ids_of(name):
    return [f"{name}-{index}" for index in range(3 * PARTS)]


def take_all(path, kill_at, pipe):
    """Take what the peer has, whose file lies beside this one, without a network."""
    steps = Steps(pipe, kill_at)
    with Node.open(path) as node, Node.open(node.path.with_name("peer.db")) as peer:
        transfer(peer, node, steps, PIECE_BYTES)
        pipe.send(("done", None))


def sync_and_take(path, peer, kill_at, pipe):
    """Sync with a peer until all is here."""
    steps = Steps(pipe, kill_at)

    async def run():
        async with Node.open(path, name="receiver", **OPTIONS) as node:
            steps.armed = True
            async with node.syncing(peers=[peer]):
                await node.caught_up()
            steps.armed = False
            pipe.send(("done", None))

    asyncio.run(run())


def sync_and_send(path, peer, kill_at, pipe):
    """Sync with a peer until it has all; each piece that is read for it is a step."""
    limits.ROWS_BYTES_MAX = PIECE_BYTES
    steps = Steps(pipe, kill_at)
    read = ChangeReader.read

    def read_and_step(reader, rows_bytes_max):
        steps.take("read a piece")
        return read(reader, rows_bytes_max)

    ChangeReader.read = read_and_step

    async def run():
        async with Node.open(path, name="sender", **OPTIONS) as node, node.syncing(peers=[peer]):
            steps.armed = True
            await node.caught_up()
            steps.armed = False
            pipe.send(("done", None))

    asyncio.run(run())
