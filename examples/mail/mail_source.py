"""Where the events come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from leasemesh.node.importers import Record, read_file, read_git_history
from leasemesh.node.stores import NewEvent

TEXT_CHARACTERS_MAX = 2_000
"""Of a file in a watched folder, so much goes into the mail about it."""

TITLE_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class Source:
    """The history of a git checkout, a file of records, or a folder that is watched.

    Attributes:
        kind: which of these.
        path: where it is.
        limit: only so many events: the newest commits, the first records or files.
    """

    kind: Literal["history", "file", "folder"]
    path: str
    limit: int

    @property
    def topic(self) -> str:
        """The topic that its events are published to."""
        return "commits" if self.kind == "history" else Path(self.path).stem

    def records(self) -> Iterator[Record]:
        """Read it. A folder has a record for each file; one that changes becomes another event."""
        path = Path(self.path)
        if self.kind == "history":
            return read_git_history(path, limit=self.limit)
        return islice(read_file(path) if self.kind == "file" else _files(path), self.limit)


def _files(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError:
            continue  # gone, or not for us to read; whoever puts files here sees that no mail comes
        text = content[: 4 * TEXT_CHARACTERS_MAX].decode(errors="replace")[:TEXT_CHARACTERS_MAX]
        payload = {"name": _readable(path.name), "bytes": len(content), "text": text}
        digest = hashlib.sha256(content + path.name.encode(errors="surrogateescape")).hexdigest()
        yield NewEvent(digest, _readable(path.name)[:TITLE_CHARACTERS_MAX], payload)


def _readable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")
