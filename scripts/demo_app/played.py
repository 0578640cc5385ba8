"""What happened in a demo, for the proof; kept beside the databases."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mail_source import Source

from leasemesh.node.model.errors import LeasemeshError

HUB, LAPTOP, DESKTOP = DEVICES = ("hub", "laptop", "desktop")


@dataclass(frozen=True, slots=True)
class Killed:
    """A device was killed when an effect had happened and nothing of that was written down.

    Attributes:
        device: its name.
        tool: the effect's name.
        event: the id of the event that it was about.
    """

    device: str
    tool: str
    event: str


@dataclass
class Played:
    """What happened.

    Attributes:
        source: where the events came from.
        inbox: message ids of all events, as the source has them.
        headlines: those that were headlines too.
        links_cut: device -> how many of its connections to the hub were broken off.
        killed: who was killed at what.
        done_twice: ids of the events that both devices had finished before they could hear of each other.
        contested: device -> the event that it held, and waited with, while it was cut off.
    """

    source: Source
    inbox: list[str] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)
    links_cut: dict[str, int] = field(default_factory=dict)
    killed: list[Killed] = field(default_factory=list)
    done_twice: list[str] = field(default_factory=list)
    contested: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write this down."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Played:
        """Return what `write` wrote down.

        Raises:
            LeasemeshError: there is no such file.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except OSError as error:
            raise LeasemeshError(f"{path.parent} does not hold a demo that was run with --keep") from error
        killed = [Killed(**one) for one in values["killed"]]
        return cls(**values | {"source": Source(**values["source"]), "killed": killed})
