"""The authority decides on permits. It is one node of the mesh, and everything travels as rows."""

from __future__ import annotations

from leasemesh.node.database.file import Database
from leasemesh.node.stores.authorities import AuthorityStore
from leasemesh.node.stores.permits import PermitStore


class Authority:
    """This node's part in deciding on permits: the appointed node decides, in one transaction, from its own file."""

    def __init__(self, database: Database) -> None:
        self._authorities = AuthorityStore(database)
        self._permits = PermitStore(database)

    def tend(self) -> bool:
        """Step back, begin, ask again, decide: whatever the rows that are here ask of this node. Writes nothing when
        that is nothing."""
        done = False
        while self._authorities.step():
            done = True
        done |= self._permits.ask_again() > 0
        while self._permits.decide_pending():
            done = True
        return done
