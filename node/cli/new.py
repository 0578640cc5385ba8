"""The command new: write a small working app."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from leasemesh.node.cli.app import CommandError, Context, app, command
from leasemesh.node.cli.output import ExitCode, styled

TEMPLATE = "app_template"
SUFFIX = ".txt"
"""Behind the names of the template's files: they are no modules of ours."""

PLACEHOLDER = "$NAME"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@command(app, "new", panel="Handlers", examples=["leasemesh new letters", "leasemesh new letters --path work/letters"])
def new(
    context: Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the app and its workflow.")],
    path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it; by default a folder of that name.")
    ] = None,
) -> None:
    """Write a small working app: a producer, two consumers, and its test on three devices. Overwrites nothing."""
    if not NAME.fullmatch(name):
        rule = "begins with a letter, and has letters, digits, - and _, at most 64 of them"
        raise CommandError(f"{name!r} is not a name for an app: that {rule}", ExitCode.USAGE)
    folder = path if path is not None else Path(name)
    written = [
        (folder / template.name.removesuffix(SUFFIX), template.read_text(encoding="utf-8").replace(PLACEHOLDER, name))
        for template in sorted(files("leasemesh.node.cli").joinpath(TEMPLATE).iterdir(), key=lambda one: one.name)
    ]
    for file, _ in written:
        if file.exists():
            raise CommandError(f"{file} exists; nothing was written", ExitCode.NOT_AVAILABLE)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in written:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    document = {"name": name, "folder": str(folder), "files": [str(file) for file, _ in written]}
    lines = [
        styled(f"wrote {', '.join(file.name for file, _ in written)} in {folder}", "bold"),
        styled(f"next: cd {folder}, leasemesh init, leasemesh run app.py; {folder / 'README.md'} says more", "dim"),
    ]
    context.screen.show(document, lambda: lines)
