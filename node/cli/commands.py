"""Which module has which command; only the one that is called is imported, because importing takes longest of all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

MODULE_BY_COMMAND = {
    "publish": "publishing",
    "topics": "events",
    "peek": "events",
    "why": "why",
    "reserve": "work",
    "consume": "work",
    "skip": "work",
    "release": "work",
    "take-over": "work",
    "permit": "permits",
    "mode": "modes",
    "run": "running",
    "runs": "runs",
    "show": "runs",
    "unknown": "unknown",
    "resolve": "unknown",
    "dead": "handlers",
    "requeue": "handlers",
    "blocked": "handlers",
    "block": "handlers",
    "unblock": "handlers",
    "new": "new",
    "serve": "syncing",
    "verify": "syncing",
    "init": "device",
    "status": "status",
    "doctor": "device",
    "identity": "device",
    "authority": "authority",
    "version": "device",
}


def load(arguments: Sequence[str]) -> None:
    """Register the command that these arguments call; all commands, in the order above, when they call none."""
    called = arguments[0] if arguments else ""
    modules = [MODULE_BY_COMMAND[called]] if called in MODULE_BY_COMMAND else dict.fromkeys(MODULE_BY_COMMAND.values())
    for module in modules:
        import_module(f"node.cli.{module}")
