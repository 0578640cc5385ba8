"""The authority: whoever decides on permits. The arbiter is one node of the mesh, and everything travels as rows.

Another backend (a service outside the mesh) would implement the same interface.
"""

from __future__ import annotations

from typing import Protocol

from leasemesh.node.database.file import Database
from leasemesh.node.stores.authorities import AuthorityInfo, AuthorityStore
from leasemesh.node.stores.permits import Permit, PermitStore

OWN_TABLES = frozenset({"authorities", "authority_fences", "permit_requests", "permits", "verdicts"})
"""Tables whose changes may give an authority something to do."""

AWAITED_TABLES = frozenset({"publications", "reservations", "mutations"})
"""Tables whose changes may do so while a request waits. They change with every event: looking each time would cost
every event that is published somewhere a look at the authority's tables."""


class Authority(Protocol):
    """Decides on requests for permits."""

    def ask(self, run: str, *, work: str | None = None) -> Permit:
        """Ask for a permit for what a run holds; the same answer again when it has asked before."""

    def tend(self) -> bool:
        """Do what there is to do now; returns whether there was anything."""

    def info(self) -> AuthorityInfo:
        """Return who decides."""


class Arbiter:
    """The node that people appointed decides, in one transaction, from its own file."""

    def __init__(self, database: Database) -> None:
        self._authorities = AuthorityStore(database)
        self._permits = PermitStore(database)

    def ask(self, run: str, *, work: str | None = None) -> Permit:
        """See `PermitStore.request`."""
        return self._permits.request(run, work=work)

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

    def info(self) -> AuthorityInfo:
        """See `AuthorityStore.info`."""
        return self._authorities.info()
