"""Hatchling's build hook: puts the cr-sqlite extension into the wheel and tags the wheel for this platform.

It runs where only the build requirements of pyproject.toml are installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class CrsqliteHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `leasemesh_crsqlite/bundled/` to wheels that are going to be installed elsewhere, not to editable ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from leasemesh_crsqlite import CrsqliteError, acquire, locate

        try:
            library = acquire(tell=self.app.display_info)
        except CrsqliteError as error:
            self.app.abort(str(error))
        self._folder = tempfile.TemporaryDirectory()
        stored = locate.store_for_bundle(library, "the wheel", Path(self._folder.name))
        for path in (stored, locate.record_path(stored)):
            build_data["force_include"][str(path)] = f"leasemesh_crsqlite/bundled/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{this_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is written."""
        if version != "editable":
            self._folder.cleanup()


def this_platform() -> str:
    """The most precise platform tag.

    What was built here needs this machine's C library or a newer one, and that is what the first manylinux tag says.
    The plain `linux` tag says nothing, and package indexes refuse it.
    """
    tags = [*platform_tags()]
    return next((tag for tag in tags if not tag.startswith("linux_")), tags[0])
