"""Tests of an app on simulated devices: whole nodes in one process, in virtual time.

    from leasemesh.testing import DeviceLab

Installing leasemesh brings the pytest fixture `device_lab`. `pydoc leasemesh.testing`
shows how it is used.
"""

from leasemesh.node.testing import DeviceLab as DeviceLab
