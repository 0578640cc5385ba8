"""How --help shows commands: in an order for reading, and flags as what they are."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from leasemesh.node.cli.commands import MODULE_BY_COMMAND


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, for help and for parsing."""
        return _flags_without_type(super().get_params(ctx))


class Group(TyperGroup):
    """Commands under one name, or all of them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, for help and for parsing."""
        return _flags_without_type(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in order: all commands as `MODULE_BY_COMMAND` has them, not as they were imported."""
        names: list[str] = super().list_commands(ctx)
        order = [] if ctx.parent else list(MODULE_BY_COMMAND)
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _flags_without_type(parameters: list[Any]) -> list[Any]:
    """Typer names the type of an option that takes no value, too: `--json <bool>` reads as if there was one to give."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters
