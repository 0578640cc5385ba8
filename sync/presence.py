"""Who was heard of, directly or through others: liveness travels as frames, never as rows.

Every node counts its own presence frames (its heartbeats). News of a node is only what has a higher count than what is
known, so that two nodes that tell each other of a third, dead one do not keep it alive by doing so: an old count never
gets younger.
"""

from __future__ import annotations

from dataclasses import dataclass

from leasemesh.sync import limits
from leasemesh.sync.messages import RelayedHeartbeat
from leasemesh.sync.version_vector import Era, SiteId


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Last news of a node: its count, and when that was said, in this node's monotonic milliseconds."""

    incarnation: Era
    count: int
    at_ms: int


class PresenceBoard:
    """Collects news and passes them on."""

    def __init__(self) -> None:
        self._heartbeats: dict[SiteId, Heartbeat] = {}

    def note(self, site: SiteId, news: Heartbeat) -> bool:
        """Take in news of `site`. Return False when they are old."""
        known = self._heartbeats.get(site)
        if known is not None:
            same_process = known.incarnation == news.incarnation
            if (news.count <= known.count) if same_process else (news.at_ms < known.at_ms):
                return False
        elif len(self._heartbeats) >= limits.VECTOR_ENTRIES_MAX:
            return False
        self._heartbeats[site] = news
        return True

    def note_all(
        self, heartbeats: dict[SiteId, RelayedHeartbeat], *, own_site: SiteId, now_ms: int
    ) -> dict[SiteId, Heartbeat]:
        """Take in what a peer heard of others. Return what of it is news."""
        news = {
            site: Heartbeat(node.incarnation, node.count, now_ms - node.age_ms)
            for site, node in heartbeats.items()
            if site != own_site
        }
        return {site: item for site, item in news.items() if self.note(site, item)}

    def tell(self, *, but: SiteId, now_ms: int) -> dict[SiteId, RelayedHeartbeat]:
        """Return what to tell a peer: all that was heard of others than the peer itself."""
        return {
            site: RelayedHeartbeat(heartbeats.incarnation, heartbeats.count, max(0, now_ms - heartbeats.at_ms))
            for site, heartbeats in self._heartbeats.items()
            if site != but
        }

    def forget_old(self, now_ms: int) -> None:
        """Forget whom nobody has heard of for too long to speak of it."""
        self._heartbeats = {
            site: heartbeats
            for site, heartbeats in self._heartbeats.items()
            if now_ms - heartbeats.at_ms <= limits.AGE_MS_MAX
        }
