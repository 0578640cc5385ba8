"""A transaction that is larger than a piece of a transfer, and a process killed in the middle of it.

Pieces of it are staged at the receiver and applied as a whole. Whoever is killed, and whenever: nobody ever sees a part
of the transaction, what was staged is gone in the end, and the next transfer makes up for everything.
"""

import asyncio
import signal

import pytest
from crash_child import OPTIONS, transfer
from staged_child import PARTS, PIECE_BYTES, ids_of, publish_much, sync_and_send, sync_and_take, take_all
from sweeps import kill_at_every_step, problems_of

from leasemesh import Node
from leasemesh.sync import limits

LOOPBACK = ("127.0.0.1", 0)


class Witness:
    """Looks at each commit of a file whether it shows a part of a transaction."""

    def __init__(self, node, names):
        self.node = node
        self.names = names
        self.counts = set()
        node.database.on_commit(lambda _: self.counts.add(shown(node, names)))


def shown(node, name):
    """How many events of a large transaction a file has."""
    return len(node.events.get_many("mail", "inbox", ids_of(name)))


def staged_rows(node):
    """Rows that wait in temporary files, which nobody but the process that syncs can see."""
    staging = node._storage._staging
    return sum(len(rows) for sender in list(staging._senders) for rows in staging.read(sender))


def words_of(process):
    """What a child said last: (the step it was killed at, or None when it came to its end)."""
    *_, (kind, step) = process.words()
    assert (kind, process.process.exitcode) in {("killed", -signal.SIGKILL), ("done", 0)}
    return step


def test_a_receiver_that_is_killed_at_any_step_shows_all_or_nothing(tmp_path, child):
    path = tmp_path / "receiver.db"
    Node.open(path, name="receiver", **OPTIONS).close()
    with Node.open(tmp_path / "peer.db", name="peer", **OPTIONS) as peer:

        def kill_one(number, kill_at):
            whole = len(publish_much(peer, number))
            with child(take_all, str(path), kill_at) as process:
                step = words_of(process)
            with Node.open(path) as node:
                assert shown(node, number) == whole or (step is not None and shown(node, number) == 0)
                assert not problems_of(node)
                transfer(peer, node)
                assert node.digest().tables == peer.digest().tables
            return step

        hit = kill_at_every_step(kill_one, {"INSERT INTO absorbed", "COMMIT", "write log"})
    assert hit["INSERT INTO staged"] >= PARTS - 1 <= hit["INSERT INTO crsql_changes"]
    assert {file.name for file in tmp_path.iterdir()} == {"receiver.db", "peer.db"}


@pytest.fixture
async def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ROWS_BYTES_MAX", PIECE_BYTES)
    async with Node.open(tmp_path / "hub.db", name="hub", **OPTIONS) as node:
        yield node


async def test_a_receiver_that_is_killed_at_any_piece_begins_the_transaction_anew(hub, tmp_path, start, within):
    path = tmp_path / "receiver.db"
    kills = [("INSERT INTO staged", piece) for piece in range(1, PARTS)]
    kills += [("INSERT INTO crsql_changes", 1), ("INSERT INTO crsql_changes", PARTS), "INSERT INTO absorbed"]
    async with within(60), hub.syncing(listen=LOOPBACK) as sync:
        await asyncio.to_thread(publish_much, hub, "large")
        for kill_at in kills:
            process = start(sync_and_take, path, sync.url, kill_at)
            step = await asyncio.to_thread(words_of, process)
            assert step == (kill_at if isinstance(kill_at, str) else kill_at[0])
            with Node.open(path) as node:
                assert shown(node, "large") == 0 and not problems_of(node)
        assert await asyncio.to_thread(words_of, start(sync_and_take, path, sync.url, None)) is None
    with Node.open(path) as node:
        assert shown(node, "large") == len(ids_of("large"))
        assert node.digest().tables == hub.digest().tables


async def test_a_sender_that_is_killed_between_pieces_leaves_nothing_of_its_transaction(hub, tmp_path, start, within):
    path = tmp_path / "sender.db"
    witness = Witness(hub, "large")
    with Node.open(path, name="sender", **OPTIONS) as node:
        publish_much(node, "large")
    async with within(60), hub.syncing(listen=LOOPBACK) as sync:
        staged = []
        for piece in range(1, PARTS):
            process = start(sync_and_send, path, sync.url, ("read a piece", piece))
            assert await asyncio.to_thread(words_of, process) == "read a piece"
            with Node.open(path) as node:
                assert not problems_of(node)
                node.publish("mail", "inbox", f"since piece {piece}")
            # Somebody else's changes come between.
            hub.publish("mail", "inbox", f"at the hub {piece}")
            assert shown(hub, "large") == 0
            staged.append(staged_rows(hub))
        assert await asyncio.to_thread(words_of, start(sync_and_send, path, sync.url, None)) is None
    assert staged[-1] > 0, "nothing had been staged"
    assert staged_rows(hub) == 0
    assert witness.counts == {0, len(ids_of("large"))}
    assert not problems_of(hub)
    with Node.open(path) as node:
        assert node.digest().tables == hub.digest().tables
