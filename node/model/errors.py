"""What can go wrong on a node, one class for each thing a caller may want to handle.

Every error is one sentence that names the thing and says what to do. Its attributes carry the same facts for
programs. An error raised by a store means that nothing was written.
"""

from __future__ import annotations

from collections.abc import Sequence


class LeasemeshError(Exception):
    """Base of all errors that leasemesh raises on purpose."""


class InvalidInput(LeasemeshError):
    """An argument cannot be accepted.

    Attributes:
        name: the argument.
        problem: what is wrong with it and what is expected.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class NotFound(LeasemeshError):
    """Something that was named does not exist on this device.

    Attributes:
        kind: "event", "topic", "run", ...
        names: what was asked for and is not there.
    """

    def __init__(self, kind: str, names: Sequence[str], hint: str = "") -> None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        super().__init__(f"no such {kind}: {shown}" + (f"; {hint}" if hint else ""))
        self.kind = kind
        self.names = tuple(names)


class Ambiguous(LeasemeshError):
    """A short id fits more than one thing.

    Attributes:
        kind: "event" or "run".
        candidates: some of the ids that fit.
    """

    def __init__(self, kind: str, prefix: str, candidates: Sequence[str]) -> None:
        super().__init__(f"{prefix} fits more than one {kind} ({', '.join(candidates[:3])}, ...); type more of its id")
        self.kind = kind
        self.candidates = tuple(candidates)


class NotAvailable(LeasemeshError):
    """Events could not be reserved because they are not pending.

    Attributes:
        holders: event id -> a few words on its status and holder.
    """

    def __init__(self, holders: dict[str, str]) -> None:
        shown = ", ".join(f"{event} is {why}" for event, why in list(holders.items())[:3])
        more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
        super().__init__(
            f"not all events are free: {shown}{more}; nothing was reserved (a partial reservation takes the rest)"
        )
        self.holders = holders


class LeaseLost(LeasemeshError):
    """A run no longer owns all events that it reserved: another device's claim won when the two met.

    Attributes:
        run: the run that lost.
        owners: event id -> the run that now owns or has settled it ("" when nobody does).
    """

    def __init__(self, run: str, owners: dict[str, str]) -> None:
        shown = ", ".join(f"{event} now belongs to {owner or 'nobody'}" for event, owner in list(owners.items())[:3])
        more = f" and {len(owners) - 3} more" if len(owners) > 3 else ""
        super().__init__(f"run {run} lost its lease: {shown}{more}; release the run and reserve again")
        self.run = run
        self.owners = owners


class NotOwner(LeasemeshError):
    """A run's rows may be written only by the node that created the run.

    Attributes:
        run: the run.
        node: the node that it belongs to.
    """

    def __init__(self, run: str, node: str) -> None:
        super().__init__(f"run {run} belongs to node {node}, not to this one; only that node may change it")
        self.run = run
        self.node = node


class IllegalState(LeasemeshError):
    """The thing is not in a state in which this is possible.

    Attributes:
        thing: its name.
        state: the state it is in.
    """

    def __init__(self, thing: str, state: str, wanted: str) -> None:
        super().__init__(f"{thing} is {state}: {wanted}")
        self.thing = thing
        self.state = state


class StaleVersion(LeasemeshError):
    """A handler's state was changed since the caller read it.

    Attributes:
        expected: the version the caller had read.
        actual: the version there is.
    """

    def __init__(self, handler: str, expected: int, actual: int) -> None:
        super().__init__(
            f"the state of handler {handler} is at version {actual}, not {expected}; read it again before writing"
        )
        self.expected = expected
        self.actual = actual


class StillReserved(LeasemeshError):
    """Something cannot be deleted because events in it are reserved.

    Attributes:
        count: how many are.
    """

    def __init__(self, what: str, count: int) -> None:
        super().__init__(f"{what} has {count} reserved events; release them first, or force the deletion")
        self.count = count


class TooEarly(LeasemeshError):
    """A claim may not be taken over yet.

    Attributes:
        wait_ms: how much longer its holder must be silent.
    """

    def __init__(self, what: str, wait_ms: int) -> None:
        super().__init__(
            f"{what} may not be taken over yet: its holder must be silent for another {wait_ms / 1000:.0f} s"
        )
        self.wait_ms = wait_ms


class PermitRefused(LeasemeshError):
    """A run has no permit for its effect, and gets none.

    Attributes:
        run: the run.
        reason: who stands in its way, or what.
    """

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(f"run {run} has no permit: {reason}; release the run and reserve again")
        self.run = run
        self.reason = reason


class HomeElsewhere(LeasemeshError):
    """Only one node claims this work, and this is not that node.

    Attributes:
        what: the topic or handler.
        node: the node that claims.
    """

    def __init__(self, what: str, node: str) -> None:
        super().__init__(f"{what} is at home on node {node}, which alone claims it and changes its mode; do it there")
        self.what = what
        self.node = node
