"""TensorBoard's event file, where the package `tensorboard` is installed."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retina_ray.evaluation.drawing import AnnotatedImage


_log = logging.getLogger(__name__)


class TensorBoardFile:
    """Writes the metrics as scalars, and the pictures with their boxes drawn in."""

    name = "TensorBoard"

    def __init__(self, writer: Any) -> None:
        """Take a `SummaryWriter`."""
        self._writer = writer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of a step."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def log_pictures(self, pictures: Sequence[AnnotatedImage], step: int) -> None:
        """Record pictures with their boxes."""
        for number, picture in enumerate(pictures):
            tag = f"val/pictures/{number}"
            self._writer.add_image(tag, picture.draw(), step, dataformats="HWC")
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        self._writer.add_text("status", status)
        self._writer.close()


def open_tensorboard(
    choice: str, folder: Path, *, resume_step: int | None
) -> TensorBoardFile | None:
    """Open an event file; None where it is switched off or TensorBoard is not installed.

    A resumed run adds another file, and steps after `resume_step` of earlier ones are hidden.
    """
    if choice == "off" or importlib.util.find_spec("tensorboard") is None:
        return None
    purge_step = None if resume_step is None else resume_step + 1
    try:
        from torch.utils.tensorboard import SummaryWriter

        _come_after(folder)
        return TensorBoardFile(SummaryWriter(str(folder), purge_step=purge_step))
    except Exception as error:  # one that does not fit the other packages, a full disk
        _log.warning("TensorBoard cannot be used (%s: %s)", type(error).__name__, error)
        return None


def _come_after(folder: Path) -> None:
    """Wait out the second in which the last event file was opened, a moment at most.

    TensorBoard reads the files of a folder in the order of their names, and these begin with the
    second; within one second chance decides, and the steps that a new file hides could come after
    those that replace them.
    """
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    last = max((int(second) for second in seconds if second.isdigit()), default=0)
    wait_s = last + 1 - time.time()
    if 0 < wait_s <= 1:
        time.sleep(wait_s)
