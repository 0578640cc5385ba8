"""What stands against a release. The build itself is what `scripts/release --dry-run` does."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release_script", ROOT / "scripts/release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(*versions, pin=None):
    extension, leasemesh = versions
    return [{"version": extension}, {"version": leasemesh, "dependencies": [f"leasemesh-crsqlite=={pin or leasemesh}"]}]


def test_both_distributions_and_the_changelog_of_this_checkout_have_one_version(release):
    version = release.check_versions(release.projects())
    release.check_changelog((ROOT / "CHANGELOG.md").read_text(), version, final=False)


@pytest.mark.parametrize(
    ("projects", "sentence"),
    [
        (of("0.2.0", "0.3.0"), "leasemesh-crsqlite is 0.2.0 and leasemesh 0.3.0; give both the same version"),
        (of("0.2.0-rc1", "0.2.0-rc1"), "is written 0.2.0rc1 on an index"),
        (of("next", "next"), "'next' is not a version"),
        (of("0.3.0", "0.3.0", pin="0.2.0"), "leasemesh does not depend on leasemesh-crsqlite==0.3.0"),
    ],
)
def test_versions_that_an_index_would_not_have_are_refused(release, projects, sentence):
    with pytest.raises(release.Refused, match=sentence):
        release.check_versions(projects)


def test_a_changelog_of_another_version_is_refused(release):
    release.check_changelog("# Changelog\n\n## 0.2.0 (unreleased)\n", "0.2.0", final=False)
    release.check_changelog("# Changelog\n\n## 0.2.0 (1 December 2026)\n", "0.2.0", final=True)
    for text in ("# Changelog\n\n## 0.1.0\n\n## 0.2.0\n", "# Changelog\n"):
        with pytest.raises(release.Refused, match=r"write what is new in 0\.2\.0 under its heading"):
            release.check_changelog(text, "0.2.0", final=False)
    with pytest.raises(release.Refused, match="write the day of the release there"):
        release.check_changelog("# Changelog\n\n## 0.2.0 (unreleased)\n", "0.2.0", final=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository with what the script looks at before it builds."""
    for name in ("scripts/release.py", "pyproject.toml", "node/crsqlite/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.2.0 (1 December 2026)\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=folder, check=True)


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "State")


def refused(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "scripts/release.py", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, ""), "nothing is built"
    return done.stderr


def test_the_script_refuses_what_is_not_committed_before_it_builds(checkout):
    (checkout / "new.txt").write_text("new")
    assert refused(checkout, "--dry-run") == "release: not committed: new.txt; commit it first\n"


def test_the_script_refuses_a_changelog_of_another_version(checkout):
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0\n")
    commit(checkout)
    assert "the changelog begins with 0.1.0" in refused(checkout, "--dry-run")


def test_the_script_refuses_versions_that_differ(checkout):
    project = checkout / "node/crsqlite/pyproject.toml"
    project.write_text(project.read_text().replace("0.2.0", "0.1.9"))
    commit(checkout)
    assert "give both the same version" in refused(checkout, "--dry-run")


def test_the_script_refuses_a_commit_without_the_tag(checkout):
    git(checkout, "tag", "v0.1.0")
    assert (
        refused(checkout)
        == "release: this commit has no tag v0.2.0; set it when the dry run was good: git tag v0.2.0\n"
    )


def test_a_program_that_fails_is_refused_and_shown(release, tmp_path, capsys):
    with pytest.raises(release.Refused, match="`false"):
        release.run(["false"], cwd=tmp_path)
    with pytest.raises(release.Refused):
        release.run(["sh", "-c", "echo what went wrong; exit 3"], cwd=tmp_path)
    assert "what went wrong" in capsys.readouterr().err
