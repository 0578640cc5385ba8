"""The local tables in which a node remembers what it has absorbed, from whom, and how far unfinished transfers came.

Every function takes the `query` of a connection, so that it reads and writes in the caller's snapshot or transaction.
"""

from __future__ import annotations

from typing import Any

import msgpack

from leasemesh.node.database.file import Database
from leasemesh.node.database.versions import Query, StoredVersions
from leasemesh.sync.ports import LocalState
from leasemesh.sync.version_vector import FROM_START, Absorbed, Entry, Era, Lineage, Resume, SiteId, VersionVector

ABSORBED_ENTRIES_MAX = 4096
"""Entries of the log of absorbed ranges. A transfer to a peer that has nothing reads them all (about 30 ms). An entry
that was dropped costs some peer a duplicate that merges to nothing."""

_PRUNE_VERSIONS = 256
"""The log is cut back once in so many versions only: finding its end takes ten times as long as adding to it."""


class StateReader:
    """Reads a node's state. Keeps the list of eras, which only grows, so that it is read once."""

    def __init__(self) -> None:
        self._lineage = Lineage()
        self._versions = StoredVersions()

    def read(self, query: Query) -> LocalState:
        """Read the state in the snapshot or transaction that `query` reads in."""
        ((site,),) = query("SELECT site_id FROM crsql_site_id WHERE ordinal = 0")
        version = self._versions.version(query)
        lineage = self.lineage(query)
        vector = read_vector(query).with_entry(site, lineage.entry(version))
        return LocalState(site, version, lineage, vector, read_schema(query))

    def version(self, query: Query) -> int:
        """Return the greatest stored version."""
        return self._versions.version(query)

    def tables_changed_since(self, query: Query, version: int) -> frozenset[str]:
        """Return the replicated tables that have a change above `version`."""
        return self._versions.tables_changed_since(query, version)

    def lineage(self, query: Query) -> Lineage:
        """Return this file's eras. Those already read are only compared at their end, where they can change."""
        known = self._lineage.eras
        start = known[-1][0] if known else 0
        found = _read_eras(query, start)
        if not known or found[:1] != [known[-1]]:
            # The last era was empty and has been replaced, or the file was re-identified.
            self._lineage = Lineage(tuple(_read_eras(query, 0)))
        elif len(found) > 1:
            self._lineage = Lineage((*known, *found[1:]))
        return self._lineage


def _read_eras(query: Query, start: int) -> list[tuple[int, Era]]:
    return query("SELECT first_version, era FROM eras WHERE first_version >= ? ORDER BY first_version", (start,))


def read_schema(query: Query) -> dict[str, int]:
    """Return the number of each component's last migration."""
    return dict(query("SELECT component, max(number) FROM schema_migrations GROUP BY component"))


def read_vector(query: Query) -> VersionVector:
    """Return what this file includes of other sites."""
    rows = query("SELECT site, version, era FROM version_vector")
    return VersionVector({SiteId(site): Entry(version, Era(era)) for site, version, era in rows})


def raise_vector(query: Query, other: VersionVector, own_site: SiteId) -> None:
    """Raise the stored version vector to the entry-wise maximum with `other`. The own entry is never stored."""
    before = read_vector(query)
    for site, entry in before.merged(other).items():
        if site != own_site and entry != before.get(site):
            write_known(query, site, entry)


def write_known(query: Query, site: SiteId, entry: Entry) -> None:
    """Set what is known of `site`."""
    query("INSERT OR REPLACE INTO version_vector VALUES (?, ?, ?)", (site, entry.version, entry.era))


def write_resume(query: Query, site: SiteId, resume: Resume) -> None:
    """Set how far an unfinished transfer from `site` came."""
    snapshot = resume.snapshot
    query("INSERT OR REPLACE INTO resume VALUES (?, ?, ?, ?)", (site, resume.version, snapshot.version, snapshot.era))


def read_resume(query: Query, site: SiteId) -> Resume:
    """Return how far an unfinished transfer from `site` came."""
    rows = query("SELECT version, snapshot_version, snapshot_era FROM resume WHERE site = ?", (site,))
    return Resume(rows[0][0], Entry(rows[0][1], Era(rows[0][2]))) if rows else FROM_START


def delete_resume(query: Query, site: SiteId) -> None:
    """Forget the resume point: the transfer is complete."""
    query("DELETE FROM resume WHERE site = ?", (site,))


def read_absorbed(query: Query, after: int) -> list[Absorbed]:
    """Return the absorbed ranges that end above version `after`, in order."""
    rows = query("SELECT first, last, vector FROM absorbed WHERE last > ? ORDER BY first", (after,))
    return [Absorbed(first, last, unpack_vector(packed)) for first, last, packed in rows]


def append_absorbed(query: Query, entry: Absorbed) -> None:
    """Log which local versions came out of a transfer. Extends the last entry where that says the same."""
    packed = pack_vector(entry.vector)
    last = query("SELECT first, last, vector FROM absorbed ORDER BY first DESC LIMIT 1")
    if last and last[0][1] + 1 == entry.first and last[0][2] == packed:
        query("UPDATE absorbed SET last = ? WHERE first = ?", (entry.last, last[0][0]))
        return
    insert_absorbed(query, entry)
    if not last or entry.first // _PRUNE_VERSIONS == last[0][0] // _PRUNE_VERSIONS:
        return
    query(
        "DELETE FROM absorbed WHERE first <= (SELECT first FROM absorbed ORDER BY first DESC LIMIT 1 OFFSET ?)",
        (ABSORBED_ENTRIES_MAX,),
    )


def insert_absorbed(query: Query, entry: Absorbed) -> None:
    """Add an entry to the log. No other may span any of its versions."""
    query("INSERT INTO absorbed VALUES (?, ?, ?)", (entry.first, entry.last, pack_vector(entry.vector)))


def pack_vector(vector: VersionVector) -> bytes:
    """Return version vector as bytes, equal for equal version vector."""
    packed: bytes = msgpack.packb([(site, entry.version, entry.era) for site, entry in sorted(vector.items())])
    return packed


def unpack_vector(packed: bytes) -> VersionVector:
    """Return what `pack_vector` was given."""
    entries: list[list[Any]] = msgpack.unpackb(packed)
    return VersionVector({SiteId(site): Entry(version, Era(era)) for site, version, era in entries})


def write_heartbeats(database: Database, heartbeats: dict[SiteId, tuple[Era, int]], *, boot: str) -> None:
    """Remember when nodes were last heard of: site -> (incarnation, monotonic milliseconds of this boot)."""
    with database.transaction(replicated=False) as transaction:
        transaction.execute_many(
            "INSERT OR REPLACE INTO heartbeats VALUES (?, ?, ?, ?)",
            ((site, incarnation, boot, at) for site, (incarnation, at) in sorted(heartbeats.items())),
        )
