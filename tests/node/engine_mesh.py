"""Random meshes of real engines on real databases: every message, every job and every answer is a step of its own.

`database_mesh.py` moves whole transfers between databases; here the engines decide, and what they ask for is done in
random order. Links are cut with their tails lost, devices crash with jobs under way, files are restored from backups
and copied, other processes write to them. Then the faults end, and all must be equal, at rest, and right in what they
claim to know.

Run many by hand: `python tests/node/engine_mesh.py FIRST LAST`. A failing seed fails again.
"""

import sys
import tempfile
from collections import Counter, deque
from contextlib import closing
from itertools import count
from pathlib import Path
from random import Random

from database_mesh import OTHER, Mesh, copy
from replicas import NOTES, Replica

from leasemesh.node.database.file import Database
from leasemesh.sync import limits
from leasemesh.sync.actions import (
    Apply,
    BeginRead,
    Close,
    ContinueRead,
    EndRead,
    LoadResume,
    LoadState,
    Reidentify,
    Send,
    SetTimer,
)
from leasemesh.sync.engine import Engine, EngineConfig
from leasemesh.sync.errors import CloseCode
from leasemesh.sync.ports import ReadRequest
from leasemesh.sync.version_vector import VersionVector

HEALING_MS = 120_000
"""Ten times longer than anything that the engines wait for."""


class End:
    """One end of a link. What is sent here waits in `outgoing` until it is delivered to the other end."""

    def __init__(self, device, number):
        self.device, self.number = device, number
        self.outgoing = deque()
        self.closing = False
        self.peer = None


class Device:
    """A replica with its engine, and what the engine has asked for and not got yet."""

    def __init__(self, mesh, name, replica):
        self.mesh, self.name, self.replica = mesh, name, replica
        self.start()

    def start(self):
        self.engine = Engine(
            self.replica.storage.state(),
            EngineConfig("team", self.name, self.replica.database.incarnation),
            self.replica.random.randbytes,
        )
        self.jobs = deque()  # of the storage thread: (work, what takes the answer)
        self.answers = deque()
        self.reads = {}  # link -> jobs of its reader
        self.readers = {}
        self.ends = {}
        self.timers = {}
        self.unnoticed = True  # something was committed that the engine does not know of
        self.refused_as_clone = False

    def stop(self):
        for end in list(self.ends.values()):
            self.mesh.cut(end)

    def input(self, method, *arguments, **options):
        method(*arguments, **options, now_ms=self.mesh.now_ms)
        for action in self.engine.take_actions():
            self.perform(action)

    def perform(self, action):
        storage, engine = self.replica.storage, self.engine
        end = self.ends.get(getattr(action, "link", None))
        match action:
            case Send() if end and not end.closing:
                end.outgoing.append(action.data)
            case Close() if end and not end.closing:
                end.closing = True
                end.outgoing.append(action)
                self.refused_as_clone |= action.code == CloseCode.CLONE
            case LoadResume():
                self.ask(lambda: storage.resume_point(action.site), engine.resume_loaded, action.link)
            case LoadState():
                self.ask(storage.state, engine.state_loaded)
            case Apply():
                self.ask(lambda: storage.apply(action.incoming), engine.applied, action.link)
            case Reidentify():
                self.mesh.fired["new site id"] += 1
                self.ask(storage.reidentify, engine.reidentified)
            case BeginRead() if end:
                size = self.mesh.piece_bytes
                self.reads[action.link].append(lambda reader: reader.begin(action.request, size))
            case ContinueRead() if end:
                self.reads[action.link].append(lambda reader: reader.read(self.mesh.piece_bytes))
            case EndRead() if end:
                self.reads[action.link].append(lambda reader: reader.end())
            case SetTimer():
                self.timers[action.key] = action.at_ms

    def ask(self, work, answer, *arguments):
        self.jobs.append((work, answer, arguments))

    def do_job(self):
        work, answer, arguments = self.jobs.popleft()
        result = work()
        self.mesh.note_history(self)
        self.answers.append((answer, (*arguments, result)))

    def do_read(self, link):
        if link not in self.readers:
            self.readers[link] = self.replica.storage.open_reader()
        result = self.reads[link].popleft()(self.readers[link])
        if result is not None:
            self.answers.append((self.engine.read_done, (link, result)))

    def take_answer(self):
        method, arguments = self.answers.popleft()
        self.input(method, *arguments)

    def notify_commit(self):
        self.unnoticed = False
        self.ask(self.replica.storage.state, self.engine.local_commit)

    def forget(self, link):
        del self.ends[link], self.reads[link]
        if link in self.readers:
            self.readers.pop(link).close()
        self.input(self.engine.disconnected, link)


class EngineMesh:
    """Some devices with what was done to them. `fired` counts each kind of fault, to show that it happened."""

    statement = Mesh.statement

    def __init__(self, folder, seed):
        self.folder = folder
        self.random = Random(seed)
        self.now_ms = 1000
        self.piece_bytes = self.random.choice([200, 600, 2000, limits.ROWS_BYTES_MAX])
        self.fired = Counter()
        self.history = {}  # (site, point) -> what the site had then
        self.links = count(1)
        self.ends = []
        self.backups = []
        self.devices = []
        for _ in range(self.random.randint(3, 5)):
            self.add_device()

    def add_device(self, path=None):
        number = len(self.devices)
        replica = Replica(path or self.folder / f"{number}.db", NOTES, OTHER, seed=self.random.getrandbits(64))
        self.devices.append(Device(self, f"device-{number}", replica))

    def close(self):
        for device in self.devices:
            device.stop()
            device.replica.close()

    # --- Steps --------------------------------------------------------------------------------------------------------

    def steps(self):
        """Return everything that could happen next."""
        steps = [lambda end=end: self.deliver(end) for end in self.ends if end.outgoing]
        for device in self.devices:
            steps += [device.do_job] * bool(device.jobs) + [device.take_answer] * bool(device.answers)
            steps += [device.notify_commit] * device.unnoticed
            steps += [lambda d=device, link=link: d.do_read(link) for link, jobs in device.reads.items() if jobs]
        return steps

    def step(self):
        steps = self.steps()
        if steps:
            self.random.choice(steps)()
        return bool(steps)

    def connect(self, dialler, listener):
        ends = [End(dialler, next(self.links)), End(listener, next(self.links))]
        for end, peer in (ends, reversed(ends)):
            end.peer = peer
            end.device.ends[end.number] = end
            end.device.reads[end.number] = deque()
        self.ends += ends
        for end, dialed in zip(ends, (True, False), strict=True):
            if end.number in end.device.ends:
                end.device.input(end.device.engine.connected, end.number, dialed=dialed)

    def deliver(self, end):
        message = end.outgoing.popleft()
        if isinstance(message, Close):
            self.cut(end)
        elif not end.peer.closing:
            end.peer.device.input(end.peer.device.engine.received, end.peer.number, message)

    def cut(self, end):
        self.ends = [other for other in self.ends if other not in (end, end.peer)]
        for one in (end, end.peer):
            one.device.forget(one.number)

    def fire_timer(self):
        timers = [(at_ms, number, key) for number, d in enumerate(self.devices) for key, at_ms in d.timers.items()]
        if timers:
            at_ms, number, key = min(timers)
            self.now_ms = max(self.now_ms, at_ms)
            del self.devices[number].timers[key]
            self.devices[number].input(self.devices[number].engine.timer_fired, key)

    # --- What happens to devices --------------------------------------------------------------------------------------

    def run(self, rounds):
        kinds = [self.write] * 8 + [self.link] * 5 + [self.break_link] * 2 + [self.fire_timer] * 2
        kinds += [self.write_elsewhere, self.crash, self.back_up, self.restore, self.clone]
        for _ in range(rounds):
            kind = self.random.choice(kinds)
            self.fired[kind.__name__] += 1
            kind()
            for _ in range(self.random.choice([0, 1, 5, 20, 60])):
                self.step()

    def any_device(self):
        return self.random.choice(self.devices)

    def write(self):
        device = self.any_device()
        self.write_to(device, device.replica.database)

    def write_elsewhere(self):
        """Another process writes to a device's file."""
        device = self.any_device()
        database = Database.open(device.replica.path, clock_ms=lambda: 0, random_bytes=device.replica.random.randbytes)
        self.write_to(device, database)
        database.close()

    def write_to(self, device, database):
        with database.transaction() as transaction:
            for _ in range(self.random.choice([1, 1, 2, 12, 40])):
                transaction.execute(*self.statement(is_newer=False))
        device.unnoticed = True
        self.note_history(device)

    def link(self):
        self.connect(*self.random.sample(self.devices, 2))

    def break_link(self):
        if self.ends:
            self.cut(self.random.choice(self.ends))

    def crash(self):
        device = self.any_device()
        device.stop()
        device.replica.restart()
        device.start()

    def back_up(self):
        device = self.any_device()
        device.stop()
        path = self.folder / f"backup-{len(self.backups)}"
        copy(device.replica, path)
        device.start()
        self.backups.append((device, path))

    def restore(self):
        if self.backups:
            device, path = self.random.choice(self.backups)
            device.stop()
            device.replica.close()
            device.replica.path.write_bytes(path.read_bytes())
            device.replica.open()
            device.start()

    def clone(self):
        if self.backups and len(self.devices) < 7:
            path = self.folder / f"clone-{len(self.devices)}.db"
            path.write_bytes(self.random.choice(self.backups)[1].read_bytes())
            self.add_device(path)

    # --- What must hold -----------------------------------------------------------------------------------------------

    def heal(self):
        """Let the devices meet in a random tree until they are at rest, and demand that all is well."""
        pairs = [
            (self.devices[number], self.random.choice(self.devices[:number])) for number in range(1, len(self.devices))
        ]
        end_ms = self.now_ms + HEALING_MS
        while True:
            while self.step():
                pass
            missing = [(a, b) for a, b in pairs if not any(end.peer.device is b for end in a.ends.values())]
            if not missing and all(map(self.is_level, self.devices)):
                break
            assert self.now_ms < end_ms, f"{len(missing)} pairs cannot meet, or somebody waits for ever"
            self.reset_clones()
            for pair in missing:
                self.connect(*self.random.sample(pair, 2))
            self.fire_timer()
        self.check()

    def is_level(self, device):
        state = device.replica.storage.state()
        peers = [end.peer.device.replica.storage.state() for end in device.ends.values()]
        return all(state.vector.entry(peer.site) == peer.vector.entry(peer.site) for peer in peers) and all(
            status.state == "open" and status.ahead == status.behind == 0 for status in device.engine.peers()
        )

    def reset_clones(self):
        """Do what a person is asked to do when two devices run with one site id."""
        for device in self.devices:
            if device.refused_as_clone:
                device.refused_as_clone = False
                sites = [other.replica.site for other in self.devices]
                if sites.count(device.replica.site) > 1:
                    self.fired["clone found"] += 1
                    device.stop()
                    device.replica.storage.reidentify()
                    device.start()
                    self.note_history(device)

    def check(self):
        digests = [device.replica.tables() for device in self.devices]
        assert all(digest == digests[0] for digest in digests)
        for device in self.devices:
            self.check_claims(device)
            assert device.replica.quarantined() == 0
            assert not device.jobs and not device.answers
            assert device.readers.keys() <= device.ends.keys()

    def note_history(self, device):
        """Remember what a device has at the point where it is now; whoever claims that point is measured by it."""
        state = device.replica.storage.state()
        entry = state.site, state.vector[state.site]
        if entry not in self.history:
            self.history[entry] = cells(device)

    def check_claims(self, device):
        """Whatever a device claims to include it has, or something newer."""
        mine, state = cells(device), device.replica.storage.state()
        for site, entry in state.vector.items():
            if site != state.site and entry.version:
                for (table, pk, column), rank in self.history[site, entry].items():
                    is_newer_row = mine.get((table, pk, "-1"), (0, 0))[0] > rank[0]
                    has_cell = mine.get((table, pk, column), (0, 0)) >= rank
                    assert is_newer_row or has_cell, f"{device.name} lacks {table}.{column} of {pk.hex()} at {entry}"


def cells(device):
    """All that a device has: (table, key, column) -> (causal length, col_version); every row has a "-1" as well."""
    found = {}
    with closing(device.replica.storage.open_reader()) as reader:
        rows = reader.begin(ReadRequest(0, VersionVector(), 0), 2**30).rows
    for table, pk, column, _, col_version, _, _, length, _ in rows:
        found[table, pk, column] = (length, col_version)
        found[table, pk, "-1"] = (length, 0)
    return found


def run_mesh(folder, seed, rounds=60):
    mesh = EngineMesh(folder, seed)
    try:
        mesh.run(rounds)
        mesh.heal()
    finally:
        mesh.close()
    return mesh.fired


def main(first, last):
    fired = Counter()
    for seed in range(first, last + 1):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            try:
                fired += run_mesh(Path(folder), seed)
            except BaseException:
                sys.stderr.write(f"seed {seed} fails\n")
                raise
    sys.stdout.write(f"{last - first + 1} meshes converged; {dict(fired)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
