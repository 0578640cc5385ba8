"""Where the demo's events come from, and the topic that they go to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from node.importers import Record, read_file, read_git_history

COMMITS_MAX = 2_000
"""A large repository has a million commits; these many are real enough, and there in a second."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or the history of a git checkout.

    Attributes:
        path: the file, or a folder of the checkout.
        workflow, topic: where its events are published.
    """

    path: str
    workflow: str
    topic: str

    def records(self) -> Iterator[Record]:
        """Read it."""
        path = Path(self.path)
        return read_git_history(path, limit=COMMITS_MAX) if path.is_dir() else read_file(path)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        """Return what `to_json` wrote down."""
        return cls(**json.loads(text))
