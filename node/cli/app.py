"""The frame of all commands: common options, the database, and errors as one sentence with an exit code."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from leasemesh.node.cli.commands import load, spelled_out
from leasemesh.node.cli.helping import Command, Group
from leasemesh.node.cli.output import ExitCode, Screen
from leasemesh.node.model.errors import (
    Ambiguous,
    HomeElsewhere,
    IllegalState,
    InvalidInput,
    LeaseLost,
    LeasemeshError,
    NotAvailable,
    NotFound,
    NotOwner,
    PermitRefused,
    StaleVersion,
    StillReserved,
    TooEarly,
)
from leasemesh.sync.errors import SyncError

if TYPE_CHECKING:
    from leasemesh.node.node import Node

DEFAULT_DATABASE = Path("leasemesh.db")
DATABASE_VARIABLE = "LEASEMESH_DB"

DatabaseOption = Annotated[
    Path,
    typer.Option("--db", envvar=DATABASE_VARIABLE, help="The database file.", show_default=True, metavar="PATH"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback too.")]

EPILOG = """\b
Exit codes:
  0  done
  1  failed; the sentence on standard error says why
  2  wrong usage or input
  3  no such database, event, topic, run, work or app
  4  not available: held by somebody else, lease lost, settled, too early
  5  the peer cannot be reached, or refuses
  6  the peer differs (verify), or the database is damaged (doctor)"""

app = typer.Typer(
    name="leasemesh",
    help="One workspace of events and work on every device, offline or not; each piece of work has exactly one owner.",
    epilog=EPILOG,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Arguments = ParamSpec("Arguments")


@app.callback(help=app.info.help, epilog=EPILOG)
def _root() -> None:
    # Without it Typer takes an app with one command, which is all that `load` may register, for that command itself.
    pass


class CommandError(LeasemeshError):
    """A command cannot do what it is asked to.

    Attributes:
        code: the exit code.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


class Context:
    """What a command works with.

    Attributes:
        path: the database file.
        screen: where it prints.
        debug: tell people who look for a fault more.
        now_ms: the wall clock when the command began, for "3 min ago".
    """

    def __init__(self, path: Path, screen: Screen, resources: ExitStack, *, debug: bool) -> None:
        self.path = path
        self.debug = debug
        self.screen = screen
        self.now_ms = time.time_ns() // 1_000_000
        self._resources = resources
        self._node: Node | None = None
        self._names: dict[str, str] | None = None

    @property
    def node(self) -> Node:
        """The node of the database, opened when first asked for.

        Raises:
            CommandError: there is no such file.
        """
        return self._node or self.open()

    def open(self, migrations: Path | None = None) -> Node:
        """Open the node of the database, with the folder of the app's own migrations if there is one.

        Raises:
            CommandError: there is no such file.
        """
        from leasemesh.node.node import Node

        if not self.path.exists():
            raise CommandError(
                f"there is no database {self.path}; make one with `leasemesh init`, or name another with --db or "
                f"{DATABASE_VARIABLE}",
                ExitCode.NOT_FOUND,
            )
        self._node = self._resources.enter_context(Node.open(self.path, migrations=migrations))
        return self._node

    def ask(self, question: str) -> None:
        """Ask a person whether to go on with what cannot be taken back.

        Raises:
            CommandError: the answer is no, or there is none: nobody is there, or a program reads what is printed.
        """
        answer = None
        if not self.screen.as_json:
            try:
                answer = typer.confirm(question, err=True)
            except typer.Abort:
                if sys.stdin.isatty():
                    raise  # Ctrl-C
                typer.echo(err=True)
        if answer is None:
            raise CommandError("nobody has answered, so nothing was changed; --yes does not ask", ExitCode.USAGE)
        if not answer:
            raise CommandError("nothing was changed")

    def device_name(self, node: str) -> str:
        """Return the name of a device, as `device_name` does."""
        return device_name(self.names(), node)

    def names(self) -> dict[str, str]:
        """Return the names of the devices that have one here, by id: what each said of itself, or says to this one."""
        from leasemesh.node.replication.peers import PeerStore

        if self._names is None:
            peers = {peer.node: peer.name for peer in PeerStore(self.node.database).list() if peer.node and peer.name}
            told = {str(device.node): device.name for device in self.node.devices.list()}
            self._names = peers | told | {self.node.site_id: self.node.name}
        return self._names


def device_name(names: dict[str, str], node: str) -> str:
    """Return the name of a device. With the short form of its id when another one has the same name, and that form
    alone when its name is not known here."""
    from leasemesh.node.model.ids import short

    name = names.get(node)
    if not name:
        return short(node)
    return name if list(names.values()).count(name) == 1 else f"{name} ({short(node)})"


def command(
    group: typer.Typer, name: str, *, panel: str, examples: Sequence[str]
) -> Callable[[Callable[Concatenate[Context, Arguments], None]], Callable[..., None]]:
    """Register a function as a command. It gets a `Context` and its own options. --db, --json and --debug come with it.

    Args:
        group: the app or a group of commands.
        name: the command's name.
        panel: under which heading --help lists it.
        examples: whole command lines, shown by --help and run by the tests.
    """

    def register(function: Callable[Concatenate[Context, Arguments], None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        context, *own = inspect.signature(function).parameters.values()
        common = {
            "db": (DatabaseOption, DEFAULT_DATABASE),
            "as_json": (JsonOption, False),
            "debug": (DebugOption, False),
        }
        parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own] + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in common.items()
        ]

        call: Callable[..., None] = function

        def run_command(*, db: Path, as_json: bool, debug: bool, **options: Any) -> None:
            with ExitStack() as resources:
                context = Context(db, Screen(as_json=as_json), resources, debug=debug)
                call(context, **options)

        vars(run_command)["__signature__"] = inspect.Signature(parameters)
        run_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        epilog = "\b\n" + "\n".join(["Examples:", *(f"  {example}" for example in examples)])
        # One line for each paragraph: Typer keeps the line ends of all but the first.
        paragraphs = [" ".join(one.split()) for one in inspect.cleandoc(function.__doc__ or "").split("\n\n")]
        summary = paragraphs[0].partition(". ")[0].rstrip(".")
        explained = "\n\n".join(paragraphs)
        shown = group.command(
            name, cls=Command, help=explained, epilog=epilog, short_help=summary, rich_help_panel=panel
        )
        shown(run_command)
        return run_command

    return register


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code. Nothing is raised."""
    arguments = spelled_out(arguments)
    screen = Screen(as_json="--json" in arguments)
    load(arguments)
    try:
        code = int(app(args=list(arguments) or ["--help"], prog_name="leasemesh", standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, BrokenPipeError):
            # Whoever read our output has gone (`leasemesh peek | head`). Python would complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.FAILED
        if "--debug" in arguments:
            sys.excepthook(type(error), error, error.__traceback__)
        text, code = explain(cause)
        screen.error(text, code)
        return code


def _cause(error: Exception) -> Exception:
    """Return what ended a group of tasks. When there are several, the first that is not a reader who has gone."""
    if not isinstance(error, ExceptionGroup):
        return error
    causes = [_cause(one) for one in error.exceptions]
    return next((one for one in causes if not isinstance(one, BrokenPipeError)), causes[0])


_CODES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], ExitCode], ...] = (
    ((InvalidInput, Ambiguous), ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (
        (
            NotAvailable,
            LeaseLost,
            NotOwner,
            HomeElsewhere,
            PermitRefused,
            IllegalState,
            StaleVersion,
            StillReserved,
            TooEarly,
        ),
        ExitCode.NOT_AVAILABLE,
    ),
    (SyncError, ExitCode.PEER),
    (LeasemeshError, ExitCode.FAILED),
)


def explain(error: Exception) -> tuple[str, ExitCode]:
    """Return an error as one sentence and the exit code for it."""
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, typer.TyperException):
        return _usage_sentence(error), ExitCode.USAGE
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return str(error), code
    if isinstance(error, OSError):
        return f"{error.filename or 'the system says'}: {error.strerror or error}", ExitCode.FAILED
    return f"internal error: {type(error).__name__}: {error}; --debug shows where", ExitCode.FAILED


def _usage_sentence(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "leasemesh"
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; `{path} --help` shows what is possible"
