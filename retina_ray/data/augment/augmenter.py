"""Random changes of a training image and its boxes, from encoded bytes to a sample.

Each kind of change draws from a stream of its own, and so does each image that takes part:
switching one change on leaves the draws of the others as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retina_ray.config import InputConfig
from retina_ray.data.augment.colour import ColourJitter
from retina_ray.data.augment.crops import corner_window, draw_crop, draw_window
from retina_ray.data.augment.mixing import blend, paste
from retina_ray.data.augment.transforms import (
    Flip,
    LabeledImage,
    rotate90_boxes,
    rotate90_size,
    shortest_edge_size,
)
from retina_ray.data.augment.views import LazyImage, View, scaled, show
from retina_ray.data.images.decoding import Pixels
from retina_ray.data.random_streams import random_stream
from retina_ray.data.rotated_boxes import are_rotated, shorter_sides

Size = tuple[int, int]

# ASCII names: each kind of change has its own stream.
_FLIP, _ROTATE, _CROP, _SCALE = 0x666C6970, 0x7475726E, 0x63726F70, 0x7363616C65
_MOSAIC, _MIXUP, _COLOUR = 0x6D6F73616963, 0x6D69787570, 0x636F6C6F7572

_NUM_MOSAIC = 4
_CENTRE = (0.25, 0.75)  # of the canvas's sides: where the images of a mosaic may meet (YOLOv5)


class _Streams:
    """The generators of one sample, one for each kind of change of each image."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._root: list[int] = []
        self.coins = rng.random(2)  # the main image's flips: the first draws, whatever is on

    def __call__(self, name: int, image: int = 0) -> np.random.Generator:
        if not self._root:
            self._root = self._rng.integers(0, 2**63, 2).tolist()
        return random_stream(*self._root, image, name)


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """Rotates, crops, resizes, flips, mixes and recolours images at random, in this order.

    What comes out is a function of the arguments and the generator's state. Picklable.

    Attributes:
        flip: each named flip happens with probability 0.5, independently. The draws are the same
            whatever is named, so "both" flips horizontally where "horizontal" does.
        min_box_size_px: boxes with a side below this in the result are dropped; so are boxes
            without an area, and NaN.
        rotate_90: rotate by 0, 1, 2 or 3 quarter turns, each with probability 1/4.
        crop_prob: chance of a crop, see `retina_ray.data.augment.crops.draw_crop`.
        crop_min_ious: one of these is drawn for each crop.
        crop_min_scale: shortest side of a crop, as a share of the image's side.
        scale_jitter: large-scale jitter (arXiv:2012.07177): an image is resized by a factor
            between these two (uniform in its logarithm) beyond its target size. What is then too
            much is cut off, at a random place; what is missing is grey.
        mosaic_scale: the same for the images of a mosaic, in place of `scale_jitter`.
        min_visible: a box of which crop, jitter or mosaic leave a smaller share of the area than
            this is dropped.
        mixup_alpha: the main image's share in a blend is drawn from Beta(alpha, alpha).
    """

    flip: Flip = "none"
    min_box_size_px: float = 1.0
    rotate_90: bool = False
    crop_prob: float = 0.0
    crop_min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    crop_min_scale: float = 0.3
    scale_jitter: tuple[float, float] | None = None
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    min_visible: float = 0.1
    mixup_alpha: float = 8.0
    colour: ColourJitter = field(default_factory=ColourJitter)

    @classmethod
    def from_config(cls, config: InputConfig) -> Augmenter:
        """Build what a config describes; which images are mixed is the plan's business."""
        changes = config.augment
        return cls(
            flip=config.flip,
            min_box_size_px=config.min_box_size_px,
            rotate_90=changes.rotate_90,
            crop_prob=changes.crop_prob,
            crop_min_ious=changes.crop_min_ious,
            crop_min_scale=changes.crop_min_scale,
            scale_jitter=changes.scale_jitter,
            mosaic_scale=changes.mosaic_scale,
            min_visible=changes.min_visible,
            mixup_alpha=changes.mixup_alpha,
            colour=ColourJitter(
                brightness=changes.brightness,
                contrast=changes.contrast,
                saturation=changes.saturation,
                hue=changes.hue,
            ),
        )

    def __call__(
        self,
        main: LazyImage,
        mix_sources: Sequence[LazyImage] = (),
        *,
        target_size: Size,
        size_px: int,
        max_size_px: int,
        rng: np.random.Generator,
        mosaic: bool = False,
        mixup: bool = False,
        out: Pixels | None = None,
    ) -> LabeledImage:
        """Make a sample of an image.

        Args:
            main: the image.
            mix_sources: three others for a mosaic, then one for mixup.
            target_size: (height, width) of the result: `shortest_edge_size` of the main image.
                Where that is rotated by 90 or 270 degrees or cropped, the result has the size that
                belongs to what is left of it; a mosaic always has `target_size`.
            size_px: length of the shorter side.
            max_size_px: limit of the longer side.
            rng: of the main image, see `retina_ray.data.random_streams.image_stream`.
            mosaic: put four images around a point (YOLOv4, arXiv:2004.10934).
            mixup: blend another image in and add its boxes (arXiv:1902.04103).
            out: uint8 that may be written to, see `retina_ray.data.augment.views.show`.

        Returns:
            The sample.

        Raises:
            DecodeError: an image cannot be decoded.
            ValueError: the number of mix sources is not the one that mosaic and mixup need.
        """
        num_expected = (_NUM_MOSAIC - 1) * mosaic + mixup
        if len(mix_sources) != num_expected:
            raise ValueError(
                f"{len(mix_sources)} mix sources, but mosaic={mosaic} and mixup={mixup} need "
                f"{num_expected}: three for a mosaic, then one for mixup"
            )
        limits = (size_px, max_size_px)
        streams = _Streams(rng)
        if mosaic:
            images = [main, *mix_sources[: _NUM_MOSAIC - 1]]
            sample = self._mosaic(images, target_size, limits, streams)
        else:
            view = self._view(main, 0, streams)
            if view.quarter_turns or view.crop_size != tuple(main.size):
                target_size = shortest_edge_size(*view.crop_size, *limits)
            sample = self._filled(main, 0, view, target_size, target_size, streams, out)
        if mixup:
            share = streams(_MIXUP).beta(self.mixup_alpha, self.mixup_alpha)
            # Numbered as after a mosaic, so that a mosaic does not change it.
            other = self._fitted(mix_sources[-1], _NUM_MOSAIC, sample.image.shape[:2], streams)
            sample = blend(sample, other, share)
        image = self.colour(sample.image, streams(_COLOUR)) if self.colour else sample.image
        keep = _are_large(sample.boxes, self.min_box_size_px)
        return LabeledImage(image, sample.boxes[keep], sample.labels[keep])

    def _view(self, source: LazyImage, number: int, streams: _Streams) -> View:
        """Draw flips, rotation and crop of an image."""
        coins = (streams.coins if number == 0 else streams(_FLIP, number).random(2)) < 0.5
        turns = int(streams(_ROTATE, number).integers(4)) if self.rotate_90 else 0
        height, width = rotate90_size(source.size, turns)
        crop = (0, 0, width, height)
        if self.crop_prob > 0:
            rng = streams(_CROP, number)
            if rng.random() < self.crop_prob:
                crop = draw_crop(
                    rng,
                    (height, width),
                    rotate90_boxes(source.boxes, *source.size, turns),
                    min_ious=self.crop_min_ious,
                    min_scale=self.crop_min_scale,
                    min_visible=self.min_visible,
                )
        return View.of_crop(
            crop,
            quarter_turns=turns,
            horizontal=bool(coins[0]) and self.flip in ("horizontal", "both"),
            vertical=bool(coins[1]) and self.flip in ("vertical", "both"),
        )

    def _filled(
        self,
        source: LazyImage,
        number: int,
        view: View,
        size: Size,
        canvas: Size,
        streams: _Streams,
        out: Pixels | None = None,
    ) -> LabeledImage:
        """Resize an image to `size`, or to what jitter makes of it, and fill a canvas with it."""
        view = view.resized(size)
        if self.scale_jitter is not None:
            rng = streams(_SCALE, number)
            size = scaled(size, _log_uniform(self.scale_jitter, rng.random()))
            view = view.resized(size, draw_window(rng, size, canvas))
        sample = show(source, view, min_visible=self.min_visible, out=out)
        # Missing parts are at the right and the bottom before the flips.
        x = canvas[1] - view.size[1] if view.horizontal else 0
        y = canvas[0] - view.size[0] if view.vertical else 0
        return paste([sample], [(x, y)], canvas)

    def _fitted(
        self, source: LazyImage, number: int, canvas: Size, streams: _Streams
    ) -> LabeledImage:
        """Fill a canvas with an image of another shape, as large as it fits in as a whole."""
        view = self._view(source, number, streams)
        factor = min(side / own for side, own in zip(canvas, view.crop_size, strict=True))
        height, width = scaled(view.crop_size, factor)
        size = (min(height, canvas[0]), min(width, canvas[1]))
        return self._filled(source, number, view, size, canvas, streams)

    def _mosaic(
        self,
        images: Sequence[LazyImage],
        canvas: Size,
        limits: tuple[int, int],
        streams: _Streams,
    ) -> LabeledImage:
        """Put four images around a point of a canvas, which a corner of each touches."""
        draws = streams(_MOSAIC).random(2 + _NUM_MOSAIC)
        y, x = (
            _within(_CENTRE[0] + (_CENTRE[1] - _CENTRE[0]) * draw, side)
            for side, draw in zip(canvas, draws[:2], strict=True)
        )
        samples, places = [], []
        for number, source in enumerate(images):
            bottom, right = divmod(number, 2)  # which quadrant of the canvas
            room = (canvas[0] - y if bottom else y, canvas[1] - x if right else x)
            if min(room) == 0:
                continue  # a canvas of one pixel's width has no quadrants at one side
            view = self._view(source, number, streams)
            size = shortest_edge_size(*view.crop_size, *limits)
            size = scaled(size, _log_uniform(self.mosaic_scale, draws[2 + number]))
            # The corner that touches the point, as it was before the flips.
            window = corner_window(
                size, room, right=(not right) ^ view.horizontal, bottom=(not bottom) ^ view.vertical
            )
            view = view.resized(size, window)
            samples.append(show(source, view, min_visible=self.min_visible))
            places.append((x if right else x - view.size[1], y if bottom else y - view.size[0]))
        return paste(samples, places, canvas)


def _within(share: float, side: int) -> int:
    """A border between two pixels at a share of a side, with a pixel on either side if possible."""
    return max(1, min(side - 1, math.floor(share * side + 0.5)))


def _log_uniform(limits: tuple[float, float], draw: float) -> float:
    """Spread a draw from [0, 1) between two limits, uniformly in the logarithm."""
    low, high = limits
    return low * (high / low) ** draw


def _are_large(boxes: NDArray, min_side: float) -> NDArray[np.bool_]:
    """(M,) whether a box's shorter side reaches a length, and is above 0."""
    if are_rotated(boxes):
        sides = shorter_sides(boxes)
    else:
        sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return (sides >= min_side) & (sides > 0)
