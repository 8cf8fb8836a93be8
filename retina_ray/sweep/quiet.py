"""Keeps Ray Tune's own banners off the terminal: the sweep says the same in its own words."""

from __future__ import annotations

import logging
import os

from rich.console import Console

_INTERRUPTED = "Stop signal received"
_SAID = (
    _INTERRUPTED,
    "Trial task failed for trial",  # the reason stands in the table, the traceback in Ray's files
    "Trials did not complete",
    "Experiment has been interrupted",
)


def quiet_tune() -> None:
    """Silence what Ray Tune would print beside the watcher's lines; errors of its own stay."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints a banner at every verbosity
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _TuneMessages) for f in logger.filters):
            logger.addFilter(_TuneMessages())


class _TuneMessages(logging.Filter):
    """Drops what the table says anyway, and words the answer to Ctrl-C for the user."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(_INTERRUPTED):
            Console(stderr=True).print("interrupted: ending the trials and saving the sweep")
        return not text.startswith(_SAID)
