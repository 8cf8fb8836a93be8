"""From a batch in Arrow to tensors. The only step of the pipeline that needs PyTorch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from retina_ray.structures import Batch, ImageBatch, Targets

_HEAVY = frozenset({"sizes", "boxes", "labels"})


@dataclass(frozen=True)
class PlannedBatch:
    """A batch with its place in the run's plan (`plan_rows.PLAN_SCHEMA`).

    Attributes:
        epoch: from 0.
        step: the training step, from 0; for "val" the number of training steps done before.
        worker: rank of the worker that gets the batch.
        num_fill: how many images at the end of the batch repeat images of the epoch.
    """

    batch: Batch
    kind: str
    epoch: int
    step: int
    worker: int
    num_fill: int

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> PlannedBatch:
        """Copy the tensors to a device."""
        batch = self.batch.to(device, non_blocking=non_blocking)
        return PlannedBatch(batch, self.kind, self.epoch, self.step, self.worker, self.num_fill)


def unpack_batch(table: pa.Table | pa.RecordBatch, *, pin_memory: bool = False) -> PlannedBatch:
    """Make tensors of a batch.

    Args:
        table: one row of `retina_ray.data.loading.packing.BATCH_SCHEMA`.
        pin_memory: copy the tensors to page-locked memory, so that copies to a CUDA device run
            beside the computation. Without it the pixels are a view of Arrow's memory, which may
            be shared between processes and read-only: never write to them.

    Returns:
        The batch; its pixels are (N, 3, H, W) in channels_last order of memory.

    Raises:
        ValueError: the table has not exactly one row.
    """
    if table.num_rows != 1:
        raise ValueError(f"expected a table of one batch, got {table.num_rows} rows")
    value = {name: table.column(name)[0] for name in table.schema.names if name != "pixels"}
    light = {name: scalar.as_py() for name, scalar in value.items() if name not in _HEAVY}
    num_images, height, width = light["num_images"], light["height"], light["width"]

    pixels = _bytes_tensor(_buffer(table.column("pixels")))
    pixels = pixels.view(num_images, height, width, 3).permute(0, 3, 1, 2)
    sizes = _tensor(value["sizes"], torch.int64).view(-1, 2)
    counts = torch.tensor(light["box_counts"], dtype=torch.int64)
    is_box = torch.arange(max(light["box_counts"], default=0)) < counts[:, None]
    boxes = torch.zeros(*is_box.shape, light["box_dim"])
    boxes[is_box] = _tensor(value["boxes"], torch.float32).view(-1, light["box_dim"])
    labels = torch.full(is_box.shape, -1)
    labels[is_box] = _tensor(value["labels"], torch.int64)
    images, targets = ImageBatch(pixels, sizes), Targets(boxes, labels)
    if pin_memory:
        images = ImageBatch(pixels.pin_memory(), sizes.pin_memory())
        targets = Targets(targets.boxes.pin_memory(), targets.labels.pin_memory())
    flat = light["original_sizes"]
    batch = Batch(
        images=images,
        targets=targets,
        image_ids=light["image_ids"],
        original_sizes=list(zip(flat[0::2], flat[1::2], strict=True)),
        plan_index=light["plan_index"],
        bad_images=[(bad["file_name"], bad["reason"]) for bad in light["bad_images"]],
    )
    place = {name: light[name] for name in ("kind", "epoch", "step", "worker", "num_fill")}
    return PlannedBatch(batch, **place)


def _tensor(value: pa.Scalar, dtype: torch.dtype) -> torch.Tensor:
    """Copy a list of numbers to a tensor."""
    return torch.tensor(value.values.to_numpy(), dtype=dtype)


def _buffer(column: pa.ChunkedArray | pa.Array) -> pa.Buffer:
    """Slice the bytes of a column's one value out of its memory; a scalar's would be a copy."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    array = next(chunk for chunk in chunks if len(chunk))
    _, offsets, data = array.buffers()
    start, end = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    return pa.py_buffer(b"") if data is None else data.slice(start, end - start)


def _bytes_tensor(buffer: pa.Buffer) -> torch.Tensor:
    """View a buffer as a (bytes,) uint8 tensor, which keeps the buffer alive.

    Through ctypes, since torch warns of every read-only buffer; Arrow's are.
    """
    if buffer.size == 0:
        return torch.zeros(0, dtype=torch.uint8)
    view = (ctypes.c_uint8 * buffer.size).from_address(buffer.address)
    view.owner = buffer
    return torch.frombuffer(view, dtype=torch.uint8)
