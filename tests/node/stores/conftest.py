import pytest
from devices import Device


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A file with the newest schema and nothing in it: copying it is quicker than migrating."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    Device(path).close()
    return path


@pytest.fixture
def open_device(tmp_path, template):
    """Opens devices, each with a file and a site id of its own; closes them after the test."""
    devices = []

    def open_it(seed=None):
        number = len(devices) + 1
        seed = number if seed is None else seed
        devices.append(Device(tmp_path / f"device-{number}.db", seed=seed, template=template))
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
def lasting_trio(tmp_path_factory, template):
    """Three devices for all examples of a property; each example discards what it wrote."""
    folder = tmp_path_factory.mktemp("devices")
    devices = [Device(folder / f"device-{number}.db", seed=number, template=template) for number in (1, 2, 3)]
    yield devices
    for device in devices:
        device.close()
