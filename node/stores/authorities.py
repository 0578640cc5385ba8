"""Who grants permits: appointments by people, and the order in which one authority stops before the next begins.

An appointment names the authority of a *generation*. It does not make it one: the appointed node *begins* when every
node that could have granted or used a permit of an earlier generation has *stepped back*, and when this file includes
everything that those nodes had at that moment. So at the beginning it knows every permit of earlier generations, and
no further one can come: no two nodes ever grant at the same time, whatever is cut, delayed or asked for twice.

* A node steps back once for each generation, for one of the appointed nodes, in ascending order. Of two nodes that
  were appointed to one generation by people who could not see each other at most one is therefore let in.
* Stepping back, an authority grants nothing any more, and every node asks anew for whatever it has no permit for: a
  permit of an earlier generation that it did not have at that moment is void (`standing_permits`), and will not be
  used when it comes.
* Usually those who must step back are the authorities before. When one of them is gone for good, by a person's word,
  nobody can tell what it granted. Then all nodes must step back, and thereby show what they were given.
* The first authority of a workspace has nobody before it, and begins at once. Two first ones, appointed by people whose
  devices had never met, are found out when they meet. Both then stop until a person appoints the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leasemesh.node.database.file import Transaction
from leasemesh.node.model import ids
from leasemesh.node.model.errors import IllegalState, NotFound
from leasemesh.node.model.ids import NodeId
from leasemesh.node.model.jsonvalue import check_text, encode
from leasemesh.node.stores.base import Store, blob_of


@dataclass(frozen=True, slots=True)
class Appointment:
    """A person's word on who is to be authority.

    Attributes:
        generation: 1, 2, 3 and so on. The highest one that has begun counts.
        authority: the node that is appointed.
        needs: who must have stepped back, as far as the person's device knew.
        gone: who is gone for good, by that person's word.
        by: the person.
        at: Unix milliseconds.
    """

    generation: int
    authority: NodeId
    needs: tuple[NodeId, ...]
    gone: tuple[NodeId, ...]
    by: str
    at: int


@dataclass(frozen=True, slots=True)
class AuthorityInfo:
    """Who grants permits, as this device knows.

    Attributes:
        generation: that of the authority that has begun. 0 when none has.
        authority: that node; None when none has begun, or when several have (`contested`).
        contested: several nodes have begun this generation. A person must appoint the next one.
        since_at: when it began, Unix milliseconds.
        next: the appointment that has not begun yet, None when there is none.
        waiting_for: the nodes that must step back, and be heard, before it begins.
    """

    generation: int
    authority: NodeId | None
    contested: bool
    since_at: int
    next: Appointment | None
    waiting_for: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class _Fence:
    node: NodeId
    generation: int
    authority: NodeId
    version: int
    at: int


class AuthorityStore(Store):
    """Appointments and steps back: a handful of rows in the life of a workspace."""

    def appoint(self, authority: str, *, by: str) -> Appointment:
        """Appoint the first authority of this workspace.

        Raises:
            IllegalState: there is an appointment already. Move it.
        """
        blob_of(authority)
        with self._database.transaction() as transaction:
            known = self.appointments()
            if known:
                raise IllegalState(
                    "the authority of this workspace", f"appointed ({known[-1].authority})", "move it instead"
                )
            return self._appoint(transaction, NodeId(authority), 1, (), (), by)

    def move(self, authority: str, *, by: str, gone: Sequence[str] = ()) -> Appointment:
        """Appoint the next authority. It begins when those before it have stepped back. `info` tells who has not.

        Args:
            authority: the node that is to grant permits.
            by: the person who says so.
            gone: nodes that never come back, by this person's word. When an authority is among them, all other nodes
                must step back, since nobody else can tell what it granted.

        Raises:
            NotFound: there is no authority yet.
            IllegalState: this node is the authority already, or it is named as gone.
        """
        for node in (authority, *gone):
            blob_of(node)
        with self._database.transaction() as transaction:
            known = self.appointments()
            if not known:
                raise NotFound("authority", ["of this workspace"], "appoint the first one")
            info = self.info()
            if authority in gone:
                raise IllegalState(f"node {authority}", "gone for good", "name another one")
            if info.authority == authority and info.next is None:
                raise IllegalState(f"node {authority}", "the authority already", "there is nothing to move")
            before = {one.authority for one in known if one.generation >= info.generation}
            needs = before if before.isdisjoint(gone) else before | self.known_nodes()
            ordered = tuple(sorted(needs - {authority, *gone}))
            return self._appoint(
                transaction, NodeId(authority), known[-1].generation + 1, ordered, tuple(map(NodeId, gone)), by
            )

    def appointments(self) -> list[Appointment]:
        """Return all appointments, by generation. Several of one generation when people could not see each other."""
        found = [_appointment(body) for _, body in self._bodies("authorities", "body <> '{}'", ())]
        return sorted(found, key=lambda one: (one.generation, one.authority, one.at))

    def info(self) -> AuthorityInfo:
        """Return who grants permits."""
        with self._database.snapshot():
            begun = self._begun()
            generation = begun[0].generation if begun else 0
            waiting = [one for one in self.appointments() if one.generation > generation]
            following = waiting[-1] if waiting else None
            return AuthorityInfo(
                generation=generation,
                authority=begun[0].node if len(begun) == 1 else None,
                contested=len(begun) > 1,
                since_at=begun[0].at if begun else 0,
                next=following,
                waiting_for=self._waited_for(following) if following else (),
            )

    def granting(self) -> int:
        """Return the generation in which this node may grant permits now. 0 when it may not."""
        begun = self._begun()
        if len(begun) != 1 or begun[0].node != self._node or begun[0].generation < self._own_generation():
            return 0
        return begun[0].generation

    def asking(self) -> int:
        """Return the generation that a run of this node asks for a permit. 0 when there is no authority yet."""
        begun = self._begun()
        return max(begun[0].generation if begun else 0, self._own_generation())

    def known_nodes(self) -> set[NodeId]:
        """Return all nodes of which this file includes anything, this one among them."""
        return set(self._known_versions())

    def step(self) -> bool:
        """Do what the newest appointment asks of this node: step back, or begin. Returns whether it did anything."""
        known, own = self.appointments(), self._own_generation()
        if not known or known[-1].generation <= own:
            return False
        # A power cut must not take back that this node has stepped back: another one has begun since.
        with self._database.transaction(durable=True) as transaction:
            known = self.appointments()
            own = self._own_generation()
            newest = [one for one in known if one.generation == known[-1].generation and one.generation > own]
            for one in newest:
                if self._node in one.gone:
                    continue
                if self._may_begin(one) if one.authority == self._node else self._is_asked(one, known):
                    self._fence(transaction, one)
                    return True
        return False

    def _is_asked(self, appointment: Appointment, known: Sequence[Appointment]) -> bool:
        earlier = {one.authority for one in known if one.generation < appointment.generation}
        return self._node in earlier or self._node in appointment.needs

    def _may_begin(self, appointment: Appointment) -> bool:
        rivals = [one for one in self._fences() if one.generation == appointment.generation and _begins(one)]
        return not rivals and not self._waited_for(appointment)

    def _waited_for(self, appointment: Appointment) -> tuple[NodeId, ...]:
        """Return who must still step back for an appointment, or has, and this file does not include all that it had
        then."""
        begun = self._begun()
        least = begun[0].generation if begun else 0
        needed = set(appointment.needs)
        needed |= {one.authority for one in self.appointments() if least <= one.generation < appointment.generation}
        if not needed.isdisjoint(appointment.gone):
            needed |= self.known_nodes()
        # Who is gone for good by a person's word is not waited for again, also when the next authority is lost too.
        needed -= {appointment.authority, *(node for one in self.appointments() for node in one.gone)}
        versions = self._known_versions()
        back = {
            one.node
            for one in self._fences()
            if (one.generation, one.authority) == (appointment.generation, appointment.authority)
            and versions.get(one.node, 0) >= one.version
        }
        return tuple(sorted(needed - back))

    def _known_versions(self) -> dict[NodeId, int]:
        """Return how far into each node's history this file includes everything, its own among them."""
        rows = self._database.query("SELECT lower(hex(site)), version FROM version_vector")
        return {NodeId(site): version for site, version in rows} | {self._node: self._database.version()}

    def _begun(self) -> list[_Fence]:
        """Return who has begun the highest generation that anybody has begun."""
        begun = [one for one in self._fences() if _begins(one)]
        highest = max((one.generation for one in begun), default=0)
        return [one for one in begun if one.generation == highest]

    def _own_generation(self) -> int:
        return max((one.generation for one in self._fences() if one.node == self._node), default=0)

    def _fences(self) -> list[_Fence]:
        return [
            _Fence(NodeId(body["node"]), body["generation"], NodeId(body["authority"]), body["version"], body["at"])
            for _, body in self._bodies("authority_fences", "body <> '{}' ORDER BY id", ())
        ]

    def _appoint(
        self,
        transaction: Transaction,
        authority: NodeId,
        generation: int,
        needs: tuple[NodeId, ...],
        gone: tuple[NodeId, ...],
        by: str,
    ) -> Appointment:
        at = self._database.clock_ms()
        body = {
            "node": self._node,
            "authority": authority,
            "generation": generation,
            "needs": list(needs),
            "gone": list(gone),
            "by": check_text("by", by),
            "at": at,
        }
        key = blob_of(ids.appointment_id(self._node, generation))
        transaction.execute("INSERT INTO authorities (id, body) VALUES (?, ?)", (key, encode("appointment", body)))
        return Appointment(generation, authority, needs, gone, by, at)

    def _fence(self, transaction: Transaction, appointment: Appointment) -> None:
        body = {
            "node": self._node,
            "authority": appointment.authority,
            "generation": appointment.generation,
            # Before this transaction: what it writes itself proves nothing to anybody.
            "version": self._database.version(),
            "at": self._database.clock_ms(),
        }
        # In the same transaction: what this node has no permit for is asked of the next generation from here on.
        transaction.execute(
            "UPDATE permit_requests SET body = json_set(body, '$.generation', ?1) WHERE id IN "
            "(SELECT run FROM waiting_permits WHERE node = ?2 AND generation < ?1)",
            (appointment.generation, self._database.site_id),
        )
        key = blob_of(ids.fence_id(self._node, appointment.generation))
        transaction.execute("INSERT INTO authority_fences (id, body) VALUES (?, ?)", (key, encode("fence", body)))


def _begins(fence: _Fence) -> bool:
    return fence.node == fence.authority


def _appointment(body: dict[str, Any]) -> Appointment:
    return Appointment(
        generation=body["generation"],
        authority=NodeId(body["authority"]),
        needs=tuple(str_ids(body["needs"])),
        gone=tuple(str_ids(body["gone"])),
        by=body["by"],
        at=body["at"],
    )


def str_ids(values: Sequence[object]) -> list[NodeId]:
    """Return those values that are text. A list of a peer may hold anything."""
    return [NodeId(value) for value in values if isinstance(value, str)]
