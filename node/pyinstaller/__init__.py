"""What PyInstaller needs to put leasemesh into a program. Anything else does not belong here."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """Where PyInstaller finds the hooks. The entry point `pyinstaller40` names this function."""
    return [str(Path(__file__).parent)]
