"""`python -m leasemesh_crsqlite`: get, build or find the cr-sqlite extension by hand."""

from __future__ import annotations

import argparse
import sys

from .errors import CrsqliteError
from .locate import extension_path
from .ways import acquire, build_anew


def main(arguments: list[str] | None = None) -> int:
    """Run one action and return the exit code: 0, 1 with one sentence on standard error, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if options.action == "path":
            path = extension_path()
        elif options.action == "get":
            path = acquire(sha256=options.sha256, install_tools=options.install_tools, tell=_tell)
        else:
            path = build_anew(install_tools=options.install_tools, tell=_tell)
    except CrsqliteError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if not options.quiet:
        sys.stdout.write(f"{path}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crsqlite", description="Get the cr-sqlite extension that leasemesh needs.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    path = actions.add_parser("path", help="print where the extension is; exit code 1 when it is nowhere")
    get = actions.add_parser("get", help="print where it is, downloading or building it first when it is nowhere")
    get.add_argument(
        "--sha256",
        metavar="HEX",
        help="the checksum of the release archive, for a platform for which none is known here (macOS, Windows)",
    )
    build = actions.add_parser("build", help="build it from source into the cache, whatever is there")
    for action in (get, build):
        action.add_argument(
            "--install-tools", action="store_true", help="on Debian as root, install missing compilers with apt-get"
        )
    for action in (path, get, build):
        action.add_argument("--quiet", action="store_true", help="do not print where it is")
    return parser


def _tell(line: str) -> None:
    sys.stderr.write(f"crsqlite: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
