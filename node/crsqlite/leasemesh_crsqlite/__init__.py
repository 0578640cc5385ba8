"""Getting the cr-sqlite extension: find it, download it with its checksum, or build it from source.

Rules:

1. `extension_path()` only looks: the file that CRSQLITE_PATH names, the one bundled in the wheel, the one in the
   per-user cache. It is cheap enough for every connection and never downloads, builds or runs anything.
2. `acquire()` gets the extension when it is not there: the official release first, then a build from source. What it
   fetches is compared with a checksum before it is unpacked, compiled or loaded. The checksums stand in this package.
3. Anything of leasemesh does not belong here: the build of the wheel loads this package on its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CrsqliteError, CrsqliteMissing
from .locate import ENTRY_POINT, VERSION, extension_path

if TYPE_CHECKING:
    from .ways import acquire

__all__ = ["ENTRY_POINT", "VERSION", "CrsqliteError", "CrsqliteMissing", "acquire", "extension_path"]


def __getattr__(name: str) -> Any:
    # Downloading and building take more imports than all the rest of a short command; every connection only looks.
    if name != "acquire":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(".ways", __name__).acquire
