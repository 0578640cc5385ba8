"""Disks that are full, and files that may not be written."""

import subprocess

import pytest
from crash_child import OPTIONS, fill_the_disk, transfer, write_without_privileges

from leasemesh import DatabaseError, NewEvent, Node

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk that has few bytes left, and what makes room there: a tmpfs if this user may mount one.

    Otherwise the folder is an ordinary one, and the process that writes must be given a limit of its file's size.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    yield folder, is_mounted
    if is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_work_goes_on_when_there_is_room(small_disk, start):
    folder, is_mounted = small_disk
    path = folder / "node.db"
    Node.open(path, **OPTIONS).close()
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(MIB))
    child = start(fill_the_disk, path, None if is_mounted else 2 * MIB)
    said = []
    while (word := child.hear())[0] == "published":
        said.append(word[1])
    kind, sentence = word
    assert kind == "refused" and str(path) in sentence
    assert ("disk is full; nothing was written" if is_mounted else "check the disk") in sentence
    assert child.hear("readable") == len(said) > 10
    ballast.unlink()
    child.pipe.send("there is room")
    said += [name for _, name in child.words()]
    assert child.process.exitcode == 0 and said[-1] == "after-4"
    with Node.open(path) as node:
        assert node.query("PRAGMA integrity_check") == [("ok",)]
        assert [event.message_id for event in node.peek("mail", "inbox", limit=10_000)] == said


def test_a_merge_that_does_not_fit_on_the_disk_is_made_up_for_later(small_disk, tmp_path):
    folder, is_mounted = small_disk
    with (
        Node.open(tmp_path / "peer.db", **OPTIONS) as peer,
        Node.open(folder / "node.db", **OPTIONS) as node,
    ):
        peer.publish_many("mail", "inbox", [NewEvent(f"{number}", "", "x" * 10_000) for number in range(500)])
        if not is_mounted:
            pages = node.query("PRAGMA page_count")[0][0]
            node.database._writer.pragma("max_page_count", pages + 100)
        with pytest.raises(DatabaseError, match="disk is full"):
            transfer(peer, node)
        merged = len(node.peek("mail", "inbox", limit=1_000))
        assert merged < 500
        assert node.query("PRAGMA integrity_check") == [("ok",)]
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        else:
            node.database._writer.pragma("max_page_count", 2**31)
        transfer(peer, node)
        assert node.digest().tables == peer.digest().tables
        assert all(finding.healthy for finding in node.doctor())


@pytest.mark.parametrize(("what", "sentence"), [("file", "is not writable"), ("folder", "folder")])
def test_what_may_not_be_written_is_named_and_left_as_it_was(tmp_path, start, what, sentence):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "node.db"
    Node.open(path, **OPTIONS).close()
    content = path.read_bytes()
    protected, mode = {"file": (path, 0o400), "folder": (folder, 0o500)}[what]
    protected.chmod(mode)
    child = start(write_without_privileges, path)
    refusal = child.hear("refused")
    assert str(path) in refusal and sentence in refusal
    assert list(child.words()) == [] and child.process.exitcode == 0
    protected.chmod(0o700)
    assert path.read_bytes() == content
    child = start(write_without_privileges, path)
    child.hear("written")
