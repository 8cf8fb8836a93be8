"""What a prepared data set holds: the columns of a shard, a record, and the faults of bad data.

Shapes: M boxes of an image, K classes. Boxes are XYXY in absolute pixels, `0 <= x0 < x1 <= W`;
pixel (i, j) covers `[j, j+1) x [i, i+1)`. Rotated boxes are (x_center, y_center, width, height,
angle), the angle in degrees counter-clockwise. Labels are 0 to K-1.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BoxType = Literal["aligned", "rotated"]
"""Which boxes a set has, or a model learns; a set of rotated boxes has aligned ones as well."""

IMAGE_COLUMN = "image"
ROTATED_COLUMN = "rotated_boxes"

SHARD_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("file_name", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("iscrowd", pa.list_(pa.bool_())),
        pa.field("area", pa.list_(pa.float64())),
        pa.field("bbox", pa.list_(pa.list_(pa.float64(), 4))),
        pa.field("annotation_id", pa.list_(pa.int64())),
        pa.field(IMAGE_COLUMN, pa.large_binary()),
    ]
)
"""Columns of a shard; a row is an image. `image` holds the encoded JPEG or PNG and is the only
heavy one."""

LIGHT_COLUMNS = tuple(name for name in SHARD_SCHEMA.names if name != IMAGE_COLUMN)
"""All columns that planning and evaluation may read without touching pixels, whatever the set."""


def shard_schema(box_type: BoxType) -> pa.Schema:
    """The columns of a set's shards: `SHARD_SCHEMA`, with `rotated_boxes` last where it has any."""
    if box_type == "aligned":
        return SHARD_SCHEMA
    return SHARD_SCHEMA.append(pa.field(ROTATED_COLUMN, pa.list_(pa.list_(pa.float32(), 5))))


@dataclass(frozen=True)
class Category:
    """A class of the data set.

    Attributes:
        id: the id that the original annotations use; it comes back in the predictions.
    """

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class Record:
    """One image with its annotations, as it is written to and read from a shard.

    Attributes:
        file_name: the original name, relative to the folder of images.
        height: in pixels, of the encoded image.
        width: in pixels, of the encoded image.
        boxes: (M, 4) float32 XYXY, within the image.
        labels: (M,) int32, 0 to K-1.
        iscrowd: (M,) bool; crowd regions are ignored in training and evaluation.
        area: (M,) float64, px^2 of the object (a mask's area where there was one); it sorts the
            objects into COCO's small, medium and large.
        annotation_id: (M,) int64, unique within the data set.
        bbox: (M, 4) float64 XYWH exactly as annotated, for evaluation: rounding to float32 XYXY
            and back would move IoUs. None: taken from `boxes`.
        rotated_boxes: (M, 5) float32, in a set of rotated boxes; their centres may lie outside the
            image. `boxes` and `bbox` are then the aligned boxes around them, cut at the border, for
            models that learn aligned boxes. None elsewhere.
    """

    image: bytes
    file_name: str
    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    annotation_id: np.ndarray
    bbox: np.ndarray | None = None
    rotated_boxes: np.ndarray | None = None

    @property
    def xywh(self) -> np.ndarray:
        """(M, 4) float64 XYWH: `bbox`, or the same made from `boxes`."""
        if self.bbox is not None:
            return np.asarray(self.bbox, np.float64).reshape(-1, 4)
        boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def records_to_table(records: Sequence[Record], *, box_type: BoxType = "aligned") -> pa.Table:
    """Turn records into a table of `shard_schema(box_type)`.

    Returns:
        A table with a row for each record.
    """
    schema = shard_schema(box_type)
    ends = np.cumsum([0] + [len(r.labels) for r in records])
    offsets = pa.array(ends, pa.int32())

    def nested(name: str, dtype: Any) -> pa.Array:
        kind = schema.field(name).type
        parts = [np.asarray(getattr(r, name), dtype).reshape(-1) for r in records]
        flat = pa.array(np.concatenate(parts) if parts else np.empty(0, dtype))
        return pa.ListArray.from_arrays(offsets, flat, type=kind)

    def nested_boxes(name: str, rows: list[np.ndarray], dtype: Any) -> pa.Array:
        kind = schema.field(name).type
        parts = [np.asarray(row, dtype).reshape(-1) for row in rows]
        flat = pa.array(np.concatenate(parts) if parts else np.empty(0, dtype))
        single = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
        return pa.ListArray.from_arrays(offsets, single, type=kind)

    columns = {
        "image_id": pa.array([r.image_id for r in records], pa.int64()),
        "file_name": pa.array([r.file_name for r in records], pa.string()),
        "height": pa.array([r.height for r in records], pa.int32()),
        "width": pa.array([r.width for r in records], pa.int32()),
        "boxes": nested_boxes("boxes", [r.boxes for r in records], np.float32),
        "labels": nested("labels", np.int32),
        "iscrowd": nested("iscrowd", np.bool_),
        "area": nested("area", np.float64),
        "bbox": nested_boxes("bbox", [r.xywh for r in records], np.float64),
        "annotation_id": nested("annotation_id", np.int64),
        IMAGE_COLUMN: pa.array([r.image for r in records], pa.large_binary()),
    }
    if box_type == "rotated":
        rows = [np.zeros(0) if r.rotated_boxes is None else r.rotated_boxes for r in records]
        columns[ROTATED_COLUMN] = nested_boxes(ROTATED_COLUMN, rows, np.float32)
    return pa.table(columns, schema=schema)


def record_from_row(row: Mapping[str, Any]) -> Record:
    """Turn one row of a shard, as `table.slice(i, 1).to_pylist()[0]` gives it, into a record.

    Args:
        row: a value for each column of the shard.

    Returns:
        The record with numpy arrays.
    """
    rotated = row.get(ROTATED_COLUMN)
    return Record(
        image=row[IMAGE_COLUMN],
        file_name=row["file_name"],
        image_id=row["image_id"],
        height=row["height"],
        width=row["width"],
        boxes=np.asarray(row["boxes"], np.float32).reshape(-1, 4),
        labels=np.asarray(row["labels"], np.int32),
        iscrowd=np.asarray(row["iscrowd"], np.bool_),
        area=np.asarray(row["area"], np.float64),
        annotation_id=np.asarray(row["annotation_id"], np.int64),
        bbox=np.asarray(row["bbox"], np.float64).reshape(-1, 4),
        rotated_boxes=None if rotated is None else np.asarray(rotated, np.float32).reshape(-1, 5),
    )


def nested_rows(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """Split a list column of a shard into one numpy array per row, without a Python loop on values.

    Args:
        column: of type list<number> or list<fixed_size_list<number, 4 or 5>>.

    Returns:
        For each row an array (M,), (M, 4) or (M, 5); M may be 0.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    rows: list[np.ndarray] = []
    for chunk in chunks:
        ends = chunk.offsets.to_numpy() - (chunk.offsets[0].as_py() if len(chunk.offsets) else 0)
        values = chunk.flatten()
        if pa.types.is_fixed_size_list(values.type):
            flat = (
                values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)
            )
        else:
            flat = values.to_numpy(zero_copy_only=False)
        rows += [flat[start:end] for start, end in pairwise(ends)]
    return rows


def flat_lists(
    *columns: pa.ChunkedArray | pa.Array,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The values of list columns one after the other, and the row that each belongs to.

    Args:
        columns: of type list<number>, with lists of the same lengths in all of them.

    Returns:
        (V,) int64 row numbers, and for each column its values (V,).
    """
    whole = [_array(column) for column in columns]
    values = [
        _array(pc.call_function("list_flatten", [c])).to_numpy(zero_copy_only=False) for c in whole
    ]
    return _array(pc.call_function("list_parent_indices", [whole[0]])).to_numpy(), values


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


Ints = NDArray[np.integer]


@dataclass(frozen=True)
class ImageClasses:
    """Which classes each image holds, crowd regions left out.

    Attributes:
        image: (P,) positions of the images, ascending.
        label: (P,) a class of that image, each pair once.
        num_images: n, with those that hold no class.
    """

    image: Ints
    label: Ints
    num_images: int
    num_classes: int
