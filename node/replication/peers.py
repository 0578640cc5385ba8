"""The links of the process that syncs a file, written down so that other processes (`leasemesh status`) can show
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leasemesh.node.model.ids import NodeId
from leasemesh.node.replication.version_vectors import pack_vector, unpack_vector
from leasemesh.node.stores.base import Store
from leasemesh.sync.version_vector import VersionVector

Direction = Literal["dialled", "accepted"]


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer of the process that syncs this file.

    Attributes:
        peer: the address that is dialled. For a node that dialled us, its id.
        direction: who dialled.
        node: its id, None before it has said.
        name: its name, "" before it has said.
        state: "connected", or why not: "dialling", "waiting", "refused".
        text: one sentence on the state, "" when there is nothing to say.
        since_at: since when, Unix milliseconds.
        vector: what the peer is known to have. None when it is not connected.
    """

    peer: str
    direction: Direction
    node: NodeId | None
    name: str
    state: str
    text: str
    since_at: int
    vector: VersionVector | None


class PeerStore(Store):
    """Written by the syncing process, as a whole. Read by any."""

    def list(self) -> list[Peer]:
        """Return the peers, dialled ones first."""
        rows = self._database.query(
            "SELECT peer, direction, lower(hex(site)), name, state, text, since_at, vector FROM peers "
            "ORDER BY direction DESC, peer"
        )
        return [
            Peer(peer, direction, NodeId(node) if node else None, name, state, text, since_at, _unpack(vector))
            for peer, direction, node, name, state, text, since_at, vector in rows
        ]

    def replace(self, peers: Sequence[Peer]) -> None:
        """Write down all peers of this process. None when it stops syncing."""
        with self._database.transaction(replicated=False) as transaction:
            transaction.execute("DELETE FROM peers")
            transaction.execute_many(
                "INSERT INTO peers (peer, direction, site, name, state, text, since_at, incarnation, vector) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        one.peer,
                        one.direction,
                        bytes.fromhex(one.node) if one.node else None,
                        one.name,
                        one.state,
                        one.text,
                        one.since_at,
                        self._database.incarnation,
                        pack_vector(one.vector) if one.vector is not None else None,
                    )
                    for one in peers
                ),
            )


def _unpack(vector: bytes | None) -> VersionVector | None:
    return None if vector is None else unpack_vector(vector)
