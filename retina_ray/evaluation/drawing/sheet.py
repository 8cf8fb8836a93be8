"""Images laid out in a grid, and written to files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

_CELL_PX = 640  # larger images are shrunk until their longer side is this
_GAP_PX = 8
_BACKGROUND = 245


def contact_sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """Lay images out in a grid that is about square, row by row.

    They are (H, W, 3) uint8 RGB of any sizes; a side above 640 pixels is shrunk.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    cells = [_shrink(image) for image in images]
    num_columns = math.ceil(math.sqrt(len(cells)))
    num_rows = math.ceil(len(cells) / num_columns)
    height, width = (max(cell.shape[axis] for cell in cells) + _GAP_PX for axis in (0, 1))
    shape = (num_rows * height + _GAP_PX, num_columns * width + _GAP_PX, 3)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    for i, cell in enumerate(cells):
        h, w = cell.shape[:2]
        y = _GAP_PX + i // num_columns * height + (height - _GAP_PX - h) // 2
        x = _GAP_PX + i % num_columns * width + (width - _GAP_PX - w) // 2
        sheet[y : y + h, x : x + w] = cell
    return sheet


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write an (H, W, 3) uint8 RGB image as a PNG; its folder is made.

    Raises:
        OSError: it cannot be written there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


def _shrink(image: np.ndarray) -> np.ndarray:
    factor = _CELL_PX / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
