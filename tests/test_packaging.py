"""What a user installs: the wheel and the source archive, each with a working cr-sqlite extension in the end."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.tags import platform_tags
from packaging.utils import parse_wheel_filename

from leasemesh.node.crsqlite import extension_path

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command: object, **variables: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def build_wheel(source: Path, folder: Path) -> Path:
    """Build with what this environment has; the extension comes out of the cache."""
    run(*PIP, "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    # Hatchling's program builds what is in the folder it is called in.
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_is_for_this_platform_and_any_python(wheel):
    _, _, _, tags = parse_wheel_filename(wheel.name)
    (tag,) = tags
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    assert tag.platform in set(platform_tags())


def test_wheel_holds_every_module_and_all_sql_and_nothing_else_of_the_checkout(wheel):
    names = contents(wheel)
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("node", "sync", "migrations")
        for pattern in ("*.py", "*.sql", "*.txt", "py.typed", "LICENSE*")
        for path in (ROOT / package).rglob(pattern)
    }
    assert expected <= names
    assert {name.split("/")[0] for name in names} - {"node", "sync", "migrations"} == {"leasemesh-0.1.0.dist-info"}
    assert {name for name in names if name.startswith("node/_crsqlite/")} == {
        "node/_crsqlite/crsqlite.so",
        "node/_crsqlite/crsqlite.so.json",
    }


def test_installed_wheel_finds_and_loads_its_own_extension(wheel, tmp_path):
    run(*PIP, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import apsw; from leasemesh.node.crsqlite import ENTRY_POINT, extension_path\n"
        "connection = apsw.Connection(':memory:'); connection.enable_load_extension(True)\n"
        "connection.load_extension(str(extension_path()), ENTRY_POINT)\n"
        "print(extension_path(), len(connection.execute('SELECT crsql_site_id()').get))\n"
        "connection.execute('SELECT crsql_finalize()'); connection.close()"
    )
    output = run(sys.executable, "-c", program, CRSQLITE_PATH="", XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert output == f"{tmp_path / 'site/node/_crsqlite/crsqlite.so'} 16"
    assert (tmp_path / "site/bin/leasemesh").is_file()


def test_wheel_built_from_the_source_archive_is_the_same(wheel, source_archive, tmp_path):
    with tarfile.open(source_archive) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"scripts/wheel_hook.py", "scripts/load_crsqlite.py", "pyproject.toml", "LICENSE"} <= names
    assert not any(name.startswith((".venv", ".git/", "node/_crsqlite")) for name in names)
    assert contents(build_wheel(source_archive, tmp_path)) == contents(wheel)


def test_wheel_takes_the_extension_that_the_variable_names(tmp_path):
    mine = tmp_path / "mine.so"
    mine.write_bytes(extension_path().read_bytes() + b"mine")
    run(
        *PIP, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path,
        CRSQLITE_PATH=str(mine),
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("node/_crsqlite/crsqlite.so") == mine.read_bytes()


def test_wheel_without_an_extension_fails_in_one_sentence(tmp_path):
    result = subprocess.run(
        [*PIP, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path],
        env={**os.environ, "CRSQLITE_PATH": str(tmp_path / "nowhere.so")},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "which is not a file; correct it or unset it." in result.stderr
    assert not [*tmp_path.glob("*.whl")]
