"""Reads events from JSON Lines, CSV and mbox files and from a git history: streams in, events or problems out.

The database does not belong here.

Rules:

1. Bounded memory: a reader holds one record, never the file. What `check` has read is on disk.
2. A reader yields a `NewEvent` or a `Problem` for each record, in order, and goes on after a problem.
3. A record is checked for everything that publishing would refuse, so a file is known to be good before anything of it
   is published (`check`).
4. Reading a source twice gives the same message ids: publishing it again changes nothing. A record that names no id
   gets a hash of its content.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from leasemesh.node.importers.git import read_git_history
from leasemesh.node.importers.records import Checked, Fields, ImportFailed, Problem, Record, check
from leasemesh.node.importers.tables import read_csv, read_json_lines
from leasemesh.node.model.errors import LeasemeshError

Format = Literal["jsonl", "csv", "mbox"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "mbox")

HEAD_BYTES = 4_096
"""How much of a source is looked at to tell its format."""

_FORMAT_BY_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".mbox": "mbox",
    ".mbx": "mbox",
}


def guess_format(name: str, head: bytes) -> Format | None:
    """Return the format of a source by its file name or else its first bytes, None when neither tells."""
    by_suffix = _FORMAT_BY_SUFFIX.get(Path(name).suffix.lower())
    if by_suffix is not None:
        return by_suffix
    if head.startswith(b"From "):
        return "mbox"
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else None


def read(stream: BinaryIO, source_format: Format, name: str, fields: Fields | None = None) -> Iterator[Record]:
    """Return a reader of a stream.

    Args:
        stream: open for reading bytes. Need not be seekable.
        source_format: what it holds.
        name: how problems name it.
        fields: for JSON Lines and CSV.
    """
    if source_format == "jsonl":
        return read_json_lines(stream, name, fields or Fields())
    if source_format == "csv":
        return read_csv(stream, name, fields or Fields())
    # The standard library's mail parser takes longer to import than everything else here.
    from leasemesh.node.importers.mail import read_mbox

    return read_mbox(stream, name)


def read_file(path: Path) -> Iterator[Record]:
    """Read a file whose format its name or its beginning tells.

    Raises:
        LeasemeshError: the file cannot be read, or neither tells its format.
    """
    try:
        with path.open("rb") as stream:
            chosen = guess_format(path.name, stream.peek(HEAD_BYTES))
            if chosen is None:
                raise LeasemeshError(f"cannot tell the format of {path}; it should end in .jsonl, .csv or .mbox")
            yield from read(stream, chosen, str(path))
    except OSError as error:
        raise LeasemeshError(f"cannot read {path}: {error.strerror}") from error


__all__ = [
    "FORMATS",
    "HEAD_BYTES",
    "Checked",
    "Fields",
    "Format",
    "ImportFailed",
    "Problem",
    "Record",
    "check",
    "guess_format",
    "read",
    "read_file",
    "read_git_history",
]
