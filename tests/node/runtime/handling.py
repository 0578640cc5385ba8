"""Driving runs by hand, so that a test can stop where it likes; and the questions that many tests ask."""

from leasemesh import RetryRule
from leasemesh.node.execution import script
from leasemesh.node.execution.attempt import RunSession
from leasemesh.node.execution.manager import Manager


class Hands:
    """Drives scripts of one node, without an event loop. What is dropped between two steps is as if the process had
    died there: everything durable is in the file."""

    def __init__(self, node, *, has_sync=False):
        self.manager = Manager(node, RetryRule())
        self.alarms = 0
        self.has_sync = has_sync
        self.begun = []
        self.lost = []

    def began(self, attempt):
        self.begun.append(attempt.run)

    def committed(self, attempt):
        pass

    def not_written(self, run, outcome):
        self.lost.append((run, outcome))

    def time_s(self):
        return 0.0

    def may_go_on(self, runs, since_s):
        return False

    def consume(self, consumer, **options):
        return script.consume(self, consumer, self.session(consumer), None, **options)

    def produce(self, producer):
        return script.produce(self, producer, self.session(producer), None)

    def session(self, handler):
        return RunSession(self.manager.node.handler_runs.new_id(), handler.workflow, "event")


def until(steps, kind, answer=None):
    """Take a script to its next request, which must be of that kind; returns it."""
    request = steps.send(answer)
    assert isinstance(request, kind), request
    return request


def to_end(steps, answer=None):
    """Take a script to its end; returns the result."""
    try:
        request = steps.send(answer)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"the script asks for {request}")


def publish(node, *message_ids, topic="inbox"):
    for message_id in message_ids:
        node.publish("mail", topic, message_id, title=f"Title of {message_id}", payload={"id": message_id})


def statuses(node, topic="inbox"):
    """Message id -> status."""
    found = (node.peek("mail", topic, status=status) for status in STATUSES)
    return {event.message_id: event.status for events in found for event in events}


STATUSES = ("pending", "reserved", "unknown", "consumed", "skipped", "dead")


def runs(node, handler=None):
    """(handler, phase, status) of all runs, the oldest first."""
    found = reversed(node.handler_runs.list("mail", handler, limit=1000))
    return [(run.handler, run.phase, run.status) for run in found]


def run_of(node, handler, number=-1):
    """A handler's run, by default the last."""
    return sorted(node.handler_runs.list("mail", handler, limit=1000), key=lambda run: run.id)[number]
