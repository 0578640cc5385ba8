"""Puts the extension with its record where an installed wheel has it."""

from pathlib import Path

from PyInstaller.config import CONF

from leasemesh_crsqlite import extension_path, locate

# A copy: what CRSQLITE_PATH names may have any file name, and has no record, without which no program loads it.
_library = locate.store_for_bundle(extension_path(), "a program", Path(CONF["workpath"]) / "leasemesh_crsqlite")
_folder = "leasemesh_crsqlite/bundled"

binaries = [(str(_library), _folder)]
datas = [(str(locate.record_path(_library)), _folder)]
