"""What stands between a simulated process and its file: where commits can go wrong, and who lends out readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw

from leasemesh.node.replication.reading import ChangeReader
from leasemesh.node.replication.storage import ChangeStorage
from leasemesh.node.testing.crashes import Moment
from leasemesh.sync import ports
from leasemesh.sync.ports import Applied, DatabaseDigest, Incoming, LocalState, ReadRequest, ReadResult
from leasemesh.sync.version_vector import Era, Resume, SiteId


class WatchedConnection:
    """A connection that tells before and after each commit."""

    def __init__(self, connection: apsw.Connection, on_commit: Callable[[Moment], None]) -> None:
        self.connection = connection
        self._on_commit = on_commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, sql: str, *arguments: Any) -> apsw.Cursor:
        if sql != "COMMIT":
            return self.connection.execute(sql, *arguments)
        self._on_commit("before")
        cursor = self.connection.execute(sql, *arguments)
        self._on_commit("after")
        return cursor


class LentStorage:
    """A node's storage. Reads in small pieces, and knows its readers, which a crash must close."""

    def __init__(
        self,
        storage: ChangeStorage,
        *,
        piece_bytes: int,
        on_applied: Callable[[Incoming, Applied], None],
        on_reidentify: Callable[[], None],
    ) -> None:
        """Args: the real storage, the greatest size of a piece, and who is told."""
        self._storage = storage
        self._piece_bytes = piece_bytes
        self._on_applied = on_applied
        self._on_reidentify = on_reidentify
        self._readers: dict[int, ChangeReader] = {}  # all that are open, by their identity
        self._free: list[ChangeReader] = []

    def state(self) -> LocalState:
        return self._storage.state()

    def resume_point(self, site: SiteId) -> Resume:
        return self._storage.resume_point(site)

    def open_reader(self) -> ports.ChangeReader:
        return _Reader(self, self._piece_bytes)

    def apply(self, incoming: Incoming) -> Applied:
        applied = self._storage.apply(incoming)
        self._on_applied(incoming, applied)
        return applied

    def digest(self) -> DatabaseDigest:
        reader = self.lend()
        try:
            return reader.digest()
        finally:
            self.take_back(reader)

    def reidentify(self) -> LocalState:
        self._on_reidentify()
        while self._free:  # they hold on to the old id
            self._close(self._free.pop())
        return self._storage.reidentify()

    def record_heartbeats(self, heartbeats: dict[SiteId, tuple[Era, int]]) -> None:
        self._storage.record_heartbeats(heartbeats)

    def close(self) -> None:
        self._storage.close()

    def close_readers(self) -> None:
        self._free.clear()
        for reader in list(self._readers.values()):
            self._close(reader)

    def lend(self) -> ChangeReader:
        """Lend a reader for one transfer: opening one takes longer than most of these."""
        if self._free:
            return self._free.pop()
        reader = self._storage.open_reader()
        self._readers[id(reader)] = reader
        return reader

    def take_back(self, reader: ChangeReader, *, sound: bool = True) -> None:
        """Keep it for others, unless it has failed."""
        if id(reader) not in self._readers:
            return
        if sound:
            reader.end()
            self._free.append(reader)
        else:
            self._close(reader)

    def _close(self, reader: ChangeReader) -> None:
        del self._readers[id(reader)]
        reader.close()


class _Reader:
    """A link's reader. It makes pieces no longer than the world has them, and has a connection only for as long as a
    transfer takes."""

    def __init__(self, storage: LentStorage, piece_bytes: int) -> None:
        self._storage = storage
        self._piece_bytes = piece_bytes
        self._lent: ChangeReader | None = None

    def begin(self, request: ReadRequest, rows_bytes_max: int) -> ReadResult:
        self.end()
        lent = self._lent = self._storage.lend()
        return self._watched(lambda: lent.begin(request, min(rows_bytes_max, self._piece_bytes)))

    def read(self, rows_bytes_max: int) -> ReadResult:
        lent = self._lent
        assert lent is not None, "a transfer has begun"
        return self._watched(lambda: lent.read(min(rows_bytes_max, self._piece_bytes)))

    def end(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            self._storage.take_back(lent)

    def close(self) -> None:
        self.end()

    def digest(self) -> DatabaseDigest:
        return self._storage.digest()

    def _watched(self, read: Callable[[], ReadResult]) -> ReadResult:
        try:
            result = read()
        except BaseException:
            lent, self._lent = self._lent, None
            if lent is not None:
                self._storage.take_back(lent, sound=False)
            raise
        if result.last:
            self.end()
        return result
