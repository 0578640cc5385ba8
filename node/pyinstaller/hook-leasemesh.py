"""Takes along what is imported by name only, and the files that are no modules: SQL, templates, time zones."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

_FOR_TESTS = ("leasemesh.node.testing", "leasemesh.node.pyinstaller", "leasemesh.testing")

hiddenimports = collect_submodules("leasemesh", filter=lambda name: not name.startswith(_FOR_TESTS))
hiddenimports += ["leasemesh_crsqlite"]
datas = collect_data_files("leasemesh") + collect_data_files("tzdata") + copy_metadata("leasemesh")
