"""A data set of drawn shapes: circles, squares and triangles over a textured ground.

It needs no download, its boxes are exact, and a small network learns it in minutes: the set that
the tests, the first experiment and the benchmarks run on. Picture i depends on (seed, i, size)
alone, so a set may be drawn in parts and on any machine.

Needs numpy, pyarrow and cv2 only: no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.fs as pafs

from retina_ray.config import SyntheticConfig
from retina_ray.data.dataset_info import INFO_FILE, open_filesystem
from retina_ray.data.image_files import encode_jpeg
from retina_ray.data.schema import Category, DataError, Record
from retina_ray.data.shards import PreparedDataset, ShardWriter

__all__ = ["SHAPE_NAMES", "draw_image", "make_shapes", "prepare_synthetic"]

SHAPE_NAMES = ("circle", "square", "triangle")

# Enters the seeds and the folder's name: raise it when a change alters the pictures.
_VERSION = 1
_EMPTY_FRACTION = 0.04
_MAX_SHAPES = 6
# Diameters as fractions of the picture: 12 to 64 px at 128 px.
_SMALLEST, _LARGEST = 12 / 128, 64 / 128
_MIN_VISIBLE = 0.3
_MIN_CONTRAST = 110.0
"""Least distance of a shape's colour from the ground and from the other shapes, in RGB levels."""
_OVERSAMPLING = 8
_SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class _Shape:
    """A convex polygon; V corners (64 for a circle) in pixels, and its RGB colour."""

    label: int
    corners: np.ndarray
    colour: np.ndarray


def draw_image(seed: int, index: int, *, size_px: int) -> Record:
    """Draw one picture.

    Shapes are placed from front to back, and one of which less than 30 % would show is not drawn at
    all: whatever can be seen has a box. A box is the extent of the whole shape within the picture,
    hidden parts included, exact to a fraction of a pixel.

    Args:
        seed: of the set.
        index: number of the picture, from 0.
        size_px: height and width.

    Returns:
        A record with a JPEG of quality 95, image id index + 1, and annotation ids that no other
        picture of the seed has. About 4 % of the pictures hold no shape.
    """
    rng = np.random.default_rng([_VERSION, seed % 2**64, index, size_px])
    ground = _draw_ground(rng, size_px)
    num_shapes = 0 if rng.random() < _EMPTY_FRACTION else int(rng.integers(1, _MAX_SHAPES + 1))
    shapes: list[_Shape] = []
    covers: list[np.ndarray] = []
    taken = np.zeros((size_px, size_px))
    for _ in range(num_shapes):
        shape = _place_shape(rng, size_px, ground, shapes)
        cover = _coverage(shape.corners, size_px)
        if (cover * (1 - taken)).sum() >= _MIN_VISIBLE * cover.sum():
            shapes.append(shape)
            covers.append(cover)
            taken = np.maximum(taken, cover)
    pixels = ground
    for shape, cover in zip(reversed(shapes), reversed(covers), strict=True):
        pixels = pixels + cover[..., None] * (shape.colour - pixels)
    pixels = pixels + rng.normal(0, 3, pixels.shape)
    boxes = [np.concatenate([s.corners.min(axis=0), s.corners.max(axis=0)]) for s in shapes]
    return Record(
        image=encode_jpeg(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)),
        file_name=f"{index:06d}.jpg",
        image_id=index + 1,
        height=size_px,
        width=size_px,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([shape.label for shape in shapes], np.int32),
        iscrowd=np.zeros(len(shapes), np.bool_),
        area=np.array([_polygon_area(shape.corners) for shape in shapes], np.float64),
        annotation_id=index * _MAX_SHAPES + 1 + np.arange(len(shapes), dtype=np.int64),
    )


def make_shapes(
    out_uri: str | os.PathLike[str],
    *,
    num_images: int,
    size_px: int,
    seed: int,
    split: str,
    rows_per_group: int = 32,
    rows_per_shard: int = 2048,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreparedDataset:
    """Draw a split and write it as a prepared data set.

    Args:
        out_uri: folder of the set: a local path or a URI.
        num_images: at least 1.
        size_px: height and width of the pictures.
        seed: of the set; splits of one seed share no picture.
        split: "train", "val" or "test".
        rows_per_group: pictures of a row group.
        rows_per_shard: pictures of a file.
        overwrite: replace a set that is there already.
        on_progress: called with (pictures done, pictures in all).

    Returns:
        The prepared set.

    Raises:
        DataError: a set is there already.
        ValueError: a number below 1, or another split.
    """
    if num_images < 1 or size_px < 32:
        raise ValueError(f"num_images = {num_images} (>= 1), size_px = {size_px} (>= 32)")
    stream = _split_seed(seed, split)
    writer = ShardWriter(
        out_uri,
        name="shapes",
        split=split,
        categories=[Category(i, name) for i, name in enumerate(SHAPE_NAMES, start=1)],
        source=f"drawn by retina_ray, version {_VERSION}, seed {seed}, {size_px} px",
        rows_per_group=rows_per_group,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )
    with writer:
        for index in range(num_images):
            writer.add(draw_image(stream, index, size_px=size_px))
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
    text = json.dumps({"version": _VERSION, **config.model_dump()}, sort_keys=True)
    name = f"shapes-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    filesystem, path = open_filesystem(root)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    base = f"{path if local else os.fspath(root).rstrip('/')}/{name}"
    uris = (f"{base}/train", f"{base}/val")
    infos = filesystem.get_file_info([f"{path}/{name}/{s}/{INFO_FILE}" for s in ("train", "val")])
    if not all(info.is_file for info in infos):
        if local:
            os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path if local else None, prefix=f".{name}-", ignore_cleanup_errors=True
        ) as scratch:
            made = Path(scratch) / name
            for split, num_images in (("train", config.num_train), ("val", config.num_val)):
                make_shapes(
                    made / split,
                    num_images=num_images,
                    size_px=config.size_px,
                    seed=config.seed,
                    split=split,
                )
            if local:
                _move_into_place(made, Path(path) / name)
            else:
                _copy_into_place(made, filesystem, f"{path}/{name}")
    for uri in uris:
        PreparedDataset.open(uri)
    return uris


def _move_into_place(made: Path, target: Path) -> None:
    """Rename in one step; where another process was first, its set stays."""
    try:
        made.rename(target)
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


def _draw_ground(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """(H, W, 3) float64: a colour, with noise at scales from the whole picture to single pixels."""
    ground = np.broadcast_to(rng.uniform(50, 205, 3), (size_px, size_px, 3)).copy()
    for cells, amplitude in ((2, 16.0), (5, 12.0), (12, 9.0), (32, 7.0)):
        coarse = rng.normal(0, amplitude, (cells, cells, 3)).astype(np.float32)
        ground += cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(ground, 0, 255)


def _place_shape(
    rng: np.random.Generator, size_px: int, ground: np.ndarray, others: list[_Shape]
) -> _Shape:
    """Draw a kind, a size (log-uniform), a turn, a place within the picture and a colour."""
    label = int(rng.integers(len(SHAPE_NAMES)))
    size = size_px * _SMALLEST * (_LARGEST / _SMALLEST) ** rng.random()
    outline = _outline(SHAPE_NAMES[label], rng)
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline = (outline - low) * size / (high - low).max()
    room = size_px - outline.max(axis=0)
    corners = outline + rng.random(2) * room
    x, y = np.minimum(corners.mean(axis=0).astype(int), size_px - 1)
    return _Shape(label, corners, _colour(rng, [ground[y, x], *(o.colour for o in others)]))


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """(V, 2) corners about the origin, of any scale, turned a little."""
    if name == "circle":
        angles = np.arange(64) * (2 * np.pi / 64)
    elif name == "square":
        angles = np.pi / 4 + np.arange(4) * (np.pi / 2) + rng.uniform(-0.25, 0.25)
    else:
        angles = -np.pi / 2 + np.arange(3) * (2 * np.pi / 3) + rng.uniform(-0.35, 0.35)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(rng: np.random.Generator, avoid: list[np.ndarray]) -> np.ndarray:
    """A colour away from the given ones; the best of 20 where none is far enough."""
    best, best_distance = np.zeros(3), -1.0
    for _ in range(20):
        colour = rng.uniform(0, 255, 3)
        distance = min(float(np.linalg.norm(colour - other)) for other in avoid)
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance >= _MIN_CONTRAST:
            break
    return best


def _coverage(corners: np.ndarray, size_px: int) -> np.ndarray:
    """(H, W) float64 in [0, 1]: the share of each pixel that a convex polygon covers.

    Counted on a grid of 8 x 8 points in each pixel, so it is the same on every machine.
    """
    cover = np.zeros((size_px, size_px))
    x0, y0 = np.floor(corners.min(axis=0)).astype(int)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int), size_px)
    step = 1 / _OVERSAMPLING
    xs = x0 + (np.arange((x1 - x0) * _OVERSAMPLING) + 0.5) * step
    ys = (y0 + (np.arange((y1 - y0) * _OVERSAMPLING) + 0.5) * step)[:, None]
    inside = np.ones((len(ys), len(xs)), np.bool_)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (bx - ax) * (ys - ay) >= (by - ay) * (xs - ax)
    blocks = inside.reshape(y1 - y0, _OVERSAMPLING, x1 - x0, _OVERSAMPLING)
    cover[y0:y1, x0:x1] = blocks.mean(axis=(1, 3))
    return cover


def _polygon_area(corners: np.ndarray) -> float:
    """Area in px^2 (the shoelace formula)."""
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
