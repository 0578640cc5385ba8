"""What the sync engine needs from a database, as protocols: `node.replication.storage` implements them, the loop and
the simulator use them.

All methods block and are called from worker threads, one call at a time for each object. `Storage.open_reader` and
`Storage.digest` may run beside any other call. No SQL is visible here, and no socket there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from leasemesh.sync.version_vector import Entry, Era, Lineage, Resume, SiteId, VersionVector

Value = int | float | str | bytes | None
"""A SQLite value."""

Change = tuple[str, bytes, str, Value, int, int, bytes, int, int]
"""One cell: table, packed primary key, column name (or "-1"), value, col_version, db_version, site_id, causal length,
seq.

A bare tuple because hundreds of thousands of them pass from SQLite to the wire codec and back: it is what APSW yields
and takes.
"""


@dataclass(frozen=True, slots=True)
class LocalState:
    """This node as the protocol sees it, read in one transaction.

    Attributes:
        site: this database's site id.
        version: greatest stored version.
        lineage: this node's eras.
        vector: what this database includes; the own entry is (version, era at version).
        schema: component name -> number of its last applied migration, for example {"leasemesh": 2}.
    """

    site: SiteId
    version: int
    lineage: Lineage
    vector: VersionVector
    schema: dict[str, int]


@dataclass(frozen=True, slots=True)
class TransferHeader:
    """What a transfer is about: the sender at the moment of its snapshot.

    Attributes:
        point: the sender's own version and era at the snapshot.
        vector: the sender's version vector there, its own entry included.
        rows_estimate: about how many rows will come. For progress display only.
    """

    entry: Entry
    vector: VersionVector
    rows_estimate: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Begin a transfer: everything after `after` that the holder of `peer_vector` may lack."""

    after: int
    peer_vector: VersionVector
    quarantined_after: int


@dataclass(frozen=True, slots=True)
class ReadResult:
    """One piece of a transfer.

    Attributes:
        header: the transfer's header, the same object for each of its pieces.
        first: this is the transfer's first piece.
        rows: changes ordered by (db_version, seq); quarantined rows come after them, under the version of the snapshot.
        upto: all that the transfer has to say up to this point was delivered, when `whole`.
        whole: the piece ends at a version's border (it may be applied); False: the next piece continues the same
            version.
        last: the transfer ends with this piece (always whole); the snapshot is released.
        quarantined_upto: number of the last quarantined row delivered, for `quarantined_after` of the next request.
    """

    header: TransferHeader
    first: bool
    rows: list[Change]
    upto: Entry
    whole: bool
    last: bool
    quarantined_upto: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """One piece of a transfer from `site`, decoded and checked, ready to be applied (or staged when not `whole`)."""

    site: SiteId
    header: TransferHeader
    first: bool
    rows: list[Change]
    upto: Entry
    whole: bool
    last: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of applying a piece.

    Attributes:
        state: this node after the transaction.
        rows: how many rows the piece carried (staged ones count when they are applied).
        quarantined: how many of them were quarantined.
        tables: names of the tables that really changed.
    """

    state: LocalState
    rows: int
    quarantined: int
    tables: frozenset[str]


@dataclass(frozen=True, slots=True)
class TableDigest:
    """The content of one replicated table: number of cells and an order-independent digest (16 bytes)."""

    cells: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class DatabaseDigest:
    """All replicated tables by name, and the version vector in the same snapshot."""

    vector: VersionVector
    tables: dict[str, TableDigest]


class ChangeReader(Protocol):
    """A read connection of its own that serves one peer. Used by one thread at a time."""

    def begin(self, request: ReadRequest, rows_bytes_max: int) -> ReadResult:
        """Drop an unfinished transfer, take a snapshot and return the first piece (about `rows_bytes_max` at most)."""

    def read(self, rows_bytes_max: int) -> ReadResult:
        """Return the next piece of the transfer begun before."""

    def end(self) -> None:
        """Release the snapshot of an unfinished transfer. No effect otherwise."""

    def close(self) -> None:
        """Close the connection."""


class Storage(Protocol):
    """A node's database as the sync loop uses it."""

    def state(self) -> LocalState:
        """Read the local state."""

    def resume_point(self, site: SiteId) -> Resume:
        """Return how far an unfinished transfer from `site` came (START when there is none)."""

    def open_reader(self) -> ChangeReader:
        """Open a reader for one peer."""

    def apply(self, incoming: Incoming) -> Applied:
        """Apply or stage a piece. Raises `sync.errors.StorageLimit` when it would exceed what this node may hold."""

    def digest(self) -> DatabaseDigest:
        """Compute the digest of every replicated table, in one snapshot."""

    def reidentify(self) -> LocalState:
        """Give this file a new site id (it is an older copy, or a clone, of another) and return the new state."""

    def record_heartbeats(self, heartbeats: dict[SiteId, tuple[Era, int]]) -> None:
        """Remember when each node was last heard of: site -> (incarnation, monotonic milliseconds). For take-over."""
