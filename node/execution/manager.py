"""The manager makes every transition of a run. Each is one transaction, and nobody else makes any.

Which transitions are legal stands in `node.stores.phases.PHASES`. In the same transaction each does more:

| transition | in the same transaction |
|---|---|
| to preparing, executing | the row of the session, with its first run. For a poll nothing (`begin_producing`) |
| to prepared | the reservation and the prepare result. In mode confirmed also the request for a permit |
| to mutating | ownership and permit checked; the ledger entry is in flight. On the disk before the call leaves |
| to mutated (and emitting, as nothing happens between) | the effect's outcome, wake_at |
| to committed | what is published, the events' outcome, the handler's state, wake_at, the session's count |

Two transitions with nothing external between them share a transaction. So a consumer without an effect has two: one up
to prepared, and one from there to committed.

**The boundary** is the moment when the effect is known to have happened. A run that cannot go on before it gives its
events back, and another run begins from the start. Beyond it the work must go forward. A new run then begins at
emitting. It has the prepare result, the effect result and the reservation of the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Literal

from leasemesh.node.authoring.effects import EffectCall
from leasemesh.node.authoring.errors import is_transient, text_of
from leasemesh.node.authoring.retry import CLAIMS_THAT_FAIL_MAX
from leasemesh.node.authoring.workflow import Consumer, Producer
from leasemesh.node.database.connection import DatabaseError
from leasemesh.node.execution.attempt import Attempt
from leasemesh.node.execution.beginning import Beginnings, consumer_of
from leasemesh.node.execution.choosing import FailedBefore, failed_claims
from leasemesh.node.model.errors import IllegalState, LeaseLost, LeasemeshError, StaleVersion
from leasemesh.node.model.ids import RunId, short
from leasemesh.node.model.jsonvalue import Json
from leasemesh.node.stores import HandlerRun
from leasemesh.node.stores.phases import ENDED, Phase, RunStatus

SESSION_LOG_CHARACTERS_MAX = 4_000
"""What a session shows of its runs' logs. It is one cell, rewritten with each of them."""

Failure = Literal["transient", "logic", "internal"]
Intent = Literal["call", "applied", "skipped"]
Settling = Literal["leave", "release", "skip"]
_STATUS: dict[Failure, RunStatus] = {
    "transient": "paused:transient",
    "logic": "failed:logic",
    "internal": "failed:internal",
}


class Manager(Beginnings):
    """Makes the transitions of this node's runs. Synchronous. Every method is one transaction."""

    # --- The effect ---------------------------------------------------------------------------------------------------

    def require_owned(self, attempt: Attempt) -> None:
        """Make sure that the run still owns all its events. Raises LeaseLost, naming those that it does not."""
        if attempt.holder is not None:
            self._events.require_owned(attempt.holder)

    def require_its_own(self, attempt: Attempt) -> None:
        """Make sure that what comes next is this run's to do. Raises LeaseLost.

        Beyond its effect it goes on although it owns its events no more, because what happened must be known
        everywhere. Not when those who own them go on with this very work.
        """
        try:
            self.require_owned(attempt)
        except LeaseLost:
            if attempt.outcome == "none" or (attempt.holder is not None and self._events.is_continued(attempt.holder)):
                raise

    def has_permit(self, attempt: Attempt) -> bool:
        """Whether the run may begin its effect. False while nobody has decided.

        Raises:
            PermitRefused: the authority decided otherwise.
            LeaseLost: another run owns one of its events now.
            IllegalState: its handler must not run any more: the wait may have been long.
        """
        self.require_owned(attempt)
        handler = attempt.handler
        if (gate := self.gate(handler.workflow, handler.name)) is not None:
            raise IllegalState(f"handler {handler}", *gate)
        permit = self.node.permits.get(attempt.run)
        if permit is None or permit.state == "waiting":
            return False
        self.node.permits.require(attempt.run)
        return True

    def gate(self, workflow: str, handler: str) -> tuple[Literal["blocked", "disabled"], str] | None:
        """Return what keeps a handler from running on this device, and why. None for nothing."""
        block = self.node.handler_blocks.get(workflow, handler)
        if block is not None:
            return "blocked", block.reason or f"blocked by {block.by}"
        found = self.node.workflows.get(workflow)
        if found is not None and not found.enabled:
            return "disabled", f"workflow {found.id} is disabled"
        if found is not None and found.status == "paused":
            return "disabled", f"workflow {found.id} is paused"
        return None

    def authority_name(self) -> str:
        """Return who decides on permits, as people call that node."""
        info = self.node.authorities.info()
        node = info.authority or (info.next.authority if info.next is not None else None)
        if node is None:
            return "the authority, which a person must appoint (`leasemesh authority set`)"
        return self.node.devices.name_of(node) or f"node {short(node)}"

    def intend(self, attempt: Attempt, call: EffectCall) -> Intent:
        """Record, on the disk, that the effect may happen from now on. The call may leave when this has returned
        "call".

        Or it must not: the work is known to have happened by now, or a person has said to skip it, on whichever device.

        Raises:
            LeaseLost, PermitRefused, IllegalState: the run must not begin it.
        """
        with self._transaction(durable=True):
            self.require_owned(attempt)
            work = attempt.work = self.node.mutations.work_for(attempt.run)
            decided = self._decided(attempt, "mutating", "mutated", "emitting")
            if decided != "call":
                return decided
            self._runs.advance(attempt.run, "mutating")
            self.node.mutations.intend(attempt.run, work, tool=call.effect.name, params=call.params)
        return "call"

    def applied(self, attempt: Attempt, result: Json) -> None:
        """Record that the effect happened: from here on the work goes forward."""
        with self._transaction():
            self._mark_applied(attempt, result)
            self._runs.advance(attempt.run, "mutated", "emitting")
            self._plan(attempt)

    def _mark_applied(self, attempt: Attempt, result: Json) -> None:
        self.node.mutations.mark_applied(attempt.run, result)
        attempt.result = result
        attempt.outcome = "applied"

    def applied_and_committed(self, attempt: Attempt, result: Json, *, and_begin: bool) -> Attempt | None:
        """Record that the effect happened, and end the run with it: nothing of the user's comes between.

        With `and_begin` as `commit_and_begin`: returns the next run. Raises as `commit`. That it happened is recorded
        then, too.
        """

        def end() -> None:
            with self._transaction():
                self._mark_applied(attempt, result)
                self._commit(attempt, None, "mutated", "emitting", "committed")

        try:
            if and_begin:
                return self._and_begin(attempt, end)
            end()
        except (LeaseLost, IllegalState):
            self.applied(attempt, result)
            raise
        return None

    def did_not_happen(self, attempt: Attempt, error: BaseException, *, stopped: bool = False) -> tuple[Intent, int]:
        """Record that the effect certainly did not happen, and give the run up.

        Args:
            attempt: the run.
            error: why it did not.
            stopped: it was not called, because the node stopped: the run ends as by `stop`, and the next one, which has
                no failure to wait for, begins at once.

        Returns:
            "call" and what `fail` returns, or what a person knows better, as `intend` does.
        """
        with self._transaction():
            self.node.mutations.mark_failed(attempt.run, text_of(error))
            decided = self._decided(attempt, "mutated", "emitting")
            if decided == "call" and stopped:
                self.stop(attempt, str(error))
            elif decided == "call":
                return decided, self.fail(attempt, error)
            return decided, 0

    def _decided(self, attempt: Attempt, *phases: Phase) -> Intent:
        """Do what the work's outcome asks for, if it is known, or a person has decided.

        Also when the work before it, which was said not to have happened, turns out to have: a permit is for the work
        that was asked for then. (Without one the work is chosen when the effect begins.)
        """
        assert attempt.work is not None
        earlier = self.node.mutations.earlier_works(attempt.run) if attempt.mode == "confirmed" else []
        works = [attempt.work, *earlier]
        outcomes = {work: self.node.mutations.outcome(work) for work in works}
        happened = next((work for work, outcome in outcomes.items() if outcome == "applied"), None)
        outcome = outcomes[attempt.work]
        if outcome == "skipped":
            self._events.skip(attempt.run)
            details = self._told(attempt) | {"ended_because": "a person decided to skip its events"}
            self._runs.set_status(attempt.run, "superseded", details=details)
            self._count(attempt)
            return "skipped"
        if happened is not None:
            attempt.outcome = "applied"
            attempt.result = self.node.mutations.result_of(happened)
            self._runs.advance(attempt.run, *phases)
            return "applied"
        return "call"

    def unknown(self, attempt: Attempt, reason: str, *, reconcile_at: int | None, still_called: bool) -> None:
        """Record that nobody knows whether the effect happened. The events stay reserved until it is known.

        Args:
            attempt: the run.
            reason: why, for people.
            reconcile_at: when to find out (Unix ms); None: only a person can tell.
            still_called: a thread goes on with the call: it stays in flight, and did not happen is not to be said yet.
        """
        with self._transaction():
            if still_called:
                pass
            elif reconcile_at is None:
                self.node.mutations.mark_indeterminate(attempt.run, reason)
            else:
                self.node.mutations.mark_needs_reconcile(attempt.run, at=reconcile_at, error=reason)
            details = self._told(attempt) | {"error": reason}
            self._runs.set_status(attempt.run, "paused:reconciliation", details=details)
            self._plan(attempt)
            self._count(attempt)

    # --- The end ------------------------------------------------------------------------------------------------------

    def commit(self, attempt: Attempt, state: Json) -> None:
        """End a run: publish, settle its events, keep its state, all in one transaction.

        A run whose effect happened settles its events also when another run owns them by now: what happened must be
        known everywhere, and shows as a duplicate when the other did it too. But when another run goes on with this
        work, that one does the rest of it.

        Raises:
            LeaseLost: the run does not own all its events any more, and no effect happened, or others go on with it.
            StaleVersion: another device's run has written the handler's state, and no effect happened.
            InvalidInput: the state is not JSON.
        """
        self._commit(attempt, state, *_way_to_commit(attempt))

    def _commit(self, attempt: Attempt, state: Json, *way: Phase) -> None:
        handler = attempt.handler
        details: dict[str, Json] = {}
        with self._transaction():
            published = self._publish(attempt)
            if attempt.holder is not None:
                self._consume(attempt, attempt.holder)
            if isinstance(handler, Producer) or handler.stateful:
                details |= self._keep_state(attempt, state)
            if isinstance(handler, Consumer):
                self._plan(attempt)
            found_nothing = attempt.is_poll and not (published or attempt.told.logs or attempt.told.cost)
            if found_nothing:
                self._runs.forget_poll(attempt.run)
            else:
                self._record(attempt)
                self._runs.advance(attempt.run, *way, details=self._told(attempt) | details)
                self._count(attempt)
        attempt.found_nothing = found_nothing

    def _consume(self, attempt: Attempt, holder: RunId) -> None:
        try:
            self._events.consume(holder)
        except (LeaseLost, IllegalState):
            if attempt.outcome != "applied":
                raise
            self.require_its_own(attempt)
            self._events.consume(holder, effect_happened=True)

    def commit_and_begin(self, attempt: Attempt, state: Json) -> Attempt | None:
        """End a run as `commit` does, and begin its consumer's next one in the same transaction: half the commits.

        Returns the next run. None when there is nothing for it to do. Raises as `commit`.
        """
        return self._and_begin(attempt, lambda: self.commit(attempt, state))

    def fail(self, attempt: Attempt, error: BaseException) -> int:
        """End a run whose code failed. Before the boundary its events are given back, or become dead letters
        after three such runs.

        Returns:
            How many events became dead letters.
        """
        failure = classify(error)
        details = self._told(attempt) | {
            "failure": failure,
            "error": text_of(error),
            "failed_at": self._database.clock_ms(),
        }
        attempt.session.error = text_of(error)
        with self._transaction():
            self._record(attempt)
            dead_lettered = 0
            if attempt.holder is not None and attempt.outcome == "none":
                dead_lettered = self._give_back(attempt, dead_letter=failure == "logic")
            self._runs.set_status(attempt.run, _STATUS[failure], details=details)
            self._count(attempt)
        return dead_lettered

    def lose(self, attempt: Attempt, reason: str) -> None:
        """End a run that lost its lease, or may not go on, before the boundary. It gives back what it still has."""
        self._end(attempt, "lost", reason)

    def stop(self, attempt: Attempt, reason: str) -> None:
        """End a run that is not to go on in this process. Before the boundary its events are free at once. Beyond it
        they wait for a run that goes on."""
        self._end(attempt, "crashed", reason)

    def _end(self, attempt: Attempt, status: RunStatus, reason: str) -> None:
        with self._transaction():
            self._record(attempt)
            if attempt.holder is not None and attempt.outcome == "none":
                self._let_go(attempt.holder)
            self._runs.set_status(attempt.run, status, details=self._told(attempt) | {"error": reason})
            self._count(attempt)

    # --- What became known later --------------------------------------------------------------------------------------

    def found_applied(self, run: HandlerRun, result: Json) -> None:
        """Record, of a run that has stopped, that its effect happened; another run goes on (`go_on`).

        Its events may have been given back meanwhile, because somebody said that it did not happen. They are its own
        again, unless another run has begun its effect or is done: then it happened twice, and that shows.
        """
        with self._transaction():
            self.node.mutations.mark_applied(run.id, result)
            if run.phase == "mutating" and run.status not in ENDED:
                self._runs.advance(run.id, "mutated", status="paused:reconciliation")
            reservation = self._events.reservation(run.id)
            if reservation is not None and reservation.state in ("released", "lost"):
                found = [self._events.get(event) for event in reservation.claims]
                if any(event is not None and event.status in ("unknown", "consumed") for event in found):
                    self._events.consume(run.id, effect_happened=True)

    def found_not_applied(self, run: HandlerRun, reason: str) -> None:
        """Record, of a run that has stopped, that its effect certainly did not happen, and give its events back."""
        with self._transaction():
            entry = self.node.mutations.mark_failed(run.id, reason)
            if self.node.mutations.outcome(entry.work) != "failed":
                return  # a person knows better
            self._let_go(run.id)
            if run.status not in ENDED:
                details = {"failure": "transient", "error": reason, "failed_at": self._database.clock_ms()}
                self._runs.set_status(run.id, "paused:transient", details=details)

    def ask_again(self, run: RunId, *, at: int) -> None:
        """Plan the next try (Unix ms) to find out what became of a run's effect."""
        self.node.mutations.schedule_reconcile(run, at=at)

    def leave_to_a_person(self, run: HandlerRun, reason: str) -> None:
        """Record that only a person can tell what became of a run's effect."""
        with self._transaction():
            self.node.mutations.mark_indeterminate(run.id, reason)
            self._pause(run, reason)

    def call_ended(self, run: HandlerRun, reason: str, *, reconcile_at: int | None) -> None:
        """Record, of a call that is not under way any more, that nobody knows what became of it. See `unknown`."""
        with self._transaction():
            if reconcile_at is None:
                self.node.mutations.mark_indeterminate(run.id, reason)
            else:
                self.node.mutations.mark_needs_reconcile(run.id, at=reconcile_at, error=reason)
            self._pause(run, reason)

    def end_earlier(self, run: HandlerRun, status: RunStatus, reason: str, *, settle: Settling = "leave") -> None:
        """End a run of this node that nobody runs any more.

        Args:
            run: the run.
            status: how it ended.
            reason: for people.
            settle: what becomes of its events: leave them, release them, or skip them, as a person said.
        """
        with self._transaction():
            if settle == "skip":
                try:
                    self._events.skip(run.id)
                except LeaseLost:
                    self._events.release(run.id)
            elif settle == "release":
                self._let_go(run.id)
            if run.status not in ENDED:
                self._runs.set_status(run.id, status, details={"ended_because": reason})

    def end_continued(self, run: HandlerRun) -> None:
        """End a run of this node whose work another one goes on with. When that is done, so are this one's claims: what
        happened, happened once."""
        with self._transaction():
            reservation = self._events.reservation(run.id)
            found = [self._events.get(event) for event in reservation.claims] if reservation is not None else []
            if all(event is None or event.status == "consumed" for event in found):
                self._events.consume(run.id, effect_happened=True)
            if run.status not in ENDED:
                self._runs.set_status(
                    run.id, "superseded", details={"ended_because": "another run goes on with its work"}
                )

    def _pause(self, run: HandlerRun, reason: str) -> None:
        if run.status not in ENDED:
            self._runs.set_status(run.id, "paused:reconciliation", details={"error": reason})

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _and_begin(self, attempt: Attempt, end: Callable[[], object]) -> Attempt | None:
        following: Attempt | None = None
        logged = attempt.session.logged
        try:
            with self._transaction():
                end()
                following = self._begin(consumer_of(attempt), attempt.session, None, wary=False, skip=attempt.skip)
        except BaseException as error:
            if following is not None:
                self.over(following)  # it has begun in a transaction that is none
            attempt.session.logged = logged
            if isinstance(error, DatabaseError) or not isinstance(error, LeasemeshError | FailedBefore):
                raise
            end()  # by itself: what stood in the way of the other is no business of this one
            return None
        return following

    def _publish(self, attempt: Attempt) -> int:
        """Publish what the run has told, and return how many events the topics did not have yet."""
        by_topic = groupby(attempt.told.publications, key=lambda one: (one[0].name, one[2]))
        workflow, run = attempt.handler.workflow, attempt.run
        return sum(
            self._events.publish_many(
                workflow, topic, [event for _, event, _ in told], created_by_run=run, caused_by=cause
            ).created
            for (topic, cause), told in by_topic
        )

    def _keep_state(self, attempt: Attempt, state: Json) -> dict[str, Json]:
        handler = attempt.handler
        try:
            self.node.handler_states.set(
                handler.workflow, handler.name, state, run=attempt.run, expected_version=attempt.state_version
            )
        except StaleVersion as error:
            if attempt.outcome != "applied":
                raise
            return {"state_lost": str(error)}  # its effect happened twice, too; that shows as a duplicate
        return {}

    def _give_back(self, attempt: Attempt, *, dead_letter: bool) -> int:
        assert attempt.holder is not None
        try:
            failed = (
                [failed_claims(self.node, attempt.handler, event) for event in attempt.events] if dead_letter else []
            )
            if failed and min(failed) + 1 >= CLAIMS_THAT_FAIL_MAX:
                return self._events.dead_letter(attempt.holder)
        except (LeaseLost, IllegalState):
            pass  # whoever owns them now tries by itself, or they are settled
        self._let_go(attempt.holder)
        return 0

    def _let_go(self, run: RunId) -> None:
        """Give back what a run holds. What a person has settled by hand meanwhile stays as it is, and so does what a
        person has decided about its permit: that is carried out when runs that nobody runs are looked after."""
        reservation = self._events.reservation(run)
        if reservation is None or reservation.state != "held":
            return
        effect = self._events.effect_behind(run)
        if effect is None or effect.outcome not in ("applied", "skipped"):
            self._events.release(run)

    def _count(self, attempt: Attempt) -> None:
        session = attempt.session
        room = SESSION_LOG_CHARACTERS_MAX - session.logged
        logs = "".join(f"{line}\n" for line in attempt.told.logs)[:room]
        self.node.script_runs.add_handler_run(session.id, cost=attempt.told.cost, logs=logs)
        session.logged += len(logs)

    def _told(self, attempt: Attempt) -> dict[str, Json]:
        told: dict[str, Json] = {}
        if attempt.told.logs:
            told["logs"] = attempt.told.logs
        if attempt.told.cost:
            told["cost"] = attempt.told.cost
        return told


def classify(error: BaseException) -> Failure:
    """Tell what kind of failure an error is: one that goes away by itself, one of the handler's code or data, or one of
    this device's file."""
    if isinstance(error, DatabaseError):
        return "internal"
    return "transient" if is_transient(error) else "logic"


def _way_to_commit(attempt: Attempt) -> tuple[Phase, ...]:
    if isinstance(attempt.handler, Producer):
        return ("committed",)
    if attempt.outcome == "applied":
        return ("committed",)
    if attempt.holder is None:
        return ("emitting", "committed")
    return ("mutating", "mutated", "emitting", "committed")
