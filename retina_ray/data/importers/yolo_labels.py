"""The label files of YOLO: a line for each object, in shares of the image's width and height."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from retina_ray.data.importers.box_checks import MALFORMED_BOX, NOT_FINITE, UNKNOWN_CLASS, ImportLog
from retina_ray.data.importers.raw import RawBox

# Shares beyond this are no box that sticks out of the image: somebody wrote pixels.
_LARGEST_SHARE = 2.0
_NOWHERE = (math.nan, math.nan, math.nan, math.nan)


def labels_of(image_name: str) -> str:
    """Name of an image's label file: the last folder `images` becomes `labels`, the suffix `.txt`.

    Args:
        image_name: relative to the data set's folder.

    Returns:
        The name, relative to the same folder.
    """
    path = PurePosixPath(image_name).with_suffix(".txt")
    folders = list(path.parts[:-1])
    for i in reversed(range(len(folders))):
        if folders[i] == "images":
            folders[i] = "labels"
            break
    return str(PurePosixPath(*folders, path.name))


class LabelReader:
    """Reads label files one after the other; annotation ids go on from file to file.

    Args:
        class_names: in the order of the labels.
        log: counts polygons and lines that say the same twice.
        keypoint_values: numbers that follow the box in each line, for a set of poses.
    """

    def __init__(
        self, class_names: Sequence[str], log: ImportLog, *, keypoint_values: int = 0
    ) -> None:
        self._num_classes = len(class_names)
        self._log = log
        self._keypoint_values = keypoint_values
        self._next_annotation = 1

    def read(self, text: str, file: str, height: int, width: int) -> list[RawBox]:
        """Read one file.

        Args:
            text: its content.
            file: its name, for messages.
            height: of the image as displayed, pixels.
            width: of the image as displayed, pixels.

        Returns:
            A box for each line, in pixels; bad lines say what is wrong with them.
        """
        boxes: list[RawBox] = []
        seen: set[tuple[float, ...]] = set()
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number} ({line.strip():.60})"
            values = _numbers(line)
            if values is not None and values in seen:
                self._log.counts["repeated_label_lines"] += 1
                continue
            if values is not None:
                seen.add(values)
            boxes.append(self._read_line(values, where, height, width))
            self._next_annotation += 1
        return boxes

    def _read_line(
        self, values: tuple[float, ...] | None, where: str, height: int, width: int
    ) -> RawBox:
        """Turn the numbers of a line into a box."""
        problem = self._problem(values)
        if values is None or problem is not None:
            return RawBox(
                self._next_annotation, -1, _NOWHERE, _NOWHERE, 0.0, problem=problem, where=where
            )
        label, numbers = int(values[0]), values[1:]
        if len(numbers) == 4 + self._keypoint_values:
            cx, cy, w, h = numbers[:4]
            left, top = cx - w / 2, cy - h / 2
            right, bottom = cx + w / 2, cy + h / 2
        else:
            self._log.counts["polygons_made_boxes"] += 1
            left, right = min(numbers[::2]), max(numbers[::2])
            top, bottom = min(numbers[1::2]), max(numbers[1::2])
            w, h = right - left, bottom - top
        x, y, w, h = left * width, top * height, w * width, h * height
        return RawBox(
            annotation_id=self._next_annotation,
            label=label,
            xyxy=(x, y, right * width, bottom * height),
            xywh=(x, y, w, h),
            area=w * h,
            where=where,
        )

    def _problem(self, values: tuple[float, ...] | None) -> tuple[str, str] | None:
        """Say what is wrong with the numbers of a line, or None."""
        wanted = "expected: class cx cy w h, or class x y x y x y ..."
        if self._keypoint_values:
            wanted = f"expected: class cx cy w h and {self._keypoint_values} values of key points"
        if values is None:
            return MALFORMED_BOX, f"not numbers; {wanted}"
        count = len(values) - 1
        is_polygon = not self._keypoint_values and count >= 6 and count % 2 == 0
        if count != 4 + self._keypoint_values and not is_polygon:
            return MALFORMED_BOX, f"{count + 1} values; {wanted}"
        shares = values[1:] if is_polygon else values[1:5]
        if not all(math.isfinite(value) for value in (values[0], *shares)):
            return NOT_FINITE, "holds NaN or infinity"
        if values[0] != int(values[0]) or not 0 <= values[0] < self._num_classes:
            message = f"class {values[0]:g} is not one of 0 to {self._num_classes - 1}"
            return UNKNOWN_CLASS, message
        if max(abs(value) for value in shares) > _LARGEST_SHARE:
            return MALFORMED_BOX, (
                "values must be shares of the image's width and height, from 0 to 1; these look "
                "like pixels"
            )
        return None


def _numbers(line: str) -> tuple[float, ...] | None:
    """The numbers of a line, or None where one of them is none."""
    try:
        return tuple(float(value) for value in line.split())
    except ValueError:
        return None
