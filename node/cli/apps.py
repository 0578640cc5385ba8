"""Loading an app: the Python file that declares the workflows."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from leasemesh.node.cli.app import CommandError
from leasemesh.node.cli.output import ExitCode

if TYPE_CHECKING:
    from leasemesh.node.authoring.workflow import Workflow


def load_workflows(file: Path) -> list[Workflow]:
    """Return the workflows that an app has at its top level, in the order of their declaration.

    Raises:
        CommandError: there is no such file, it cannot be imported, or has no workflow with a handler.
    """
    from leasemesh.node.authoring.workflow import Workflow

    module = _imported(file)
    found = {id(value): value for value in vars(module).values() if isinstance(value, Workflow)}
    workflows = [workflow for workflow in found.values() if workflow.handlers]
    if workflows:
        return workflows
    if found:
        names = ", ".join(workflow.name for workflow in found.values())
        raise CommandError(f"{file}: workflow {names} has no handlers; declare a producer or a consumer")
    raise CommandError(f'{file} has no workflow at its top level; make one with `mail = Workflow("mail")`')


def _imported(file: Path) -> ModuleType:
    if not file.is_file():
        other = file / "app.py" if file.is_dir() else file.with_suffix(".py")
        hint = f"did you mean {other}?" if other != file and other.is_file() else "`leasemesh new NAME` writes an app"
        raise CommandError(f"there is no app {file}; {hint}", ExitCode.NOT_FOUND)
    name = file.stem if file.stem not in sys.modules else f"leasemesh_app_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{file} is not a Python file: its name does not end with .py", ExitCode.USAGE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.absolute().parent))  # As Python does for a script: it may import what lies beside it.
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CommandError(f"{file} cannot be imported: {_sentence(error, file)}") from error
    return module


def _sentence(error: BaseException, file: Path) -> str:
    """Return what went wrong and where in the app's own file."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return text  # names file and line itself
    own = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute() == file.absolute()
    ]
    return f"{text} (line {own[-1]})" if own else text
