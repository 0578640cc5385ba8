"""Replication's view of a database: reading its changes for a peer, merging a peer's changes, the digest.

`reading` reads and `merging` merges: the two modules that name cr-sqlite's table of changes. Here they are put together
as `sync.ports` has it. Why nothing is lost is argued in `sync.version_vector`, and holds here by these rules:

1. A transfer is read in one snapshot: version, version vector, log of absorbed ranges and rows belong to one
   moment.
2. A piece is merged in one transaction with the resume point or the version vector that it brings, and with its
   entry in the log of absorbed ranges. That entry spans the local versions of exactly this transaction.
3. A piece ends at a version's border. What is larger is staged until its end has come. Then it is merged as a whole.
4. What cannot be merged is quarantined (`node.replication.quarantine`), never dropped, and goes along to other peers:
   the version vector that this node tells them includes it.
5. Whatever cr-sqlite could stumble over is checked before: known tables and columns, well-formed keys, bounded
   versions.

Merging uses the database's writer: its page cache is warm, and writers queue for the file anyway. The app's reads have
a connection of their own and do not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from leasemesh.node.database.file import Database
from leasemesh.node.machine.environment import boot_id
from leasemesh.node.replication.identity import reidentify
from leasemesh.node.replication.merging import Merger, refuse_malformed
from leasemesh.node.replication.reading import ChangeReader
from leasemesh.node.replication.staging import Staging
from leasemesh.node.replication.version_vectors import StateReader, read_resume, write_heartbeats
from leasemesh.sync.ports import Applied, Change, DatabaseDigest, Incoming, LocalState
from leasemesh.sync.version_vector import Era, Resume, SiteId


class ChangeStorage:
    """A node's database as the sync loop and the simulator use it (`sync.ports.Storage`). One call at a time.

    Args:
        database: the database.
        boot: names the run of the machine whose monotonic clock is used. The real one, if not lent.
    """

    def __init__(self, database: Database, *, boot: str | None = None) -> None:
        self._database = database
        self._boot = boot if boot is not None else boot_id()
        self._states = StateReader()
        self._merger = Merger(database, self._states)
        self._staging = Staging()

    def state(self) -> LocalState:
        """Read the local state."""
        with self._database.snapshot():
            return self._states.read(self._database.query)

    def resume_point(self, site: SiteId) -> Resume:
        """Return how far an unfinished transfer from `site` came (FROM_START when there is none)."""
        return read_resume(self._database.query, site)

    def open_reader(self) -> ChangeReader:
        """Open a reader for one peer."""
        return ChangeReader(self._database)

    def digest(self) -> DatabaseDigest:
        """Compute the digest of every replicated table, in one snapshot."""
        with closing(self.open_reader()) as reader:
            return reader.digest()

    def record_heartbeats(self, heartbeats: dict[SiteId, tuple[Era, int]]) -> None:
        """Remember when each node was last heard of: site -> (incarnation, monotonic milliseconds)."""
        write_heartbeats(self._database, heartbeats, boot=self._boot)

    def close(self) -> None:
        """Let go of what waits for its end."""
        self._staging.clear()

    def reidentify(self) -> LocalState:
        """Give this file a new site id (it is an older copy, or a clone, of another) and return the new state."""
        reidentify(self._database)
        self._staging.clear()
        return self.state()

    def apply(self, incoming: Incoming) -> Applied:
        """Merge a piece, or stage it when it ends inside a version.

        Raises:
            RemoteProtocolError: the piece holds what no honest node sends. Nothing of it is kept.
            StorageLimit: this node may not hold as much. Nothing of it is kept.
            StagingLost: what came before of this transfer was given up for another peer's.
        """
        refuse_malformed(incoming, self._database.version())
        self._staging.check(incoming)
        if not incoming.whole:
            self._staging.add(incoming)
            return Applied(self.state(), rows=0, quarantined=0, tables=frozenset())
        retried = self._merger.retry_quarantined()
        applied = self._merger.merge(incoming, lambda: self._chunks(incoming))
        self._staging.drop(incoming.site)
        return replace(applied, tables=applied.tables | retried)

    def retry_quarantined(self) -> frozenset[str]:
        """Merge the quarantined changes that the schema knows now. Call it after a migration. Costs nothing otherwise.

        Returns:
            The tables that changed.
        """
        return self._merger.retry_quarantined()

    def _chunks(self, incoming: Incoming) -> Iterator[list[Change]]:
        """Yield what was staged of this transfer, then the piece itself."""
        if not incoming.first:
            yield from self._staging.read(incoming.site)
        yield incoming.rows
