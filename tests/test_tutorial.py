"""The tutorial and the guide to modes do what they say, block by block."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from leasemesh import RetryRule

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs/tutorial.md"
MODES = ROOT / "docs/modes.md"

_BLOCK = re.compile(r"(?:(?P<how>Add to )?`(?P<file>[\w.-]+)`:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)

LEARNED = {"WORKSPACE": r"--workspace ([0-9a-f]{32})", "WORK": r"resolve ([0-9a-f]+) "}
"""What a reader copies from what was printed before."""


END = "end-of-command"


@dataclass(frozen=True)
class Block:
    """One code block: a file to write or to add to, or commands with what they print."""

    kind: str
    file: str | None
    adds: bool
    text: str


def blocks(document: Path) -> list[Block]:
    return [
        Block(found["kind"], found["file"], bool(found["how"]), found["text"])
        for found in _BLOCK.finditer(document.read_text())
    ]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output that is shown for it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def fits(shown: str, printed: str) -> bool:
    """Whether output is what the document shows, however it is spaced; `...` stands for anything."""
    pieces = (re.escape(" ".join(piece.split())) for piece in shown.split("..."))
    return not shown or re.fullmatch(r" ?.*".join(pieces), " ".join(printed.split()), re.DOTALL) is not None


class Reader:
    """A shell in a folder, used as the document says."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.folder = folder
        self.printed = ""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEASEMESH")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**kept, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, block: Block) -> None:
        assert block.file is not None
        with (self.folder / block.file).open("a" if block.adds else "w") as file:
            file.write(("\n\n" if block.adds else "") + block.text)

    def type(self, command: str) -> tuple[int, str]:
        """Run a command; returns its exit code and what it printed."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        for name, pattern in LEARNED.items():
            if re.search(rf"\b{name}\b", command):
                command = re.sub(rf"\b{name}\b", re.findall(pattern, self.printed)[-1], command)
        self._shell.stdin.write(f"set -m; {command.replace('8787', self.port)}\necho {END} $?\n")
        self._shell.stdin.flush()
        lines = []
        while not (line := self._shell.stdout.readline()).startswith(END):
            assert line, "the shell ended"
            lines.append(line)
        printed = "".join(lines)
        self.printed += printed
        return int(line.removeprefix(END)), printed.replace(self.port, "8787")

    def learned(self, text: str) -> str:
        for name, pattern in LEARNED.items():
            found = re.findall(pattern, self.printed)
            text = re.sub(rf"\b{name}\b", found[-1] if found else name, text)
        return text

    def close(self) -> None:
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write("kill $(jobs -p) 2> /dev/null\nwait\nexit\n")
        self._shell.stdin.close()
        self._shell.wait(30)
        self._shell.stdout.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    found = Reader(tmp_path)
    yield found
    found.close()


def test_the_tutorial_works_from_its_first_command_to_its_last(reader: Reader) -> None:
    installing, *rest = blocks(TUTORIAL)
    assert "pip install" in installing.text  # what the tests run in is installed already
    for block in rest:
        if block.kind != "console":
            reader.write(block)
            continue
        for command, shown in commands(block.text):
            code, printed = reader.type(command)
            assert (code == 0) != ("PULL_THE_PLUG=" in command), f"{command} ended with {code}\n{printed}"
            assert fits(reader.learned(shown), printed), f"{command}\nshown:\n{shown}\nprinted:\n{printed}"


def test_output_that_differs_from_the_document_is_found() -> None:
    assert fits("a\n...\nshop/orders   3\n", "a\nbcd\nshop/orders     3\n")
    assert not fits("a\n...\nshop/orders   3\n", "a\nbcd\nshop/orders     2\n")
    assert not fits("1 passed...", "1 failed in 2 s")


def test_how_a_command_ended_is_known(reader: Reader) -> None:
    assert [reader.type("true"), reader.type("echo 8787; false"), reader.type("leasemesh topics")[0]] == [
        (0, ""), (1, "8787\n"), 3,
    ]  # fmt: skip


def test_the_code_of_the_guide_to_modes_runs() -> None:
    (code,) = [block.text for block in blocks(MODES) if block.kind == "python"]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pauses_that_the_guide_to_modes_names_are_those_of_the_rule() -> None:
    rule = RetryRule()
    *pauses, last = (f"{rule.delay_ms(asked) // 1000}" for asked in range(1, rule.tries + 1))
    assert f"after {', '.join(pauses)} and {last} seconds more" in MODES.read_text()
