"""A byte of the file has changed: it is detected and named, and nothing is synced from the file any more."""

from contextlib import closing

import apsw
import pytest
from crash_child import OPTIONS

from leasemesh import NewEvent, Node
from leasemesh.node.cli.app import run
from leasemesh.node.cli.output import ExitCode
from leasemesh.node.database.connection import DatabaseDamaged

LOOPBACK = ("127.0.0.1", 0)
BTREE_KINDS = (2, 5, 10, 13)


@pytest.fixture
def path(tmp_path):
    """A file with some hundred events, closed, so that all of it is in the file itself; syncing has nothing to add."""
    path = tmp_path / "hub.db"
    with Node.open(path, name="hub", **OPTIONS) as node:
        node.publish_many("mail", "inbox", [NewEvent(f"{number}", "title", "x" * 300) for number in range(500)])
        node.devices.announce(node.name)
    return path


def page_of(path, table):
    """Return where the first page of a table begins, and the size of pages."""
    with closing(apsw.Connection(str(path))) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
        size = connection.pragma("page_size")
    return (page - 1) * size, size


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


async def test_damage_of_any_page_is_found_before_anything_is_synced(path):
    content = path.read_bytes()
    _, size = page_of(path, "publications")
    kinds = []
    for offset in range(size, len(content), size):
        if content[offset] not in BTREE_KINDS:
            continue  # the rest of a long value, or a free page: it has no structure to be damaged
        kinds.append(content[offset])
        flip(path, offset)
        with pytest.raises(DatabaseDamaged, match=r"hub\.db is damaged"):
            async with Node.open(path) as node:
                await node.start_sync(listen=LOOPBACK)
        path.write_bytes(content)
    assert len(kinds) >= 50 and len(set(kinds)) >= 3
    async with Node.open(path) as node:
        await node.start_sync(listen=LOOPBACK)


@pytest.mark.parametrize("table", ["publications", "publications__crsql_clock", "eras"])
async def test_damage_that_is_met_while_syncing_ends_sync_before_it_spreads(path, open_node, within, table):
    laptop = open_node("laptop")
    async with Node.open(path) as hub, within():
        sync = await hub.start_sync(listen=LOOPBACK)
        flip(path, page_of(path, table)[0])
        async with laptop.syncing(peers=[sync.url]):
            with pytest.raises(DatabaseDamaged, match=r"hub\.db is damaged; restore it from a backup"):
                await sync.wait()
            await turned_away(laptop)
        assert laptop.query("SELECT count(*) FROM publications") == [(0,)]


async def turned_away(node):
    """Wait until the node has dialled once more, in vain."""
    observer = node.sync.loop.observe()
    async for tell in observer:
        if tell.kind == "refused":
            return


def test_doctor_names_the_damage_and_looks_no_further(path, capsys):
    flip(path, page_of(path, "event_index")[0])
    with Node.open(path) as node:
        (finding,) = node.doctor()
    assert not finding.healthy and "damaged" in finding.text
    assert run(["doctor", "--db", str(path)]) == ExitCode.DIFFERENT
    assert "damaged" in capsys.readouterr().out


def test_serve_ends_with_one_sentence(path, capsys):
    flip(path, page_of(path, "publications__crsql_clock")[0])
    assert run(["serve", "--db", str(path), "--listen", "127.0.0.1:0"]) == 1
    captured = capsys.readouterr()
    assert "hub.db is damaged (" in captured.err and len(captured.err.strip().splitlines()) <= 3


def test_a_damaged_file_is_named_whatever_is_read(path):
    flip(path, page_of(path, "event_index")[0])
    with Node.open(path) as node:
        with pytest.raises(DatabaseDamaged, match=r"hub\.db is damaged"):
            node.peek("mail", "inbox")
        with pytest.raises(DatabaseDamaged), node.database.snapshot():
            node.query("SELECT * FROM event_index")
        assert node.query("SELECT count(*) FROM topics") == [(1,)]
