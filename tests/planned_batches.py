"""Batches of single rows of a plan."""

import pyarrow as pa

from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.unpack import unpack_batch
from retina_ray.structures import Batch


def make_loader(train=None, val=None, **changes) -> BatchLoader:
    options = {"seed": 3, "augmenter": Augmenter(flip="both"), "size_divisibility_px": 16}
    return BatchLoader(
        train=train,
        val=val,
        train_index=train.index() if train else None,
        val_index=val.index() if val else None,
        **{**options, **changes},
    )


def train_row(images: list[int], **changes) -> dict:
    row = {"plan_index": 11, "kind": "train", "epoch": 1, "step": 5, "worker": 1, "num_fill": 1}
    return {**row, "images": images, "mixed": False, "size_px": 24, "max_size_px": 64, **changes}


def val_row(images: list[int], **changes) -> dict:
    return train_row(images, kind="val", num_fill=0, **changes)


def load(loader: BatchLoader, *rows: dict) -> pa.Table:
    """The batches of plan rows, as they travel."""
    return loader.load_table(pa.Table.from_pylist(rows))


def batch_of(loader: BatchLoader, row: dict) -> Batch:
    return unpack_batch(load(loader, row)).batch
