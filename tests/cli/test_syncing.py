"""Two real processes that serve, found and stopped as people do it; and verify against a running one."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from cli_devices import meet
from processes import TELLS_WITHIN_S, running

from leasemesh.node.cli.app import CommandError
from leasemesh.node.cli.syncing import parse_listen
from leasemesh.node.node import Node


def serving(*arguments, **environment):
    return running("serve", *arguments, **environment)


def test_two_processes_sync_and_tell_what_happens(leasemesh, database, folder):
    leasemesh("init", "--db", "hub.db", "--name", "hub", "--workspace", "team")
    with serving("--db", "hub.db", "--listen", "127.0.0.1:0") as hub:
        url = hub.wait_for("started")["url"]
        with serving("--db", database, "--peer", url) as laptop:
            assert laptop.wait_for("started")["url"] is None
            assert laptop.wait_for("caught_up")["peer"] == "hub"
            assert leasemesh("topics", "--db", "hub.db", "--json").document["topics"][0]["total"] == 10
            assert leasemesh("status", "--json").document["workspace"] == "team"
            verified = leasemesh("verify", url)
            assert (verified.code, verified.err) == (0, "")
            assert re.fullmatch(r"equal to hub \(\w{10}\): \d+ cells compared\n", verified.out)
            # What another program writes is synced too.
            leasemesh("publish", "shop/orders", "--id", "late", "--db", "hub.db")
            laptop.wait_for("received")
            assert leasemesh("why", "shop/orders/late").code == 0
            assert laptop.stop() == 0
            assert json.loads(laptop.process.stdout.readlines()[-1])["event"] == "stopped"
        assert hub.wait_for("disconnected")["peer"] == "laptop"
        assert hub.stop(signal.SIGTERM) == 0


def test_status_shows_the_peers_of_the_process_that_serves(leasemesh, database, other):
    with serving("--db", other, "--listen", "127.0.0.1:0") as desktop:
        url = desktop.wait_for("started")["url"]
        with serving("--db", database, "--peer", url) as laptop:
            laptop.wait_for("caught_up")
            peer = wait_for_peer(leasemesh)
            assert (peer["peer"], peer["name"], peer["behind"], peer["ahead"]) == (url, "desktop", 0, 0)
            assert "connected" in leasemesh("status").out


def wait_for_peer(leasemesh):
    """Return the peer in `status` once it is connected; the serving process writes it down within a second."""
    deadline = time.monotonic() + TELLS_WITHIN_S
    while time.monotonic() < deadline:
        for peer in leasemesh("status", "--json").document["peers"]:
            if peer["state"] == "connected":
                return peer
    raise AssertionError("no peer became connected")


def test_people_read_one_line_for_each_thing_that_happens(database, other):
    with serving("--db", other, "--listen", "127.0.0.1:0") as desktop:
        url = desktop.wait_for("started")["url"]
        command = [sys.executable, "-m", "leasemesh", "serve", "--db", str(database), "--peer", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as laptop:
            lines = [laptop.stdout.readline() for _ in range(4)]
            laptop.send_signal(signal.SIGINT)
            rest, errors = laptop.communicate(timeout=TELLS_WITHIN_S)
    assert lines[:2] == ["laptop of workspace team\n", f"dialling {url}; Ctrl-C stops\n"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  desktop: connected.*\n", lines[2])
    assert re.fullmatch(r"\d\d:\d\d:\d\d  desktop: both sides have caught up\n", lines[3])
    assert rest == "stopped\n"
    assert (errors, laptop.returncode) == ("", 0)


def test_verify_names_the_first_table_that_differs_and_who_is_behind(leasemesh, database, other):
    leasemesh("publish", "shop/orders", "--id", "only-here")
    leasemesh("reserve", "shop/orders", "--limit", "1")
    with serving("--db", other, "--listen", "127.0.0.1:0") as desktop:
        url = desktop.wait_for("started")["url"]
        different = leasemesh("verify", url)
        assert different.code == 6
        assert different.out == "desktop lacks 2 versions of laptop\n"
        assert "different from desktop, first in table publications (" in different.err
        assert "sync has not finished" in different.err
        document = json.loads(leasemesh("verify", url, "--json").out)
        assert document["different_tables"] == ["publications", "reservations"]
        assert (document["lacking_here"], document["lacking_there"]) == ({}, {"laptop": 2})


def test_verify_finds_tampering_under_equal_version_vector(leasemesh, database, other):
    with Node.open(other) as node, node.transaction() as transaction:
        # As a fault of the disk or of a program might: past cr-sqlite's triggers.
        transaction.execute("UPDATE workflows__crsql_clock SET col_version = col_version + 1 WHERE col_name = 'title'")
    with serving("--db", other, "--listen", "127.0.0.1:0") as desktop:
        different = leasemesh("verify", desktop.wait_for("started")["url"])
    assert different.code == 6
    assert "first in table workflows" in different.err and "although both have absorbed the same" in different.err


def test_verify_says_when_nobody_answers(leasemesh, database):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failed = leasemesh("verify", f"127.0.0.1:{taken.getsockname()[1]}")
    assert failed.code == 5
    assert "cannot be reached" in failed.err and len(failed.err.splitlines()) == 1


def test_a_peer_of_another_workspace_or_with_another_token_is_refused(leasemesh, database, folder):
    leasemesh("init", "--db", "stranger.db", "--workspace", "theirs")
    (folder / "secret").write_text("a secret\n")
    with serving("--db", "stranger.db", "--listen", "127.0.0.1:0") as stranger:
        failed = leasemesh("verify", stranger.wait_for("started")["url"])
        assert failed.code == 5 and "workspace" in failed.err
    with serving("--db", database, "--listen", "127.0.0.1:0", "--token-file", "secret") as guarded:
        url = guarded.wait_for("started")["url"]
        assert leasemesh("verify", url).code == 5
        meet_with_token = leasemesh("init", "--db", "friend.db", "--workspace", "team")
        assert meet_with_token.code == 0
        different = leasemesh("verify", url, "--db", "friend.db", "--token-file", "secret")
        assert different.code == 6
        assert re.search(r"^this device lacks \d+ versions of laptop$", different.out, re.MULTILINE), different.out


def test_the_token_may_come_from_the_environment(leasemesh, database, other, monkeypatch):
    with serving("--db", other, "--listen", "127.0.0.1:0", LEASEMESH_TOKEN="a secret") as desktop:
        url = desktop.wait_for("started")["url"]
        assert leasemesh("verify", url).code == 5
        monkeypatch.setenv("LEASEMESH_TOKEN", "a secret")
        assert leasemesh("verify", url).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "serve needs --listen HOST:PORT, --peer URL, or both"),
        (["--listen", "nonsense"], 2, "--listen: 'nonsense' is not HOST:PORT"),
        (["--listen", "0.0.0.0:0"], 2, "without a token"),
        (["--peer", "http://x"], 2, "cannot dial 'http://x'"),
        (["--listen", "127.0.0.1:0", "--token-file", "nope"], 2, "cannot read the token from nope: No such file"),
        (["--listen", "127.0.0.1:0", "--token-file", "empty"], 2, "the token file empty is empty"),
    ],
)
def test_a_serve_that_cannot_start_says_why(leasemesh, database, folder, arguments, code, said):
    (folder / "empty").write_text("\n")
    failed = leasemesh("serve", *arguments)
    assert (failed.code, failed.out) == (code, "")
    assert said in failed.err and len(failed.err.splitlines()) == 1


def test_only_one_process_syncs_a_file(leasemesh, database):
    with serving("--db", database, "--listen", "127.0.0.1:0") as first:
        first.wait_for("started")
        second = leasemesh("serve", "--listen", "127.0.0.1:0")
        assert second.code == 4
        assert "another process syncs" in second.err
        assert leasemesh("identity", "reset", "--yes").code == 4


def test_the_examples_of_serve_and_verify_work(leasemesh, database, folder):
    (folder / "secret").write_text("a secret\n")
    shown = leasemesh("serve", "--help").out.partition("Examples:")[2]
    examples = [line.strip() for line in shown.splitlines() if line.strip()]
    assert len(examples) == 4
    for example in examples:
        arguments = shlex.split(example.replace(":8787", ":0") if "--listen" in example else example)[2:]
        with serving(*arguments) as started:
            started.wait_for("started")
            assert started.stop() == 0
    with serving("--db", database, "--listen", "127.0.0.1:0") as hub:
        address = hub.wait_for("started")["url"].removeprefix("ws://")
        shown = leasemesh("verify", "--help").out.partition("Examples:")[2]
        for example in (line.strip() for line in shown.splitlines() if line.strip()):
            line = example.replace("127.0.0.1:8787", address)
            assert leasemesh(*shlex.split(line)[1:], "--db", database).code == 5  # a node does not talk to itself


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:8787", ("::1", 8787)),
        ("hub.local:1", ("hub.local", 1)),
    ],
)
def test_an_address_to_listen_on_is_host_and_port(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["8787", "host", "host:", "host:70000", "host:x", "::1:8787", "host:٣"])
def test_what_is_no_address_to_listen_on_is_refused(text):
    with pytest.raises(CommandError, match="is not HOST:PORT"):
        parse_listen(text)


def test_meeting_needs_no_files_but_the_two(database, other):
    meet(database, other)
    with Node.open(database) as one, Node.open(other) as two:
        assert one.digest().tables == two.digest().tables
