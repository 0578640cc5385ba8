import pytest
from devices import Device


@pytest.fixture
def open_device(tmp_path):
    """Opens devices, each with a file and a site id of its own; closes them after the test."""
    devices = []

    def open_it(seed=None):
        number = len(devices) + 1
        devices.append(Device(tmp_path / f"device-{number}.db", seed=number if seed is None else seed))
        return devices[-1]

    yield open_it
    for device in devices:
        device.close()


@pytest.fixture
def device(open_device):
    return open_device()


@pytest.fixture
def database(device):
    return device.database


@pytest.fixture
def pair(open_device):
    return open_device(), open_device()


@pytest.fixture
def trio(open_device):
    return open_device(), open_device(), open_device()


@pytest.fixture(scope="module")
def lasting_trio(tmp_path_factory):
    """Three devices for all examples of a property; each example discards what it wrote."""
    folder = tmp_path_factory.mktemp("devices")
    devices = [Device(folder / f"device-{number}.db", seed=number) for number in (1, 2, 3)]
    yield devices
    for device in devices:
        device.close()
