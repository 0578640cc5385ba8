import io
import re

import pytest
from cli_devices import meet
from filelock import FileLock

from leasemesh.node.node import Node


def test_init_begins_a_workspace_that_another_device_can_join(leasemesh, folder):
    first = leasemesh("init", "--name", "laptop")
    assert first.code == 0
    workspace = re.match(r"device laptop of workspace (\w+) in leasemesh.db\n", first.out).group(1)
    assert first.out.splitlines()[1] == f"on another device: leasemesh init --workspace {workspace}"
    second = leasemesh("init", "--db", "two.db", "--workspace", workspace, "--json").document
    assert second["workspace"] == workspace
    meet(folder / "leasemesh.db", folder / "two.db")


def test_who_begins_a_workspace_grants_its_permits_and_who_joins_is_told_what_to_do(leasemesh, folder):
    first = leasemesh("init", "--name", "laptop", "--json").document
    assert first["authority"] == first["node"]
    assert leasemesh("authority", "show", "--json").document["device"] == "laptop"
    joined = leasemesh("init", "--db", "two.db", "--workspace", first["workspace"])
    assert "leasemesh authority set" in joined.out
    assert leasemesh("authority", "show", "--json", "--db", "two.db").document["node"] is None
    meet(folder / "leasemesh.db", folder / "two.db")
    assert leasemesh("authority", "show", "--json", "--db", "two.db").document["device"] == "laptop"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 4, "leasemesh.db exists; nothing was changed"),
        (["--db", "no/such/folder.db"], 3, "there is no folder"),
        (["--db", "new.db", "--name", ""], 2, "name: must not be empty"),
        (["--db", "new.db", "--workspace", "a\nb"], 2, "workspace: must be printable"),
    ],
)
def test_init_that_cannot_be_done_changes_nothing(leasemesh, database, folder, arguments, code, said):
    failed = leasemesh("init", *arguments)
    assert failed.code == code
    assert said in failed.err
    assert not (folder / "new.db").exists()


def test_status_shows_the_device_what_it_knows_and_who_holds_what(leasemesh, database, other):
    run = leasemesh("reserve", "shop/orders", "--limit", "2", "--handler", "packing", "--json").document["run"]
    meet(database, other)
    document = leasemesh("status", "--json", "--db", other).document
    assert (document["name"], document["workspace"]) == ("desktop", "team")
    assert document["events"] == {"pending": 8, "reserved": 2}
    assert document["peers"] == [] and document["quarantined"] == {} and document["duplicates"] == 0
    (held,) = document["held"]
    assert (held["run"], held["own"], held["events"], held["owned"], held["handler"]) == (run, False, 2, 2, "packing")
    assert document["digest"] == leasemesh("status", "--json").document["digest"]
    text = leasemesh("status").out
    for said in (
        "laptop",
        "workspace  team",
        "8 pending, 2 reserved",
        "no process syncs this file",
        run[:16],
        "(this one)",
    ):
        assert said in text


def test_doctor_finds_nothing_wrong_with_a_database_that_was_used(leasemesh, database, other):
    run = leasemesh("reserve", "shop/orders", "--limit", "2", "--json").document["run"]
    leasemesh("consume", run)
    meet(database, other)
    for path in (database, other):
        examined = leasemesh("doctor", "--db", path)
        assert examined.code == 0, examined.err
        assert [line[:3] for line in examined.out.splitlines()[:5]] == ["ok "] * 5
    document = leasemesh("doctor", "--json").document
    assert document["healthy"] and document["corrected"] is None
    assert document["digest"] == leasemesh("doctor", "--json", "--db", other).document["digest"]


def test_doctor_finds_wrong_status_and_makes_it_anew(leasemesh, database):
    with Node.open(database) as node, node.transaction() as transaction:
        transaction.execute("UPDATE event_index SET status = 3 WHERE n < 4")
    sick = leasemesh("doctor")
    assert sick.code == 6
    assert "BAD  derived: wrong: 6 rows of event_index; leasemesh doctor --rebuild makes them anew" in sick.out
    assert sick.err == "leasemesh: not all is well with leasemesh.db: derived\n"
    rebuilt = leasemesh("doctor", "--rebuild")
    assert rebuilt.code == 0
    assert rebuilt.out.splitlines()[0] == "made anew; corrected 6 rows of event_index"
    assert leasemesh("topics", "--json").document["topics"][0]["by_status"] == {"pending": 10}


@pytest.mark.parametrize("cell", ["body = json_set(body, '$.handler', 'forged')", "state = 'released'"])
def test_doctor_finds_a_row_that_another_device_wrote(leasemesh, database, other, cell):
    leasemesh("reserve", "shop/orders")
    meet(database, other)
    with Node.open(other) as node, node.transaction() as transaction:
        transaction.execute(f"UPDATE reservations SET {cell}")
    assert "writers: rows that another device wrote: 1 in reservations" in leasemesh("doctor", "--db", other).out


def test_doctor_finds_a_damaged_file(leasemesh, database, folder):
    with Node.open(database) as node:
        for number in range(300):
            node.publish("shop", "more", f"m{number}", payload="x" * 500)
    content = bytearray(database.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    (folder / "damaged.db").write_bytes(content)
    examined = leasemesh("doctor", "--db", "damaged.db")
    assert examined.code in (1, 6)
    assert "damaged" in examined.out + examined.err or "malformed" in examined.err


def test_a_copied_file_gets_an_identity_of_its_own(leasemesh, database, folder):
    before = leasemesh("status", "--json").document["node"]
    changed = leasemesh("identity", "reset", "--yes", "--json").document
    assert changed["before"] == before != changed["after"]
    assert leasemesh("status", "--json").document["node"] == changed["after"]
    assert leasemesh("publish", "shop/orders", "--id", "after").code == 0
    assert leasemesh("doctor").code == 0


@pytest.mark.parametrize(
    ("typed", "options", "code", "said"),
    [
        ("n\n", [], 1, "leasemesh: nothing was changed"),
        ("", [], 2, "leasemesh: nobody has answered, so nothing was changed; --yes does not ask"),
        ("y\n", ["--json"], 2, "nobody has answered, so nothing was changed; --yes does not ask"),
    ],
)
def test_an_identity_is_not_reset_without_a_yes(leasemesh, database, monkeypatch, typed, options, code, said):
    before = leasemesh("status", "--json").document["node"]
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    refused = leasemesh("identity", "reset", *options)
    assert (refused.code, said in refused.err) == (code, True)
    assert leasemesh("status", "--json").document["node"] == before


def test_an_identity_is_reset_after_a_yes(leasemesh, database, monkeypatch):
    before = leasemesh("status", "--json").document["node"]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert leasemesh("identity", "reset").code == 0
    assert leasemesh("status", "--json").document["node"] != before


def test_an_identity_is_not_reset_under_a_process_that_syncs(leasemesh, database):
    with FileLock(f"{database}.sync-lock"):
        refused = leasemesh("identity", "reset", "--yes")
    assert (refused.code, refused.err) == (4, "leasemesh: a process syncs leasemesh.db now; stop it first\n")


def test_version_names_what_it_stands_on(leasemesh, folder):
    assert list(leasemesh("version", "--json").document) == ["leasemesh", "python", "sqlite", "cr-sqlite"]
