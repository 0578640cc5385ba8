"""One run while it is under way in this process, and the session that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

from leasemesh.node.authoring.context import EffectOutcome, Given, Told
from leasemesh.node.authoring.workflow import Handler
from leasemesh.node.model.ids import RunId, WorkId
from leasemesh.node.model.jsonvalue import Json
from leasemesh.node.stores import Event
from leasemesh.node.stores.modes import Mode
from leasemesh.node.stores.workflows import Trigger


@dataclass(slots=True)
class RunSession:
    """A burst of activity of one workflow: a `script_runs` row, written with its first run.

    Attributes:
        id: its id.
        workflow, trigger: what was begun by what.
        stored: whether the row is known to be there. The run of a poll may bring it later.
        runs: runs that are under way in it.
        logged: characters of its runs' logs that it shows.
        error: the last failure in it.
    """

    id: str
    workflow: str
    trigger: Trigger
    stored: bool = False
    runs: int = 0
    logged: int = 0
    error: str = ""


@dataclass(slots=True)
class Attempt:
    """A run under way.

    Attributes:
        handler: what runs.
        run: its id.
        session: what it belongs to.
        holder: the run whose reservation holds the events: this one, or the first of those that it goes on with. None
            when nothing is reserved.
        events: the reserved events, without the one that stands for the handler's state.
        mode: how they were claimed.
        closed: topics of its handler that this device may not claim in.
        work: the work, once an effect was asked for.
        prepared, result, outcome, state: what phases are given.
        state_version: the version of the state that the run began with.
        told: what its functions have told.
        planned_at: when its handler is to run again (Unix milliseconds), once that is stored.
        skip: how many of the oldest events it left to others.
        mark: what was pending when it began to prepare.
        alarm: how many alarms there had been when its ownership was last checked.
        is_poll: a run of a producer of which nobody is told while it has nothing to tell.
        found_nothing: whether it ended as such.
    """

    handler: Handler
    run: RunId
    session: RunSession
    holder: RunId | None = None
    events: tuple[Event, ...] = ()
    mode: Mode = "soft"
    closed: frozenset[str] = frozenset()
    work: WorkId | None = None
    prepared: Json = None
    result: Json = None
    outcome: EffectOutcome = "none"
    state: Json = None
    state_version: int = 0
    told: Told = field(default_factory=Told)
    planned_at: int | None = None
    skip: int = 0
    mark: tuple[tuple[int, int], ...] | None = None
    alarm: int = 0
    is_poll: bool = False
    found_nothing: bool = False

    def given(self) -> Given:
        """Return what the next phase is given."""
        return Given(self.events, self.prepared, self.result, self.outcome, self.state)

    def names(self) -> str:
        """Name the events, for a sentence."""
        shown = ", ".join(event.message_id for event in self.events[:3])
        return shown + (f" and {len(self.events) - 3} more" if len(self.events) > 3 else "") or "no events"
