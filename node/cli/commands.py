"""Which module has which command. Only the one that is called is imported, because importing takes longest of all."""

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
    "dead-letters": "handlers",
    "requeue": "handlers",
    "blocked": "handlers",
    "block": "handlers",
    "unblock": "handlers",
    "new": "new",
    "init": "device",
    "status": "status",
    "serve": "syncing",
    "verify": "syncing",
    "authority": "authority",
    "identity": "device",
    "doctor": "device",
    "version": "device",
}


def spelled_out(arguments: Sequence[str]) -> Sequence[str]:
    """Return `run show RUN` as the command that it is, `show RUN`."""
    return arguments[1:] if list(arguments[:2]) == ["run", "show"] else arguments


def load(arguments: Sequence[str]) -> None:
    """Register the command that these arguments call. All commands when they call none."""
    called = arguments[0] if arguments else ""
    modules = [MODULE_BY_COMMAND[called]] if called in MODULE_BY_COMMAND else dict.fromkeys(MODULE_BY_COMMAND.values())
    for module in modules:
        import_module(f"leasemesh.node.cli.{module}")
