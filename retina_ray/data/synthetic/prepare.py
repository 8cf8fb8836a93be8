"""A data set of drawn shapes: discs, rings and bars over a textured ground, or rotated shapes.

It needs no download, its boxes are exact, and a small network learns it in minutes: the set that
the tests, the first experiment and the benchmarks run on. Image i depends on (seed, i, size) and
whether shapes are rotated alone, so a set may be drawn in parts and on any machine.

Needs numpy, pyarrow and cv2 only: no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs

from retina_ray.config import SyntheticConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.data.prepared.schema import Category
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.data.synthetic.drawing import (
    PICTURE_VERSION,
    ROTATED_NAMES,
    SHAPE_NAMES,
    draw_image,
)
from retina_ray.errors import DataError
from retina_ray.storage.files import atomic_folder
from retina_ray.storage.uris import open_filesystem

_SPLITS = {"train": 0, "val": 1, "test": 2}


def make_shapes(
    out_uri: str | os.PathLike[str],
    *,
    num_images: int,
    size_px: int,
    seed: int,
    split: str,
    rotated: bool = False,
    rows_per_group: int = 32,
    rows_per_shard: int = 2048,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreparedDataset:
    """Draw a split and write it as a prepared data set.

    Args:
        out_uri: folder of the set: a local path or a URI.
        num_images: at least 1.
        size_px: height and width of the images.
        seed: of the set; splits of one seed share no image.
        split: "train", "val" or "test".
        rotated: rotated shapes, and a set of rotated boxes.
        rows_per_group: images of a row group.
        rows_per_shard: images of a file.
        overwrite: replace a set that is there already.
        on_progress: called with (images done, images in all).

    Returns:
        The prepared set.

    Raises:
        DataError: a set is there already.
        ValueError: a number below 1, or another split.
    """
    if num_images < 1 or size_px < 32:
        raise ValueError(f"num_images = {num_images} (>= 1), size_px = {size_px} (>= 32)")
    stream = _split_seed(seed, split)
    names = ROTATED_NAMES if rotated else SHAPE_NAMES
    writer = ShardWriter(
        out_uri,
        name="rotated shapes" if rotated else "shapes",
        split=split,
        categories=[Category(i, name) for i, name in enumerate(names, start=1)],
        source=f"drawn by retina_ray, version {PICTURE_VERSION}, seed {seed}, {size_px} px",
        box_type="rotated" if rotated else "aligned",
        rows_per_group=rows_per_group,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )
    with writer:
        for index in range(num_images):
            writer.add(draw_image(stream, index, size_px=size_px, rotated=rotated))
            if on_progress is not None:
                on_progress(index + 1, num_images)
    return PreparedDataset.open(out_uri)


def prepare_synthetic(config: SyntheticConfig, root: str | os.PathLike[str]) -> tuple[str, str]:
    """Make the two splits of a config, once: a set of the same parameters is used again.

    Safe when several processes do it at once: each draws into a folder of its own and moves it to
    its place in one step. On storage other than a local disk, the finished files are copied,
    `dataset.json` last; whoever else does so copies the same bytes.

    Args:
        config: the parameters.
        root: folder or URI under which `shapes-<hash>/train` and `/val` are made.

    Returns:
        The URIs of the training and the validation set.

    Raises:
        DataError: what lies there under this name is damaged.
    """
    parameters = config.model_dump()
    if not config.rotated:
        del parameters["rotated"]  # the name that older versions gave to such a set
    text = json.dumps({"version": PICTURE_VERSION, **parameters}, sort_keys=True)
    name = f"shapes-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    filesystem, path = open_filesystem(root)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    base = f"{path if local else os.fspath(root).rstrip('/')}/{name}"
    uris = (f"{base}/train", f"{base}/val")
    infos = filesystem.get_file_info([f"{path}/{name}/{s}/{INFO_FILE}" for s in ("train", "val")])
    if not all(info.is_file for info in infos):
        if local:
            _draw_into_place(config, Path(path) / name)
        else:
            with tempfile.TemporaryDirectory(prefix=f"{name}-") as made:
                _draw(config, Path(made))
                _copy_into_place(Path(made), filesystem, f"{path}/{name}")
    for uri in uris:
        PreparedDataset.open(uri)
    return uris


def _draw(config: SyntheticConfig, folder: Path) -> None:
    """Draw both splits into a local folder."""
    for split, num_images in (("train", config.num_train), ("val", config.num_val)):
        make_shapes(
            folder / split,
            num_images=num_images,
            size_px=config.size_px,
            seed=config.seed,
            split=split,
            rotated=config.rotated,
        )


def _draw_into_place(config: SyntheticConfig, target: Path) -> None:
    """Draw a set on a local disk; where another process was first, its set stays."""
    try:
        with atomic_folder(target) as made:
            _draw(config, made)
    except OSError as error:
        if not (target / "train" / INFO_FILE).is_file():
            raise DataError(
                f"{target}: cannot be put into place ({error}); if a damaged data set lies there, "
                "delete the folder"
            ) from error


def _copy_into_place(made: Path, filesystem: pafs.FileSystem, target: str) -> None:
    """Copy to other storage, each `dataset.json` after the shards that it names."""
    for split in ("train", "val"):
        filesystem.create_dir(f"{target}/{split}", recursive=True)
        files = sorted((made / split).iterdir(), key=lambda file: file.name == INFO_FILE)
        for file in files:
            with (
                open(file, "rb") as source,
                filesystem.open_output_stream(f"{target}/{split}/{file.name}") as sink,
            ):
                shutil.copyfileobj(source, sink)


def _split_seed(seed: int, split: str) -> int:
    """A seed for each split, far from those of the other splits and other seeds."""
    if split not in _SPLITS:
        raise ValueError(f"split = {split!r}: expected one of {', '.join(_SPLITS)}")
    state = np.random.SeedSequence([seed % 2**64, _SPLITS[split]]).generate_state(1, np.uint64)
    return int(state[0])
