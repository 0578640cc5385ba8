"""The command line. `main` is what the command `leasemesh` calls."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line with this process's arguments and exit."""
    from node.cli.app import run

    sys.exit(run(sys.argv[1:]))
