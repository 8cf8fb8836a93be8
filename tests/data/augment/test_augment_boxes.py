"""Boxes follow the pixels through every change and all of them together.

Two ways to see where a box went. Paint: a picture is black but for one box, so what differs from
the same sample of black pictures is the paint. Map: each pixel has its own place as its colour, so
the sample says which part of which picture shows where.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.augment.transforms import LabeledImage, shortest_edge_size
from retina_ray.data.augment.views import LazyImage
from retina_ray.data.random_streams import image_stream

MARKS = (10, 50, 170, 210, 250)  # blue of each picture's map; the canvas's is 104
LONGEST = 120  # of a picture, so that twice a coordinate is a colour


@dataclass(frozen=True)
class Scene:
    """Pictures by their sizes and boxes; labels are numbered through."""

    sizes: list[tuple[int, int]]
    boxes: list[np.ndarray]
    augmenter: Augmenter
    size_px: int
    seed: int
    mosaic: bool
    mixup: bool
    reduces: bool

    @property
    def labels(self) -> list[np.ndarray]:
        ends = np.cumsum([len(b) for b in self.boxes])
        return [
            np.arange(e - len(b), e, dtype=np.int32) for e, b in zip(ends, self.boxes, strict=True)
        ]

    @property
    def flat(self) -> list[tuple[int, np.ndarray]]:
        """For each label its picture and its box."""
        return [(i, box) for i, boxes in enumerate(self.boxes) for box in boxes]

    def run(self, pictures: list[np.ndarray]) -> LabeledImage:
        sources = [
            LazyImage(self.decoder(picture), picture.shape[:2], boxes, labels)
            for picture, boxes, labels in zip(pictures, self.boxes, self.labels, strict=True)
        ]
        max_size_px = 2 * self.size_px
        return self.augmenter(
            sources[0],
            sources[1:],
            target_size=shortest_edge_size(*self.sizes[0], self.size_px, max_size_px),
            size_px=self.size_px,
            max_size_px=max_size_px,
            rng=image_stream(self.seed, 0, 0),
            mosaic=self.mosaic,
            mixup=self.mixup,
        )

    def decoder(self, picture: np.ndarray):
        """Like a JPEG's: smaller by a power of two where enough is left, and nothing is cut."""

        def decode(min_shorter_side: int) -> np.ndarray:
            height, width = picture.shape[:2]
            for factor in (8, 4, 2):
                fits = height % factor == 0 == width % factor
                if self.reduces and fits and min(height, width) // factor >= min_shorter_side:
                    size = (width // factor, height // factor)
                    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            return picture

        return decode


@st.composite
def augmenters(draw) -> Augmenter:
    maybe = st.sampled_from((0.0, 0.5, 1.0))
    return Augmenter(
        flip=draw(st.sampled_from(("none", "horizontal", "vertical", "both"))),
        min_box_size_px=draw(st.sampled_from((0.0, 1.0, 4.0))),
        rotate_90=draw(st.booleans()),
        crop_prob=draw(maybe),
        crop_min_ious=draw(st.sampled_from(((0.0,), (0.1, 0.5), (0.1, 0.3, 0.5, 0.7, 0.9)))),
        crop_min_scale=draw(st.sampled_from((0.1, 0.3, 0.8, 1.0))),
        scale_jitter=draw(st.sampled_from((None, (0.1, 2.0), (0.5, 1.0), (1.0, 3.0)))),
        mosaic_scale=draw(st.sampled_from(((0.5, 1.0), (0.2, 2.0)))),
        min_visible=draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        mixup_alpha=50.0,  # shares near 1/2: the paint of both can be seen
    )


@st.composite
def scenes(draw, *, shortest: int = 1, rotated: bool = False, mixup: bool = True) -> Scene:
    mosaic, mixup = draw(st.booleans()), mixup and draw(st.booleans())
    reduces = draw(st.booleans())
    step = 8 if reduces else 1
    side = st.integers(-(-shortest // step) if reduces else shortest, LONGEST // step)
    sizes, boxes = [], []
    for _ in range(1 + 3 * mosaic + mixup):
        height, width = step * draw(side), step * draw(side)
        sizes.append((height, width))
        own = []
        for _ in range(draw(st.integers(0, 3))):
            x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
            box = [x0, y0, x1, y1]
            if rotated:
                angle = draw(st.integers(-180, 179))
                box = [(x0 + x1) / 2, (y0 + y1) / 2, 2 + x1 - x0, 2 + y1 - y0, angle]
            own.append(box)
        boxes.append(np.array(own, np.float32).reshape(-1, 5 if rotated else 4))
    size_px = draw(st.integers(max(4, shortest), 150))
    seed = draw(st.integers(0, 10**6))
    return Scene(sizes, boxes, draw(augmenters()), size_px, seed, mosaic, mixup, reduces)


def places(height: int, width: int) -> np.ndarray:
    """(H, W, 2): x and y of the middle of each pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2) + 0.5


def contains(box: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Which (..., 2) points lie in a box that is larger by a margin at each side."""
    box = box.astype(np.float64)
    if len(box) == 4:
        return ((points >= box[:2] - margin) & (points <= box[2:] + margin)).all(axis=-1)
    cos, sin = np.cos(np.deg2rad(box[4])), np.sin(np.deg2rad(box[4]))
    off = points - box[:2]
    along = np.stack([off @ [cos, -sin], off @ [sin, cos]], axis=-1)
    return (np.abs(along) <= box[2:4] / 2 + margin).all(axis=-1)


@settings(max_examples=80, deadline=None)
@given(scenes())
def test_paint_is_found_where_the_box_says(scene):
    """To within a pixel.

    Resizing is linear, so an edge of the paint falls through half its height where the edge is:
    the outermost pixels above half are at most half a pixel off. Another half is for a box so small
    that no pixel is all paint, and a third one for a picture that was decoded at a reduced size,
    whose paint is spread twice.
    """
    atol = 1.5 if scene.reduces else 1.001
    black = [np.zeros((*size, 3), np.uint8) for size in scene.sizes]
    ground = scene.run(black)
    check_within(scene, ground)
    for label, box in zip(ground.labels, ground.boxes, strict=True):
        number, (x0, y0, x1, y1) = scene.flat[label]
        pictures = [picture.copy() for picture in black]
        pictures[number][int(y0) : int(y1), int(x0) : int(x1)] = 255
        sample = scene.run(pictures)
        np.testing.assert_array_equal(sample.boxes, ground.boxes)
        paint = sample.image[..., 0].astype(int) - ground.image[..., 0]
        if min(box[2] - box[0], box[3] - box[1]) < 0.5:
            continue  # next to no paint
        assert paint.max() >= 5
        ys, xs = np.nonzero(paint >= paint.max() / 2)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(found, box, atol=atol)


def check_within(scene: Scene, sample: LabeledImage) -> None:
    """No box is outside or too small."""
    height, width = sample.image.shape[:2]
    boxes = sample.boxes
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    assert (sides >= scene.augmenter.min_box_size_px).all()


def run_maps(scene: Scene) -> tuple[LabeledImage, list[np.ndarray]]:
    """A sample of maps, and (H, W) flags for each picture: where it shows."""
    maps = []
    for size, mark in zip(scene.sizes, MARKS, strict=False):
        picture = np.full((*size, 3), mark, np.uint8)
        picture[..., :2] = 2 * places(*size)
        maps.append(picture)
    sample = scene.run(maps)
    blue = sample.image[..., 2].astype(int)
    return sample, [np.abs(blue - mark) <= 1 for mark in MARKS[: len(maps)]]


def check_maps(scene: Scene, *, slack: float) -> None:
    """Each box holds the pixels that it held before, and no others: to a pixel of the source."""
    sample, shown = run_maps(scene)
    assert len(sample.boxes) == len(sample.labels) == len(set(sample.labels.tolist()))
    before = sample.image[..., :2] / 2.0
    here = places(*sample.image.shape[:2])
    if scene.reduces:  # the blur before shrinking mirrors at borders: an eighth of a result's pixel
        slack = max(slack, 0.13)
    for label, box in zip(sample.labels, sample.boxes, strict=True):
        number, source_box = scene.flat[label]
        own = shown[number]
        if scene.reduces:
            # Beyond the middle of its outermost pixels a reduced image says the same everywhere.
            height, width = scene.sizes[number]
            own = own & contains(np.array([0, 0, width, height]), before, -4.25)
        inside = own & contains(source_box, before, -1)
        assert contains(box, here[inside], slack).all()
        inside = own & contains(box, here, -slack)
        assert contains(source_box, before[inside], 1).all()


@settings(max_examples=80, deadline=None)
@given(scenes(mixup=False))
def test_boxes_hold_the_pixels_that_they_held(scene):
    check_maps(scene, slack=1e-3)


@settings(max_examples=80, deadline=None)
@given(scenes(mixup=False, rotated=True, shortest=40))
def test_rotated_boxes_hold_the_pixels_that_they_held(scene):
    check_maps(scene, slack=1.5)


@settings(max_examples=80, deadline=None)
@given(scenes(mixup=False))
def test_boxes_are_kept_where_enough_is_visible(scene):
    sample, shown = run_maps(scene)
    before = sample.image[..., :2] / 2.0
    kept = set(sample.labels.tolist())
    settings_ = scene.augmenter
    for label, (number, box) in enumerate(scene.flat):
        ys, xs = np.nonzero(shown[number])
        if len(ys) == 0 or min(np.ptp(ys), np.ptp(xs)) < 3:
            continue  # too little to tell the scale
        seen = before[shown[number]]
        low, high = seen.min(axis=0), seen.max(axis=0)
        # The sides of the part that shows, in pixels of the result: turned or not.
        sides = np.array([np.ptp(xs), np.ptp(ys)]) + 1.0
        if np.ptp(before[ys[0], xs[ys == ys[0]], 0]) < np.ptp(before[ys[0], xs[ys == ys[0]], 1]):
            sides = sides[::-1]
        scale = (sides - 1) / np.maximum(high - low, 1e-9)
        half = 0.5 / scale
        # A border is read off the pixels to one of the source, or a quarter of one of the result.
        unit = np.maximum(1.0, 0.25 / scale)

        def visible(side: int, box=box, low=low, high=high, half=half, unit=unit) -> np.ndarray:
            margin = side * unit
            start = np.maximum(box[:2], low - half - margin)
            return np.maximum(np.minimum(box[2:], high + half + margin) - start, 0)

        area = np.prod(box[2:] - box[:2])
        enough = visible(-1).prod() >= max(settings_.min_visible, 1e-6) * area
        whole = (visible(-1) == box[2:] - box[:2]).all()
        large = ((visible(-1) - 0.5) * scale >= max(settings_.min_box_size_px, 1e-3)).all()
        if (enough or whole) and large:
            assert label in kept
        if visible(1).prod() < settings_.min_visible * area:
            assert label not in kept


@settings(max_examples=80, deadline=None)
@given(scenes())
def test_mixup_leaves_the_main_picture_in_its_place(scene):
    """What the main picture or a mosaic would be alone comes first; the partner fits in wholly."""
    assume(scene.mixup)
    pictures = [np.full((*size, 3), 200, np.uint8) for size in scene.sizes]
    mixed = scene.run(pictures)
    parts = {"sizes": scene.sizes[:-1], "boxes": scene.boxes[:-1], "mixup": False}
    alone = Scene(**{**vars(scene), **parts}).run(pictures[:-1])
    assert mixed.image.shape == alone.image.shape
    num = len(alone.boxes)
    np.testing.assert_array_equal(mixed.boxes[:num], alone.boxes)
    np.testing.assert_array_equal(mixed.labels[:num], alone.labels)
    assert set(mixed.labels[num:].tolist()) <= set(scene.labels[-1].tolist())
