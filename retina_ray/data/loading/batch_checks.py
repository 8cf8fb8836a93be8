"""The check of `retina_ray.data.loading.target_checks` for batches that are made by hand.

Works on tensors that lie in the CPU's memory, through their numpy view; PyTorch itself is not
imported. Shapes: N images, M boxes (padded), B numbers a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retina_ray.data.loading.target_checks import FlatTargets, check_flat_targets

if TYPE_CHECKING:
    from torch import Tensor

    from retina_ray.structures import Targets


_PADDING = -1
"""Label of the rows that only fill up the tensor (`retina_ray.structures.Targets`)."""


def check_batch(
    targets: Targets,
    sizes: Tensor | Sequence[tuple[int, int]],
    num_classes: int | None,
    *,
    image_ids: Sequence[int] | None = None,
) -> None:
    """Refuse targets that no model can learn; call it before the batch goes to a GPU.

    What the pipeline of this package makes has been checked already.

    Args:
        targets: boxes (N, M, B) and labels (N, M); rows of label -1 are padding, whatever their
            boxes hold.
        sizes: (N, 2), the height and width of each image in pixels without padding, as
            `ImageBatch.sizes`.
        num_classes: K; None leaves labels without an upper limit.
        image_ids: the data set's id of each image, to be named beside its index.

    Raises:
        ValueError: the tensors do not fit each other or are on another device, which would have to
            be waited for; or, as `DataError`, all faults at once: see `check_targets`.
    """
    tensors = [targets.boxes, targets.labels]
    if not isinstance(sizes, Sequence):
        tensors.append(sizes)
    if others := {str(tensor.device) for tensor in tensors} - {"cpu"}:
        raise ValueError(
            f"targets on {', '.join(sorted(others))}: check a batch before it is moved off the "
            "CPU, so that nothing waits for the device"
        )
    boxes, labels = targets.boxes.detach().numpy(), targets.labels.numpy()
    plain_sizes = np.asarray(sizes).reshape(-1, 2)
    num_images = len(plain_sizes)
    if (
        labels.ndim != 2
        or len(labels) != num_images
        or boxes.shape[:-1] != labels.shape
        or boxes.shape[-1] not in (4, 5)
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"targets: boxes {boxes.shape} and labels {labels.shape} ({labels.dtype}) for "
            f"{num_images} images: expected (N, M, 4) or (N, M, 5), and (N, M) whole numbers"
        )
    image, number = np.nonzero(labels != _PADDING)
    used = FlatTargets(boxes[image, number], labels[image, number], image, number)
    check_flat_targets(used, plain_sizes, num_classes=num_classes, image_ids=image_ids)
