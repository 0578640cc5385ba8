"""Loads `node/crsqlite` on its own, without `node/__init__.py`; run as a program, it is `python -m
leasemesh.node.crsqlite`.

The set-up and the wheel's build hook need the extension before, or without, everything that `node` itself imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "node" / "crsqlite"
NAME = "leasemesh_crsqlite"


def load_crsqlite() -> ModuleType:
    """Import the package under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    load_crsqlite()
    sys.exit(importlib.import_module(f"{NAME}.__main__").main())
