"""The programs that a build needs: finding them, installing them on Debian, running them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import WayFailed

Tell = Callable[[str], None]

# Upstream pins a nightly compiler of this generation; 1.95 and 1.96 are the ones that are known to work.
CARGO_VERSION_MIN = (1, 75)
COMPILER_PACKAGES = ("gcc", "libc6-dev")
CARGO_PACKAGES = ("cargo-web", "rustc-web")
CRATE_PACKAGES = ("librust-bytes-dev", "librust-num-traits-dev", "librust-num-derive-dev")
DEBIAN_CRATES = Path("/usr/share/cargo/registry")
_DEBIAN_CRATE_PATTERNS = ("bytes-1*", "num-traits-0.2*", "num-derive-0.*")

_OUTPUT_LINES_SHOWN = 6
_COMMAND_SECONDS_MAX = 900


def c_compiler() -> str | None:
    """The C compiler: what CC names, or the first usual one on PATH."""
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def cargo() -> str | None:
    """The cargo on PATH, when it is new enough."""
    found = shutil.which("cargo")
    return found if found and shutil.which("rustc") and _cargo_version(found) >= CARGO_VERSION_MIN else None


def require_build_tools(*, install: bool, tell: Tell) -> None:
    """Make sure that there is a C compiler and a cargo, or say what to install.

    Args:
        install: install with apt-get what is missing, when this is Debian and we are root.

    Raises:
        WayFailed: something is missing, with the command that installs it.
    """
    missing = _missing_tools()
    if missing and install and can_install():
        apt_install([package for packages in missing.values() for package in packages], tell)
        missing = _missing_tools()
    if missing:
        packages = [package for packages in missing.values() for package in packages]
        # Named with the rest, so that nobody has to come back a second time where cargo's registry cannot be reached.
        packages += [] if debian_has_crates() else CRATE_PACKAGES
        raise WayFailed(f"it needs {' and '.join(missing)} (Debian: apt-get install {' '.join(packages)})")


def debian_has_crates() -> bool:
    """Whether the crates that the build needs are here as Debian packages."""
    return all(any(DEBIAN_CRATES.glob(pattern)) for pattern in _DEBIAN_CRATE_PATTERNS)


def can_install() -> bool:
    """Whether we may install Debian packages: root, with apt-get."""
    return os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Sequence[str], tell: Tell) -> None:
    """Install Debian packages, fetching the package lists first only when it does not work without.

    Raises:
        WayFailed: apt-get could not.
    """
    tell(f"installing {' '.join(packages)} with apt-get ...")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    install = [
        "apt-get",
        "install",
        "--quiet",
        "--yes",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *packages,
    ]
    try:
        run(install, environment=environment)
    except WayFailed:
        run(["apt-get", "update", "--quiet"], environment=environment)
        run(install, environment=environment)


def run(
    command: Sequence[str], *, directory: Path | None = None, environment: Mapping[str, str | None] | None = None
) -> str:
    """Run a program and return what it printed on standard output.

    Args:
        environment: added to ours. None takes a variable away.

    Raises:
        WayFailed: it cannot be started, failed, or ran for more than 15 minutes. With the last lines that it printed.
    """
    name = Path(command[0]).name
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env={name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        raise WayFailed(f"{name} did not finish within {_COMMAND_SECONDS_MAX} s") from None
    except OSError as error:
        raise WayFailed(f"{name} cannot be started ({error.strerror})") from None
    if result.returncode != 0:
        lines = (result.stdout + b"\n" + result.stderr).decode(errors="replace").split("\n")
        tail = " | ".join([line.strip() for line in lines if line.strip()][-_OUTPUT_LINES_SHOWN:])
        raise WayFailed(f"`{' '.join([name, *command[1:3]])}` failed with status {result.returncode}: {tail}")
    return result.stdout.decode(errors="replace")


def _cargo_version(path: str) -> tuple[int, int]:
    try:
        found = re.match(r"cargo (\d+)\.(\d+)", run([path, "--version"]))
    except WayFailed:  # A rustup stub without a toolchain fails like this: it is as good as none.
        return (0, 0)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _missing_tools() -> dict[str, tuple[str, ...]]:
    """What is missing, with the Debian packages that bring it."""
    missing: dict[str, tuple[str, ...]] = {}
    if not c_compiler():
        missing["a C compiler"] = COMPILER_PACKAGES
    if not cargo():
        missing[f"cargo and rustc {'.'.join(map(str, CARGO_VERSION_MIN))} or newer"] = CARGO_PACKAGES
    return missing
