"""The page of a data set: counts, figures, images as stored and as training sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from retina_ray.config import ExperimentConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.reports.dataset.choice import Extreme, choose_images, find_extremes
from retina_ray.reports.dataset.figures import Chart, box_charts, image_charts
from retina_ray.reports.dataset.head import head, import_reports
from retina_ray.reports.dataset.page import Card, cards, charts, class_bars, loose_shots, page
from retina_ray.reports.dataset.pictures import Album, Shot, training_shots
from retina_ray.reports.dataset.splits import Split, class_names, open_splits, read_split

NUM_EPOCHS = 3
"""Pictures of each image as training sees it."""

OnStage = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

Section = tuple[str, str, str]
"""Anchor, plain heading and HTML."""

_OTHERS = 4  # other splits show this part of the number of images


def config_for(datasets: Mapping[str, PreparedDataset]) -> ExperimentConfig:
    """The config that a page takes where none is given: the defaults, for the set's boxes."""
    config = ExperimentConfig()
    if all(dataset.box_type == "rotated" for dataset in datasets.values()):
        model = config.model.model_copy(update={"box_type": "rotated"})
        return config.model_copy(update={"model": model})
    return config


def show_dataset(
    uri: str | os.PathLike[str],
    *,
    config: ExperimentConfig | None = None,
    num_images: int = 24,
    seed: int = 0,
    on_stage: OnStage = lambda what, done, total: None,
) -> str:
    """Make the page of one prepared set, or of all splits in a folder.

    Figures come from the light columns; of the pixels, only the row groups are read whose images
    are shown.

    Args:
        uri: of the set, or of a folder of sets.
        config: what training would do with the images; None takes the defaults.
        num_images: images of the training split to show; of the others, a quarter as many.
        seed: of the choice of images. Augmentation draws from the config's own seed.
        on_stage: reports progress.

    Returns:
        HTML that refers to nothing outside itself.

    Raises:
        DataError: no such set, one that is not whole, or one without the boxes that the config
            wants.
        ValueError: `num_images` is negative.
    """
    if num_images < 0:
        raise ValueError(f"num_images = {num_images} must not be negative")
    datasets = open_splits(uri)
    config = config or config_for(datasets)
    trained = _trained_split(list(datasets))
    datasets[trained].require_box_type(config.model.box_type)
    splits = []
    for number, (name, dataset) in enumerate(datasets.items()):
        on_stage("reading boxes", number, len(datasets))
        splits.append(read_split(name, dataset))
    names = [split.name for split in splits]
    albums = {split.name: Album(split) for split in splits}
    counts = [split.box_counts() for split in splits]
    drawn = _count_up("drawing figures", on_stage)
    chosen = {
        split.name: choose_images(
            split, num_images if split.name == trained else -(-num_images // _OTHERS), seed=seed
        )
        for split in splits
    }
    sections = [
        ("classes", "Classes", class_bars(class_names(splits), counts, names)),
        ("boxes", "Boxes", charts(drawn(box_charts(splits, config)), names)),
        ("images", "Images", charts(drawn(image_charts(splits)), names)),
        *_trained_images(albums[trained], chosen[trained], config, on_stage),
        *(
            s
            for name in names
            if name != trained
            for s in _other_images(albums[name], chosen[name])
        ),
        *(_extremes(splits, albums) if num_images else ()),
    ]
    title = " and ".join(dict.fromkeys(split.dataset.info.name for split in splits))
    intro = head(uri, splits, albums) + import_reports(splits)
    return page(title=f"Data set {title}", intro=intro, sections=sections)


def _trained_split(names: Sequence[str]) -> str:
    """The split that training would read: the one that is called so, or the first."""
    return next((name for name in names if name.startswith("train")), names[0])


def _count_up(what: str, on_stage: OnStage) -> Callable[[Iterator[Chart]], Iterator[Chart]]:
    """Report each figure as it is drawn."""

    def count(items: Iterator[Chart]) -> Iterator[Chart]:
        for number, item in enumerate(items):
            on_stage(what, number, 0)
            yield item

    return count


def _trained_images(
    album: Album, chosen: Sequence[int], config: ExperimentConfig, on_stage: OnStage
) -> Iterator[Section]:
    """Images as stored, each beside what training makes of it."""
    split, names = album.split, album.split.dataset.class_names
    made = training_shots(split.dataset, chosen, config, epochs=NUM_EPOCHS)
    items = []
    for number, position in enumerate(chosen):
        on_stage(f"pictures of {split.name}", number, len(chosen))
        items.append(_card(album, position, next(made)))
    if items:
        intro = _sample_words(split, chosen) + _training_words(config)
        yield "samples", f"Images of {split.name}", intro + cards(items, names)


def _other_images(album: Album, chosen: Sequence[int]) -> Iterator[Section]:
    """Images of a split that is not trained on, as stored."""
    split = album.split
    shots = []
    for position in chosen:
        file_name = split.file_names[position].as_py()
        shots.append(
            (replace(album.stored(position), caption=file_name), split.dataset.class_names)
        )
    if shots:
        # The name of a split may hold anything; its bytes in hex are safe in a link.
        anchor = f"samples-{split.name.encode().hex()}"
        html = _sample_words(split, chosen) + loose_shots(shots)
        yield anchor, f"Images of {split.name}", html


def _extremes(splits: Sequence[Split], albums: Mapping[str, Album]) -> Iterator[Section]:
    """Pictures of the boxes and images at the ends, those of all splits together."""
    shots = [
        (_extreme_shot(albums[found.split.name], found), found.split.dataset.class_names)
        for found in find_extremes(splits)
    ]
    if shots:
        words = (
            "<p>Mistakes of annotation are often found at the ends: a box of a slipped click, a "
            "frame around the whole image. Small boxes are shown in a crop; other boxes are pale."
            "</p>"
        )
        yield "extremes", "Extremes", words + loose_shots(shots)


def _card(album: Album, position: int, training: Sequence[Shot]) -> Card:
    split = album.split
    stored = album.stored(position)
    shots = [replace(stored, caption="as stored"), *training]
    return Card(split.file_names[position].as_py(), f"id {split.image_ids[position]}", shots)


def _extreme_shot(album: Album, extreme: Extreme) -> Shot:
    file_name = album.split.file_names[extreme.image].as_py()
    what = extreme.reason
    if extreme.box is not None:
        label = int(album.split.labels[extreme.box])
        what = f"{album.split.dataset.class_names[label]}, {what}"
    return replace(album.extreme(extreme), caption=f"{what}\n{album.split.name}: {file_name}")


def _sample_words(split: Split, chosen: Sequence[int]) -> str:
    """How many classes the images show, and which ones they leave out."""
    images, labels = split.class_images
    present, shown = set(labels.tolist()), set(labels[np.isin(images, chosen)].tolist())
    names = split.dataset.class_names
    text = f"{len(chosen)} of {len(split):,} images"
    text += ", chosen so that every class shows" * bool(present)
    if missing := sorted(present - shown):
        listed = ", ".join(names[label] for label in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        text = (
            f"{len(chosen)} of {len(split):,} images with {len(shown)} of {len(present)} classes. "
            f"Not shown: {listed}{more}"
        )
    return f"<p>{escape(text)}.</p>"


def _training_words(config: ExperimentConfig) -> str:
    """What happens to images in training, in the settings' own names."""
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
    left_out = (
        "; a run leaves images without boxes out (input.skip_empty)" * config.input.skip_empty
    )
    listed = ", ".join(f"{name} = {_setting(value)}" for name, value in settings.items())
    return (
        "<p>Left, the image with its boxes as stored, crowd regions dashed. Beside it, what a "
        f"worker gets in {NUM_EPOCHS} epochs, made by the training pipeline itself: crowd regions "
        f"are no targets{left_out}. In a run, the size is drawn for a whole batch.</p>"
        f'<p class="soft"><code>{escape(listed)}</code></p>'
    )


def _setting(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
