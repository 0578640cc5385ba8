"""The pytest plugin: a fixture `device_lab` that opens labs and closes them after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from leasemesh.node.testing.lab import DeviceLab


@pytest.fixture
def device_lab() -> Iterator[Callable[..., DeviceLab]]:
    """A function that opens a `node.testing.DeviceLab` with the arguments given. It is closed after the test."""
    # Not at the top: this module is loaded by every run of pytest where leasemesh is installed.
    from leasemesh.node.testing.lab import DeviceLab

    with ExitStack() as stack:

        def open_lab(**options: Any) -> DeviceLab:
            return stack.enter_context(DeviceLab(**options))

        yield open_lab
