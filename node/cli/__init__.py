"""The command line. `main` is what the command `leasemesh` calls.

Rules about events, runs and sync do not belong here: a command asks a node, and says what it answered.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line with this process's arguments and exit."""
    _make_writable()
    from leasemesh.node.cli.app import run

    sys.exit(run(sys.argv[1:]))


def _make_writable() -> None:
    """Let nothing fail for a stream that is closed (`>&-`), or that has no such character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
