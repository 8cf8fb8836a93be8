"""The images of a data set's page with their boxes, keys and captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retina_ray.config import ExperimentConfig
from retina_ray.reports.dataset.choice import find_extremes
from retina_ray.reports.dataset.images import Album, Mark, Shot
from retina_ray.reports.dataset.splits import Split
from retina_ray.reports.html.colors import BOXES
from retina_ray.reports.html.overlay import Box, ShownImage, make_overlay


@dataclass(frozen=True)
class Palette:
    """Names and colors of classes; a label has one color in all images of a card.

    Few classes have a color each, whatever the image. With more, the most frequent ones of an
    image get colors of their own: their numbers by label, else empty.
    """

    names: Sequence[str]
    numbers: Mapping[int, int]

    @classmethod
    def of(cls, names: Sequence[str], marks: Sequence[Mark]) -> Palette:
        """Choose the colors for an image's boxes."""
        if len(names) <= len(BOXES):
            return cls(names, {})
        labels = [label for label, _ in Counter(mark.label for mark in marks).most_common()]
        return cls(names, {label: number for number, label in enumerate(labels)})

    def number(self, label: int) -> int:
        """The number of a label's color."""
        return self.numbers.get(label, label if not self.numbers else label + 1) % len(BOXES)

    def name(self, label: int) -> str:
        """The name of a class; of a label that has none, its number."""
        return self.names[label] if 0 <= label < len(self.names) else f"class {label}"


@dataclass(frozen=True)
class Sample:
    """An image with its caption, line by line."""

    image: ShownImage
    caption: list[str]


@dataclass(frozen=True)
class Card:
    """An image as stored, and what training makes of it; `key`: color and words of each class."""

    title: str
    facts: str
    key: list[tuple[int, str]]
    samples: list[Sample]


def make_card(album: Album, position: int, training: Sequence[Shot]) -> Card:
    """Put a stored image beside what training makes of it."""
    split, stored = album.split, album.stored(position)
    palette = Palette.of(split.dataset.class_names, stored.marks)
    return Card(
        split.file_names[position].as_py(),
        f"id {split.image_ids[position]}",
        _key(stored.marks, palette),
        [
            make_sample(stored, "as stored", palette),
            *(make_sample(shot, shot.caption, palette) for shot in training),
        ],
    )


def stored_sample(album: Album, position: int) -> Sample:
    """A stored image by itself."""
    shot = album.stored(position)
    palette = Palette.of(album.split.dataset.class_names, shot.marks)
    return make_sample(shot, album.split.file_names[position].as_py(), palette)


def extreme_samples(splits: Sequence[Split], albums: Mapping[str, Album]) -> Iterator[Sample]:
    """The boxes and images at the ends, those of all splits together."""
    for extreme in find_extremes(splits):
        split, shot = extreme.split, albums[extreme.split.name].extreme(extreme)
        palette = Palette.of(split.dataset.class_names, shot.marks)
        what = extreme.reason
        if extreme.box is not None:
            what = f"{palette.name(int(split.labels[extreme.box]))}, {what}"
        file_name = split.file_names[extreme.image].as_py()
        yield make_sample(shot, f"{what}\n{split.name}: {file_name}", palette)


def make_sample(shot: Shot, caption: str, palette: Palette) -> Sample:
    """An image with its boxes; its size goes on the last line of the caption."""
    count = sum(not mark.crowd for mark in shot.marks)
    size = f"{shot.width} x {shot.height} px"
    size = f"a part of {size}" if shot.cropped else f"{size}, {count} box{'es' * (count != 1)}"
    overlay = make_overlay([_box(mark, palette) for mark in shot.marks], shot.width, shot.height)
    lines = [*caption.split("\n"), "" if shot.problem else size]
    return Sample(ShownImage(shot.jpeg, overlay, shot.problem), [line for line in lines if line])


def sample_words(split: Split, chosen: Sequence[int]) -> str:
    """How many classes the images show, and which ones they leave out."""
    images, labels = split.class_images
    present, shown = set(labels.tolist()), set(labels[np.isin(images, chosen)].tolist())
    names = split.dataset.class_names
    text = f"{len(chosen)} of {len(split):,} images"
    if not (missing := sorted(present - shown)):
        return f"{text}{', chosen so that every class shows' * bool(present)}."
    listed = ", ".join(names[label] for label in missing[:20])
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    return f"{text} with {len(shown)} of {len(present)} classes. Not shown: {listed}{more}."


def training_settings(config: ExperimentConfig) -> str:
    """What happens to images in training, as `--set` takes it."""
    inputs = config.input
    changed = {
        name: value
        for name, value in dict(inputs.augment).items()
        if value != type(inputs.augment).model_fields[name].default
    }
    settings: dict[str, Any] = {
        "input.train_sizes_px": list(inputs.train_sizes_px),
        "input.train_size_sampling": inputs.train_size_sampling,
        "input.train_max_size_px": inputs.train_max_size_px,
        "input.flip": inputs.flip,
        **{f"input.augment.{name}": value for name, value in changed.items()},
        "train.seed": config.train.seed,
    }
    return ", ".join(
        f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    )


def _box(mark: Mark, palette: Palette) -> Box:
    name = f"{palette.name(mark.label)}{' (crowd)' * mark.crowd}"
    css = f"c{palette.number(mark.label)}{' crowd' * mark.crowd}{' pale' * mark.pale}"
    return Box(mark.corners, css, name, "" if mark.pale else name, below=mark.pale)


def _key(marks: Sequence[Mark], palette: Palette) -> list[tuple[int, str]]:
    """The classes of an image with their colors and how many boxes each has."""
    found = Counter(mark.label for mark in marks if not mark.crowd).most_common()
    crowd = Counter(mark.label for mark in marks if mark.crowd).most_common()
    return [(palette.number(label), f"{palette.name(label)} {count}") for label, count in found] + [
        (
            palette.number(label),
            f"{palette.name(label)}: {count} crowd region{'s' * (count > 1)}, dashed",
        )
        for label, count in crowd
    ]
