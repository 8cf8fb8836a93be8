"""How long a storage is waited for, what is said meanwhile, and what is not asked again."""

import pytest

from retina_ray.errors import StorageError
from retina_ray.storage import retry
from retina_ray.storage.retry import RETRY_VARIABLE, StorageRetry


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.now, self.naps = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


@pytest.fixture
def storage():
    return StorageRetry("s3://b")


GONE = OSError("AWS Error NETWORK_CONNECTION during HeadObject operation (Request ID: x)")


def failing(clock, until_s, error=GONE):
    def operation():
        if clock.now < until_s:
            raise error
        return "answer"

    return operation


def test_gaps_up_to_two_minutes_are_waited_for_and_told(storage, clock, caplog):
    assert storage.call(failing(clock, 115), "s3://b/x") == "answer"
    assert 115 <= clock.now <= 119
    assert max(clock.naps) <= 4
    first, second = (record.getMessage() for record in caplog.records)
    assert first == (
        "s3://b does not answer (AWS Error NETWORK_CONNECTION during HeadObject operation); "
        "it is asked again for up to 120 s"
    )
    assert second == f"s3://b answers again, after {clock.now:.0f} s"


def test_short_gaps_are_not_worth_a_word(storage, clock, caplog):
    assert storage.call(failing(clock, 1), "s3://b/x") == "answer"
    assert not caplog.records


def test_a_longer_gap_is_an_error_and_the_next_call_does_not_wait_again(storage, clock):
    with pytest.raises(StorageError, match=r"s3://b/x: the storage did not answer for 120 s"):
        storage.call(failing(clock, 1e9), "s3://b/x")
    assert clock.now == pytest.approx(120)
    with pytest.raises(StorageError):
        storage.call(failing(clock, 1e9), "s3://b/y")
    assert clock.now == pytest.approx(120)
    clock.now += 1000  # another gap, long after
    assert storage.call(failing(clock, clock.now + 60), "s3://b/z") == "answer"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        OSError("AWS Error ACCESS_DENIED during GetObject operation"),
        OSError("AWS Error UNKNOWN (HTTP status 416) during GetObject operation"),
    ],
)
def test_an_answer_that_is_no_is_an_answer(storage, clock, error):
    with pytest.raises(type(error)) as caught:
        storage.call(failing(clock, 1, error), "s3://b/x")
    assert caught.value is error
    assert clock.naps == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(storage, clock, status):
    error = OSError(f"AWS Error UNKNOWN (HTTP status {status}) during GetObject operation")
    assert storage.call(failing(clock, 3, error), "s3://b/x") == "answer"


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_a_limit_that_is_no_number(storage, clock, monkeypatch, text):
    monkeypatch.setenv(RETRY_VARIABLE, text)
    with pytest.raises(StorageError, match=f"{RETRY_VARIABLE}='{text}'"):
        storage.call(failing(clock, 1), "s3://b/x")


def test_a_limit_of_none(storage, clock, monkeypatch):
    monkeypatch.setenv(RETRY_VARIABLE, "0")
    with pytest.raises(StorageError):
        storage.call(failing(clock, 1), "s3://b/x")
    assert clock.naps == []
