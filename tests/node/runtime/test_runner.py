"""Running handlers on one node: events in, runs and events out; gates, sessions, and the clean stop."""

import asyncio
import threading

import pytest
from handling import publish, run_of, runs, statuses

from leasemesh import IllegalState, InvalidInput, Node, PhaseViolation, RetryRule, RunRefused, Transient, Workflow
from leasemesh.node.execution.beginning import WAKE_LEAST_MS


async def test_a_consumer_of_three_lines_consumes(open_node, mail, inbox, within):
    node, seen = open_node("a"), []

    @mail.consumer(inbox)
    def count(run):
        seen.extend(event.message_id for event in run.events)

    publish(node, "one", "two")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert seen == ["one", "two"]
    assert statuses(node) == {"one": "consumed", "two": "consumed"}
    assert runs(node) == [("count", "committed", "committed")] * 2


async def test_events_that_are_published_while_it_runs_wake_a_consumer(open_node, mail, inbox, within):
    node, seen = open_node("a"), asyncio.Event()

    @mail.consumer(inbox)
    async def count(run):
        seen.set()

    async with within(), node.running([mail]) as runner:
        await runner.idle()
        publish(node, "one")
        await seen.wait()


async def test_what_another_process_publishes_wakes_a_consumer(open_node, mail, inbox, within, tmp_path):
    node, seen = open_node("a"), asyncio.Event()

    @mail.consumer(inbox)
    async def count(run):
        seen.set()

    async with within(), node.running([mail]) as runner:
        await runner.idle()
        with Node.open(tmp_path / "a.db") as other:
            publish(other, "one")
            await seen.wait()


async def test_an_idle_node_writes_nothing(open_node, mail, inbox, within):
    node = open_node("a")
    mail.consumer(inbox)(lambda_named("count"))
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        version = node.database.version()
        for _ in range(3):
            await runner.idle()
    assert node.database.version() == version
    assert node.handler_runs.list() == []


def lambda_named(name):
    def function(run):
        return None

    function.__name__ = name
    return function


async def test_a_batch_is_one_run(open_node, mail, inbox, within):
    node, sizes = open_node("a"), []

    @mail.consumer(inbox, batch=4)
    def count(run):
        sizes.append(len(run.events))

    publish(node, *map(str, range(10)))
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert sizes == [4, 4, 2]


async def test_phases_hand_on_what_they_are_given(open_node, mail, inbox, sent, within):
    node = open_node("a")
    consumer = mail.consumer(inbox, name="copy", publishes=[sent])

    @consumer.prepare
    async def choose(run):
        (event,) = run.peek(inbox, limit=1)
        run.reserve(event)
        return {"subject": event.title, "parts": (1, 2)}

    @consumer.next
    def record(run):
        run.publish(sent, run.events[0].message_id, payload=[run.prepared, run.outcome, run.result])

    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    (event,) = node.peek("mail", "sent")
    assert event.payload == [{"subject": "Title of one", "parts": [1, 2]}, "none", None]
    assert event.created_by_run == run_of(node, "copy").id
    assert event.caused_by == node.events.get_by_message_id("mail", "inbox", "one").id


async def test_a_prepare_that_chooses_nothing_still_reaches_next_and_then_rests(open_node, mail, inbox, within):
    node, outcomes = open_node("a"), []
    consumer = mail.consumer(inbox, name="look")
    consumer.prepare(lambda run: None)
    consumer.next(lambda run: outcomes.append(run.outcome))
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        assert outcomes == ["none"]
        publish(node, "two")
        await runner.idle()
    assert outcomes == ["none", "none"]
    assert statuses(node) == {"one": "pending", "two": "pending"}


async def test_a_chain_of_consumers_works_through_its_topics(open_node, mail, inbox, sent, within):
    node, seen = open_node("a"), []

    @mail.consumer(inbox, publishes=[sent])
    def forward(run):
        for event in run.events:
            run.publish(sent, f"re-{event.message_id}", title=event.title)

    @mail.consumer(sent)
    async def count(run):
        seen.extend(event.title for event in run.events)

    publish(node, "one", "two")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert seen == ["Title of one", "Title of two"]


async def test_a_producer_gets_the_state_that_it_returned(open_node, mail, inbox, within):
    node, states = open_node("a"), []
    enough = asyncio.Event()

    @mail.producer(every_s=0.1, publishes=[inbox])
    async def poll(run, state):
        states.append((state, run.state))
        run.publish(inbox, f"message-{len(states)}")
        if len(states) == 3:
            enough.set()
        return {"polls": len(states)}

    async with within(), node.running([mail]):
        await enough.wait()
    assert states[:3] == [(None, None), ({"polls": 1}, {"polls": 1}), ({"polls": 2}, {"polls": 2})]
    assert statuses(node).keys() >= {"message-1", "message-2"}


async def test_a_restart_does_not_bring_a_producer_forward(open_node, mail, within):
    node, polls = open_node("a"), []

    @mail.producer(every_s=3600)
    def poll(run, state):
        polls.append(run.id)

    for _ in range(2):
        async with within(), node.running([mail]) as runner:
            await runner.idle()
            assert runner.status.handlers[0].next_at > node.database.clock_ms() + 3_500_000
    assert len(polls) == 1


async def test_a_stateful_consumer_keeps_its_state(open_node, mail, inbox, within):
    node = open_node("a")

    @mail.consumer(inbox, stateful=True)
    def count(run):
        return (run.state or 0) + len(run.events)

    publish(node, "one", "two", "three")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    state = node.handler_states.get("mail", "count")
    assert (state.state, state.version) == (3, 3)
    assert [topic.name for topic in node.topics.list("mail")] == ["inbox"]


async def test_a_returned_state_that_nobody_would_keep_is_an_error(open_node, mail, inbox, within):
    node = open_node("a")
    mail.consumer(inbox, name="count").next(lambda run: 5)
    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert "declare consumer(..., stateful=True)" in run_of(node, "count").details["error"]


async def test_a_run_keeps_logs_and_cost_and_its_session_counts_them(open_node, mail, inbox, within):
    node = open_node("a")

    @mail.consumer(inbox)
    def count(run):
        run.log(f"got {run.events[0].message_id}\x00\ud800")
        run.cost(250)

    publish(node, "one", "two")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    run = run_of(node, "count", 0)
    assert (run.details["logs"], run.details["cost"]) == (["got one?"], 250)
    (session,) = node.script_runs.by_workflow("mail")
    assert (session.handler_run_count, session.cost, session.logs) == (2, 500, "got one?\ngot two?\n")
    assert session.trigger == "event"
    assert session.ended_at >= session.started_at
    assert run.session == session.id


async def test_runs_of_one_consumer_never_overlap_and_all_together_are_bounded(open_node, within):
    node, busy, most = open_node("a"), set(), []
    workflows, three_at_once = [], asyncio.Event()
    for number in range(6):
        workflow = Workflow(f"workflow-{number}")

        @workflow.consumer(workflow.topic("inbox"))
        async def work(run):
            assert run.workflow not in busy
            busy.add(run.workflow)
            most.append(len(busy))
            if len(busy) == 3:
                three_at_once.set()
            await three_at_once.wait()
            busy.discard(run.workflow)

        for message in range(4):
            node.publish(workflow.name, "inbox", str(message))
        workflows.append(workflow)
    async with within(), node.running(workflows, concurrency=3) as runner:
        await runner.idle()
    assert len(most) == 24
    assert max(most) == 3


async def test_a_disabled_or_paused_workflow_does_not_run_and_says_so(open_node, mail, inbox, within):
    node, seen = open_node("a"), []

    @mail.consumer(inbox)
    def count(run):
        seen.append(run.id)

    publish(node, "one")
    node.workflows.update("mail", enabled=False)
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        (status,) = runner.status.handlers
        assert (status.state, status.text) == ("disabled", "workflow mail is disabled")
        observer = runner.observe()
        node.workflows.update("mail", enabled=True, status="paused")
        while (told := await anext(observer)).text != "workflow mail is paused":
            pass
        assert (told.kind, seen) == ("blocked", [])
        node.workflows.update("mail", status="active")
        while (await anext(observer)).kind != "committed":
            pass
    assert len(seen) == 1


async def test_a_handler_that_fails_again_and_again_is_blocked_until_a_person_lets_it(open_node, mail, inbox, within):
    node, broken = open_node("a"), [True]

    @mail.consumer(inbox)
    def count(run):
        if broken[0]:
            raise Transient("the service is down")

    publish(node, "one")
    async with within(), node.running([mail], retry=RetryRule(first_ms=1, most_ms=2, tries=3)) as runner:
        observer = runner.observe()
        while (told := await anext(observer)).kind != "blocked":
            pass
        assert told.text == "failed 3 times in a row; the last time: the service is down"
        assert runner.status.handlers[0].state == "blocked"
        assert [status for _, _, status in runs(node)] == ["superseded", "superseded", "paused:transient"]
        assert statuses(node) == {"one": "pending"}
        broken[0] = False
        node.handler_blocks.unblock("mail", "count", node=node.site_id, by="Ann")
        while (await anext(observer)).kind != "committed":
            pass
    assert statuses(node) == {"one": "consumed"}
    chain = node.handler_runs.retry_chain(run_of(node, "count").id)
    assert len(chain) == 4


async def test_a_block_outlives_a_restart_and_so_does_the_count_of_failures(open_node, mail, inbox, within):
    node, tries = open_node("a"), []

    @mail.consumer(inbox)
    def count(run):
        tries.append(run.id)
        raise Transient("down")

    publish(node, "one")
    slow = RetryRule(first_ms=3_600_000, most_ms=3_600_000, tries=2)
    async with within(), node.running([mail], retry=slow) as runner:
        await runner.idle()
    async with within(), node.running([mail], retry=slow) as runner:
        await runner.idle()
        (status,) = runner.status.handlers
        assert (status.state, status.text) == ("retrying", "after 1 failures")
    assert len(tries) == 1


async def test_an_event_that_a_handler_fails_on_three_times_is_made_a_dead_letter_and_the_rest_goes_on(
    open_node, mail, inbox, quick, within
):
    node = open_node("a")

    @mail.consumer(inbox, batch=3)
    def count(run):
        if any(event.message_id == "bad" for event in run.events):
            raise ValueError("cannot read it")

    publish(node, "good-1", "bad", "good-2")
    async with within(), node.running([mail], retry=quick) as runner:
        observer = runner.observe()
        while statuses(node) != {"good-1": "consumed", "bad": "dead", "good-2": "consumed"}:
            await anext(observer)
    assert sum(status == "failed:logic" for _, _, status in runs(node)) == 3


async def test_a_violation_of_a_phase_is_a_failure_that_names_call_and_phase(open_node, mail, inbox, sent, within):
    node, kept = open_node("a"), []
    consumer = mail.consumer(inbox, name="copy", publishes=[sent])

    @consumer.prepare
    def choose(run):
        kept.append(run)
        run.reserve(run.peek(inbox))
        run.publish(sent, "early")

    publish(node, "one")
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    run = run_of(node, "copy")
    assert (run.status, run.phase) == ("failed:logic", "preparing")
    assert run.details["error"] == "PhaseViolation: publish in phase prepare: publishing is for producers and next"
    with pytest.raises(PhaseViolation, match="log in phase prepare: the phase has ended"):
        kept[0].log("too late")


async def test_only_one_process_runs_handlers_on_a_file(open_node, mail, inbox, within, tmp_path):
    node = open_node("a")
    mail.consumer(inbox)(lambda_named("count"))
    async with within(), node.running([mail]):
        with Node.open(tmp_path / "a.db") as other:
            with pytest.raises(RunRefused, match="another process runs handlers on .*a.db"):
                async with other.running([mail]):
                    pass
        with pytest.raises(IllegalState, match="running handlers"):
            async with node.running([mail]):
                pass
        with pytest.raises(IllegalState, match="running handlers"):
            node.close()
    async with within(), node.running([mail]):
        pass


async def test_a_process_that_does_not_sync_leaves_the_work_to_the_one_that_does(
    open_node, mail, inbox, within, tmp_path
):
    syncing = open_node("a")
    await syncing.start_sync(listen=("127.0.0.1", 0))
    mail.consumer(inbox)(lambda_named("count"))
    with Node.open(tmp_path / "a.db") as other:
        publish(other, "one")
        async with within(), other.running([mail]) as runner:
            await runner.idle()
            (status,) = runner.status.handlers
            assert status.state == "elsewhere"
            assert "another process syncs" in status.text
        assert statuses(other) == {"one": "pending"}


async def test_a_stop_lets_a_run_end(open_node, mail, inbox, within):
    node, begun, go_on = open_node("a"), asyncio.Event(), asyncio.Event()

    @mail.consumer(inbox)
    async def count(run):
        begun.set()
        await go_on.wait()

    publish(node, "one", "two")
    async with within(), node.running([mail]) as runner:
        await begun.wait()
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)
        go_on.set()
        await stopping
    assert statuses(node) == {"one": "consumed", "two": "pending"}


async def test_a_stop_gives_back_what_does_not_end_in_time(open_node, mail, inbox, within):
    node, begun = open_node("a"), asyncio.Event()

    @mail.consumer(inbox)
    async def count(run):
        begun.set()
        await asyncio.Event().wait()

    publish(node, "one")
    async with within(), node.running([mail], drain_s=0):
        await begun.wait()
    assert statuses(node) == {"one": "pending"}
    assert runs(node) == [("count", "prepared", "crashed")]


async def test_a_stop_does_not_wait_for_a_thread_that_hangs_and_the_next_start_frees_what_it_held(
    open_node, mail, inbox, within, monkeypatch
):
    monkeypatch.setattr("leasemesh.node.runtime.runner.LAST_WORDS_S", 0.01)
    node, begun, hang = open_node("a"), threading.Event(), threading.Event()
    hung = []

    @mail.consumer(inbox)
    def count(run):
        if not hung:
            hung.append(run.id)
            begun.set()
            hang.wait()

    publish(node, "one")
    try:
        async with within(), node.running([mail], drain_s=0):
            await asyncio.to_thread(begun.wait)
        assert statuses(node) == {"one": "reserved"}
        async with within(), node.running([mail]) as runner:
            await runner.idle()
        assert statuses(node) == {"one": "consumed"}
    finally:
        hang.set()


async def test_a_fault_of_the_runner_ends_it_and_is_raised(open_node, mail, inbox, within, monkeypatch):
    node = open_node("a")
    mail.consumer(inbox)(lambda_named("count"))
    with pytest.raises(ZeroDivisionError):
        async with within(), node.running([mail]) as runner:
            monkeypatch.setattr(runner.node.handler_blocks, "get", lambda *_: 1 / 0)
            node.workflows.update("mail", title="Mail")
            await runner.wait()
    assert node.runner is None


async def test_run_runs_until_it_is_cancelled(open_node, mail, inbox, within):
    node, seen = open_node("a"), asyncio.Event()

    @mail.consumer(inbox)
    async def count(run):
        seen.set()

    publish(node, "one")
    async with within():
        running = asyncio.create_task(node.run(mail))
        await seen.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert node.runner is None
    assert statuses(node) == {"one": "consumed"}


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"drain_s": -1}, {"drain_s": True}, {"concurrency": 1.5}])
async def test_numbers_out_of_range_are_refused(open_node, mail, options):
    with pytest.raises(InvalidInput):
        async with open_node("a").running([mail], **options):
            pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda mail: mail, "must be a list of workflows, not Workflow"),
        (lambda mail: None, "must be a list of workflows, not NoneType"),
        (lambda mail: [mail, "mail"], "str among them is not a workflow"),
    ],
)
async def test_what_is_no_list_of_workflows_is_refused_by_name(open_node, mail, make, said):
    with pytest.raises(InvalidInput, match=f"^workflows: {said}$"):
        async with open_node("a").running(make(mail)):
            pass


async def test_two_workflows_of_one_name_are_refused(open_node, mail):
    with pytest.raises(InvalidInput, match="two are called mail"):
        async with open_node("a").running([mail, Workflow("mail")]):
            pass


async def test_a_wish_to_be_woken_is_kept_within_bounds_and_runs_the_handler(open_node, mail, inbox, within):
    node, runs_seen, now = open_node("a"), [], node_clock()
    consumer = mail.consumer(inbox, name="wait")

    @consumer.prepare
    def look(run):
        runs_seen.append(run.id)
        run.wake_at(run.now_ms() + 10 if len(runs_seen) == 1 else run.now_ms() + 10**12)

    publish(node, "one")
    begin = now()
    async with within(), node.running([mail]) as runner:
        await runner.idle()
        at = node.handler_states.wake_at("mail", "wait")
        assert begin + WAKE_LEAST_MS <= at <= now() + WAKE_LEAST_MS
        assert runner.status.handlers[0].next_at == at
    node.handler_states.set_wake_at("mail", "wait", now())
    async with within(), node.running([mail]) as runner:
        await runner.idle()
    assert len(runs_seen) >= 2
    assert 0 < node.handler_states.wake_at("mail", "wait") - now() <= 24 * 3600 * 1000


def node_clock():
    from leasemesh.node.machine.environment import wall_clock_ms

    return wall_clock_ms


def test_events_that_come_while_a_consumer_is_busy_and_chooses_nothing_wake_it_again(device_lab, mail, inbox):
    looks = []
    consumer = mail.consumer(inbox, name="pairs")

    @consumer.prepare
    async def choose(run):
        found = run.peek(inbox)
        looks.append(len(found))
        await asyncio.sleep(0.5)
        if len(found) == 2:
            run.reserve(found)

    lab = device_lab(devices=1, workflows=[mail])
    for number in range(5):  # whenever housekeeping looks, which finds them too
        publish(lab[0].node, f"one {number}")
        lab.until(lambda: looks[-1:] == [1])
        lab.advance(0.1)
        publish(lab[0].node, f"two {number}")
        lab.until(lambda: "pending" not in statuses(lab[0].node).values(), within_s=1.5, what="the second look")
        lab.advance(1.1)
    assert looks == [1, 2] * 5
