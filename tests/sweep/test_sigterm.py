"""SIGTERM to a sweep's process is Ctrl-C, and is known apart from it."""

import os
import signal
import threading

import pytest

from retina_ray.sweep.sigterm import SigtermAsCtrlC
from retina_ray.train.errors import RunTerminatedError


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def tune():
    """What Ray Tune hears of Ctrl-C; as with Tune, a second one is an interrupt as ever."""
    heard, before = [], signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        heard.append(number)
        signal.signal(signal.SIGINT, before)

    def start():
        signal.signal(signal.SIGINT, handle)
        return heard

    yield start
    signal.signal(signal.SIGINT, before)


def test_tune_hears_of_it_as_of_ctrl_c(tune):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with SigtermAsCtrlC() as sigterm:
        heard = tune()
        assert not sigterm.came
        send(signal.SIGTERM)
        assert heard == [signal.SIGINT]
    assert sigterm.came
    assert {n: signal.getsignal(n) for n in before} == before


def test_ctrl_c_stays_ctrl_c(tune):
    with SigtermAsCtrlC() as sigterm:
        heard = tune()
        send(signal.SIGINT)
        assert heard == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert not sigterm.came
    with pytest.raises(KeyboardInterrupt), SigtermAsCtrlC():
        send(signal.SIGINT)


def test_a_handler_that_tune_leaves_behind_is_taken_away(tune):
    with SigtermAsCtrlC():
        tune()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_second_one_leaves_at_once(tune):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunTerminatedError, match=r"SIGTERM, .*--resume"), SigtermAsCtrlC():  # noqa: PT012
        heard = tune()
        send(signal.SIGTERM)
        assert heard == [signal.SIGINT]
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_elsewhere_than_in_the_main_thread_nothing_is_set():
    def work():
        with SigtermAsCtrlC() as sigterm:
            seen.append((sigterm.came, signal.getsignal(signal.SIGTERM)))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]
