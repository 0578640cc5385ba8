"""The console that commands print on. A module of its own: importing Rich takes longer than most commands."""

from __future__ import annotations

from rich.console import Console


class CommandConsole(Console):
    """Leaves it to the frame of the commands what becomes of a reader that has gone."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError further. Rich would end the process, whatever it is doing."""
        raise
