"""Building the extension from source with a stable Rust compiler, no libclang and three small crates.

Upstream's own build wants a nightly compiler of 2023, bindgen and network access to crates. The edits below take these
away:

- RUSTC_BOOTSTRAP lets a stable compiler accept the nightly features that the code uses. The pinned tool chain goes, and
  so does a feature name that newer compilers no longer know (the code does not use it).
- The lock file of this package takes the place of upstream's: the same crates with the same checksums, but for bindgen
  and what that needs. Debian's crates are of other versions, which Debian has checked: a build with them says so, also
  in the record beside the library.
- The package ships the bindings that bindgen made for it, so bindgen need not run again.
- Crate requirements are widened to what Debian has. One set of edits serves Debian's crates and cargo's default one.
- A bug goes: three functions pass "main" as a C string without its terminating NUL. With newer compilers
  `crsql_as_crr('t')` then fails with "out of memory".

An edit that does not find its text fails the build: silence would mean a library that misbehaves later.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import tools
from .errors import WayFailed
from .locate import VERSION, library_name
from .tools import CRATE_PACKAGES, Tell, apt_install, c_compiler, can_install, cargo, debian_has_crates, run

_SHIPPED_BINDINGS = "rs/bundle_static/target/release/build/sqlite3_capi-*/out/bindings.rs"
_CAPI = "rs/sqlite-rs-embedded/sqlite3_capi"
_BUNDLE = "rs/bundle_static"
CARGO_LOCK = Path(__file__).parent / "locks" / "Cargo.lock"
_BUILD_SCRIPT = """\
fn main() {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap());
    std::fs::copy("bindings.rs", out.join("bindings.rs")).unwrap();
}
"""
_C_SOURCES = ("src/crsqlite.c", "src/changes-vtab.c", "src/ext-data.c")


@dataclass(frozen=True)
class Edit:
    """Replace `old`, which must occur exactly `count` times in `file`, by `new`."""

    file: str
    old: str
    new: str
    count: int = 1


EDITS = (
    Edit(f"{_CAPI}/src/lib.rs", "#![feature(concat_idents)]\n", ""),
    Edit(f"{_CAPI}/Cargo.toml", 'bindgen = "0.68.1"\n', ""),
    Edit("rs/sqlite-rs-embedded/sqlite_nostd/Cargo.toml", 'version = "0.2.17"', 'version = "0.2"'),
    Edit("rs/sqlite-rs-embedded/sqlite_nostd/Cargo.toml", 'num-derive = "0.4.1"', 'num-derive = ">=0.3, <0.5"'),
    # From 1.7.2 on the crate reads packed integers and lengths with a sign: a key of 200 would come back as -56.
    Edit("rs/core/Cargo.toml", 'version = "1.5"', 'version = ">=1, <1.7.2"'),
    Edit("rs/core/Cargo.toml", 'version = "0.2.17"', 'version = "0.2"'),
    Edit("rs/core/Cargo.toml", 'num-derive = "0.4.1"', 'num-derive = ">=0.3, <0.5"'),
    Edit("rs/fractindex-core/Cargo.toml", 'rand = "0.8.5"\n', ""),
    Edit("rs/core/src/lib.rs", '("main", args[0].text())', '("main\\0", args[0].text())', count=3),
)


def build_library(source: Path, workspace: Path, *, install_tools: bool, tell: Tell) -> tuple[Path, bool]:
    """Build the extension from the unpacked `source`, which is changed by it.

    Returns:
        The library's path, and whether its crates were those of the lock file.

    Args:
        install_tools: on Debian as root, install the crates with apt-get when cargo's default registry does not serve.

    Raises:
        WayFailed: the source is not as expected, or a compiler or the crates are missing or fail.
    """
    prepare_source(source)
    tell("building cr-sqlite from source, which takes about half a minute ...")
    archive, locked = _compile_rust(source, workspace / "target", install_tools=install_tools, tell=tell)
    library = workspace / library_name()
    flags = ["-O2", "-s", "-std=c99", "-fPIC", "-shared", "-I", "src", "-I", "src/sqlite"]
    run([_compiler(), *flags, *_C_SOURCES, str(archive), "-o", str(library)], directory=source)
    return library, locked


def prepare_source(source: Path) -> None:
    """Make the source fit for a stable compiler and few crates.

    Raises:
        WayFailed: some text or file that must be there is not.
    """
    bindings = [*source.glob(_SHIPPED_BINDINGS)]
    if len(bindings) != 1:
        raise WayFailed(f"the source of cr-sqlite has {len(bindings)} files {_SHIPPED_BINDINGS} where one was expected")
    shutil.copyfile(bindings[0], source / _CAPI / "bindings.rs")
    for target in [*source.glob("rs/*/target")]:
        shutil.rmtree(target)
    for pattern in ("rust-toolchain.toml", "Cargo.lock"):  # The lock of this package comes in their place.
        _remove_all(source, pattern)
    for edit in EDITS:
        apply_edit(source, edit)
    build_script = source / _CAPI / "build.rs"
    if not build_script.is_file():
        raise WayFailed(f"the source of cr-sqlite has no {_CAPI}/build.rs")
    build_script.write_text(_BUILD_SCRIPT)


def apply_edit(source: Path, edit: Edit) -> None:
    """Apply one edit.

    Raises:
        WayFailed: its text is not there as often as it must be.
    """
    path = source / edit.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (found := text.count(edit.old)) != edit.count:
        raise WayFailed(
            f"the source of cr-sqlite is not as expected: {edit.file} has {edit.old.strip()!r} {found} times, "
            f"not {edit.count}"
        )
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def _remove_all(source: Path, name: str) -> None:
    paths = [*source.rglob(name)]
    if not paths:
        raise WayFailed(f"the source of cr-sqlite has no {name}, which it must have")
    for path in paths:
        path.unlink()


def _compile_rust(source: Path, target: Path, *, install_tools: bool, tell: Tell) -> tuple[Path, bool]:
    """Compile the Rust part into a static library, with crates from the first place that has them. True: the locked
    ones."""
    shutil.copyfile(CARGO_LOCK, source / _BUNDLE / "Cargo.lock")
    try:
        return _run_cargo(source, target, ("--locked",)), True
    except WayFailed as error:
        not_locked = error
    if not debian_has_crates() and install_tools and can_install():
        apt_install(CRATE_PACKAGES, tell)
    if not debian_has_crates():
        hint = f"Debian: apt-get install {' '.join(CRATE_PACKAGES)}"
        raise WayFailed(f"{not_locked} (where cargo's registry cannot be reached, {hint})")
    tell(f"the lock file could not be honoured: {not_locked}")  # No network, or a lock that does not fit the source.
    tell("using Debian's crates, for which the lock file does not count ...")
    (source / _BUNDLE / "Cargo.lock").unlink()
    directory_source = (
        "--config", 'source.crates-io.replace-with = "debian"',
        "--config", f'source.debian.directory = "{tools.DEBIAN_CRATES}"',
    )  # fmt: skip
    return _run_cargo(source, target, directory_source), False


def _run_cargo(source: Path, target: Path, options: tuple[str, ...]) -> Path:
    program = cargo()
    if program is None:
        raise WayFailed("cargo is not there any more")
    command = [program, "build", *options, "--release", "--features", "loadable_extension", "--target-dir", str(target)]
    run(command, directory=source / _BUNDLE, environment=_cargo_environment())
    archive = target / "release/libcrsql_bundle_static.a"
    if not archive.is_file():
        raise WayFailed(f"cargo built no {archive.name}")
    return archive


def _cargo_environment() -> Mapping[str, str | None]:
    return {
        "RUSTC_BOOTSTRAP": "1",
        "CRSQLITE_COMMIT_SHA": f"leasemesh-{VERSION}",
        "CARGO_NET_RETRY": "0",
        "CARGO_HTTP_TIMEOUT": "10",
        "CARGO_BUILD_TARGET": None,  # It would move what comes out to another folder.
        "RUSTFLAGS": f"-Clinker={_compiler()}",
    }


def _compiler() -> str:
    compiler = c_compiler()
    if compiler is None:
        raise WayFailed("the C compiler is not there any more")
    return compiler
