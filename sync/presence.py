"""Who was heard of, directly or through others: liveness travels as frames, never as rows.

Every node counts its own presence frames (the beat). News of a node is only what has a higher beat than what is known,
so that two nodes that tell each other of a third, dead one do not keep it alive by doing so: an old beat never gets
younger.
"""

from __future__ import annotations

from dataclasses import dataclass

from leasemesh.sync import limits
from leasemesh.sync.messages import HeardNode
from leasemesh.sync.version_vector import Era, SiteId


@dataclass(frozen=True, slots=True)
class Heard:
    """Last news of a node: its beat, and when that was said, in this node's monotonic milliseconds."""

    incarnation: Era
    beat: int
    at_ms: int


class PresenceBoard:
    """Collects news and passes them on."""

    def __init__(self) -> None:
        self._heard: dict[SiteId, Heard] = {}

    def note(self, site: SiteId, news: Heard) -> bool:
        """Take in news of `site`; return False when they are old."""
        known = self._heard.get(site)
        if known is not None:
            same_process = known.incarnation == news.incarnation
            if (news.beat <= known.beat) if same_process else (news.at_ms < known.at_ms):
                return False
        elif len(self._heard) >= limits.KNOWLEDGE_ENTRIES_MAX:
            return False
        self._heard[site] = news
        return True

    def note_all(self, heard: dict[SiteId, HeardNode], *, own_site: SiteId, now_ms: int) -> dict[SiteId, Heard]:
        """Take in what a peer heard of others; return what of it is news."""
        news = {
            site: Heard(node.incarnation, node.beat, now_ms - node.age_ms)
            for site, node in heard.items()
            if site != own_site
        }
        return {site: item for site, item in news.items() if self.note(site, item)}

    def tell(self, *, but: SiteId, now_ms: int) -> dict[SiteId, HeardNode]:
        """Return what to tell a peer: all that was heard of others than the peer itself."""
        return {
            site: HeardNode(heard.incarnation, heard.beat, max(0, now_ms - heard.at_ms))
            for site, heard in self._heard.items()
            if site != but
        }

    def forget_old(self, now_ms: int) -> None:
        """Forget whom nobody has heard of for too long to speak of it."""
        self._heard = {site: heard for site, heard in self._heard.items() if now_ms - heard.at_ms <= limits.AGE_MS_MAX}
