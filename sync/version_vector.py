"""What a node has absorbed, as pure values: points, version vectors, lineages and the ranges still to send.

A *point* is a position in one site's history: its version and the era that the version was written in. *VersionVector*
maps a site to the point up to which this database includes everything that the site had. A *lineage* is a node's own
list of eras. It tells whether a point that somebody reports about us really belongs to our history (a restored backup
or a copied file uses versions again, so a version alone proves nothing).

Everything here is immutable and free of I/O. `ranges_to_send` is what the whole replication rests on, and the tests
check it against brute force.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType

SiteId = NewType("SiteId", bytes)
"""The 16 bytes by which cr-sqlite names the database that wrote a change."""

Era = NewType("Era", bytes)
"""A random token that names one uninterrupted stretch of writing by one process. Empty before the first write."""

NO_ERA = Era(b"")


@dataclass(frozen=True, slots=True)
class Entry:
    """A position in one site's history.

    Attributes:
        version: the site's stored cr-sqlite version, 0 when it has written nothing.
        era: the era in which the site wrote that version.
    """

    version: int
    era: Era


START = Entry(0, NO_ERA)
"""The point that every history includes."""


@dataclass(frozen=True, slots=True)
class Resume:
    """How far an unfinished transfer came. Good for going on with its sender, as long as that one's history still
    includes the snapshot: what the snapshot had overwritten was left out before `version`, to come after it.

    Attributes:
        version: the sender's version up to which everything was stored, 0 for nothing.
        snapshot: the sender's point at the snapshot that was read.
    """

    version: int
    snapshot: Entry


FROM_START = Resume(0, START)
"""Nothing of a transfer has come."""


class VersionVector(Mapping[SiteId, Entry]):
    """An immutable vector site -> point: "my database includes everything that the site had at that point"."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[SiteId, Entry] | Iterable[tuple[SiteId, Entry]] = ()) -> None:
        self._entries: dict[SiteId, Entry] = dict(entries)

    def __getitem__(self, site: SiteId) -> Entry:
        return self._entries[site]

    def __iter__(self) -> Iterator[SiteId]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        inner = ", ".join(f"{site.hex()[:8]}: {entry.version}" for site, entry in sorted(self._entries.items()))
        return f"VersionVector({inner})"

    def entry(self, site: SiteId) -> Entry:
        """Return the point known of `site`, or START."""
        return self._entries.get(site, START)

    def includes(self, site: SiteId, entry: Entry) -> bool:
        """Tell whether everything that `site` had at `point` is surely included.

        A later version of another era proves nothing (the history may have forked before it), so it does not count; the
        cost of this caution is a harmless duplicate delivery.
        """
        known = self._entries.get(site, START)
        return entry.version == 0 or (known.version >= entry.version and known.era == entry.era)

    def covers(self, other: VersionVector) -> bool:
        """Tell whether every entry of `other` is included in this version vector."""
        return all(self.includes(site, entry) for site, entry in other.items())

    def merged(self, other: VersionVector) -> VersionVector:
        """Return the entry-wise maximum: first by version, then by era (so that the result has no order of merging)."""
        entries = dict(self._entries)
        for site, entry in other.items():
            mine = entries.get(site, START)
            if (entry.version, entry.era) > (mine.version, mine.era):
                entries[site] = entry
        return VersionVector(entries)

    def with_entry(self, site: SiteId, entry: Entry) -> VersionVector:
        """Return this version vector with `site` set to `point`, whatever it was before."""
        return VersionVector({**self._entries, site: entry})


@dataclass(frozen=True, slots=True)
class Lineage:
    """A node's own eras, oldest first: (first version, era) with strictly increasing first versions."""

    eras: tuple[tuple[int, Era], ...] = ()

    def era_at(self, version: int) -> Era:
        """Return the last era that began at or before `version`."""
        index = bisect_right(self.eras, version, key=lambda entry: entry[0])
        return self.eras[index - 1][1] if index else NO_ERA

    def entry(self, version: int) -> Entry:
        """Return `version` as a point of this lineage."""
        return Entry(version, self.era_at(version))

    def owns(self, entry: Entry, own_version: int) -> bool:
        """Tell whether `point`, reported by a peer about this node, belongs to this node's history.

        False means that this file is an older copy of itself or a clone: somebody wrote more, or something else, under
        the same site id.
        """
        return entry.version == 0 or (entry.version <= own_version and self.era_at(entry.version) == entry.era)


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A range of local versions that one peer's transfer produced.

    Attributes:
        first, last: the local versions, both inclusive.
        vector: the sender's version vector at its snapshot. Whoever covers it has all rows of the range, or newer ones.
    """

    first: int
    last: int
    vector: VersionVector


def ranges_to_send(
    *, after: int, upto: int, absorbed: Sequence[Absorbed], peer_vector: VersionVector
) -> list[tuple[int, int]]:
    """Return the local version ranges (exclusive start, inclusive end) that the peer may lack, in order.

    Args:
        after: the version of ours that the peer already includes.
        upto: our version at the snapshot.
        absorbed: our log of absorbed ranges, ordered by `first` and not overlapping. May be incomplete.
        peer_vector: what the peer has.
    """
    ranges: list[tuple[int, int]] = []
    start = after
    for entry in absorbed:
        if entry.last <= start or not peer_vector.covers(entry.vector):
            continue
        if entry.first > upto:
            break
        if entry.first - 1 > start:
            ranges.append((start, entry.first - 1))
        start = min(entry.last, upto)
    if start < upto:
        ranges.append((start, upto))
    return ranges
