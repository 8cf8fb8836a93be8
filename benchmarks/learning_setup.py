"""What is learnt in the learning benchmark, with which settings, and whether both models agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from contestants import Ours, Torchvision

from retina_ray.config import (
    AnchorConfig,
    DataConfig,
    ExperimentConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SyntheticConfig,
    TrainConfig,
    with_overrides,
)
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import prepare_synthetic
from retina_ray.model import RetinaNetCriterion
from retina_ray.model.weights import load_torchvision_retinanet
from retina_ray.structures import Batch, Detections, ImageBatch, Targets
from retina_ray.train.spec import RunInputs


@dataclass(frozen=True)
class Subject:
    """A data set and how it is learnt.

    Attributes:
        name: of the set.
        size_px: height and width of the images as the models see them.
        epochs: of a run.
        trial_epochs: of a run that tries a learning rate.
        rates: learning rates that are tried.
        warmup_steps: of the learning rate.
    """

    name: str
    size_px: tuple[int, int]
    epochs: int
    trial_epochs: int
    rates: tuple[float, ...]
    warmup_steps: int

    def config(self, data: DataConfig, *, seed: int, lr: float, epochs: int) -> ExperimentConfig:
        """The experiment: the CPU recipes', with torchvision's four convolutions in the head."""
        shorter, longer = sorted(self.size_px)
        config = ExperimentConfig(
            model=ModelConfig(
                num_classes=None,
                backbone="resnet18",
                backbone_norm="bn",
                freeze_stages=0,
                max_level=6,
                fpn_channels=64,
                head_num_convs=4,
                head_norm="gn",
                anchors=AnchorConfig(sizes=(12.0, 24.0, 48.0, 96.0)),
            ),
            loss=LossConfig(box_loss="giou"),
            data=data,
            input=InputConfig(
                train_sizes_px=(shorter,),
                train_max_size_px=longer,
                eval_size_px=shorter,
                eval_max_size_px=longer,
                flip="both",
                size_divisibility_px=64,
            ),
            optimizer=OptimizerConfig(
                name="adamw", lr=lr, weight_decay=0.05, clip="norm", clip_threshold=1.0
            ),
            schedule=ScheduleConfig(name="cosine", warmup_steps=self.warmup_steps),
            train=TrainConfig(
                epochs=epochs,
                batch_size=8,
                eval_batch_size=16,
                eval_every_epochs=min(2, epochs),
                seed=seed,
            ),
        )
        assert data.train is not None
        num_classes = PreparedDataset.open(data.train).num_classes
        return with_overrides(config, {"model.num_classes": num_classes})

    def quick(self) -> Subject:
        """An epoch and one learning rate, to see that it runs."""
        return replace(self, epochs=1, trial_epochs=1, rates=self.rates[:1])


SUBJECTS = (
    Subject("shapes", (128, 128), 10, 4, (5e-4, 1e-3, 2e-3, 4e-3), 20),
    Subject("BCCD", (128, 171), 10, 5, (2.5e-4, 5e-4, 1e-3, 2e-3), 20),
)
"""P6 divides the padded images, 64 px its stride: torchvision takes the strides of its anchors from
the sizes of the maps, rounded down."""


def prepared(subject: Subject, work: Path, bccd: Path | None) -> DataConfig:
    """Prepare a set in the folder, once."""
    if subject.name == "shapes":
        train, val = prepare_synthetic(SyntheticConfig(), f"{work}/datasets")
        return DataConfig(train=train, val=val)
    assert bccd is not None
    uris = {split: f"{work}/datasets/bccd/{split}" for split in ("train", "val")}
    for split, uri in uris.items():
        if not Path(uri, "dataset.json").exists():
            options = ImportOptions(name="bccd", on_bad_box="drop")
            import_voc(bccd, uri, split=split, options=options)
    return DataConfig(train=uris["train"], val=uris["val"])


def agreement(config: ExperimentConfig) -> str:
    """Say how far both models are from each other with the same weights and images."""
    assert config.data.train is not None
    assert config.data.val is not None
    train, val = PreparedDataset.open(config.data.train), PreparedDataset.open(config.data.val)
    inputs = RunInputs(config, train, val)
    ours, theirs = Ours(config, num_steps=100), Torchvision(config, num_steps=100)
    load_torchvision_retinanet(ours.model, theirs.model.state_dict())
    batch = next(iter(iterate(inputs.plan.worker_rows(0).slice(0, 1), inputs.loader))).batch
    loss = max(_loss_difference(ours, theirs, config, image) for image in _single(batch))
    # At the start all scores are 0.01, and nothing would be detected.
    for layer in (ours.model.head.cls_score, theirs.model.head.classification_head.cls_logits):
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias.zero_()
            layer.weight.mul_(20)
    pairs = list(zip(ours.predict(batch), theirs.predict(batch), strict=True))
    weights = sum(p.numel() for p in ours.model.parameters())
    their_weights = sum(p.numel() for p in theirs.model.parameters())
    num_images, _, height, width = batch.images.pixels.shape
    return (
        f"Checked with the same weights in both ({weights} numbers in ours, {their_weights} in "
        f"torchvision's) on {num_images} training images of {height} x {width} px: "
        "the losses of an image by itself, both over its positive anchors, differ by at most "
        f"{loss:.0e} of their value. With scores made to scatter, "
        f"{sum(len(a) for a, _ in pairs)} detections of ours, {sum(len(b) for _, b in pairs)} of "
        f"torchvision's, {sum(_num_shared(a, b) for a, b in pairs)} of them the same."
    )


def _single(batch: Batch) -> Iterator[Batch]:
    """Each image of a batch as a batch."""
    images, targets = batch.images, batch.targets
    for i in range(len(images)):
        yield replace(
            batch,
            images=ImageBatch(images.pixels[i : i + 1], images.sizes[i : i + 1]),
            targets=Targets(targets.boxes[i : i + 1], targets.labels[i : i + 1]),
        )


@torch.no_grad()
def _loss_difference(
    ours: Ours, theirs: Torchvision, config: ExperimentConfig, image: Batch
) -> float:
    """Larger relative difference of the two loss terms."""
    criterion = RetinaNetCriterion.from_config(config)
    outputs = ours.model.train()(image.images)
    assignment = criterion.assign(outputs, image.targets)
    own = criterion.losses(outputs, assignment, 1 / assignment.positive.sum().clamp(min=1))
    peer = theirs.losses(image)
    pairs = ((own["loss_cls"], "classification"), (own["loss_box_reg"], "bbox_regression"))
    return max(
        float((loss - peer[name]).abs() / peer[name].abs().clamp(min=1e-6)) for loss, name in pairs
    )


def _num_shared(ours: Detections, theirs: Detections) -> int:
    """Detections of ours that torchvision has, too: label, score and box."""
    same = ours.labels[:, None] == theirs.labels
    same &= (ours.scores[:, None] - theirs.scores).abs() < 1e-4
    same &= (ours.boxes[:, None] - theirs.boxes).abs().amax(-1) < 0.01
    return int(same.any(1).sum())
