"""What a node has absorbed, as pure values: points, knowledge vectors, lineages and the ranges still to send.

A *point* is a position in one site's history: its version and the era that the version was written in. *Knowledge*
maps a site to the point up to which this database includes everything that the site had. A *lineage* is a node's own
list of eras; it tells whether a point that somebody reports about us really belongs to our history (a restored backup
or a copied file uses versions again, so a version alone proves nothing).

Everything here is immutable and free of I/O; `ranges_to_send` is what the whole replication rests on, and the tests
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
"""A random token that names one uninterrupted stretch of writing by one process; empty before the first write."""

NO_ERA = Era(b"")


@dataclass(frozen=True, slots=True)
class Point:
    """A position in one site's history.

    Attributes:
        version: the site's stored cr-sqlite version, 0 when it has written nothing.
        era: the era in which the site wrote that version.
    """

    version: int
    era: Era


START = Point(0, NO_ERA)
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
    snapshot: Point


FROM_START = Resume(0, START)
"""Nothing of a transfer has come."""


class Knowledge(Mapping[SiteId, Point]):
    """An immutable vector site -> point: "my database includes everything that the site had at that point"."""

    __slots__ = ("_points",)

    def __init__(self, points: Mapping[SiteId, Point] | Iterable[tuple[SiteId, Point]] = ()) -> None:
        self._points: dict[SiteId, Point] = dict(points)

    def __getitem__(self, site: SiteId) -> Point:
        return self._points[site]

    def __iter__(self) -> Iterator[SiteId]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __repr__(self) -> str:
        inner = ", ".join(f"{site.hex()[:8]}: {point.version}" for site, point in sorted(self._points.items()))
        return f"Knowledge({inner})"

    def point(self, site: SiteId) -> Point:
        """Return the point known of `site`, or START."""
        return self._points.get(site, START)

    def includes(self, site: SiteId, point: Point) -> bool:
        """Tell whether everything that `site` had at `point` is surely included.

        A later version of another era proves nothing (the history may have forked before it), so it does not count; the
        cost of this caution is a harmless duplicate delivery.
        """
        known = self._points.get(site, START)
        return point.version == 0 or (known.version >= point.version and known.era == point.era)

    def covers(self, other: Knowledge) -> bool:
        """Tell whether every entry of `other` is included in this knowledge."""
        return all(self.includes(site, point) for site, point in other.items())

    def merged(self, other: Knowledge) -> Knowledge:
        """Return the entry-wise maximum: first by version, then by era (so that the result has no order of merging)."""
        points = dict(self._points)
        for site, point in other.items():
            mine = points.get(site, START)
            if (point.version, point.era) > (mine.version, mine.era):
                points[site] = point
        return Knowledge(points)

    def with_point(self, site: SiteId, point: Point) -> Knowledge:
        """Return this knowledge with `site` set to `point`, whatever it was before."""
        return Knowledge({**self._points, site: point})


@dataclass(frozen=True, slots=True)
class Lineage:
    """A node's own eras, oldest first: (first version, era) with strictly increasing first versions."""

    eras: tuple[tuple[int, Era], ...] = ()

    def era_at(self, version: int) -> Era:
        """Return the last era that began at or before `version`."""
        index = bisect_right(self.eras, version, key=lambda entry: entry[0])
        return self.eras[index - 1][1] if index else NO_ERA

    def point(self, version: int) -> Point:
        """Return `version` as a point of this lineage."""
        return Point(version, self.era_at(version))

    def owns(self, point: Point, own_version: int) -> bool:
        """Tell whether `point`, reported by a peer about this node, belongs to this node's history.

        False means that this file is an older copy of itself or a clone: somebody wrote more, or something else, under
        the same site id.
        """
        return point.version == 0 or (point.version <= own_version and self.era_at(point.version) == point.era)


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A range of local versions that one peer's transfer produced.

    Attributes:
        first, last: the local versions, both inclusive.
        knowledge: the sender's knowledge at its snapshot. Whoever covers it has all rows of the range, or newer ones.
    """

    first: int
    last: int
    knowledge: Knowledge


def ranges_to_send(
    *, after: int, upto: int, absorbed: Sequence[Absorbed], peer_knowledge: Knowledge
) -> list[tuple[int, int]]:
    """Return the local version ranges (exclusive start, inclusive end) that the peer may lack, in order.

    Args:
        after: the version of ours that the peer already includes.
        upto: our version at the snapshot.
        absorbed: our log of absorbed ranges, ordered by `first` and not overlapping; may be incomplete.
        peer_knowledge: what the peer has.
    """
    ranges: list[tuple[int, int]] = []
    start = after
    for entry in absorbed:
        if entry.last <= start or not peer_knowledge.covers(entry.knowledge):
            continue
        if entry.first > upto:
            break
        if entry.first - 1 > start:
            ranges.append((start, entry.first - 1))
        start = min(entry.last, upto)
    if start < upto:
        ranges.append((start, upto))
    return ranges
