"""SIGTERM to a sweep's process is Ctrl-C, and is known apart from it."""

import contextlib
import signal
import threading

import pytest

from retina_ray.sweep.sigterm import SigtermAsCtrlC
from retina_ray.train.errors import RunTerminatedError
from retina_ray.train.recovery.preemption import EndOnSigterm


@pytest.fixture(params=["in front", "in the background"])
def tune(request):
    """What Ray Tune hears of Ctrl-C; as with Tune, a second one is an interrupt as ever.

    Unless a shell started the process in the background: then Ctrl-C is ignored from the start.
    """
    at_first = signal.getsignal(signal.SIGINT)
    is_ignored = request.param == "in the background"
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.default_int_handler)
    heard, before = [], signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        heard.append(number)
        signal.signal(signal.SIGINT, before)

    def start():
        signal.signal(signal.SIGINT, handle)
        return heard

    start.is_ignored = is_ignored
    yield start
    signal.signal(signal.SIGINT, at_first)


def interrupts(tune):
    """What Ctrl-C does once nobody hears it."""
    return contextlib.nullcontext() if tune.is_ignored else pytest.raises(KeyboardInterrupt)


def test_tune_hears_of_it_as_of_ctrl_c(tune):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with SigtermAsCtrlC() as sigterm:
        heard = tune()
        assert not sigterm.came
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGINT]
    assert sigterm.came
    assert {n: signal.getsignal(n) for n in before} == before


def test_ctrl_c_stays_ctrl_c(tune):
    with SigtermAsCtrlC() as sigterm:
        heard = tune()
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT]
        with interrupts(tune):
            signal.raise_signal(signal.SIGINT)
    assert not sigterm.came
    with interrupts(tune), SigtermAsCtrlC():
        signal.raise_signal(signal.SIGINT)
    with SigtermAsCtrlC():
        tune()
    with interrupts(tune):  # the handler that Tune leaves behind is taken away
        signal.raise_signal(signal.SIGINT)


def test_a_second_one_leaves_at_once(tune):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunTerminatedError, match=r"SIGTERM, .*--resume"), SigtermAsCtrlC():  # noqa: PT012
        heard = tune()
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_elsewhere_than_in_the_main_thread_nothing_is_set(tmp_path):
    def work():
        with SigtermAsCtrlC() as sweeps, EndOnSigterm(str(tmp_path)) as runs:
            seen.append((sweeps.came, runs.asked, signal.getsignal(signal.SIGTERM)))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, False, signal.getsignal(signal.SIGTERM))]
