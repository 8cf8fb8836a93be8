"""From a configuration and its data sets to a complete one, one step after the other."""

from __future__ import annotations

import os
from pathlib import Path

from retina_ray.anchors.search import fit_anchors
from retina_ray.config import ConfigError, DataConfig, ExperimentConfig, with_overrides
from retina_ray.data.plan.sampling import sampler_of
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import prepare_synthetic
from retina_ray.evaluation.backends import require_backend
from retina_ray.storage.uris import is_uri

Fault = tuple[str, str]
"""Path of a setting, and what is wrong with it."""


def resolve(
    config: ExperimentConfig, storage: str, *, with_anchors: bool = True
) -> tuple[ExperimentConfig, str, str]:
    """Find (or draw into `storage`) the data sets and complete the configuration from them.

    `model.num_classes` may be null. Without `with_anchors`, `model.anchors.fit` stays as it is, for
    a sweep whose trials carry it out.

    Returns:
        The complete config, the training URI and the validation URI.

    Raises:
        ConfigError: no data, data without the boxes that the model needs, a number of classes that
            is not the data's, a schedule that does not fit the run; all faults at once. An
            evaluation backend that is not installed.
        DataError: a data set that is missing or broken.
    """
    require_backend(config.inference.evaluation_backend)
    train_uri, val_uri = find_data(config.data, storage)
    train, val = PreparedDataset.open(train_uri), PreparedDataset.open(val_uri)
    faults = [
        *class_faults(config, train, val),
        *box_faults(config, train, val),
        *length_faults(config, images_of_an_epoch(config, train)),
    ]
    if faults:
        raise ConfigError(faults)
    complete = with_overrides(config, {"model.num_classes": train.num_classes})
    return (fit_anchors(complete, train) if with_anchors else complete), train_uri, val_uri


def find_data(data: DataConfig, storage: str) -> tuple[str, str]:
    """The URIs of training and validation data; an embedded set is drawn into `storage`.

    Raises:
        ConfigError: the config names no data.
    """
    if data.synthetic is not None:
        return prepare_synthetic(data.synthetic, f"{storage}/datasets")
    if data.train is None or data.val is None:
        message = (
            "no data set: give --set data.train=DIR --set data.val=DIR (prepared by one of the "
            "scripts in datasets/), or take a recipe that brings one (shapes)"
        )
        raise ConfigError([("data", message)])
    return _absolute(data.train), _absolute(data.val)


def _absolute(path: str) -> str:
    """Workers run in other folders: a relative path would mean something else there."""
    return path if is_uri(path) else os.path.abspath(Path(path).expanduser())


def class_faults(
    config: ExperimentConfig, train: PreparedDataset, val: PreparedDataset
) -> list[Fault]:
    """Whether the model and both data sets have the same classes."""
    faults: list[Fault] = []
    if train.info.categories != val.info.categories:
        names = set(train.class_names) ^ set(val.class_names)
        said = (
            f"its classes are not those of data.train (differing: {sorted(names) or 'their ids'}); "
            "import both with the same class list"
        )
        faults.append(("data.val", said))
    wanted = config.model.num_classes
    if wanted is not None and wanted != train.num_classes:
        said = (
            f"{wanted}, but the data set has {train.num_classes} "
            f"({', '.join(train.class_names[:8])}); set model.num_classes=null to take the data's"
        )
        faults.append(("model.num_classes", said))
    return faults


def box_faults(
    config: ExperimentConfig, train: PreparedDataset, val: PreparedDataset
) -> list[Fault]:
    """Whether both data sets have the boxes that the model learns."""
    if config.model.box_type != "rotated":
        return []
    return [
        (
            name,
            f'{dataset.uri} has no rotated boxes: set model.box_type to "aligned", or prepare the '
            "set with them (datasets/README.md)",
        )
        for name, dataset in (("data.train", train), ("data.val", val))
        if dataset.box_type != "rotated"
    ]


def images_of_an_epoch(config: ExperimentConfig, train: PreparedDataset) -> int:
    """How many images an epoch holds; the light columns are read only where it depends on them."""
    sampling = config.input.sampling
    if sampling == "all" and not config.input.skip_empty:
        return train.num_images
    classes = None if sampling == "all" else train.image_classes()
    return sampler_of(config, train.index(), classes).size


def length_faults(config: ExperimentConfig, num_images: int) -> list[Fault]:
    """Whether the run is long enough for its warm-up, and an epoch of `num_images` for a batch."""
    faults: list[Fault] = []
    steps = -(-num_images // config.train.batch_size) * config.train.epochs
    if config.schedule.warmup_steps >= steps:
        said = (
            f"{config.schedule.warmup_steps} of a run of about {steps} steps: the run would end "
            "before the warm-up; lower it or raise train.epochs"
        )
        faults.append(("schedule.warmup_steps", said))
    if num_images < config.train.batch_size:
        said = f"{config.train.batch_size} images a step, but an epoch has only {num_images}"
        faults.append(("train.batch_size", said))
    return faults
