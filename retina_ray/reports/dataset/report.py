"""The page of a data set: counts, charts, images as stored and as training sees them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping

from retina_ray.config import ExperimentConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.reports.dataset.charts import box_charts, image_charts
from retina_ray.reports.dataset.choice import choose_images
from retina_ray.reports.dataset.images import Album, training_shots
from retina_ray.reports.dataset.samples import (
    extreme_samples,
    make_card,
    sample_words,
    stored_sample,
    training_settings,
)
from retina_ray.reports.dataset.splits import open_splits, read_split
from retina_ray.reports.dataset.tables import class_bars, import_report, split_facts
from retina_ray.reports.html.charts import Chart
from retina_ray.reports.html.render import render

NUM_EPOCHS = 3
"""Images of each stored one as training sees it."""

OnStage = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

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

    Charts come from the light columns; of the pixels, only the row groups are read whose images
    are shown.

    Args:
        uri: of the set, or of a folder of sets.
        config: what training would do with the images; None takes the defaults.
        num_images: of the training split; of the others, a quarter as many.
        seed: of the choice of images. Augmentation draws from the config's own seed.
        on_stage: reports progress.

    Raises:
        DataError: no such set, one that is not whole, or one without the boxes that the config
            wants.
        ValueError: `num_images` is negative.
    """
    if num_images < 0:
        raise ValueError(f"num_images = {num_images} must not be negative")
    datasets = open_splits(uri)
    config = config or config_for(datasets)
    # The split that training would read: the one that is called so, or the first.
    trained = next((name for name in datasets if name.startswith("train")), next(iter(datasets)))
    datasets[trained].require_box_type(config.model.box_type)
    splits = []
    for number, (name, dataset) in enumerate(datasets.items()):
        on_stage("reading boxes", number, len(datasets))
        splits.append(read_split(name, dataset))
    albums = {split.name: Album(split) for split in splits}
    counts = {name: num_images if name == trained else -(-num_images // _OTHERS) for name in albums}
    chosen = {s.name: choose_images(s, counts[s.name], seed=seed) for s in splits}
    charts_of_boxes = _count_up(box_charts(splits, config), on_stage)
    charts_of_images = _count_up(image_charts(splits), on_stage)
    made = training_shots(datasets[trained], chosen[trained], config, epochs=NUM_EPOCHS)
    cards = []
    for number, position in enumerate(chosen[trained]):
        on_stage(f"images of {trained}", number, len(chosen[trained]))
        cards.append(make_card(albums[trained], position, next(made)))
    others = [
        (name, [stored_sample(albums[name], position) for position in chosen[name]])
        for name in albums
        if name != trained and chosen[name]
    ]
    return render(
        "reports/dataset/page.html.j2",
        title="Data set " + " and ".join(dict.fromkeys(s.dataset.info.name for s in splits)),
        # Whoever gets the page need not get the key of the storage.
        place=re.sub(r"://[^/@]*@", "://", os.fspath(uri)),
        config=config,
        num_epochs=NUM_EPOCHS,
        settings=training_settings(config),
        classes_differ=len({split.dataset.info.categories for split in splits}) > 1,
        names=[split.name for split in splits],
        imported=import_report(splits),
        bars=class_bars(splits),
        box_charts=charts_of_boxes,
        image_charts=charts_of_images,
        trained=trained,
        cards=cards,
        others=others,
        sample_words={split.name: sample_words(split, chosen[split.name]) for split in splits},
        extremes=list(extreme_samples(splits, albums)) if num_images else [],
        facts=split_facts(splits, albums),  # last: the albums count what the others read
    )


def _count_up(charts: Iterator[Chart], on_stage: OnStage) -> list[Chart]:
    """Draw charts and report each as it is drawn."""
    drawn: list[Chart] = []
    for chart in charts:
        drawn.append(chart)
        on_stage("drawing charts", len(drawn), 0)
    return drawn
