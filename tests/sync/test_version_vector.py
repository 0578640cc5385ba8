"""The algebra that replication rests on, against brute force."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from leasemesh.sync.version_vector import (
    NO_ERA,
    START,
    Absorbed,
    Entry,
    Era,
    Lineage,
    SiteId,
    VersionVector,
    ranges_to_send,
)

SITES = [SiteId(bytes([number]) * 16) for number in range(4)]
ERAS = [Era(b"a"), Era(b"b")]

entries = st.builds(Entry, st.integers(0, 6), st.sampled_from(ERAS))
vectors = st.dictionaries(st.sampled_from(SITES), entries, max_size=4).map(VersionVector)


@given(vectors, vectors)
def test_merging_has_no_order(one: VersionVector, other: VersionVector) -> None:
    assert dict(one.merged(other)) == {
        site: max((one.entry(site), other.entry(site)), key=lambda entry: (entry.version, entry.era))
        for site in (*one, *other)
    }
    assert positive(one.merged(other)) == positive(other.merged(one))


@given(vectors, vectors, vectors)
def test_merging_has_no_grouping(one: VersionVector, other: VersionVector, third: VersionVector) -> None:
    assert positive(one.merged(other).merged(third)) == positive(one.merged(other.merged(third)))


@given(vectors)
def test_merging_twice_changes_nothing(one: VersionVector) -> None:
    assert dict(one.merged(one)) == dict(one)


@given(vectors)
def test_version_vector_covers_itself_and_nothing(one: VersionVector) -> None:
    assert one.covers(one)
    assert one.covers(VersionVector())


@given(vectors, vectors)
def test_what_was_covered_stays_covered_when_versions_grow_in_their_era(
    one: VersionVector, other: VersionVector
) -> None:
    grown = VersionVector({site: Entry(entry.version + 1, entry.era) for site, entry in one.items()})
    if one.covers(other):
        assert grown.covers(other)


@given(vectors, vectors, vectors)
def test_covering_is_transitive(one: VersionVector, other: VersionVector, third: VersionVector) -> None:
    if one.covers(other) and other.covers(third):
        assert one.covers(third)


def test_a_later_version_of_another_era_does_not_include_an_earlier_one() -> None:
    known = VersionVector({SITES[0]: Entry(5, Era(b"b"))})
    assert not known.includes(SITES[0], Entry(3, Era(b"a")))
    assert known.includes(SITES[0], Entry(3, Era(b"b")))
    assert not known.includes(SITES[0], Entry(6, Era(b"b")))
    assert known.includes(SITES[1], START)


def test_a_point_can_be_set_back() -> None:
    known = VersionVector({SITES[0]: Entry(5, ERAS[0])})
    assert known.with_entry(SITES[0], Entry(2, ERAS[1])).entry(SITES[0]) == Entry(2, ERAS[1])
    assert known.entry(SITES[0]) == Entry(5, ERAS[0])
    assert known[SITES[0]].version == 5


def test_version_vector_shows_itself_briefly() -> None:
    assert repr(VersionVector({SITES[1]: Entry(5, ERAS[0])})) == "VersionVector(01010101: 5)"


def test_an_era_holds_from_its_first_version_to_the_next_era() -> None:
    lineage = Lineage(((1, ERAS[0]), (4, ERAS[1])))
    assert [lineage.era_at(version) for version in range(6)] == [NO_ERA, *[ERAS[0]] * 3, *[ERAS[1]] * 2]
    assert lineage.entry(4) == Entry(4, ERAS[1])


def test_a_node_owns_the_points_of_its_own_history_and_no_others() -> None:
    lineage = Lineage(((1, ERAS[0]), (4, ERAS[1])))
    assert lineage.owns(START, 0)
    assert lineage.owns(Entry(3, ERAS[0]), 5)
    assert lineage.owns(Entry(5, ERAS[1]), 5)
    assert not lineage.owns(Entry(6, ERAS[1]), 5), "a version that was never written here"
    assert not lineage.owns(Entry(4, ERAS[0]), 5), "a version that another history wrote in another era"


@st.composite
def absorbed_logs(draw: st.DrawFn) -> list[Absorbed]:
    log = []
    version = 0
    for _ in range(draw(st.integers(0, 5))):
        first = version + draw(st.integers(1, 3))
        version = first + draw(st.integers(0, 3))
        log.append(Absorbed(first, version, draw(vectors)))
    return log


def brute_force(after: int, upto: int, absorbed: Sequence[Absorbed], peer_vector: VersionVector) -> list[int]:
    """Every version that the peer may lack, one by one."""

    def known_to_peer(version: int) -> bool:
        return any(entry.first <= version <= entry.last and peer_vector.covers(entry.vector) for entry in absorbed)

    return [version for version in range(after + 1, upto + 1) if not known_to_peer(version)]


@given(st.integers(0, 20), st.integers(0, 30), absorbed_logs(), vectors)
def test_the_ranges_to_send_are_what_brute_force_finds(
    after: int, upto: int, absorbed: list[Absorbed], peer_vector: VersionVector
) -> None:
    ranges = ranges_to_send(after=after, upto=upto, absorbed=absorbed, peer_vector=peer_vector)
    versions = [version for start, end in ranges for version in range(start + 1, end + 1)]
    assert versions == brute_force(after, upto, absorbed, peer_vector)
    assert all(start < end for start, end in ranges)


def positive(vector: VersionVector) -> dict[SiteId, Entry]:
    """Without entries at version 0, which say nothing."""
    return {site: entry for site, entry in vector.items() if entry.version}
