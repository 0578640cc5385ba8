"""Tests of an app on simulated devices: whole nodes in one process, in virtual time.

    from leasemesh.testing import DeviceLab

Installing leasemesh brings the pytest fixture `device_lab`. `pydoc leasemesh.node.testing` shows how it is used.
"""

from leasemesh.node.testing.lab import Backup as Backup
from leasemesh.node.testing.lab import DeviceDown as DeviceDown
from leasemesh.node.testing.lab import DeviceLab as DeviceLab
from leasemesh.node.testing.lab import LabDevice as LabDevice
from leasemesh.node.testing.lab import LabError as LabError
from leasemesh.node.testing.lab import LabTimeout as LabTimeout
from leasemesh.node.testing.lab import Spawned as Spawned
