"""The crash table when the device that died never comes back: for each point at which it may die, what another device
does about the work, and how often the outside service was asked. Whole nodes in virtual time.

The first device dies when the hub has heard of all that it did; the hub is the authority, and runs no handlers. The
second device starts only then: what was claimed it may take over after it has itself watched a silent holder for long
enough.
"""

import asyncio
from dataclasses import dataclass

import pytest
from handling import publish, run_of, runs, statuses

from leasemesh import Applied, Retry, effect

WATCHED_S = 75.0
"""Time to live and margin of the staleness rule."""

A_LITTLE_S = 5.0
LONG_S = 400.0

ANEW, BEYOND, NOTHING = "it does the work from the start", "it goes on beyond the effect", "it does nothing"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        run: the phase and the status in which the dead device leaves its run.
        entry: how it leaves its entry in the ledger; None: without one.
        event: how it leaves its event.
        calls: calls of the service by then.
        other: what the other device does.
        after_s: how long it waits before.
    """

    run: tuple[str, str]
    entry: str | None
    event: str
    calls: int
    other: str
    after_s: float = WATCHED_S


TABLE = {
    "preparing": Row(("preparing", "active"), None, "pending", 0, ANEW, after_s=0),
    "prepared": Row(("prepared", "active"), None, "reserved", 0, ANEW),
    "prepared, no permit yet": Row(("prepared", "paused:confirmation"), None, "reserved", 0, ANEW),
    "prepared, with its permit": Row(("prepared", "paused:confirmation"), None, "reserved", 0, NOTHING),
    "mutating, before the call": Row(("mutating", "active"), "in_flight", "unknown", 0, NOTHING),
    "mutating, call not answered": Row(("mutating", "active"), "in_flight", "unknown", 1, NOTHING),
    "mutating, being found out": Row(("mutating", "paused:reconciliation"), "needs_reconcile", "unknown", 1, NOTHING),
    "mutating, for a person": Row(("mutating", "paused:reconciliation"), "indeterminate", "unknown", 1, NOTHING),
    "mutated": Row(("mutated", "paused:reconciliation"), "applied", "reserved", 1, BEYOND),
    "emitting": Row(("emitting", "active"), "applied", "reserved", 1, BEYOND),
    "committed": Row(("committed", "committed"), "applied", "consumed", 1, NOTHING),
}
ONLY_MODE = {"prepared": "soft", "prepared, no permit yet": "confirmed", "prepared, with its permit": "confirmed"}
"""Where the modes differ; the other rows are the same in both."""

ONLY_RECONCILE = {"mutating, being found out": True, "mutated": True, "mutating, for a person": False}
"""Where it matters on the dead device whether there is a reconcile function. The other device never asks it."""

CASES = [
    pytest.param(point, mode, reconcile, id=f"{point}, {mode}, {'reconcile' if reconcile else 'no reconcile'}")
    for point in TABLE
    for mode in ("soft", "confirmed")
    for reconcile in (False, True)
    if ONLY_MODE.get(point, mode) == mode and ONLY_RECONCILE.get(point, reconcile) == reconcile
]


class Story:
    """A hub and two devices, of which the first one dies at a point."""

    def __init__(self, device_lab, mail, point, mode, reconcile):
        self.point = point
        self.row = TABLE[point]
        self.reached = False
        self.first_is_dead = False
        self.keys = []  # what the service was asked for, by the first device or the second one
        self.looks = []  # at what became of it
        self._declare(mail, mode, reconcile)
        self.lab = device_lab(
            devices=["hub", "first", "second"], workflows=lambda name: [] if name == "hub" else [mail]
        )
        if point != "prepared, no permit yet":
            self.appoint_hub()
        self.lab.settle()
        self.lab.crash("second")

    @property
    def hub(self):
        return self.lab["hub"].node

    def appoint_hub(self):
        self.hub.authorities.appoint(self.hub.site_id, by="the test")

    def let_first_die(self):
        publish(self.lab["first"].node, "one")
        if self.point == "mutated":
            self._find_out_without_going_on()
        elif self.point in ("prepared, no permit yet", "committed") or self.row.run[1] == "paused:reconciliation":
            self.lab.until(lambda: self._left() == (self.row.run, self.row.entry, self.row.event))
        else:
            self.lab.until(lambda: self.reached)
        self.lab.advance(1)
        self.lab.crash("first")
        self.first_is_dead = True
        assert self._left() == (self.row.run, self.row.entry, self.row.event)
        assert len(self.keys) == self.row.calls
        self.dead = run_of(self.hub, "send")
        self.looks.clear()

    def start_second(self):
        self.lab.restart("second")
        self.started_s = self.lab.now_s

    def wait(self, seconds):
        """Let so much time pass since the second device has started."""
        self.lab.advance(self.started_s + seconds - self.lab.now_s)

    @property
    def event(self):
        return statuses(self.hub)["one"]

    @property
    def sent(self):
        return {event.message_id: event.payload for event in self.hub.peek("mail", "sent")}

    @property
    def others(self):
        """The phase and status of the second device's runs, the oldest first, without what only freed the work."""
        found = [run for run in self.hub.handler_runs.list("mail", "send") if run.node != self.dead.node]
        return [(run.phase, run.status) for run in reversed(found) if run.phase != "pending"]

    def work(self):
        """The work of the dead device's run."""
        entry, permit = self.hub.mutations.get(self.dead.id), self.hub.permits.get(self.dead.id)
        return entry.work if entry is not None else permit.work

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _declare(self, mail, mode, reconcile):
        inbox, sent = mail.topic("inbox"), mail.topic("sent")

        @effect(name="mail")
        async def send_mail(key, *, to):
            await self._reach("mutating, before the call")
            self.keys.append(key)
            await self._reach("mutating, call not answered")
            if self.row.run == ("mutating", "paused:reconciliation") or self.point == "mutated":
                if not self.first_is_dead:
                    raise ConnectionResetError
            return {"number": len(self.keys)}

        if reconcile:

            @send_mail.reconcile
            async def was_sent(key, *, to):
                self.looks.append(key)
                return Applied({"number": 1}) if self.point == "mutated" and len(self.looks) > 1 else Retry()

        consumer = mail.consumer(inbox, name="send", mode=mode, publishes=[sent])

        @consumer.prepare
        async def choose(run):
            await self._reach("preparing")
            run.reserve(run.peek(inbox))
            return {"by": run.id}

        @consumer.mutate
        async def send(run):
            await self._reach("prepared", "prepared, with its permit")
            return send_mail(to=run.events[0].message_id)

        @consumer.next
        async def tell(run):
            await self._reach("emitting")
            run.publish(sent, "re-one", payload={"prepared": run.prepared, "result": run.result})

    async def _reach(self, *points):
        """Hang where the first device is to die."""
        if self.point in points and not self.first_is_dead:
            self.reached = True
            await asyncio.Event().wait()

    def _find_out_without_going_on(self):
        """The handler is blocked while it is found out that the effect happened."""
        node = self.lab["first"].node
        self.lab.until(lambda: self.looks)
        node.handler_blocks.block("mail", "send", reason="the test", node=node.site_id)
        self.lab.until(lambda: self._left() == (self.row.run, self.row.entry, self.row.event))

    def _left(self):
        """What the hub knows of the first device's run."""
        run = run_of(self.hub, "send") if self.hub.handler_runs.list("mail") else None
        if run is None:
            return None
        entry = self.hub.mutations.get(run.id)
        return (run.phase, run.status), entry.status if entry is not None else None, self.event


@pytest.fixture
def begin(device_lab, mail):
    """A story up to the start of the second device, which then runs while the first one is dead."""

    def begin_it(point, mode, reconcile):
        story = Story(device_lab, mail, point, mode, reconcile)
        story.let_first_die()
        story.start_second()
        return story

    return begin_it


@pytest.mark.parametrize(("point", "mode", "reconcile"), CASES)
def test_when_a_device_is_dead_for_good_another_does_what_the_table_says(begin, point, mode, reconcile):
    story = begin(point, mode, reconcile)
    row = story.row
    if row.after_s:
        story.wait(row.after_s - A_LITTLE_S)
        assert (story.event, story.others) == (row.event, []), "the first device may still be at work"
        assert len(story.keys) == row.calls
    story.wait(row.after_s + 3 * A_LITTLE_S)
    if point == "prepared, no permit yet":
        assert (story.others, story.keys) == ([("prepared", "paused:confirmation")], [])
        story.appoint_hub()
        story.lab.advance(A_LITTLE_S)
    if row.other == NOTHING:
        story.wait(LONG_S)
        assert (story.event, story.others) == (row.event, [])
        assert len(story.keys) == row.calls
    else:
        assert story.event == "consumed"
        assert story.others == [("committed", "committed")]
        assert len(story.keys) == 1, "the effect happened once"
        ((_, told),) = story.sent.items()
        assert told["result"] == {"number": 1}
        assert (told["prepared"] == story.dead.details.get("prepared")) is (row.other == BEYOND)
    assert story.looks == [], "only the device that made a call asks what became of it"
    assert story.hub.handler_runs.get(story.dead.id) == story.dead, "another device's run is its own"
    assert story.hub.events.count_duplicates() == 0


WAITING = [
    pytest.param(point, mode, ONLY_RECONCILE.get(point, False), id=f"{point}, {mode}")
    for point, row in TABLE.items()
    for mode in ("soft", "confirmed")
    if row.other == NOTHING and point != "committed" and ONLY_MODE.get(point, mode) == mode
]


@pytest.mark.parametrize("verdict", ["happened", "skip", "not_happened"])
@pytest.mark.parametrize(("point", "mode", "reconcile"), WAITING)
def test_what_a_person_says_of_a_dead_devices_work_another_carries_out(begin, point, mode, reconcile, verdict):
    story = begin(point, mode, reconcile)
    calls = story.row.calls
    story.wait(WATCHED_S + A_LITTLE_S)
    result = {"number": "as Ann says"} if verdict == "happened" else None
    story.hub.mutations.resolve(story.work(), verdict, by="Ann", result=result)
    if verdict == "not_happened" and story.row.entry == "in_flight":
        story.wait(LONG_S)
        assert (story.event, story.others) == ("unknown", []), "the call may still be on its way"
        assert len(story.keys) == calls
        return
    story.lab.advance(3 * A_LITTLE_S)
    if verdict == "skip":
        assert (story.event, story.others, story.sent) == ("skipped", [], {})
        assert len(story.keys) == calls
        return
    ((_, told),) = story.sent.items()
    assert (story.event, story.others) == ("consumed", [("committed", "committed")])
    assert (told["prepared"] == story.dead.details["prepared"]) is (verdict == "happened")
    if verdict == "happened":
        assert told["result"] == result
        assert len(story.keys) == calls
    else:
        assert len(story.keys) == calls + 1
        assert story.keys[-1] != story.work(), "a call with the old key may still arrive"


def test_what_a_dead_device_was_polling_is_polled_and_published_by_another(device_lab, mail, inbox):
    polls = []

    @mail.producer(every_s=60, publishes=[inbox])
    async def poll(run, state):
        polls.append(state)
        run.publish(inbox, "one")
        if len(polls) == 2:
            await asyncio.Event().wait()
        return "polled"

    lab = device_lab(devices=["hub", "first", "second"], workflows=lambda name: [] if name == "hub" else [mail])
    lab.crash("second")
    lab.until(lambda: len(polls) == 2)
    lab.advance(1)
    known = runs(lab["hub"].node, "poll")
    assert known == [("poll", "committed", "committed")], "nobody is told of the poll"
    lab.crash("first")
    lab.restart("second")
    lab.until(lambda: len(polls) == 3, within_s=60)
    lab.settle()
    assert polls == [None, "polled", "polled"]
    assert statuses(lab["hub"].node) == {"one": "pending"}
    assert runs(lab["hub"].node, "poll") == [*known, ("poll", "committed", "committed")]
    assert lab["hub"].node.handler_states.get("mail", "poll").version == 2
    lab.restart("first")
    lab.settle()
    assert sorted(runs(lab["hub"].node, "poll")) == [*known, *known, ("poll", "executing", "crashed")]
