"""The order of the suite: what starts Ray first, each of its modules on one process; fixtures."""

import pytest


def pytest_collection_modifyitems(items):
    """Put Ray's modules first: they wait a lot, and what needs the CPUs alone fills the gaps."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session", autouse=True)
def quick_disk():
    """No test cuts the power: nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def compiler():
    """Skips where torch.compile does not work at all, on a machine without a C++ compiler."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.rand(8))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
