"""Naming this run of the machine: monotonic times of different boots must never be compared."""

from __future__ import annotations

import time
from pathlib import Path


def boot_id() -> str:
    """Return a name of this boot of the machine, the same in all its processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # Elsewhere: the wall-clock time of the boot, to the minute, for it is the difference of two clocks.
        return str(int((time.time() - time.monotonic()) // 60))
