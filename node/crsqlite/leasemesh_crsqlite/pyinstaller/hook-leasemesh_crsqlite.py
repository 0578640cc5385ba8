"""Puts the extension with its record where an installed wheel has it."""

from leasemesh_crsqlite import extension_path, locate

_library = extension_path()
_folder = "leasemesh_crsqlite/bundled"

binaries = [(str(_library), _folder)]
datas = [(str(locate.record_path(_library)), _folder)] if locate.record_path(_library).exists() else []
