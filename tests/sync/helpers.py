"""A world of engines without network or disk: links are queues, time is a number, and a database is a dictionary.

The databases here are scripts for the protocol, not models of cr-sqlite: a cell is replaced by the one with the higher
(col_version, value). What the real ones do is tested with real ones.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from leasemesh.sync import wire
from leasemesh.sync.actions import (
    Action,
    Apply,
    BeginRead,
    Close,
    ComputeDigest,
    ContinueRead,
    EndRead,
    LinkId,
    LoadResume,
    LoadState,
    Notify,
    RecordHeartbeats,
    Reidentify,
    Send,
    SetTimer,
)
from leasemesh.sync.engine import Engine, EngineConfig
from leasemesh.sync.messages import Message, Purpose
from leasemesh.sync.ports import (
    Applied,
    Change,
    DatabaseDigest,
    Incoming,
    LocalState,
    ReadRequest,
    ReadResult,
    TableDigest,
    TransferHeader,
)
from leasemesh.sync.version_vector import (
    FROM_START,
    START,
    Absorbed,
    Era,
    Lineage,
    Resume,
    SiteId,
    VersionVector,
    ranges_to_send,
)

WORKSPACE = "5f" * 16


def site_id(number: int) -> SiteId:
    return SiteId(bytes([number]) * 16)


class MemoryStore:
    """A database by the rules of replication, small enough to be read at a glance."""

    def __init__(self, site: SiteId) -> None:
        self.site = site
        self.version = 0
        self.eras: list[tuple[int, Era]] = []
        self.cells: dict[tuple[str, bytes, str], Change] = {}
        self.vector = VersionVector()
        self.absorbed: list[Absorbed] = []
        self.resumes: dict[SiteId, Resume] = {}
        self.staged: dict[SiteId, list[Change]] = {}
        self.quarantined: list[Change] = []
        self.unknown_tables: set[str] = set()
        self.piece_rows = 1000
        self.schema = {"leasemesh": 1}

    def state(self) -> LocalState:
        lineage = Lineage(tuple(self.eras))
        own = {self.site: lineage.entry(self.version)}
        return LocalState(self.site, self.version, lineage, VersionVector({**self.vector, **own}), dict(self.schema))

    def write(self, *keys: bytes, value: Any = "v", table: str = "t") -> None:
        """Write some cells in one transaction."""
        self.version += 1
        if not self.eras:
            self.eras.append((1, Era(b"era" + self.site[:5])))
        for sequence, key in enumerate(keys):
            old = self.cells.get((table, key, "c"))
            col_version = old[4] + 1 if old else 1
            self.cells[table, key, "c"] = (table, key, "c", value, col_version, self.version, self.site, 1, sequence)

    def content(self) -> dict[tuple[str, bytes, str], tuple[Any, int]]:
        return {cell: (row[3], row[4]) for cell, row in sorted(self.cells.items())}

    def begin(self, request: ReadRequest) -> "MemoryReader":
        ranges = ranges_to_send(
            after=request.after,
            upto=self.version,
            absorbed=self.absorbed,
            peer_vector=request.peer_vector,
        )
        rows = sorted(
            (row for row in self.cells.values() if any(low < row[5] <= high for low, high in ranges)),
            key=lambda row: (row[5], row[8], row[:3]),
        )
        state = self.state()
        vector, quarantined_upto = state.vector, len(self.quarantined)
        if self.version:
            rows += [(*row[:5], self.version, *row[6:]) for row in self.quarantined[request.quarantined_after :]]
        else:
            vector, quarantined_upto = VersionVector({self.site: START}), request.quarantined_after
        header = TransferHeader(state.lineage.entry(self.version), vector, len(rows))
        return MemoryReader(header, rows, self.piece_rows, state.lineage, quarantined_upto)

    def apply(self, incoming: Incoming) -> Applied:
        if incoming.first:
            self.staged.pop(incoming.site, None)
        rows = [*self.staged.pop(incoming.site, []), *incoming.rows]
        if not incoming.whole:
            self.staged[incoming.site] = rows
            return Applied(self.state(), 0, 0, frozenset())
        quarantined = [row for row in rows if row[0] in self.unknown_tables]
        self.quarantined += quarantined
        changed = [row for row in rows if row not in quarantined and self._wins(row)]
        if changed:
            first = self.version + 1
            self.version = max(first, max(row[5] for row in changed))
            if not self.eras:
                self.eras.append((1, Era(b"era" + self.site[:5])))
            for row in changed:
                self.cells[row[:3]] = (*row[:5], self.version, *row[6:])
            self.absorbed.append(Absorbed(first, self.version, incoming.header.vector))
        if incoming.last:
            self.vector = self.vector.merged(incoming.header.vector)
            self.resumes.pop(incoming.site, None)
        else:
            self.resumes[incoming.site] = Resume(incoming.upto.version, incoming.header.entry)
        return Applied(self.state(), len(rows), len(quarantined), frozenset(row[0] for row in changed))

    def _wins(self, row: Change) -> bool:
        mine = self.cells.get(row[:3])
        return mine is None or (row[4], str(row[3])) > (mine[4], str(mine[3]))

    def digest(self) -> DatabaseDigest:
        digest = TableDigest(len(self.cells), repr(self.content()).encode()[:16].ljust(16))
        return DatabaseDigest(self.state().vector, {"t": digest})

    def reidentify(self) -> LocalState:
        old = self.state().vector
        self.site = SiteId(bytes(255 - byte for byte in self.site))
        self.vector = self.vector.merged(old)
        return self.state()


@dataclass
class MemoryReader:
    header: TransferHeader
    rows: list[Change]
    piece_rows: int
    lineage: Lineage
    quarantined: int
    first: bool = True

    def read(self) -> ReadResult:
        rows, self.rows = self.rows[: self.piece_rows], self.rows[self.piece_rows :]
        last = not self.rows
        whole = last or self.rows[0][5] != rows[-1][5]
        upto = self.header.entry if last else self.lineage.entry(rows[-1][5])
        first, self.first = self.first, False
        return ReadResult(self.header, first, rows, upto, whole, last, self.quarantined)


@dataclass
class Node:
    """An engine and all that belongs to it."""

    name: str
    store: MemoryStore
    engine: Engine
    readers: dict[LinkId, MemoryReader] = field(default_factory=dict)
    timers: dict[tuple[str, int], int] = field(default_factory=dict)
    tells: list[Notify] = field(default_factory=list)
    heartbeats: dict[SiteId, tuple[Era, int]] = field(default_factory=dict)
    closed: dict[LinkId, Close] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    slow: set[type] = field(default_factory=set)
    """Kinds of actions whose answers wait until `World.answer`."""
    waiting: deque[Callable[[], None]] = field(default_factory=deque)

    @property
    def site(self) -> SiteId:
        return self.store.site

    def told(self, kind: str) -> list[str]:
        return [tell.text for tell in self.tells if tell.kind == kind]

    def messages(self, kind: type[Message]) -> list[Message]:
        """All messages of one kind that this node has sent."""
        sent = [wire.decode(action.data) for action in self.actions if isinstance(action, Send)]
        return [message for message in sent if isinstance(message, kind)]

    def count(self, kind: type) -> int:
        """How many actions of one kind this node has asked for."""
        return sum(isinstance(action, kind) for action in self.actions)


class World:
    """Nodes, links and time."""

    def __init__(self) -> None:
        self.now_ms = 1000
        self.nodes: list[Node] = []
        self.trace: list[str] = []
        self._events: deque[Callable[[], None]] = deque()
        self._ends: dict[LinkId, tuple[Node, LinkId]] = {}
        self._open: set[LinkId] = set()
        self._mute: set[LinkId] = set()
        self._random = 0

    # Building.

    def node(
        self, number: int, *, token: str | None = None, workspace: str = WORKSPACE, store: MemoryStore | None = None
    ) -> Node:
        store = store or MemoryStore(site_id(number))
        name = f"node-{number}"
        incarnation = Era(b"start%03d" % len(self.nodes))
        engine = Engine(store.state(), EngineConfig(workspace, name, incarnation, token), self._random_bytes)
        node = Node(name, store, engine)
        self.nodes.append(node)
        return node

    def _random_bytes(self, count: int) -> bytes:
        self._random += 1
        return self._random.to_bytes(count, "big")

    def connect(
        self, dialer: Node, listener: Node, *, purpose: Purpose = "sync", run: bool = True, compress: bool = True
    ) -> tuple[LinkId, LinkId]:
        """Open a link; return its number at the dialer and at the listener."""
        dialer_end, listener_end = LinkId(len(self._ends) + 1), LinkId(len(self._ends) + 2)
        self._ends[dialer_end] = (dialer, listener_end)
        self._ends[listener_end] = (listener, dialer_end)
        self._open |= {dialer_end, listener_end}
        dialer.engine.connected(dialer_end, dialed=True, now_ms=self.now_ms, purpose=purpose, compress=compress)
        self._perform(dialer)
        listener.engine.connected(listener_end, dialed=False, now_ms=self.now_ms)
        self._perform(listener)
        if run:
            self.run()
        return dialer_end, listener_end

    def raw_link(self, node: Node, *, dialed: bool = False) -> LinkId:
        """Open a link with nobody at the other end; feed it with `feed`."""
        link = LinkId(len(self._ends) + 1)
        self._ends[link] = (node, LinkId(-1))
        self._open.add(link)
        node.engine.connected(link, dialed=dialed, now_ms=self.now_ms)
        self._perform(node)
        return link

    # Driving.

    def run(self) -> None:
        """Deliver and answer until nothing is left to do."""
        for _ in range(100_000):
            if not self._events:
                return
            self._events.popleft()()
        raise AssertionError("the engines do not come to rest")

    def step(self) -> bool:
        """Deliver or answer one thing; return False when there is nothing."""
        if self._events:
            self._events.popleft()()
            return True
        return False

    def advance(self, duration_ms: int) -> None:
        """Let time pass, firing the timers that become due."""
        self.run()
        end_ms = self.now_ms + duration_ms
        while True:
            due = sorted(
                (at_ms, number, key)
                for number, node in enumerate(self.nodes)
                for key, at_ms in node.timers.items()
                if at_ms <= end_ms
            )
            if not due:
                break
            at_ms, number, key = due[0]
            self.now_ms = max(self.now_ms, at_ms)
            node = self.nodes[number]
            del node.timers[key]
            node.engine.timer_fired(key, self.now_ms)
            self._perform(node)
            self.run()
        self.now_ms = end_ms

    def commit(self, node: Node, *keys: bytes, run: bool = True, **options: Any) -> None:
        """Write in one transaction, and let the engine know."""
        node.store.write(*keys, **options)
        node.engine.local_commit(node.store.state(), self.now_ms)
        self._perform(node)
        if run:
            self.run()

    def feed(self, node: Node, link: LinkId, data: bytes | Message) -> None:
        """Hand bytes to an engine as if they had come over a link."""
        node.engine.received(link, data if isinstance(data, bytes) else wire.encode(data), self.now_ms)
        self._perform(node)
        self.run()

    def call(self, node: Node, action: Callable[[Engine], None]) -> None:
        """Give an engine any input."""
        action(node.engine)
        self._perform(node)
        self.run()

    def cut(self, link: LinkId) -> None:
        """Break a link: what is under way is lost, both ends notice."""
        self._close_end(link)
        self._close_end(self._ends[link][1])
        self.run()

    def mute(self, *links: LinkId) -> None:
        """From now on nothing that is sent at these ends arrives, and nobody notices."""
        self._mute.update(links)

    def answer(self, node: Node, count: int | None = None) -> None:
        """Give a slow node's answers, all or the first few."""
        for _ in range(len(node.waiting) if count is None else count):
            node.waiting.popleft()()
        self.run()

    # Effects.

    def _perform(self, node: Node) -> None:
        for action in node.engine.take_actions():
            node.actions.append(action)
            self.trace.append(f"{self.now_ms} {node.name} {action}")
            self._perform_one(node, action)

    def _perform_one(self, node: Node, action: Action) -> None:
        store, engine = node.store, node.engine
        match action:
            case Send():
                if action.link not in self._mute:
                    self._events.append(lambda: self._deliver(self._ends[action.link][1], action.data))
            case Close():
                node.closed[action.link] = action
                if action.link not in self._mute:
                    self._events.append(lambda: self._close_end(self._ends[action.link][1]))
                self._close_end(action.link)
            case LoadResume():
                resume = store.resumes.get(action.site, FROM_START)
                self._answer(node, action, lambda: engine.resume_loaded(action.link, resume, self.now_ms))
            case LoadState():
                self._answer(node, action, lambda: engine.state_loaded(store.state(), self.now_ms))
            case BeginRead():
                node.readers[action.link] = store.begin(action.request)
                self._answer_read(node, action)
            case ContinueRead():
                self._answer_read(node, action)
            case EndRead():
                node.readers.pop(action.link, None)
            case Apply():
                self._answer(
                    node, action, lambda: engine.applied(action.link, store.apply(action.incoming), self.now_ms)
                )
            case ComputeDigest():
                self._answer(
                    node,
                    action,
                    lambda: engine.digest_done(action.link, action.request, store.digest(), self.now_ms),
                )
            case Reidentify():
                self._answer(node, action, lambda: engine.reidentified(store.reidentify(), self.now_ms))
            case SetTimer():
                node.timers[action.key] = action.at_ms
            case RecordHeartbeats():
                node.heartbeats.update(action.heartbeats)
            case Notify():
                node.tells.append(action)

    def _answer_read(self, node: Node, action: BeginRead | ContinueRead) -> None:
        reader = node.readers[action.link]
        self._answer(node, action, lambda: node.engine.read_done(action.link, reader.read(), self.now_ms))

    def _answer(self, node: Node, action: Action, answer: Callable[[], None]) -> None:
        def give() -> None:
            answer()
            self._perform(node)

        if type(action) in node.slow:
            node.waiting.append(give)
        else:
            self._events.append(give)

    def _deliver(self, link: LinkId, data: bytes) -> None:
        if link in self._open:
            node = self._ends[link][0]
            node.engine.received(link, data, self.now_ms)
            self._perform(node)

    def _close_end(self, link: LinkId) -> None:
        if link in self._open:
            self._open.remove(link)
            node = self._ends[link][0]
            node.engine.disconnected(link, self.now_ms)
            self._perform(node)


def keys(count: int, start: int = 0) -> Iterable[bytes]:
    return [b"key-%04d" % number for number in range(start, start + count)]
