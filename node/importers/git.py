"""The commits of a git checkout."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from leasemesh.node.importers.records import Record, make_record
from leasemesh.node.model.errors import LeasemeshError
from leasemesh.node.model.jsonvalue import TITLE_CHARACTERS_MAX
from leasemesh.node.stores.events.publications import NewEvent

_FIELDS = ("%H", "%an", "%aI", "%P", "%s", "%b")
_CHUNK_BYTES = 64 * 1024


def read_git_history(folder: Path, *, limit: int | None = None) -> Iterator[Record]:
    """Read one event from each commit that HEAD reaches, oldest first.

    Its message id is the commit's hash, its title the subject. The payload has author, date, parents and body.

    Args:
        folder: anywhere in the checkout.
        limit: only so many, the newest.

    Raises:
        LeasemeshError: `folder` is in no git checkout, it has no commit, or git is not installed.
    """
    command = ["git", "-C", str(folder), "-c", "i18n.logOutputEncoding=UTF-8", "-c", "log.showSignature=false", "log"]
    command += ["-z", "--reverse", f"--format=tformat:{'%x00'.join(_FIELDS)}"]
    command += [f"--max-count={limit}"] if limit is not None else []
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        except OSError as error:
            raise LeasemeshError(f"cannot run git ({error.strerror}); install it, or name a file to read") from error
        with process:
            assert process.stdout is not None
            yield from _commits(process.stdout, str(folder))
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read(2000).decode(errors="replace").strip().partition("\n")[0]
            raise LeasemeshError(f"git finds no history in {folder} ({said}); name a file to read instead")


def _commits(stream: IO[bytes], name: str) -> Iterator[Record]:
    parts: list[str] = []
    number = 0
    for part in _zero_ended(stream):
        parts.append(part.decode(errors="replace"))
        if len(parts) == len(_FIELDS):
            number += 1
            yield make_record(name, number, _event_of_commit, *parts)
            parts.clear()


def _event_of_commit(commit: str, author: str, date: str, parents: str, subject: str, body: str) -> NewEvent:
    payload = {"author": author, "date": date, "parents": parents.split(), "body": body.strip()}
    return NewEvent(commit, subject[:TITLE_CHARACTERS_MAX], payload)


def _zero_ended(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\x00")
        yield from whole
