"""run: an app's handlers in a process of their own, found and stopped as people do it."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest
from cli_devices import meet
from processes import TELLS_WITHIN_S, running

from leasemesh import Node

PACKING = """
from leasemesh import Workflow

shop = Workflow("shop")
orders, parcels = shop.topic("orders"), shop.topic("parcels")

@shop.consumer(orders, publishes=[parcels])
def pack(run):
    (event,) = run.events
    print("packs", event.message_id)
    run.publish(parcels, event.message_id)
"""

SLOW = """
import asyncio
from leasemesh import Workflow, effect

shop = Workflow("shop")

@effect(timeout_s=60, idempotent=True)
async def deliver(key):
    print("begun")
    await asyncio.sleep(SECONDS)

sender = shop.consumer(shop.topic("orders"), name="send")

@sender.mutate
def send(run):
    return deliver()
"""

STUBBORN = """
import time
from leasemesh import Workflow

shop = Workflow("shop")

@shop.consumer(shop.topic("orders"))
async def block_everything(run):
    print("begun")
    time.sleep(60)
"""


@pytest.fixture
def app(folder):
    """Writes ./app.py."""

    def write(text, name="app.py"):
        (folder / name).write_text(text)
        return folder / name

    return write


def statuses(path, topic="orders"):
    with Node.open(path) as node:
        return next(counts.by_status for counts in node.events.counts("shop") if counts.topic == topic)


def wait_until_begun(process):
    """Wait until the app has printed it; with --json that goes to standard error."""
    assert any(line == "begun\n" for line in process.process.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_apps_handlers_run_until_a_signal_stops_them(leasemesh, database, app, number):
    with running("run", app(f"{PACKING}\nprint('is imported')\n")) as process:
        started = process.wait_for("started")
        assert (started["name"], started["handlers"], started["url"]) == ("laptop", ["shop/pack"], None)
        for _ in range(10):
            told = process.wait_for("run", kind="committed")
            assert (told["workflow"], told["handler"], told["events"]) == ("shop", "pack", 1)
        leasemesh("publish", "shop/orders", "--id", "late")  # another process gives it something to do
        run = process.wait_for("run", kind="committed")["run"]
        assert process.stop(number) == 0
        assert json.loads(process.process.stdout.readlines()[-1])["committed"] == 11
        assert process.process.stderr.read().startswith("is imported\npacks order-0\n")  # and not among the JSON
    assert statuses(database) == {"consumed": 11}
    assert leasemesh("show", run, "--json").document["events"][0]["message_id"] == "late"


def test_people_read_one_line_for_each_run_that_did_something(database, app):
    command = [sys.executable, "-m", "leasemesh", "run", str(app(PACKING))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(22)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=TELLS_WITHIN_S)
    assert lines[:2] == ["laptop of workspace team\n", "runs 1 handler: shop/pack; Ctrl-C stops\n"]
    told = [
        line for line in lines if re.fullmatch(r"\d\d:\d\d:\d\d  shop/pack: run \w+ has committed, 1 event\n", line)
    ]
    assert len(told) == 10
    assert rest == "stopped; 10 runs committed\n"
    assert (errors, process.returncode) == ("", 0)


def shown_in_terminal(path):
    """Run an app in a terminal until its handler has done its tenth run; returns what was shown until then, and after.

    The stream only says that it is a terminal: a real one needs devices that a container may lack.
    """
    in_terminal = (
        "import io, sys; from leasemesh.node.cli import main\n"
        "class Terminal(io.TextIOWrapper):\n    def isatty(self): return True\n"
        "sys.stdout = Terminal(sys.stdout.buffer, write_through=True)\n"
        f"sys.argv = ['leasemesh', 'run', {str(path)!r}, '--listen', '127.0.0.1:0']\n"
        "main()"
    )
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-c", in_terminal]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        deadline = threading.Timer(TELLS_WITHIN_S, process.kill)
        deadline.start()
        shown = b""
        while not re.search(rb"shop/(pack|send) +(\x1b\[[\d;]*m)*idle *(\x1b\[[\d;]*m)* +10 +10 ", shown):
            read = os.read(process.stdout.fileno(), 65536)
            assert read, shown
            shown += read
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
        deadline.cancel()
    assert (errors, process.returncode) == (b"", 0)
    return shown.decode(), rest.decode()


def test_in_a_terminal_a_table_is_kept_up_to_date_and_taken_away(database, app):
    shown, rest = shown_in_terminal(app(PACKING))
    assert rest.endswith("\x1b[1mstopped; 10 runs committed\x1b[0m\n")
    assert rest.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert "packs order-0" in shown
    assert re.search(r"laptop of workspace team.*\n.*listening on ws://127.0.0.1:\d+.*\n.*runs 1 handler: ", shown)


def test_who_waits_for_a_permit_is_shown_by_the_table_alone(leasemesh, database, app):
    leasemesh("authority", "set")
    shown, rest = shown_in_terminal(app(SLOW.replace("SECONDS", "0").replace(", idempotent=True", "")))
    assert "waits for confirmation" not in shown + rest


def test_stopping_lets_what_runs_end(leasemesh, database, app):
    leasemesh("reserve", "shop/orders", "--limit", "9")
    with running("run", app(SLOW.replace("SECONDS", "0.5")), "--drain", "30") as process:
        wait_until_begun(process)
        assert process.stop() == 0
    assert statuses(database) == {"consumed": 1, "reserved": 9}


def test_what_does_not_end_in_time_is_of_unknown_outcome_and_says_so(leasemesh, database, app):
    leasemesh("reserve", "shop/orders", "--limit", "9")
    with running("run", app(SLOW.replace("SECONDS", "60")), "--drain", "0.1") as process:
        wait_until_begun(process)
        assert process.stop() == 0
    assert statuses(database) == {"unknown": 1, "reserved": 9}
    (found,) = leasemesh("unknown", "--json").document["unknown"]
    assert (found["tool"], "the node stopped during the call" in found["error"]) == ("deliver", True)


@pytest.mark.parametrize("text", [SLOW.replace("SECONDS", "60"), STUBBORN])
def test_a_second_signal_stops_at_once_whatever_the_app_does(database, app, text):
    with running("run", app(text), "--drain", "60") as process:
        wait_until_begun(process)
        process.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(0.5)
        assert process.stop() == 130
        assert json.loads(process.process.stdout.readlines()[-1])["event"] == "stopped_at_once"
    with running("run", app(PACKING)) as process:  # the next start looks after what was left behind
        for _ in range(9):
            process.wait_for("run", kind="committed")
        assert process.stop() == 0


def test_two_devices_share_the_work_and_do_each_piece_once(leasemesh, database, other, app):
    file = app(PACKING)
    with running("run", file, "--db", other, "--listen", "127.0.0.1:0") as desktop:
        url = desktop.wait_for("started")["url"]
        with running("run", file, "--db", database, "--peer", url) as laptop:
            assert laptop.wait_for("connected")["peer"] == "desktop"
            for number in range(20):
                leasemesh("publish", "shop/orders", "--id", f"more-{number}")
            wait_until_consumed(database, 30)
            assert laptop.stop() == 0
        assert desktop.stop() == 0
    meet(database, other)
    assert statuses(database) == statuses(other) == {"consumed": 30}
    assert statuses(database, "parcels") == {"pending": 30}
    assert leasemesh("status", "--json").document["duplicates"] == 0


def wait_until_consumed(path, count):
    async def wait():
        async with asyncio.timeout(TELLS_WITHIN_S), Node.open(path) as node, node.changes() as changes:
            while statuses(path).get("consumed", 0) < count:
                await anext(changes)

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 3, "there is no app app.py; `leasemesh new NAME` writes an app"),
        ("x = 1", 1, 'app.py has no workflow at its top level; make one with `mail = Workflow("mail")`'),
        ("from leasemesh import Workflow\nw = Workflow('mail')", 1, "app.py: workflow mail has no handlers"),
        ("\n\n1 / 0", 1, "app.py cannot be imported: ZeroDivisionError: division by zero (line 3)"),
        ("import nonsense_that_is_not_there", 1, "ModuleNotFoundError: No module named 'nonsense_that_is_not_there'"),
        ("def x(:", 1, "app.py cannot be imported: SyntaxError: invalid syntax (app.py, line 1)"),
        ("raise SystemExit(7)", 1, "app.py cannot be imported: SystemExit: 7 (line 1)"),
        (
            "from leasemesh import Workflow\na, b = Workflow('a'), Workflow('a')\n"
            "a.consumer(a.topic('t'), name='x').next(print)\nb.consumer(b.topic('t'), name='x').next(print)\n",
            2,
            "two are called a; give one another name",
        ),
    ],
)
def test_an_app_that_cannot_run_says_why_in_one_sentence(leasemesh, database, app, text, code, said):
    if text is not None:
        app(text)
    failed = leasemesh("run", "app.py")
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["app"], 3, "there is no app app; did you mean app.py?"),
        (["."], 3, "there is no app .; did you mean app.py?"),
        ([".."], 3, "there is no app ..; `leasemesh new NAME` writes an app"),
        (["notes.txt"], 2, "notes.txt is not a Python file"),
        (["app.py", "--listen", "nonsense"], 2, "--listen: 'nonsense' is not HOST:PORT"),
        (["app.py", "--listen", "0.0.0.0:0"], 2, "without a token"),
        (["app.py", "--peer", "http://x"], 2, "cannot dial 'http://x'"),
        (["app.py", "--concurrency", "0"], 2, "concurrency: is 0"),
        (["app.py", "--drain", "-1"], 2, "drain_s: is -1.0"),
        (["app.py", "--db", "nope.db"], 3, "there is no database nope.db"),
    ],
)
def test_a_run_that_cannot_start_says_why(leasemesh, database, app, arguments, code, said):
    app(PACKING)
    app("some notes", "notes.txt")
    failed = leasemesh("run", *arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1


def test_one_process_runs_handlers_on_a_file(leasemesh, database, app):
    file = app(PACKING)
    with running("run", file) as first:
        first.wait_for("started")
        second = leasemesh("run", file)
        assert (second.code, second.out) == (4, "")
        assert re.search(r"another process runs handlers on \S*leasemesh.db; stop it first", second.err)
        assert first.stop() == 0


def test_work_is_left_to_the_process_that_syncs(leasemesh, database, app):
    with running("serve", "--db", database, "--listen", "127.0.0.1:0") as first:
        first.wait_for("started")
        for options in ([], ["--listen", "127.0.0.1:0"]):
            refused = leasemesh("run", app(PACKING), *options)
            assert (refused.code, refused.out) == (4, "")
            assert "another process syncs" in refused.err and len(refused.err.splitlines()) == 1
        assert first.stop() == 0
    assert statuses(database) == {"pending": 10}


def test_an_app_finds_what_lies_beside_it(leasemesh, database, app, folder):
    (folder / "apps").mkdir()
    app("topic = 'orders'", "apps/beside.py")
    app("from beside import topic\n" + PACKING.replace('"orders"', "topic"), "apps/packing.py")
    with running("run", "apps/packing.py") as process:
        process.wait_for("run", kind="committed")
        assert process.stop() == 0


def test_a_run_until_idle_ends_by_itself_and_passes_on_what_was_done(leasemesh, database, other, app):
    with running("serve", "--db", other, "--listen", "127.0.0.1:0") as desktop:
        url = desktop.wait_for("started")["url"]
        with running("run", app(PACKING), "--until-idle", "--peer", url) as process:
            assert process.process.wait(TELLS_WITHIN_S) == 0
        assert statuses(other) == {"consumed": 10}
        assert desktop.stop() == 0


def test_an_apps_own_tables_are_made_before_its_handlers_run(leasemesh, database, app, folder):
    (folder / "tables").mkdir()
    (folder / "tables" / "0001_notes.sql").write_text(
        "CREATE TABLE notes (id TEXT PRIMARY KEY NOT NULL); SELECT crsql_as_crr('main', 'notes');"
    )
    done = leasemesh("run", app(PACKING), "--migrations", "tables", "--until-idle")
    assert done.code == 0
    with Node.open(database) as node:
        assert node.query("SELECT count(*) FROM notes") == [(0,)]


def test_the_examples_of_run_work(leasemesh, database, app, folder):
    app(PACKING)
    (folder / "secret").write_text("a secret\n")
    (folder / "migrations").mkdir()
    shown = leasemesh("run", "--help").out.partition("Examples:")[2]
    examples = [line.strip() for line in shown.splitlines() if line.strip()]
    assert len(examples) == 6
    for example in examples:
        arguments = shlex.split(example.replace(":8787", ":0") if "--listen" in example else example)[2:]
        with running("run", *arguments) as process:
            process.wait_for("started")
            if "--until-idle" not in example:
                process.process.send_signal(signal.SIGINT)
            assert process.process.wait(TELLS_WITHIN_S) == 0


def test_two_apps_of_one_name_are_loaded_apart(leasemesh, database, app, folder):
    """In one process, as a program that calls the command line might."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        app(f"raise ValueError('{name}')", f"{name}/app.py")
        assert f"ValueError: {name} (line 1)" in leasemesh("run", f"{name}/app.py").err
