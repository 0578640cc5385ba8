"""The power is cut: what the disk had not been waited for is gone.

With `synchronous` at NORMAL a commit waits for no disk, so that a file loses the tail of its log: some frames at the
end, or a part of one. Here the log of a device is cut at every border of a frame, and within every frame. The file must
open, as an older copy of itself; and the mesh must give back what it had told others before.
"""

import hashlib
import shutil
import signal
from contextlib import closing

import apsw
import pytest
from confirmed_child import run_confirmed
from crash_child import OPTIONS, transfer
from sweeps import problems_of

from leasemesh import NewEvent, Node

LOOPBACK = ("127.0.0.1", 0)
LOG_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24


class Device:
    """A device that has worked and synced for a while, as its disk was when the power failed."""

    def __init__(self, folder, hub):
        self.folder = folder
        with Node.open(folder / "laptop.db", name="laptop", **OPTIONS) as node:
            page_bytes = node.query("PRAGMA page_size")[0][0]
        with Node.open(folder / "laptop.db") as node:
            self.life(node, hub)
            for end in ("", "-wal"):
                shutil.copy(f"{node.path}{end}", folder / f"disk.db{end}")
        self.log = (folder / "disk.db-wal").read_bytes()
        self.borders = list(range(LOG_HEADER_BYTES, len(self.log) + 1, FRAME_HEADER_BYTES + page_bytes))

    def life(self, node, hub):
        """Do and merge things of every kind; the hub knows of each."""
        for number in range(2):
            names = [f"{number}-{index}" for index in range(5)]
            node.publish_many("mail", "inbox", [NewEvent(name, name, "x" * 300) for name in names])
            hub.publish_many("mail", "news", [NewEvent(name, name, "y" * 300) for name in names])
            transfer(hub, node)
            with node.reserve("mail", "inbox", limit=3) as reservation:
                transfer(node, hub)
                reservation.consume()
            node.reserve("mail", "news", limit=1)
            transfer(node, hub)

    def is_commit(self, border):
        """Tell whether the frame that ends at a border is the last of a transaction."""
        before = self.borders[self.borders.index(border) - 1]
        return border == LOG_HEADER_BYTES or self.log[before + 4 : before + 8] != bytes(4)

    def after(self, log):
        """Return the path of the file as it is with this log."""
        path = self.folder / "cut.db"
        path.with_name("cut.db-shm").unlink(missing_ok=True)
        shutil.copy(self.folder / "disk.db", path)
        path.with_name("cut.db-wal").write_bytes(log)
        return path


def content_of(path):
    """Check a file as SQLite alone would, and return what it holds."""
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return hashlib.sha256(connection.serialize("main")).digest()


@pytest.fixture
def hub(tmp_path):
    with Node.open(tmp_path / "hub.db", name="hub", **OPTIONS) as node:
        yield node


@pytest.fixture
def device(tmp_path, hub):
    return Device(tmp_path, hub)


def test_a_log_that_is_cut_anywhere_leaves_the_last_whole_transaction(device):
    contents = []
    for number, border in enumerate(device.borders):
        whole = content_of(device.after(device.log[:border]))
        if device.is_commit(border):
            contents.append(whole)
        assert whole == contents[-1]
        for following in device.borders[number + 1 : number + 2]:
            # A disk may have made the file longer already than what it has of it.
            torn = device.log[: (border + following) // 2].ljust(len(device.log) * (number % 2), b"\0")
            assert content_of(device.after(torn)) == contents[-1]
    assert len(set(contents)) == len(contents) >= 10 and len(device.borders) >= 100


async def test_what_a_device_had_told_of_comes_back_to_it_after_a_power_cut(device, hub, within):
    known = {event.id: event for topic in ("inbox", "news") for event in everything(hub, topic)}
    commits = [border for border in device.borders if device.is_commit(border)]
    async with hub.syncing(listen=LOOPBACK) as sync:
        for number, border in enumerate(commits):
            async with within(), Node.open(device.after(device.log[:border])) as node:
                if number % 2:
                    # Versions are used again, for other content, before anybody has told it of its lost future.
                    node.publish("mail", "inbox", f"after cut {number}")
                    node.reserve("mail", "inbox", limit=2)
                async with node.syncing(peers=[sync.url]):
                    await node.caught_up()
                assert node.digest().tables == hub.digest().tables
                assert problems_of(node) == []
        for event in known.values():
            now = hub.events.get(event.id)
            assert (now.title, now.payload) == (event.title, event.payload)
            assert event.status != "consumed" or now.status == "consumed", "an outcome was forgotten"
        assert {event.message_id for event in everything(hub, "inbox")} >= {
            f"after cut {number}" for number in range(1, len(commits), 2)
        }


def everything(node, topic):
    statuses = ("pending", "reserved", "consumed")
    return [event for status in statuses for event in node.peek("mail", topic, status=status, limit=1_000)]


# --- What others act on must not be forgotten -------------------------------------------------------------------------


@pytest.fixture
def lose_power(child):
    """Let a process do an operation on a closed file, and cut the power at a step: all that no disk was waited for is
    gone, on every file that the process had open."""

    def lose(path, operation, subject=None, at="done"):
        with child(run_confirmed, str(path), operation, subject, at, True) as process:
            *said, last = process.words()
            assert last == ("killed", at) and process.process.exitcode == -signal.SIGKILL
        for shared in path.parent.glob("*.db-shm"):
            shared.unlink()
        return dict(said)

    return lose


@pytest.fixture
def authority(tmp_path):
    """The paths of a hub, which is the authority, of a laptop and of a phone. All know the same three events."""
    hub, *devices = nodes = [Node.open(tmp_path / f"{name}.db", **OPTIONS) for name in ("hub", "laptop", "phone")]
    hub.authorities.appoint(hub.site_id, by="Ann")
    hub.authority.tend()
    hub.modes.set("mail", "confirmed", topic="inbox")
    for name in "123":
        hub.publish("mail", "inbox", name)
    for device in devices:
        transfer(hub, device)
    for node in nodes:
        node.close()
    return [node.path for node in nodes]


def test_an_intent_outlives_a_power_cut_that_comes_before_its_effect(authority, lose_power):
    _, laptop, _ = authority
    run = lose_power(laptop, "work", ["1", "2"], at="before the effect")["claimed"]
    with Node.open(laptop) as node:
        assert node.mutations.get(run).status == "in_flight"
        assert node.events.get_by_message_id("mail", "inbox", "1").status == "unknown"


def test_an_authority_does_not_forget_in_a_power_cut_what_it_granted(authority, lose_power):
    hub, laptop, phone = authority
    runs = []
    with Node.open(hub) as authority:
        for path, wanted in ((laptop, "12"), (phone, "23")):
            with Node.open(path) as node:
                runs.append(node.reserve("mail", "inbox", message_ids=list(wanted)).run)
                node.permits.request(runs[-1])
                transfer(node, authority)
    lose_power(hub, "tend")
    with Node.open(hub) as node:
        assert [node.permits.get(run).state for run in runs] == ["granted", "refused"]


def test_an_authority_does_not_forget_in_a_power_cut_that_it_has_stepped_back(authority, lose_power):
    hub, laptop, _ = authority
    with Node.open(hub) as node, Node.open(laptop) as next_one:
        node.authorities.move(next_one.site_id, by="Ann")
    lose_power(hub, "tend")
    with Node.open(hub) as node:
        assert node.authorities.granting() == 0


def test_a_home_does_not_forget_in_a_power_cut_that_it_was_handed_over(authority, lose_power):
    hub, laptop, _ = authority
    with Node.open(hub) as node, Node.open(laptop) as next_one:
        node.modes.set("mail", "home", topic="inbox")
        new = next_one.site_id
    lose_power(hub, "hand_over", new)
    with Node.open(hub) as node:
        assert node.modes.get("mail", topic="inbox").home == new
