"""What stands against a release. The build itself is what `scripts/release --dry-run` does."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release_script", ROOT / "scripts/release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_distributions_and_the_changelog_of_this_checkout_have_one_version(release):
    version = release.check_versions([project["version"] for project in release.projects()])
    release.check_changelog((ROOT / "CHANGELOG.md").read_text(), version)


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (("0.2.0", "0.3.0"), "leasemesh-crsqlite is 0.2.0 and leasemesh 0.3.0; give both the same version"),
        (("0.2.0-rc1", "0.2.0-rc1"), "is written 0.2.0rc1 on an index"),
        (("next", "next"), "'next' is not a version"),
    ],
)
def test_versions_that_an_index_would_not_have_are_refused(release, versions, sentence):
    with pytest.raises(release.Refused, match=sentence):
        release.check_versions(versions)


def test_a_changelog_of_another_version_is_refused(release):
    release.check_changelog("# Changelog\n\n## 0.2.0 (unreleased)\n", "0.2.0")
    for text in ("# Changelog\n\n## 0.1.0\n\n## 0.2.0\n", "# Changelog\n"):
        with pytest.raises(release.Refused, match=r"write what is new in 0\.2\.0 under its heading"):
            release.check_changelog(text, "0.2.0")


def test_what_is_not_committed_is_refused(release):
    release.check_committed("")
    with pytest.raises(release.Refused, match=r"not committed: node/node\.py, new\.txt; commit it first"):
        release.check_committed(" M node/node.py\n?? new.txt\n")


def test_a_commit_without_the_tag_is_refused(release):
    release.check_tag(["v0.2.0", "other"], "0.2.0")
    with pytest.raises(release.Refused, match=r"no tag v0\.2\.0"):
        release.check_tag(["v0.1.0"], "0.2.0")


def test_a_program_that_fails_is_refused_and_shown(release, tmp_path, capsys):
    with pytest.raises(release.Refused, match=r"`false  ?` failed|`false"):
        release.run(["false"], cwd=tmp_path)
    with pytest.raises(release.Refused):
        release.run(["sh", "-c", "echo what went wrong; exit 3"], cwd=tmp_path)
    assert "what went wrong" in capsys.readouterr().err
