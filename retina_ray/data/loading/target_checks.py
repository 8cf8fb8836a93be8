"""Whether the boxes and labels of a batch can be learnt from, checked where the batch is made.

There the numbers lie in memory that the CPU reads for free. In a training step the same check would
have to wait for the GPU, and without it a NaN or a class too many only shows as a loss that is not
finite, with no word of the image that brought it.

Needs numpy only: no PyTorch. Shapes: N images, M boxes of an image, T boxes of all images, B
numbers a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retina_ray.errors import DataError, Fault

_MEND = "mend the annotation, or leave the box out"


@dataclass(frozen=True)
class FlatTargets:
    """The boxes of all images in one array, with the place that each came from.

    Attributes:
        boxes: (T, 4) XYXY, or (T, 5) rotated.
        labels: (T,) integers.
        image: (T,) the image of each box, by its index in the batch.
        number: (T,) the box's own number in its image.
    """

    boxes: NDArray
    labels: NDArray
    image: NDArray[np.int64]
    number: NDArray[np.int64]


def check_targets(
    boxes: Sequence[NDArray],
    labels: Sequence[NDArray],
    sizes: Sequence[tuple[int, int]],
    *,
    num_classes: int | None,
    image_ids: Sequence[int] | None = None,
) -> None:
    """Refuse boxes and labels that no model can learn.

    Boxes must be finite, with `0 <= x0 < x1 <= W` and `0 <= y0 < y1 <= H`, without any slack: what
    rounding puts outside must have been cut off before. Rotated boxes must be finite, with sides
    above 0; they may reach outside the image. Labels are whole numbers from 0 to K-1.

    Args:
        boxes: of each image, (M, 4) XYXY in its pixels, or (M, 5) rotated (x, y, width, height,
            angle); the same kind in all images. Images without boxes are fine.
        labels: of each image, (M,).
        sizes: of each image, (height, width) in pixels, without padding.
        num_classes: K; None leaves labels without an upper limit.
        image_ids: the data set's id of each image, to be named beside its index.

    Raises:
        DataError: (a ValueError) all faults at once, each with the index of the image in the batch,
            its id, the number of the box, the value found, what was expected, and what to do.
    """
    lengths = {"boxes": len(boxes), "labels": len(labels), "sizes": len(sizes)}
    if image_ids is not None:
        lengths["image_ids"] = len(image_ids)
    if len(set(lengths.values())) > 1:
        raise DataError(f"targets: {lengths} are of different numbers of images, give one for each")
    faults: list[Fault] = []
    whole: list[int] = []  # images whose arrays can be read together
    box_dim = None
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if not len(box) and not len(label):
            continue
        if problem := _shape_problem(box, label, box_dim):
            faults.append(Fault("boxes and labels", f"{_name(i, image_ids)}: {problem}"))
            continue
        box_dim = box.shape[1]
        whole.append(i)
    if whole:
        counts = [len(labels[i]) for i in whole]
        flat = FlatTargets(
            np.concatenate([boxes[i] for i in whole]),
            np.concatenate([labels[i] for i in whole]),
            np.repeat(whole, counts),
            np.concatenate([np.arange(count) for count in counts]),
        )
        faults += _faults(flat, np.asarray(sizes), num_classes, image_ids)
    if faults:
        raise DataError(faults)


def check_flat_targets(
    targets: FlatTargets,
    sizes: NDArray,
    *,
    num_classes: int | None,
    image_ids: Sequence[int] | None = None,
) -> None:
    """As `check_targets`, for boxes that lie in one array already.

    Args:
        targets: of all images.
        sizes: (N, 2) height and width of each image in pixels.
        num_classes: K, or None.
        image_ids: of each image, or None.

    Raises:
        DataError: all faults at once.
    """
    if faults := list(_faults(targets, sizes, num_classes, image_ids)):
        raise DataError(faults)


def _shape_problem(boxes: NDArray, labels: NDArray, box_dim: int | None) -> str | None:
    """Say why an image's arrays cannot be checked box by box; `box_dim` is that of the others."""
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
        return f"boxes of shape {boxes.shape}: expected (M, 4) XYXY, or (M, 5) rotated"
    if box_dim is not None and boxes.shape[1] != box_dim:
        return f"boxes of {boxes.shape[1]} numbers beside images whose boxes have {box_dim}"
    if boxes.dtype.kind not in "fiu":
        return f"boxes of type {boxes.dtype}: expected numbers"
    if labels.shape != boxes.shape[:1]:
        return f"labels of shape {labels.shape} for {len(boxes)} boxes: expected one for each"
    if labels.dtype.kind not in "iu":
        return f"labels of type {labels.dtype}: expected whole numbers"
    return None


def _faults(
    targets: FlatTargets,
    sizes: NDArray,
    num_classes: int | None,
    image_ids: Sequence[int] | None,
) -> Iterator[Fault]:
    """Yield what is wrong, label by label and box by box; looks closer only where it must."""
    bad = targets.labels < 0
    if num_classes is not None:
        bad |= targets.labels >= num_classes
    for t in bad.nonzero()[0]:
        where = f"{_name(int(targets.image[t]), image_ids)}, box {targets.number[t]}"
        yield Fault(
            "label out of range",
            f"{where}: label {targets.labels[t]}, expected {_label_range(num_classes)}; "
            "are the classes those of the data set that the model is built for?",
        )
    for t in (~_good_boxes(targets, sizes)).nonzero()[0]:
        where = f"{_name(int(targets.image[t]), image_ids)}, box {targets.number[t]}"
        height, width = sizes[targets.image[t]].tolist()
        yield _box_fault(where, targets.boxes[t], height, width)


def _good_boxes(targets: FlatTargets, sizes: NDArray) -> NDArray[np.bool_]:
    """Which boxes are as they must be (T,). Comparisons with NaN are false, so NaN is not."""
    if targets.boxes.shape[1] == 5:
        x, y, *sides, angle = targets.boxes.T
        good = np.isfinite(x) & np.isfinite(y) & np.isfinite(angle)
        for side in sides:
            good &= (side > 0) & (side < np.inf)
        return good
    x0, y0, x1, y1 = targets.boxes.T
    height, width = sizes[targets.image].T
    good = (0 <= x0) & (x0 < x1) & (x1 <= width)
    return good & (0 <= y0) & (y0 < y1) & (y1 <= height)


def _box_fault(where: str, box: NDArray, height: int, width: int) -> Fault:
    """Say what is wrong with one box, the most fundamental thing only."""
    rotated = len(box) == 5
    numbers = ", ".join(str(value) for value in box)
    found = f"{where}: {'(x, y, width, height, angle)' if rotated else 'XYXY'} ({numbers})"
    if not np.isfinite(box).all():
        return Fault("box is not finite", f"{found}, expected finite numbers; {_MEND}")
    if rotated:
        expected = "width and height above 0"
        return Fault("box of zero or negative size", f"{found}, expected {expected}; {_MEND}")
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        expected = "x0 < x1 and y0 < y1"
        return Fault("box of zero or negative size", f"{found}, expected {expected}; {_MEND}")
    return Fault(
        "box out of the image",
        f"{found}, expected 0 <= x <= {width} and 0 <= y <= {height}; clip it to the image, or "
        f"{_MEND}",
    )


def _label_range(num_classes: int | None) -> str:
    return "0 or more" if num_classes is None else f"0 to {num_classes - 1}"


def _name(image: int, image_ids: Sequence[int] | None) -> str:
    """The image by its index in the batch, and by its id where that is known."""
    known = "" if image_ids is None else f" (id {image_ids[image]})"
    return f"image {image} of the batch{known}"
