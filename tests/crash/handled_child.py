"""Devices that run handlers, and are killed at every point of a run.

A device is a process with a node and its handlers; it does what its pipe says, one command after another (`Device`).
Its handlers send each event of a topic to the outside service of `counting_service`, and publish what came of it.

A point to be killed at is a name: that of a user's function, while it runs ("next"); "call" and "answered", around the
question to the service; or a transition of the manager with a step of the file in it ("commit: COMMIT", before it is
committed) or after it ("commit: done"). Steps are those of `crash_child`.
"""

import asyncio
import functools
import os
import signal
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass

from counting_service import ask, ask_async
from crash_child import OPTIONS, Steps

from leasemesh import Node
from leasemesh.node.authoring.effects import Applied, NotApplied, Retry, effect
from leasemesh.node.authoring.errors import DidNotHappen, RunRefused
from leasemesh.node.authoring.retry import RetryRule
from leasemesh.node.authoring.workflow import Workflow
from leasemesh.node.execution.manager import Manager
from leasemesh.node.machine.environment import Environment
from leasemesh.node.model.leases import StalenessRule
from leasemesh.node.replication import syncing
from leasemesh.node.runtime import background
from leasemesh.node.runtime.runner import Runner
from leasemesh.sync import limits

TRANSITIONS = (
    "begin", "begin_preparing", "begin_producing", "prepared", "intend", "applied", "applied_and_committed",
    "did_not_happen", "unknown", "commit", "fail", "lose", "stop", "found_applied", "found_not_applied", "ask_again",
    "leave_to_a_person", "call_ended", "end_earlier", "go_on", "take_over_to_go_on", "take_over_to_free",
)  # fmt: skip

HOUSEKEEPING_S = 0.1
CHECKPOINT_MS = 20

WITHIN_S = 60
STALE_MS = 150
"""Silence after which these devices take over. It begins only when they are told to run, after the other was killed."""

SHORT = RetryRule(first_ms=20, most_ms=200)


@dataclass(frozen=True)
class Plan:
    """What a device's process runs.

    Attributes:
        port: the service's.
        handler: "send", a consumer with an effect; "count", one without; or "poll", a producer.
        asynchronous: whether its functions are.
        mode: soft or confirmed.
        prepare: whether the consumer chooses its events itself.
        has_next: whether it does anything after its effect.
        reconcile: whether the effect has a reconcile function.
        stateful: whether the consumer keeps a state.
        effect_timeout_s: of the effect.
        drain_s: how long runs may take to end when the process is told to stop.
        kill_at: the point to be killed at.
        tells_peers: whether the peers have heard of all that it has done by then.
        hold_at: the function to stop in until the pipe says "go on".
        listen: whether others may dial this device.
        name: the device's.
        retry: when failures are tried again, and how often.
    """

    port: int
    handler: str = "send"
    asynchronous: bool = False
    mode: str = "soft"
    prepare: bool = True
    has_next: bool = True
    reconcile: bool = True
    stateful: bool = False
    effect_timeout_s: float = 20
    drain_s: float = 10
    kill_at: str = ""
    tells_peers: bool = False
    hold_at: str = ""
    listen: bool = False
    name: str = "first"
    retry: RetryRule = SHORT


class RunSteps(Steps):
    """The steps of a process that runs handlers, most of them in threads; those within a transition have its name."""

    def __init__(self, pipe, kill_at):
        super().__init__(pipe, kill_at)
        self._local = threading.local()
        self.tell_peers = None

    def part_now(self):
        return getattr(self._local, "part", "")

    def take(self, name, tear=None):
        part = self.part_now()
        if self.tell_peers is not None and self.kill_at == (f"{part}: {name}" if part else name):
            self.tell_peers()
        super().take(name, tear)

    def watch(self, owner, name):
        """Let a method be a part that steps are named after."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args, **kwargs):
            if self.part_now():
                return original(*args, **kwargs)
            self._local.part = name
            try:
                result = original(*args, **kwargs)
                self.take("done")
                return result
            finally:
                self._local.part = ""

        setattr(owner, name, watched)


class NoSteps:
    """Stands for them in a process that is not to be killed at one."""

    armed = False
    kill_at = ""
    tell_peers = None

    def take(self, name):
        pass

    def watch(self, owner, name):
        pass


# --- Handlers ---------------------------------------------------------------------------------------------------------


def workflow_of(plan, steps, hold):
    """The workflow that a plan names. `hold` is called by each of its functions with its name."""
    mail = Workflow("mail")
    inbox, sent = mail.topic("inbox"), mail.topic("sent")

    def enter(name):
        steps.take(name)
        hold.reached(name)

    async def enter_async(name):
        if steps.tell_peers is not None and name == steps.kill_at:
            await asyncio.to_thread(steps.take, name)
        steps.take(name)
        await hold.reached_async(name)

    def function(body):
        """Make a function of a handler: sync, or async."""
        name = body.__name__.rstrip("_")

        @functools.wraps(body)
        def call(run, *state):
            enter(name)
            return body(run, *state)

        @functools.wraps(body)
        async def call_async(run, *state):
            await enter_async(name)
            return body(run, *state)

        return call_async if plan.asynchronous else call

    def poll(run, state):
        answer = ask(plan.port, do="poll", state=state)
        for message in answer["messages"]:
            run.publish(inbox, message)
        steps.take("polled")
        return (state or 0) + 1

    def prepare(run):
        events = run.peek(inbox, limit=1)
        run.reserve(events)
        run.log("prepared")
        return {"process": os.getpid(), "texts": [event.message_id for event in events]}

    def mutate(run):
        return post(text=",".join(event.message_id for event in run.events)) if run.events else None

    def next_(run):
        for event in run.events:
            payload = {"prepared": run.prepared, "result": run.result, "outcome": run.outcome}
            run.publish(sent, event.message_id, payload=payload)
        return (run.state or 0) + len(run.events) if plan.stateful else None

    if plan.handler == "poll":
        mail.producer(every_s=3600, publishes=[inbox])(function(poll))
        return mail
    post = effect_of(plan, enter, enter_async)
    consumer = mail.consumer(
        inbox,
        name=plan.handler,
        publishes=[sent],
        effects=[post] if plan.handler == "send" else [],
        mode=plan.mode,
        stateful=plan.stateful,
    )
    if plan.prepare:
        consumer.prepare(function(prepare))
    if plan.handler == "send":
        consumer.mutate(function(mutate))
    if plan.has_next:
        consumer.next(function(next_))
    return mail


def effect_of(plan, enter, enter_async):
    """The effect that the service is asked for."""

    def seen(answer):
        if "refused" in answer:
            raise DidNotHappen(answer["refused"], transient=True)
        return answer

    def post(key, *, text):
        enter("call")
        answer = ask(plan.port, do="perform", key=key, text=text)
        enter("answered")
        return seen(answer)

    async def post_async(key, *, text):
        await enter_async("call")
        answer = await ask_async(plan.port, do="perform", key=key, text=text)
        await enter_async("answered")
        return seen(answer)

    def judge(answer):
        if "unsure" in answer:
            return Retry(answer["unsure"])
        return Applied(answer) if answer else NotApplied()

    def look(key, *, text):
        answer = ask(plan.port, do="look", key=key)
        enter("reconcile")
        return judge(answer)

    async def look_async(key, *, text):
        answer = await ask_async(plan.port, do="look", key=key)
        await enter_async("reconcile")
        return judge(answer)

    found = effect(name="post", timeout_s=plan.effect_timeout_s)(post_async if plan.asynchronous else post)
    if plan.reconcile:
        found.reconcile(look_async if plan.asynchronous else look)
    return found


class Hold:
    """Stops in one function, says so, and goes on when it is told to."""

    def __init__(self, pipe, name):
        self._pipe = pipe
        self._name = name
        self._goes_on = threading.Event()
        self._goes_on_in_loop = asyncio.Event()

    def go_on(self):
        self._name = ""
        self._goes_on.set()
        self._goes_on_in_loop.set()

    def reached(self, name):
        if name == self._name:
            self._pipe.send(("reached", name))
            self._goes_on.wait()

    async def reached_async(self, name):
        if name == self._name:
            self._pipe.send(("reached", name))
            await self._goes_on_in_loop.wait()


# --- The process ------------------------------------------------------------------------------------------------------


def device(path, plan, pipe):
    """Be a device, until its pipe says that it is enough, or SIGTERM does."""
    background.HOUSEKEEPING_S = syncing.HOUSEKEEPING_EVERY_S = HOUSEKEEPING_S
    limits.CHECKPOINT_MS = CHECKPOINT_MS
    steps = RunSteps(pipe, plan.kill_at) if plan.kill_at else NoSteps()
    for name in TRANSITIONS:
        steps.watch(Manager, name)
    asyncio.run(Device(path, plan, steps, pipe).obey())


class Device:
    """A node that does what its pipe says, and answers each command when it is done."""

    def __init__(self, path, plan, steps, pipe):
        self.plan = plan
        self.path = path
        self.steps = steps
        self.pipe = pipe
        self.hold = Hold(pipe, plan.hold_at)
        self.runner = None

    async def obey(self):
        commands = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pipe.fileno(), lambda: commands.put_nowait(self._read()))
        loop.add_signal_handler(signal.SIGTERM, commands.put_nowait, ("stop",))
        environment = Environment(staleness=StalenessRule(STALE_MS, 0))
        async with AsyncExitStack() as stack:
            self.stack = stack
            self.node = await stack.enter_async_context(
                Node.open(self.path, name=self.plan.name, environment=environment, **OPTIONS)
            )
            self.steps.armed = True
            if self.plan.tells_peers:
                self.steps.tell_peers = lambda: asyncio.run_coroutine_threadsafe(self.node.caught_up(), loop).result()
            while True:
                command, *arguments = await commands.get()
                if command == "stop":
                    break
                self.pipe.send((command, await getattr(self, f"do_{command}")(*arguments)))
            self.pipe.send(("stopping", None))
            if self.runner is not None:
                await self.runner.stop()
            self.steps.armed = False
        loop.remove_reader(self.pipe.fileno())
        self.pipe.send(("stopped", None))

    def _read(self):
        word = self.pipe.recv()
        if word[0] == "go on":
            self.hold.go_on()
            return ("nothing",)
        return word

    async def do_nothing(self):
        pass

    async def do_sync(self, *peers):
        """Sync with others; tell how to be dialled."""
        listen = ("127.0.0.1", 0) if self.plan.listen else None
        sync = await self.node.start_sync(listen=listen, peers=peers)
        if peers:
            await self.node.caught_up()
        return sync.url

    async def do_stop_sync(self):
        await self.node.stop_sync()

    async def do_appoint(self):
        """Be the authority, unless there is one."""
        if self.node.authorities.info().authority is None:
            await asyncio.to_thread(self.node.authorities.appoint, self.node.site_id, by="Ann")
        await asyncio.to_thread(self.node.authority.tend)

    async def do_run(self):
        """Run the handlers."""
        workflow = workflow_of(self.plan, self.steps, self.hold)
        runner = Runner(self.node, [workflow], concurrency=4, drain_s=self.plan.drain_s, retry=self.plan.retry)
        try:
            await runner.start()
        except RunRefused as error:
            return str(error)
        self.runner = runner
        asyncio.create_task(self._tell_failure())
        return None

    async def _tell_failure(self):
        try:
            await self.runner.wait()
        except Exception as error:
            self.pipe.send(("failed", repr(error)))

    async def do_stop_handlers(self):
        await self.runner.stop()

    async def do_resolve(self, work, verdict, result):
        """Say what a person says about an effect."""
        await asyncio.to_thread(self.node.mutations.resolve, work, verdict, by="Ann", result=result)

    async def do_until(self, topic, status, count):
        """Wait until so many events of a topic have a status."""
        async with self.node.changes() as changes, asyncio.timeout(WITHIN_S):
            while len(self.node.peek("mail", topic, status=status)) != count:
                await anext(changes)

    async def do_until_entry(self, status):
        """Wait until the only entry of the ledger has a status, and nothing is being found out."""
        async with self.node.changes() as changes, asyncio.timeout(WITHIN_S):
            while [entry.status for entry in self.node.mutations.unresolved()] != [status]:
                await anext(changes)
        await self.do_idle()

    async def do_idle(self):
        """Wait until the handlers have nothing to do, and nothing that was left behind is to be looked after."""
        self.runner.look(silent=True)
        async with asyncio.timeout(WITHIN_S):
            await self.runner.idle()

    async def do_caught_up(self):
        await self.node.caught_up()

    async def do_outwait(self):
        """Wait for so long that whoever died would be taken over from, and do what is to be done then."""
        await asyncio.sleep(STALE_MS / 1000)
        await self.do_idle()

    async def do_be_patient(self):
        """Take over from nobody any more: whoever comes back says nothing for seconds."""
        self.node.staleness._rule = StalenessRule()
