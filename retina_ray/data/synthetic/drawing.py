"""Images of drawn shapes over a textured ground, with exact boxes.

Upright images hold discs, rings and bars; rotated ones hold ellipses, frames and bars at any
angle, longer than wide, so that their rotated boxes are unmistakable.

Needs numpy and cv2 only: no PyTorch.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from retina_ray.data.images.files import encode_jpeg
from retina_ray.data.prepared.schema import Record
from retina_ray.data.rotated_boxes import cut_enclosing_boxes, least_rotated

SHAPE_NAMES = ("disc", "ring", "bar")
ROTATED_NAMES = ("ellipse", "frame", "bar")

PICTURE_VERSION = 5
"""Enters the seeds and a set's name: to be raised when a change alters the images."""

_EMPTY_FRACTION = 0.04
_MAX_SHAPES = 6
# Diameters as fractions of the image: 18 to 51 px at 128 px.
_SMALLEST, _LARGEST = 18 / 128, 51 / 128
_ASPECTS = {"ellipse": (1.6, 2.4), "frame": (1.4, 2.0), "bar": (2.2, 3.2)}
"""Length / width of rotated shapes, from and to."""
_MIN_VISIBLE = 0.75
_HUE_SPREAD = 0.06
"""Standard deviation of a class's hue in turns of the colour circle; the classes lie 1/3 apart."""
_TINT = 12.0
"""How far the channels of the ground lie from its tone, in levels: muted, unlike the shapes."""
_MIN_CONTRAST = 110.0
"""Least distance of a shape's colour from the ground and from the other shapes, in RGB levels."""
_OVERSAMPLING = 8
_ANGLES = np.arange(64) * (2 * np.pi / 64)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_SQUARE = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])


@dataclass(frozen=True)
class _Shape:
    """A convex polygon, with a hole of its own form or none, and its RGB colour.

    Attributes:
        label: 0 to 2.
        corners: (V, 2) in pixels; 64 for a disc.
        colour: (3,) RGB.
        hole: size of the hole as a fraction of the shape's; 0 for none.
        frame: of a rotated shape: (width, height, angle) of its rotated box, pixels and degrees.
    """

    label: int
    corners: np.ndarray
    colour: np.ndarray
    hole: float = 0.0
    frame: tuple[float, float, float] | None = None

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

    def rotated_box(self) -> tuple[float, ...]:
        """(x_center, y_center, width, height, angle) of a rotated shape."""
        return (*self.corners.mean(axis=0).tolist(), *(self.frame or ()))


def draw_image(seed: int, index: int, *, size_px: int, rotated: bool = False) -> Record:
    """Draw one image.

    Shapes are placed from front to back, and one of which less than 75 % would show is not drawn at
    all: whatever can be seen has a box. A box is the extent of the whole shape within the image,
    hidden parts included, exact to a fraction of a pixel. A rotated box is the extent in the
    shape's own directions, written with an angle in [-45, 45), and the aligned box is then the one
    around it, cut at the border. A shape lies within the image; a corner of its rotated box may
    lie outside.

    Args:
        seed: of the set.
        index: number of the image, from 0.
        size_px: height and width.
        rotated: rotated shapes with rotated boxes, of other classes (`ROTATED_NAMES`).

    Returns:
        A record with a JPEG of quality 95, image id index + 1, and annotation ids that no other
        image of the seed has. About 4 % of the images hold no shape.
    """
    kind = [1] if rotated else []
    rng = np.random.default_rng([PICTURE_VERSION, seed % 2**64, index, size_px, *kind])
    ground = _draw_ground(rng, size_px)
    num_shapes = 0 if rng.random() < _EMPTY_FRACTION else int(rng.integers(1, _MAX_SHAPES + 1))
    shapes: list[_Shape] = []
    covers: list[np.ndarray] = []
    taken = np.zeros((size_px, size_px))
    for _ in range(num_shapes):
        shape = _place_shape(rng, size_px, ground, shapes, rotated)
        cover = shape.coverage(size_px)
        if (cover * (1 - taken)).sum() >= _MIN_VISIBLE * cover.sum():
            shapes.append(shape)
            covers.append(cover)
            taken = np.maximum(taken, cover)
    pixels = ground
    for shape, cover in zip(reversed(shapes), reversed(covers), strict=True):
        pixels = pixels + cover[..., None] * (shape.colour - pixels)
    pixels = pixels + rng.normal(0, 3, pixels.shape)
    rotated_boxes = None
    if rotated:
        rotated_boxes = np.array([s.rotated_box() for s in shapes], np.float32).reshape(-1, 5)
        boxes = cut_enclosing_boxes(rotated_boxes, size_px, size_px)
    else:
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
        rotated_boxes=rotated_boxes,
    )


def _draw_ground(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """(H, W, 3) float64: a muted tone, with noise at scales from the whole image to one pixel."""
    tone = rng.uniform(70, 185) + rng.uniform(-_TINT, _TINT, 3)
    ground = np.broadcast_to(tone, (size_px, size_px, 3)).copy()
    for cells, amplitude in ((2, 16.0), (5, 12.0), (12, 9.0), (32, 7.0)):
        light = rng.normal(0, amplitude, (cells, cells, 1)) + rng.normal(0, 2, (cells, cells, 3))
        coarse = light.astype(np.float32)
        ground += cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(ground, 0, 255)


def _place_shape(
    rng: np.random.Generator,
    size_px: int,
    ground: np.ndarray,
    others: list[_Shape],
    rotated: bool,
) -> _Shape:
    """Draw a kind, a size (log-uniform), a turn, a place within the image and a colour."""
    names = ROTATED_NAMES if rotated else SHAPE_NAMES
    label = int(rng.integers(len(names)))
    size = size_px * _SMALLEST * (_LARGEST / _SMALLEST) ** rng.random()
    frame = _frame(names[label], size, rng) if rotated else None
    outline = _rotated(names[label], frame) if frame else _upright(names[label], size, rng)
    outline = outline - outline.min(axis=0)
    room = size_px - outline.max(axis=0)
    corners = outline + rng.random(2) * room
    x, y = np.minimum(corners.mean(axis=0).astype(int), size_px - 1)
    colour = _colour(rng, label, [ground[y, x], *(o.colour for o in others)])
    hole = rng.uniform(0.45, 0.65) if names[label] in ("ring", "frame") else 0.0
    return _Shape(label, corners, colour, hole, frame)


def _frame(name: str, length: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Width, height and angle of a shape rotated to any side, with the angle in [-45, 45)."""
    box = [0, 0, length, length / rng.uniform(*_ASPECTS[name]), rng.uniform(-90, 90)]
    _, _, width, height, angle = least_rotated(np.array([box]))[0].tolist()
    return width, height, angle


def _rotated(name: str, frame: tuple[float, float, float]) -> np.ndarray:
    """(V, 2) corners about the origin, in pixels."""
    width, height, angle = frame
    corners = _CIRCLE if name == "ellipse" else _SQUARE
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return corners * [width / 2, height / 2] @ np.array([[cos, -sin], [sin, cos]])


def _upright(name: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """(V, 2) corners, the extent from the origin to at most `size`; a bar is turned a little."""
    outline = _CIRCLE
    if name == "bar":
        length = rng.uniform(2.2, 3.2)
        turn = rng.uniform(-0.2, 0.2) + rng.integers(2) * np.pi / 2
        cos, sin = np.cos(turn), np.sin(turn)
        outline = _SQUARE * [length, 1] @ np.array([[cos, sin], [-sin, cos]])
    low, high = outline.min(axis=0), outline.max(axis=0)
    return (outline - low) * size / (high - low).max()


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
