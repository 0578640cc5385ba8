"""What a user installs: two distributions, each with one name of its own."""

import ast
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from leasemesh_crsqlite import extension_path, locate
from packages import PIP, ROOT, SOURCES, build_wheel, installed, run, source_archive, wheel
from packaging.requirements import Requirement
from packaging.tags import platform_tags
from packaging.utils import parse_wheel_filename

import leasemesh


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def bundled_record(path):
    return json.loads(contents(path)["leasemesh_crsqlite/bundled/crsqlite.so.json"])


def project(name):
    return tomllib.loads((SOURCES[name] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_adds_exactly_one_name_to_an_environment(name):
    tops = {path.partition("/")[0] for path in contents(wheel(name))}
    assert tops == {name, f"{name}-{project(name)['version']}.dist-info"}


def test_the_wheel_of_leasemesh_is_for_any_platform_and_holds_every_module_and_all_sql():
    _, _, _, tags = parse_wheel_filename(wheel("leasemesh").name)
    assert {str(tag) for tag in tags} == {"py3-none-any"}
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.sql", "*.txt", "py.typed")
        for folder in ("leasemesh", "leasemesh/node", "leasemesh/sync", "leasemesh/migrations")
        for path in (ROOT / folder).rglob(pattern)
        if "crsqlite" not in path.parts and "__pycache__" not in path.parts
    }
    assert len(expected) > 180
    assert {name for name in contents(wheel("leasemesh")) if ".dist-info/" not in name} == expected


def test_the_wheel_of_the_extension_is_for_this_platform_and_carries_the_library():
    _, _, _, tags = parse_wheel_filename(wheel("leasemesh_crsqlite").name)
    (tag,) = tags
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    assert tag.platform in set(platform_tags())
    names = contents(wheel("leasemesh_crsqlite"))
    assert {name for name in names if "/bundled/" in name} == {
        "leasemesh_crsqlite/bundled/crsqlite.so",
        "leasemesh_crsqlite/bundled/crsqlite.so.json",
    }
    assert {"leasemesh_crsqlite/locks/Cargo.lock", "leasemesh_crsqlite/locks/nodejs.txt"} <= names.keys()
    assert any(name.endswith("LICENSE.cr-sqlite") for name in names)


def test_installed_extension_finds_and_loads_its_own_library(tmp_path):
    site = installed()
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import apsw; from leasemesh_crsqlite import ENTRY_POINT, extension_path\n"
        "connection = apsw.Connection(':memory:'); connection.enable_load_extension(True)\n"
        "connection.load_extension(str(extension_path()), ENTRY_POINT)\n"
        "print(extension_path(), len(connection.execute('SELECT crsql_site_id()').get))\n"
        "connection.execute('SELECT crsql_finalize()'); connection.close()"
    )
    output = run(sys.executable, "-c", program, CRSQLITE_PATH="", XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert output == f"{site / 'leasemesh_crsqlite/bundled/crsqlite.so'} 16"
    assert (site / "bin/leasemesh").is_file()


@pytest.mark.parametrize("name", SOURCES)
def test_the_wheel_of_the_checkout_is_the_same_as_that_of_the_source_archive(name, tmp_path):
    assert contents(build_wheel(SOURCES[name], tmp_path)) == contents(wheel(name))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_archive_holds_what_its_wheel_is_built_of_and_nothing_else_of_the_checkout(name):
    with tarfile.open(source_archive(name)) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    allowed = {"PKG-INFO", "pyproject.toml", "README.md", "CHANGELOG.md", "hatch_build.py", ".gitignore"}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert {path for path in names if not path.startswith((f"{name}/", "LICENSE"))} <= allowed
    assert not any("bundled" in path or (name == "leasemesh" and "crsqlite/" in path) for path in names)


def test_the_wheel_takes_the_extension_that_the_variable_names(tmp_path):
    mine = tmp_path / "mine.so"
    mine.write_bytes(extension_path().read_bytes() + b"mine")
    built = build_wheel(SOURCES["leasemesh_crsqlite"], tmp_path, CRSQLITE_PATH=str(mine))
    assert contents(built)["leasemesh_crsqlite/bundled/crsqlite.so"] == mine.read_bytes()
    assert bundled_record(built)["origin"] == "named by CRSQLITE_PATH, bundled in the wheel"


def test_the_record_in_the_wheel_keeps_how_the_library_was_got(tmp_path):
    library = extension_path().read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        mine = tmp_path / "mine.so"
        mine.write_bytes(library)
        locate.store(mine, "built from source, with Debian's crates", locate.cache_directory())
        built = build_wheel(SOURCES["leasemesh_crsqlite"], tmp_path, CRSQLITE_PATH="")
    assert bundled_record(built)["origin"] == "built from source, with Debian's crates, bundled in the wheel"


def test_a_wheel_without_an_extension_fails_in_one_sentence(tmp_path):
    source = SOURCES["leasemesh_crsqlite"]
    result = subprocess.run(
        [*PIP, "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path],
        env={**os.environ, "CRSQLITE_PATH": str(tmp_path / "nowhere.so")},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "which is not a file; correct it or unset it." in result.stderr
    assert not [*tmp_path.glob("*.whl")]


def test_both_distributions_have_one_version_and_leasemesh_asks_for_it():
    versions = {project(name)["version"] for name in SOURCES}
    (version,) = versions
    wanted = [Requirement(one) for one in project("leasemesh")["dependencies"]]
    assert [str(one.specifier) for one in wanted if one.name == "leasemesh-crsqlite"] == [f"=={version}"]


def test_the_table_of_public_names_is_what_type_checkers_see():
    tree = ast.parse((ROOT / "leasemesh/__init__.py").read_text())
    (block,) = (one for one in tree.body if isinstance(one, ast.If))
    seen = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    table = {name: f"leasemesh.{module}" for module, names in leasemesh._NAMES_BY_MODULE.items() for name in names}
    assert seen == table
    assert sorted(seen) == leasemesh.__all__
    assert all(hasattr(leasemesh, name) for name in seen)
    with pytest.raises(AttributeError, match="has no attribute 'Nodes'"):
        leasemesh.Nodes  # noqa: B018
