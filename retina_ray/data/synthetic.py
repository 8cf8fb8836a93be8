"""A data set of drawn shapes: discs, rings and bars over a textured ground.

It needs no download, its boxes are exact, and a small network learns it in minutes: the set that
the tests, the first experiment and the benchmarks run on. Picture i depends on (seed, i, size)
alone, so a set may be drawn in parts and on any machine.

Needs numpy, pyarrow and cv2 only: no PyTorch.
"""

from __future__ import annotations

import colorsys
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

SHAPE_NAMES = ("disc", "ring", "bar")

# Enters the seeds and the folder's name: raise it when a change alters the pictures.
_VERSION = 5
_EMPTY_FRACTION = 0.04
_MAX_SHAPES = 6
# Diameters as fractions of the picture: 18 to 51 px at 128 px.
_SMALLEST, _LARGEST = 18 / 128, 51 / 128
_MIN_VISIBLE = 0.75
_HUE_SPREAD = 0.06
"""Standard deviation of a class's hue in turns of the colour circle; the classes lie 1/3 apart."""
_TINT = 12.0
"""How far the channels of the ground lie from its tone, in levels: muted, unlike the shapes."""
_MIN_CONTRAST = 110.0
"""Least distance of a shape's colour from the ground and from the other shapes, in RGB levels."""
_OVERSAMPLING = 8
_SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class _Shape:
    """A convex polygon, with a hole of its own form or none, and its RGB colour.

    Attributes:
        label: 0 to 2.
        corners: (V, 2) in pixels; 64 for a disc.
        colour: (3,) RGB.
        hole: size of the hole as a fraction of the shape's; 0 for none.
    """

    label: int
    corners: np.ndarray
    colour: np.ndarray
    hole: float = 0.0

    def coverage(self, size_px: int) -> np.ndarray:
        """(H, W) in [0, 1]: the share of each pixel that the shape covers."""
        cover = _coverage(self.corners, size_px)
        if self.hole > 0:
            centre = self.corners.mean(axis=0)
            cover = cover - _coverage(centre + self.hole * (self.corners - centre), size_px)
        return cover

    def area(self) -> float:
        """Area in px^2, without the hole."""
        return _polygon_area(self.corners) * (1 - self.hole**2)


def draw_image(seed: int, index: int, *, size_px: int) -> Record:
    """Draw one picture.

    Shapes are placed from front to back, and one of which less than 75 % would show is not drawn at
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
        cover = shape.coverage(size_px)
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
        area=np.array([shape.area() for shape in shapes], np.float64),
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
    """(H, W, 3) float64: a muted tone, with noise at scales from the whole picture to one pixel."""
    tone = rng.uniform(70, 185) + rng.uniform(-_TINT, _TINT, 3)
    ground = np.broadcast_to(tone, (size_px, size_px, 3)).copy()
    for cells, amplitude in ((2, 16.0), (5, 12.0), (12, 9.0), (32, 7.0)):
        light = rng.normal(0, amplitude, (cells, cells, 1)) + rng.normal(0, 2, (cells, cells, 3))
        coarse = light.astype(np.float32)
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
    colour = _colour(rng, label, [ground[y, x], *(o.colour for o in others)])
    hole = rng.uniform(0.45, 0.65) if SHAPE_NAMES[label] == "ring" else 0.0
    return _Shape(label, corners, colour, hole)


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """(V, 2) corners about the origin, of any scale, turned a little."""
    if name != "bar":
        angles = np.arange(64) * (2 * np.pi / 64)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    length, turn = rng.uniform(2.2, 3.2), rng.uniform(-0.2, 0.2) + rng.integers(2) * np.pi / 2
    bar = np.array([[length, 1], [-length, 1], [-length, -1], [length, -1]])
    cos, sin = np.cos(turn), np.sin(turn)
    return bar @ np.array([[cos, sin], [-sin, cos]])


def _colour(rng: np.random.Generator, label: int, avoid: list[np.ndarray]) -> np.ndarray:
    """A strong colour away from the given ones; the best of 20 where none is far enough.

    Its hue is near the class's own: as with most things, colour tells the class often, form always.
    """
    best, best_distance = np.zeros(3), -1.0
    for _ in range(20):
        hue = (label / len(SHAPE_NAMES) + rng.normal(0, _HUE_SPREAD)) % 1
        saturation, value = rng.uniform(0.7, 1), rng.uniform(0.6, 1)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
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
