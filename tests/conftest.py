"""Fixtures of all tests."""

import pytest


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
