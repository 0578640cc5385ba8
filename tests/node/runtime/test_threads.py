"""Calls that never return: the rest goes on, the runner stops, and the program ends."""

import subprocess
import sys
import threading

import pytest
from handling import publish, statuses

from leasemesh import effect
from leasemesh.node.runtime.driving import HANGING_MAX
from leasemesh.sync.drivers.workers import Threads


def test_jobs_are_done_by_no_more_threads_than_needed():
    threads = Threads(2, "test")
    both, go = threading.Barrier(3), threading.Event()

    def wait():
        both.wait(10)
        go.wait(10)
        return threading.current_thread().name

    jobs = [threads.submit(wait) for _ in range(2)]
    assert not threads.submit(int).done()
    both.wait(10)
    assert threads.all_taken
    go.set()
    assert sorted(job.result(10) for job in jobs) == ["test-1", "test-2"]
    assert threads.submit(lambda: threading.current_thread().name).result(10) in ("test-1", "test-2")
    threads.shutdown()


def test_what_has_not_begun_can_be_given_up_and_nothing_begins_after_the_end():
    threads = Threads(1, "test")
    go = threading.Event()
    first, second = threads.submit(go.wait, 10), threads.submit(int)
    threads.shutdown(cancel_futures=True)
    go.set()
    assert first.result(10) is True
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="given back"):
        threads.submit(int)


def test_an_error_of_a_job_is_its_result():
    threads = Threads(1, "test")
    assert isinstance(threads.submit(lambda: 1 / 0).exception(10), ZeroDivisionError)
    assert isinstance(threads.submit(sys.exit).exception(10), SystemExit)
    assert threads.submit(lambda: 1).result(10) == 1
    threads.shutdown()


async def test_calls_that_hang_stop_their_handler_with_a_reason_and_nothing_else(
    open_node, mail, inbox, sent, within, quick
):
    release = threading.Event()

    @effect(name="mail", timeout_s=0.02)
    def send_mail(key):
        release.wait(30)

    sending = mail.consumer(inbox, name="send", mode="soft")
    sending.mutate(lambda run: send_mail())
    noting = mail.consumer(sent, name="note")
    noting.next(lambda run: None)
    node = open_node("laptop")
    publish(node, *(f"{number}" for number in range(HANGING_MAX + 5)))
    async with within(), node.running([mail], concurrency=1, retry=quick) as runner:
        async for told in runner.observe():
            if told.kind == "blocked":
                break
        assert "calls to the outside hang" in node.handler_blocks.get("mail", "send").reason
        publish(node, "one", topic="sent")
        await runner.idle()
        assert statuses(node, "sent") == {"one": "consumed"}
    found = list(statuses(node).values())
    assert (found.count("unknown"), found.count("pending")) == (HANGING_MAX, 5)
    release.set()


HANGING = """
import asyncio, sys, threading
from leasemesh import Node, Workflow, effect

mail = Workflow("mail")
called = threading.Event()

@effect(timeout_s=0.05)
def send_mail(key):
    called.set()
    threading.Event().wait()

consumer = mail.consumer(mail.topic("inbox"), name="send", mode="soft")
consumer.mutate(lambda run: send_mail())

async def main():
    with Node.open(sys.argv[1], workspace="team", name="laptop") as node:
        node.publish("mail", "inbox", "one")
        async with node.running([mail]) as runner:
            await runner.idle()
        assert called.is_set()
    print("stopped")

asyncio.run(main())
"""


def test_a_call_that_hangs_does_not_keep_the_program_from_ending(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path / "laptop.db")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "stopped\n"), ended.stderr
