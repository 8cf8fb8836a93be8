"""Images of a prepared data set by their position in its index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retina_ray.data.schema import ROTATED_COLUMN, BoxType, nested_rows
from retina_ray.data.shards import PreparedDataset

__all__ = ["ImageSource", "StoredImage"]


@dataclass(frozen=True)
class StoredImage:
    """An image as it lies in the data set, with its boxes (M, 4) XYXY, or (M, 5) rotated ones."""

    data: bytes
    file_name: str
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray


class ImageSource:
    """A data set with the places of its images: position in the index -> stored image.

    Args:
        dataset: that holds the images.
        index: `dataset.index()`.
        box_type: which of its boxes are read.

    Raises:
        DataError: the set has no boxes of this kind.
    """

    def __init__(
        self, dataset: PreparedDataset, index: pa.Table, *, box_type: BoxType = "aligned"
    ) -> None:
        dataset.require_box_type(box_type)
        self.dataset = dataset
        self._box_column = "boxes" if box_type == "aligned" else ROTATED_COLUMN
        self.places = np.stack(
            [index[name].to_numpy().astype(np.int32) for name in ("shard", "row_group", "row")],
            axis=1,
        )

    def __len__(self) -> int:
        return len(self.places)

    def read(self, positions: Iterable[int]) -> dict[int, StoredImage]:
        """Read images, each row group once."""
        groups: dict[tuple[int, int], list[int]] = {}
        for position in sorted(set(positions)):
            shard, row_group, _ = self.places[position].tolist()
            groups.setdefault((shard, row_group), []).append(position)
        images: dict[int, StoredImage] = {}
        for place, members in groups.items():
            rows = self.dataset.read_row_group(*place).take(self.places[members, 2])
            images.update(zip(members, _stored_images(rows, self._box_column), strict=True))
        return images


def _stored_images(rows: pa.Table, box_column: str) -> list[StoredImage]:
    """Take images out of a row group; crowd boxes are left behind, they never become targets."""
    light = rows.select(["file_name", "image_id", "height", "width"]).to_pylist()
    nested = [nested_rows(rows[name]) for name in (box_column, "labels", "iscrowd")]
    images = []
    for data, row, boxes, labels, crowd in zip(
        rows["image"].to_pylist(), light, *nested, strict=True
    ):
        single = ~crowd.astype(np.bool_)
        size = (row["height"], row["width"])
        images.append(
            StoredImage(
                data, row["file_name"], row["image_id"], size, boxes[single], labels[single]
            )
        )
    return images
