"""new: what it writes works."""

import shlex
import subprocess
import sys

import pytest
from processes import running

FILES = ["README.md", "app.py", "test_app.py"]


@pytest.fixture
def written(leasemesh, folder):
    """./letters: a new app."""
    assert leasemesh("new", "letters").code == 0
    return folder / "letters"


def python(folder, *arguments):
    """Run a program in a folder that knows nothing of this project's settings."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_an_app_is_written_and_what_to_do_next_is_said(leasemesh, folder):
    written = leasemesh("new", "letters")
    assert written.out.splitlines()[0] == "wrote README.md, app.py, test_app.py in letters"
    assert "cd letters, leasemesh init, leasemesh run app.py" in written.out
    assert sorted(file.name for file in (folder / "letters").iterdir()) == FILES
    assert all("$NAME" not in (folder / "letters" / name).read_text() for name in FILES)
    document = leasemesh("new", "post", "--path", "work/post", "--json").document
    assert document["files"] == [f"work/post/{name}" for name in FILES]
    assert 'Workflow("post")' in (folder / "work" / "post" / "app.py").read_text()


def test_its_own_tests_pass(written):
    tested = python(written, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout


def test_its_own_tests_notification_an_app_that_delivers_twice(written):
    app = written / "app.py"
    careless = app.read_text().replace(
        "        file.write(", "        file.write(f'{key} {name}: again\\n')\n        file.write("
    )
    assert careless != app.read_text()
    app.write_text(careless)
    tested = python(written, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    assert tested.returncode == 1
    assert "2 failed" in tested.stdout


def test_it_is_well_typed_and_well_formatted(written):
    for tool in (["mypy", "--strict", "app.py"], ["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        checked = python(written, "-m", *tool)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_does_its_work(leasemesh, written, monkeypatch):
    monkeypatch.chdir(written)
    (written / "notes").mkdir()
    for name in ("first", "second"):
        (written / "notes" / f"{name}.txt").write_text(f"This is the {name} one.\n")
    assert leasemesh("init").code == 0
    with running("run", "app.py") as process:
        for _ in range(2):
            process.wait_for("run", kind="committed", handler="send")
        (written / "notes" / "third.txt").write_text("A late one.\n")
        process.wait_for("run", kind="committed", handler="send")
        assert process.stop() == 0
    delivered = (written / "delivered.txt").read_text().splitlines()
    assert sorted(line.partition(" ")[2] for line in delivered) == [
        "first: This is the first one.", "second: This is the second one.", "third: A late one.",
    ]  # fmt: skip
    assert leasemesh("why", "letters/notes/first", "--json").document["event"]["status"] == "consumed"
    with running("run", "app.py") as process:  # once more: nothing is delivered again
        process.wait_for("run", kind="committed", handler="read")
        assert process.stop() == 0
    assert (written / "delivered.txt").read_text().splitlines() == delivered


def commands_of(readme):
    """The words of each command that is shown."""
    return [shlex.split(line[2:], comments=True) for line in readme.read_text().splitlines() if line.startswith("$ ")]


def test_a_second_device_joins_as_its_readme_says(leasemesh, written, monkeypatch):
    monkeypatch.chdir(written)
    shown = commands_of(written / "README.md")
    (first,) = (words[1:] for words in shown if "--listen" in words)
    (second,) = (words[1:] for words in shown if "--peer" in words)
    (join,) = (words[1:] for words in shown if "--workspace" in words)
    (written / "secret").write_text("a secret\n")
    leasemesh("init")
    workspace = leasemesh("status", "--json").document["workspace"]
    leasemesh(*(workspace if word == "WORKSPACE" else word for word in join), "--db", "second.db")
    with running(*("127.0.0.1:0" if ":" in word else word for word in first)) as listening:
        url = listening.wait_for("started")["url"]
        with running(*(url if ":" in word else word for word in second), "--db", "second.db") as dialling:
            dialling.wait_for("caught_up")
            assert (dialling.stop(), listening.stop()) == (0, 0)


def test_nothing_is_overwritten(leasemesh, written):
    (written / "app.py").write_text("mine")
    (written / "README.md").unlink()
    refused = leasemesh("new", "letters")
    assert (refused.code, refused.err) == (4, "leasemesh: letters/app.py exists; nothing was written\n")
    assert (written / "app.py").read_text() == "mine"
    assert not (written / "README.md").exists()


def test_a_folder_that_has_other_files_is_used(leasemesh, folder):
    (folder / "notes").mkdir()
    assert leasemesh("new", "letters", "--path", ".").code == 0
    assert (folder / "app.py").exists()


@pytest.mark.parametrize("name", ["", "a/b", "1st", "two words", "-x", "ü", "a" * 65])
def test_what_is_no_name_is_refused(leasemesh, folder, name):
    refused = leasemesh("new", "--", name)
    assert (refused.code, "is not a name for an app" in refused.err) == (2, True)
    assert list(folder.iterdir()) == []
