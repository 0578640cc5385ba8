"""Hatchling's build hook: puts the cr-sqlite extension into the wheel and tags the wheel for this platform.

Runs in the isolated build environment, where the dependencies of leasemesh are not installed: it loads `node/crsqlite`
on its own, without `node/__init__.py`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class CrsqliteHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `node/_crsqlite/` to wheels that are going to be installed elsewhere, not to editable ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together."""
        if version == "editable":
            return
        crsqlite = load_crsqlite(Path(self.root))
        try:
            library = crsqlite.acquire(tell=self.app.display_info)
        except crsqlite.CrsqliteError as error:
            self.app.abort(str(error))
        # A copy with its own record: what CRSQLITE_PATH names has none.
        stored = crsqlite.locate.store(library, "bundled in the wheel", Path(self.directory) / "crsqlite")
        for path in (stored, crsqlite.locate.record_path(stored)):
            build_data["force_include"][str(path)] = f"node/_crsqlite/{path.name}"
        build_data["pure_python"] = False
        # Nothing depends on the Python version. What was built here needs this C library or a newer one: the first tag.
        build_data["tag"] = f"py3-none-{next(iter(platform_tags()))}"


def load_crsqlite(root: Path) -> ModuleType:
    """Import `node/crsqlite` under a name of its own."""
    folder = root / "node" / "crsqlite"
    name = "leasemesh_crsqlite"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
