"""Devices with handlers, the service that they call, and pictures of what their files say."""

import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from crash_child import OPTIONS
from handled_child import Plan, device

from leasemesh import Node

MADE = {}
"""What files look like that have just been made, so that each kind is made once."""

STATUSES = ("pending", "reserved", "unknown", "consumed", "skipped", "dead")


@dataclass(frozen=True)
class Picture:
    """What a file says about the work of its handlers.

    Attributes:
        runs: all runs, the oldest first.
        ledger: the entries of those runs that have one, by run.
        events: the status of each event of the inbox, by message id.
        sent: the payload of each event that was published, by message id.
        state: (value, version) of the handler's state, None when it has none.
        sessions: all sessions.
        duplicates: message ids of events that were done twice.
    """

    runs: tuple
    ledger: dict
    events: dict
    sent: dict
    state: tuple | None
    sessions: tuple
    duplicates: tuple

    def stages(self):
        """How far each run got, and how it stands."""
        return [(run.phase, run.status) for run in self.runs]

    def effects(self):
        """How each run's ledger entry stands, "" for those without."""
        return [self.ledger[run.id].status if run.id in self.ledger else "" for run in self.runs]

    def chain(self):
        """The number of the run that each run tries again, or goes on with; None for those that begin from nothing."""
        numbers = {run.id: number for number, run in enumerate(self.runs)}
        return [numbers[run.retry_of] if run.retry_of else None for run in self.runs]


def picture_of(node, handler):
    """Take a picture of an open file, whose content must be sound."""
    assert [finding.text for finding in node.doctor() if not finding.healthy] == []
    runs = tuple(reversed(node.handler_runs.list("mail", limit=100)))
    entries = {run.id: node.mutations.get(run.id) for run in runs}
    inbox = [event for status in STATUSES for event in node.peek("mail", "inbox", status=status)]
    state = node.handler_states.get("mail", handler)
    return Picture(
        runs=runs,
        ledger={run: entry for run, entry in entries.items() if entry is not None},
        events={event.message_id: event.status for event in inbox},
        sent={event.message_id: event.payload for event in node.peek("mail", "sent")},
        state=None if state is None else (state.state, state.version),
        sessions=tuple(node.script_runs.by_workflow("mail")),
        duplicates=tuple(event.message_id for event in inbox if node.explain(event.id).duplicate),
    )


class Scene:
    """One service, and devices of one workspace with a file each."""

    def __init__(self, folder, service, start):
        self.folder = folder
        self.service = service
        self._start = start

    def path(self, name):
        return self.folder / f"{name}.db"

    @contextmanager
    def opened(self, name="first"):
        """A device's file, opened by the test itself."""
        with Node.open(self.path(name), name=name, **OPTIONS) as node:
            yield node

    def create(self, *messages, name="first", authority=True):
        """Make a device's file, with these messages in its inbox. It is the authority, if there is to be one."""
        made = MADE.get((messages, name, authority))
        if made is not None:
            self.path(name).write_bytes(made)
            return
        with self.opened(name) as node:
            for message in messages:
                node.publish("mail", "inbox", message)
            if authority:
                node.authorities.appoint(node.site_id, by="Ann")
                node.authority.tend()
        MADE[messages, name, authority] = self.path(name).read_bytes()

    def plan(self, **choices):
        return Plan(self.service.port, **choices)

    def start(self, plan):
        """Start a device's process."""
        return Process(self._start(device, str(self.path(plan.name)), plan), plan)

    # --- Killing, and starting again ----------------------------------------------------------------------------------

    def kill(self, plan):
        """Let a device run its handlers until it is killed at the point that the plan names. Returns its picture."""
        process = self.start(plan)
        process.tell("run")
        process.is_killed()
        return self.picture(plan)

    def run_to_the_end_unless_killed(self, plan):
        """Let a device do its only event, unless it is killed before; returns whether it was."""
        process = self.start(plan)
        with suppress(BrokenPipeError):  # it may be dead already
            for command in (("run",), ("until", "inbox", "consumed", 1), ("idle",), ("stop",)):
                process.tell(*command)
        *_, (last, _) = process.child.words()
        assert (last, process.child.process.exitcode) in {("killed", -signal.SIGKILL), ("stopped", 0)}
        return last == "killed"

    def kill_during_call(self, plan, hold):
        """Let a device run its handlers, and kill it while the service holds back its answer, so that the kill falls
        into the call."""
        self.service.hold = hold
        process = self.start(plan)
        process.tell("run")
        assert self.service.reached.wait(30)
        process.kill()
        self.service.go_on()
        return self.picture(plan)

    def run(self, plan, status="consumed", count=1):
        """Start a device on the same file again, until so many events of the inbox have a status and its handlers have
        nothing to do; then stop it as it should be. Returns its picture."""
        with self.running(plan) as process:
            process.do("until", "inbox", status, count)
            process.do("idle")
        return self.picture(plan)

    @contextmanager
    def running(self, plan):
        """A device that runs its handlers during the block, and is stopped as it should be."""
        process = self.start(replace(plan, kill_at=""))
        assert process.do("run") is None
        yield process
        process.stop()

    def picture(self, plan):
        with self.opened(plan.name) as node:
            return picture_of(node, plan.handler)


class Process:
    """A device's process."""

    def __init__(self, child, plan):
        self.child = child
        self.plan = plan

    def tell(self, *command):
        self.child.pipe.send(command)

    def do(self, *command):
        """Let it do something, and return what came of it."""
        self.tell(*command)
        return self.child.hear(command[0])

    def is_killed(self):
        """Wait until it has killed itself, at the point that its plan names and at no other."""
        *_, last = self.child.words()
        assert last == ("killed", self.plan.kill_at)
        assert self.child.process.exitcode == -signal.SIGKILL

    def kill(self):
        self.child.process.kill()
        self.child.process.join()
        assert self.child.process.exitcode == -signal.SIGKILL

    def terminate(self):
        self.child.process.terminate()

    def stop(self):
        """Tell it to stop, and wait for it."""
        self.tell("stop")
        self.has_stopped()

    def has_stopped(self):
        """Wait until it has stopped as it should, and is gone."""
        assert list(self.child.words())[-1] == ("stopped", None)
        assert self.child.process.exitcode == 0
