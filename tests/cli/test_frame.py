"""What all commands share: help, exit codes, errors, --json, --debug."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from cli_devices import meet

from leasemesh.node.cli.app import CommandError, app, explain
from leasemesh.node.cli.output import ExitCode
from leasemesh.node.model.errors import LeasemeshError, NotFound

COMMANDS = [
    "publish", "topics", "peek", "why", "reserve", "consume", "skip", "release", "take-over", "permit", "mode", "run",
    "runs", "show", "unknown", "resolve", "dead-letters", "requeue", "blocked", "block", "unblock", "new", "init",
    "status", "serve", "verify", "authority", "identity", "doctor", "version",
]  # fmt: skip
GROUPS = {"identity": ["identity reset"], "authority": ["authority set", "authority show", "authority move"]}
LEAVES = [leaf for name in COMMANDS for leaf in GROUPS.get(name, [name])]


def spawn(*arguments, **options):
    command = [sys.executable, "-m", "leasemesh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def help_of(leasemesh, command):
    return leasemesh(*command.split(), "--help").out


def examples_of(leasemesh, command):
    listed = help_of(leasemesh, command).partition("Examples:")[2]
    return [line.strip() for line in listed.splitlines() if line.strip()]


def test_the_command_is_installed_and_lists_all_commands_and_exit_codes(leasemesh):
    shown = subprocess.run([f"{sys.prefix}/bin/leasemesh", "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert re.findall(r"^│ ([a-z][a-z-]*) ", shown.stdout, re.MULTILINE) == COMMANDS
    listed = re.findall(r"^ +(\d) {2}", shown.stdout, re.MULTILINE)
    assert listed == [str(int(code)) for code in ExitCode if code < 130]
    assert leasemesh().out == leasemesh("--help").out


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_shows_its_options_and_examples_in_80_columns(leasemesh, command):
    text = help_of(leasemesh, command)
    for said in ("--db", "--json", "--debug", "Examples:"):
        assert said in text
    assert max(map(len, text.splitlines())) <= 80
    assert "<bool>" not in text  # a flag takes no value
    assert not re.search(r"\[\[|\.\.\.\}", text)  # Typer puts the brackets and the dots
    assert all(example.split("| ")[-1].startswith("leasemesh ") for example in examples_of(leasemesh, command))


def test_run_takes_one_app_and_shows_no_other_argument(leasemesh):
    usage = help_of(leasemesh, "run").splitlines()[1]
    assert usage.split() == ["Usage:", "leasemesh", "run", "[OPTIONS]", "{APP}"]


APART = (  # their examples have tests of their own
    "authority move", "init", "permit", "requeue", "resolve", "run", "serve", "take-over", "verify",
)  # fmt: skip
PLACEHOLDER_RUN, PLACEHOLDER_EVENT, SECOND_EVENT = "019a2b3c4d5e", "3f2a91c07b", "77b0c2d4e1"


@pytest.fixture
def prepared(leasemesh, database, other, folder):
    """A folder in which every example makes sense."""
    (folder / "orders.jsonl").write_text('{"id": "order-50"}\n')
    (folder / "orders.csv").write_text("number,customer\n51,Ada\n")
    (folder / "archive.mbox").write_text("From a@b Thu Jan  1 10:00:00 2026\nMessage-ID: <m1>\n\nhi\n")
    (folder / "secret").write_text("a secret\n")
    for topic, message_id in (("mail/inbox", "m0"), *(("shop/orders", f"order-{number}") for number in (17, 18))):
        leasemesh("publish", topic, "--id", message_id)


def hold_on_other_device(leasemesh, database, other, *message_ids):
    meet(database, other)
    options = [argument for message_id in message_ids for argument in ("--id", message_id)]
    leasemesh("reserve", "shop/orders", *options, "--db", other)
    meet(database, other)
    return [leasemesh("why", f"shop/orders/{name}", "--json").document["event"]["id"] for name in message_ids]


@pytest.mark.parametrize("command", [name for name in LEAVES if name not in APART])
def test_the_examples_work(leasemesh, prepared, folder, command):
    event = leasemesh("why", "shop/orders/order-17", "--json").document["event"]["id"]
    for example in examples_of(leasemesh, command):
        run = leasemesh("reserve", "shop/orders", "--limit", "1", "--json").document["run"]
        line = example.replace(PLACEHOLDER_RUN, run[:16]).replace(PLACEHOLDER_EVENT, event[:10])
        if line.startswith("cat "):
            with (folder / "orders.jsonl").open() as stream:
                assert spawn("publish", "shop/orders", "-", stdin=stream).returncode == 0
            continue
        finished = leasemesh(*shlex.split(line)[1:])
        assert finished.code == 0, (line, finished.err)
        for held in leasemesh("status", "--json").document["held"]:
            leasemesh("release", held["run"])


def test_the_examples_of_init_work(leasemesh, folder):
    for number, example in enumerate(examples_of(leasemesh, "init")):
        assert leasemesh(*shlex.split(example)[1:], "--db", f"{number}.db").code == 0


def test_the_examples_of_take_over_work(leasemesh, prepared, database, other):
    first, second = hold_on_other_device(leasemesh, database, other, "order-1", "order-2")
    early, waiting, forced = examples_of(leasemesh, "take-over")
    assert leasemesh(*shlex.split(early.replace(PLACEHOLDER_EVENT, first[:10]))[1:]).code == 4
    forced = forced.replace(PLACEHOLDER_EVENT, first[:10]).replace(SECOND_EVENT, second[:10])
    assert leasemesh(*shlex.split(forced)[1:]).code == 0
    assert leasemesh(*shlex.split(waiting)[1:]).code == 4  # nobody holds that one


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no such command 'nope'"),
        (["peek"], "missing argument 'WORKFLOW/TOPIC'; `leasemesh peek --help` shows"),
        (["peek", "a/b", "--nope"], "no such option: --nope"),
        (["peek", "a/b", "--limit", "many"], "invalid value for '--limit'"),
        (["identity"], "missing command; `leasemesh identity --help`"),
        (["take-over"], "missing argument 'EVENT'"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_sentence(leasemesh, arguments, said):
    failed = leasemesh(*arguments)
    assert (failed.code, failed.out) == (2, "")
    assert said in failed.err
    assert len(failed.err.splitlines()) == 1


def test_a_missing_database_is_named_and_not_made(leasemesh, folder):
    for arguments in (["topics"], ["peek", "a/b"], ["serve", "--peer", "127.0.0.1:1"], ["doctor"], ["status"]):
        failed = leasemesh(*arguments)
        assert failed.code == 3
        assert failed.err == (
            "leasemesh: there is no database leasemesh.db; make one with `leasemesh init`, or name another with --db "
            "or LEASEMESH_DB\n"
        )
    assert list(folder.iterdir()) == []


def test_the_database_comes_from_the_option_or_the_environment(leasemesh, database, folder, monkeypatch):
    database.rename(folder / "elsewhere.db")
    assert leasemesh("topics").code == 3
    assert leasemesh("topics", "--db", "elsewhere.db").code == 0
    monkeypatch.setenv("LEASEMESH_DB", str(folder / "elsewhere.db"))
    assert leasemesh("topics").code == 0


def test_a_file_that_is_no_database_is_named(leasemesh, folder):
    (folder / "leasemesh.db").write_text("some notes\n" * 1000)
    failed = leasemesh("topics")
    assert failed.code == 1
    assert "leasemesh.db" in failed.err and len(failed.err.splitlines()) == 1


def test_errors_are_json_when_that_is_asked_for(leasemesh, database):
    failed = leasemesh("why", "shop/orders/nope", "--json")
    assert failed.out == ""
    assert failed.err.startswith('{"error": "no such event: shop/orders/nope') and '"exit_code": 3' in failed.err


def test_a_traceback_is_shown_only_when_asked_for(leasemesh, database):
    assert "Traceback" not in leasemesh("why", "shop/orders/nope").err
    shown = leasemesh("why", "shop/orders/nope", "--debug")
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-1].startswith("leasemesh: no such event")


def test_a_mistake_of_ours_ends_with_1_and_says_how_to_find_it(leasemesh, database):
    @app.command("broken", hidden=True)
    def broken():
        raise ZeroDivisionError("by mistake")

    try:
        failed = leasemesh("broken")
    finally:
        app.registered_commands.pop()
    assert (failed.code, failed.err) == (
        1, "leasemesh: internal error: ZeroDivisionError: by mistake; --debug shows where\n"
    )  # fmt: skip


def test_every_error_of_ours_has_an_exit_code(leasemesh):
    kinds = set(LeasemeshError.__subclasses__()) - {CommandError}
    assert len(kinds) > 10
    for kind in kinds:
        _, code = explain(kind.__new__(kind))
        assert code in set(ExitCode) - {ExitCode.OK}


def in_shell(line, folder, **environment):
    """Run a line of the shell, in which `leasemesh` is the command."""
    function = f"leasemesh() {{ '{sys.executable}' -m leasemesh \"$@\"; }}\n"
    options = {"cwd": folder, "env": os.environ | environment}
    return subprocess.run(["bash", "-c", function + line], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("command", ["peek shop/orders --json", "run app.py", "run app.py --json"])
def test_a_reader_that_goes_away_is_no_error(database, folder, command):
    (folder / "app.py").write_text(
        "from leasemesh import Workflow\nshop = Workflow('shop')\n"
        "@shop.consumer(shop.topic('orders'))\ndef pack(run): pass\n"
    )
    assert in_shell(f"leasemesh {command} | head -c 10", folder).stderr == ""


@pytest.mark.parametrize(("line", "code"), [("leasemesh topics >&-", 0), ("leasemesh nope 2>&-", 2)])
def test_a_stream_that_is_closed_is_not_written_to(database, folder, line, code):
    finished = in_shell(line, folder)
    assert (finished.returncode, finished.stdout, finished.stderr) == (code, "", "")


def test_a_character_that_a_stream_does_not_have_is_written_as_its_number(database, folder):
    finished = in_shell("leasemesh publish shop/orders --id ü --title Café", folder, PYTHONIOENCODING="ascii")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("published shop/orders/\\xfc as event ")


def test_what_ended_a_group_of_tasks_is_named(leasemesh, database, monkeypatch):
    def failing(*_):
        raise ExceptionGroup("unhandled", [BrokenPipeError(), ExceptionGroup("inner", [NotFound("topic", ["a/b"])])])

    monkeypatch.setattr("leasemesh.node.stores.events.reading.EventReader.counts", failing)
    failed = leasemesh("topics")
    assert (failed.code, failed.err) == (3, "leasemesh: no such topic: a/b\n")


PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}


def in_terminal(*arguments, **environment):
    """Run a command on streams that say they are a terminal: a real one needs devices that a container may lack."""
    program = (
        "import io, sys; from leasemesh.node.cli import main\n"
        "class Terminal(io.TextIOWrapper):\n    def isatty(self): return True\n"
        "sys.stdout = Terminal(sys.stdout.buffer, write_through=True)\n"
        "sys.stderr = Terminal(sys.stderr.buffer, write_through=True)\n"
        f"sys.argv = {['leasemesh', *arguments]}\n"
        "main()"
    )
    options = {"TERM": "xterm-256color", "COLUMNS": "80", **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=PLAIN | options, timeout=60)


def test_colours_are_for_terminals_only(database, folder):
    peek = ("peek", "shop/orders", "--limit", "1")
    assert "\x1b[36m" in in_terminal(*peek).stdout
    assert "\x1b[36m" not in in_terminal(*peek, NO_COLOR="1").stdout
    assert "\x1b" not in spawn("peek", "shop/orders", env=PLAIN).stdout


def test_sentences_are_wrapped_between_words_in_a_terminal_and_whole_lines_elsewhere(folder):
    said = spawn("topics", env=PLAIN).stderr
    assert len(said.splitlines()) == 1
    wrapped = re.sub(r"\x1b\[[\d;]*m", "", in_terminal("topics", COLUMNS="50").stderr)
    assert max(map(len, wrapped.splitlines())) <= 50
    assert wrapped.split() == said.split()
