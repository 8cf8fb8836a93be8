"""Every knob of an experiment on one page.

Frozen pydantic models: a config is a value. It is built by a recipe (a Python function), changed
by `with_overrides`, stored beside every run as JSON, and never changed while a run is on.

Units stand in the name (`_px`, `_s`, `_steps`, `_epochs`) or in the field's description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retina_ray.errors import ConfigError as ConfigError
from retina_ray.overrides import faults_of
from retina_ray.overrides import from_json as from_json
from retina_ray.overrides import with_overrides as with_overrides

# Strict: true is no 1, "3" is no 3 and 2.0 is no 2. Taken still: an int for a float, a list for a
# tuple, as JSON has them.
Bool = Annotated[bool, Field(strict=True)]
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
BelowOne = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[Int, Field(ge=1)]
Pixels = Annotated[Int, Field(ge=1)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
Norm = Literal["none", "bn", "sync_bn", "gn"]


class _Frozen(BaseModel):
    """What all parts share: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:  # type checkers keep the signature with a keyword for each setting

        def __init__(self, **settings: Any) -> None:
            """Take each setting by keyword.

            Raises:
                ConfigError: all faults at once, instead of pydantic's ValidationError.
            """
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(faults_of(error, type(self))) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy with some settings replaced; unlike pydantic's own, the copy is checked.

        Raises:
            ConfigError: all faults at once.
        """
        del deep  # a frozen value has nothing to share by accident
        return type(self)(**{**dict(self), **(update or {})})


class AnchorConfig(_Frozen):
    """Anchor boxes (Focal Loss paper, section 4): per cell, sizes x octave scales x ratios."""

    sizes: tuple[Positive, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Base size of each pyramid level in pixels (square root of the anchor's area)."""
    octave_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1.0,
        2.0 ** (1 / 3),
        2.0 ** (2 / 3),
    )
    """Factors on each level's base size."""
    aspect_ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Height / width."""
    scale: Positive = 1.0
    """One factor on all sizes: the knob that a sweep turns."""
    fit: Literal["none", "scale", "all"] = "none"
    """Take the scale, or the scale and the aspect ratios (as many as are given), from the boxes of
    the training set at the start of a run, whose stored config has the numbers and "none"."""
    offset: BelowOne = 0.5
    """Centre of the first anchor in strides: 0.5 is symmetric under flips; 0.0 is what detectron2's
    and torchvision's weights were trained with."""
    angles_deg: Annotated[tuple[Float, ...], Field(min_length=1)] = (-30.0, 0.0, 30.0)
    """Rotated boxes only: the turns of the anchors, counter-clockwise. With the ratios 1/2 and 2,
    these three put a long side in every direction in steps of 30 degrees."""


class ModelConfig(_Frozen):
    """ResNet -> FPN -> P6, P7 -> RetinaNet head, and the pixel statistics that it normalises by."""

    num_classes: Count | None = 80
    """K; null takes the number from the data set at the start of a run."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"] = (
        "resnet50"
    )
    backbone_norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn"
    backbone_weights: Text | None = None
    """null: from scratch. A path to a state dict, or a torchvision name such as
    `IMAGENET1K_V2` (downloaded by torchvision)."""
    backbone_stride_in_1x1: Bool = False
    """Bottlenecks stride in their first 1x1 convolution, as in MSRA's weights and detectron2's
    model zoo; torchvision's stride in the 3x3. Not for resnet18 and resnet34."""
    freeze_stages: Annotated[Int, Field(ge=0, le=5)] = 2
    """Stages without gradient, counted from the stem: 1 stem, 2 stem and res2 (detectron2)."""
    min_level: Annotated[Int, Field(ge=2, le=4)] = 3
    """Finest pyramid level; level l has a stride of 2**l pixels."""
    max_level: Annotated[Int, Field(ge=5, le=7)] = 7
    """Coarsest pyramid level; those above 5 are made by convolutions of stride 2."""
    fpn_channels: Annotated[Int, Field(ge=8)] = 256
    fpn_norm: Norm = "none"
    fpn_fuse: Literal["sum", "avg"] = "sum"
    top_input: Literal["c5", "p5"] = "c5"
    """What P6 is computed from: the paper, detectron2 and torchvision's v2 take C5, its v1 P5."""
    head_num_convs: Annotated[Int, Field(ge=0)] = 4
    head_channels: Annotated[Int, Field(ge=8)] | None = None
    """null: as the FPN."""
    head_norm: Norm = "none"
    prior_prob: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Score of every class at the start; sets the bias -log((1 - p) / p)."""
    box_type: Literal["aligned", "rotated"] = "aligned"
    """What is predicted: boxes along the image's axes, or (x, y, width, height, angle)."""
    anchors: AnchorConfig = AnchorConfig()
    box_weights: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    """Weights of (dx, dy, dw, dh) in the box coder."""
    angle_weight: Positive = 1.0
    """Rotated boxes only: weight of the turn (in radians) in the box coder."""
    pixel_mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    """RGB, 0 to 255."""
    pixel_std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels from fine to coarse, e.g. (3, 4, 5, 6, 7)."""
        return tuple(range(self.min_level, self.max_level + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels."""
        return tuple(2**level for level in self.levels)

    @property
    def num_anchors(self) -> int:
        """A, the anchors of a cell."""
        num_angles = len(self.anchors.angles_deg) if self.box_type == "rotated" else 1
        return len(self.anchors.octave_scales) * len(self.anchors.aspect_ratios) * num_angles

    @property
    def box_dim(self) -> int:
        """Numbers that make a box: 4, or 5 with an angle."""
        return 5 if self.box_type == "rotated" else 4


class MatcherConfig(_Frozen):
    """Which anchors learn which box."""

    method: Literal["iou", "best", "atss"] = "iou"
    """iou: IoU >= high positive, [low, high) ignored, < low background (the paper). best: only each
    box's best anchor is positive, others with IoU >= high are ignored. atss: a threshold of its own
    for each box (Adaptive Training Sample Selection, arXiv:1912.02424)."""
    low: Fraction = 0.4
    high: Fraction = 0.5
    allow_low_quality: Bool = True
    """Also mark each box's best anchor(s) positive, however small the IoU (never one of 0)."""
    atss_topk: Count = 9
    """ATSS only: candidates of a box on each level, those whose centres are nearest."""


class LossConfig(_Frozen):
    """Classification loss and box loss, both summed and divided by the normaliser."""

    cls_loss: Literal["focal", "quality_focal", "varifocal"] = "focal"
    """focal: arXiv:1708.02002. The others learn the IoU of the predicted box as the score of a
    positive anchor: quality focal loss (arXiv:2006.04388), varifocal loss (arXiv:2008.13367)."""
    focal_alpha: Annotated[Float, Field(ge=-1, le=1)] = 0.25
    """focal: weight of positives against negatives; -1 switches the weighting off. varifocal:
    weight of negatives (its paper takes 0.75). Not used by quality_focal."""
    focal_gamma: NonNegative = 2.0
    """Focusing exponent; beta in the paper of quality focal loss."""
    box_loss: Literal["smooth_l1", "giou", "diou", "ciou"] = "smooth_l1"
    smooth_l1_beta: NonNegative = 0.1
    """Where smooth-L1 turns from quadratic to linear; 0 is plain L1 (detectron2's recipes)."""
    box_loss_weight: Positive = 1.0
    normalizer: Literal["ema", "batch"] = "ema"
    """What the losses are divided by: the positives over all workers, smoothed or of this batch."""
    normalizer_momentum: BelowOne = 0.9
    normalizer_initial: Positive = 100.0


class SyntheticConfig(_Frozen):
    """The embedded set of drawn shapes (`datasets/shapes.py`), made on the spot."""

    num_train: Count = 320
    num_val: Count = 80
    size_px: Annotated[Int, Field(ge=32)] = 128
    seed: Seed = 0
    rotated: Bool = False
    """Shapes turned by any angle, with rotated boxes (for `model.box_type` "rotated")."""


class DataConfig(_Frozen):
    """Two prepared data sets (folders or URIs that hold a `dataset.json`), or the synthetic one."""

    train: Text | None = None
    val: Text | None = None
    synthetic: SyntheticConfig | None = None
    """Set: `train` and `val` must be null, and the shapes are drawn into the storage folder."""


class AugmentConfig(_Frozen):
    """Random changes of training images beyond resizing and flips.

    All off, as in detectron2's RetinaNet recipes. Each image draws from a generator of its own,
    seeded by run, epoch and image.
    """

    rotate_90: Bool = False
    """Turn by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    crop_prob: Fraction = 0.0
    """Chance of a random crop that keeps a smallest IoU with some box (SSD, arXiv:1512.02325,
    section 2.2)."""
    crop_min_ious: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """One of these is drawn for each crop."""
    crop_min_scale: Annotated[Float, Field(gt=0, le=1)] = 0.3
    """Shortest side of a crop, as a share of the image's side."""
    scale_jitter: tuple[Positive, Positive] | None = None
    """Large-scale jitter (arXiv:2012.07177): the image is resized by a factor drawn between these
    two (log-uniform) beyond the target size, then cropped or padded to it."""
    min_visible: Fraction = 0.1
    """A box of which crop, jitter or mosaic leave a smaller share of the area than this is dropped.
    """
    brightness: Fraction = 0.0
    """Factor drawn from [1 - x, 1 + x], as torchvision's ColorJitter; likewise the next two."""
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[Float, Field(ge=0, le=0.5)] = 0.0
    """Shift drawn from [-x, x] turns of the colour circle."""
    mosaic_prob: Fraction = 0.0
    """Chance that three more images share the picture (YOLOv4, arXiv:2004.10934)."""
    mixup_prob: Fraction = 0.0
    """Chance that another image is blended in, boxes of both kept (arXiv:1902.04103)."""
    mosaic_scale: tuple[Positive, Positive] = (0.5, 1.0)
    """Each picture of a mosaic is resized by a factor drawn between these two (log-uniform)."""
    mixup_alpha: Positive = 8.0
    """The image's share in the blend is drawn from Beta(alpha, alpha). The paper takes 1.5; from 8
    on both pictures can nearly always be seen, which matters as the boxes of both are kept."""


class InputConfig(_Frozen):
    """What happens to an image on its way to the model."""

    train_sizes_px: Annotated[tuple[Pixels, ...], Field(min_length=1)] = (
        640,
        672,
        704,
        736,
        768,
        800,
    )
    """Lengths of the shorter side in training."""
    train_size_sampling: Literal["choice", "range"] = "choice"
    """Draw one of the lengths, or a length between the two given."""
    train_max_size_px: Pixels = 1333
    """The longer side is never longer."""
    eval_size_px: Pixels = 800
    eval_max_size_px: Pixels = 1333
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    """Each named flip with probability 0.5, independently."""
    size_divisibility_px: Annotated[Int, Field(ge=1)] = 32
    """Batches are padded at the right and the bottom to a multiple of this."""
    group_by_aspect: Bool = True
    """Batch landscape with landscape and portrait with portrait, to pad less."""
    min_box_size_px: NonNegative = 1.0
    """Boxes with a side below this after resizing do not reach the loss."""
    max_bad_fraction: Fraction = 0.01
    """A run stops when more than this share of the images cannot be decoded."""
    sampling: Literal["all", "repeat_factor", "class_balanced"] = "all"
    """all: each image once an epoch. repeat_factor: images of rare classes more often (LVIS,
    arXiv:1908.03195, appendix B.2). class_balanced: an epoch of as many images, in which each class
    is drawn equally often."""
    repeat_threshold: Annotated[Float, Field(gt=0, le=1)] = 0.001
    """Share of images below which a class is rare, for sampling by repeat_factor."""
    skip_empty: Bool = False
    """Leave images without boxes out of training (detectron2 does)."""
    augment: AugmentConfig = AugmentConfig()


class OptimizerConfig(_Frozen):
    """SGD or AdamW with the parameter groups of detectron2, and gradient clipping."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    """Learning rate of the global batch `lr_batch_size`."""
    lr_batch_size: Count | None = None
    """Set: the rate is scaled by batch_size / lr_batch_size (linear rule); null: taken as it is."""
    momentum: BelowOne = 0.9
    nesterov: Bool = False
    betas: tuple[BelowOne, BelowOne] = (
        0.9,
        0.999,
    )
    weight_decay: NonNegative = 1e-4
    weight_decay_norm: NonNegative = 0.0
    """For the parameters of normalisation layers."""
    weight_decay_bias: NonNegative | None = None
    """For biases; null: as `weight_decay`."""
    bias_lr_factor: Positive = 1.0
    """Factor on the learning rate of biases."""
    clip: Literal["none", "value", "norm"] = "value"
    clip_threshold: Positive = 1.0
    clip_norm_type: Positive = 2.0


class ScheduleConfig(_Frozen):
    """Learning rate over the run: warm-up, then steps or a half cosine, as detectron2 has them."""

    name: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[Annotated[Float, Field(gt=0, lt=1)], ...] = (2 / 3, 8 / 9)
    """Where the rate is multiplied by `gamma`, as fractions of the run."""
    gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    warmup: Literal["linear", "constant"] = "linear"
    warmup_steps: Annotated[Int, Field(ge=0)] = 1000
    warmup_factor: Annotated[Float, Field(ge=0, le=1)] = 0.001
    """Share of the rate at step 0."""


class TrainConfig(_Frozen):
    """The run itself."""

    epochs: Count = 12
    batch_size: Count = 16
    """Images a step over all workers."""
    num_workers: Count = 1
    """Ray Train workers, one process each."""
    use_gpu: Bool | None = None
    """null: a GPU for each worker where the cluster has them."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves for a worker; PyTorch uses max(1, this) threads on a CPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Literal["none", "loss", "all"] = "none"
    """torch.compile for the classification loss, or for that and the model. Needs a C++ compiler on
    a CPU; worth it from some thousand steps on."""
    seed: Seed = 0
    eval_every_epochs: Count = 1
    eval_batch_size: Count = 8
    """Images a worker evaluates at once."""
    async_validation: Bool = False
    """Evaluate in a Ray task of its own while the training goes on. The figures of a round are
    taken in when the next one is due: until then its checkpoint is kept."""
    validation_cpus: Positive = 1.0
    """CPUs of that task, on any node."""
    validation_gpus: NonNegative = 0.0
    """GPUs of that task, or a part of one; 0: it evaluates on the CPU."""
    log_every_steps: Count = 20
    accumulate: Count = 1
    """Micro-batches that a worker does one after the other in a step; their gradients add up."""
    min_workers: Count | None = None
    """Set: the run goes on with as few workers as this where there is no room for `num_workers`,
    and takes more again when there is. A step's images stay `batch_size`."""
    ema_decay: Annotated[Float, Field(ge=0, lt=1)] | None = None
    """Set: evaluated and exported weights are an exponential moving average of those trained."""
    checkpoint_every_steps: Count | None = None
    """Steps between checkpoints within an epoch; null: only after each evaluation."""
    keep_checkpoints: Count = 1
    """How many of the last checkpoints stay, beside the best one."""
    max_rollbacks: Annotated[Int, Field(ge=0)] = 1
    """How often a run goes back to its last checkpoint, and leaves out the batch whose loss was
    not finite, before it fails."""
    max_hours: Positive | None = None
    """Set: the run ends in order, with a checkpoint, after so much time of training."""
    early_stop_rounds: Count | None = None
    """Set: the run ends after so many evaluations without a better AP."""
    early_stop_min_gain: NonNegative = 0.0
    """AP by which an evaluation must exceed the best one to count as better."""
    stall_timeout_s: Positive = 1800.0
    """A worker that makes no step for so long is taken for hung, and restarted."""
    max_failures: Annotated[Int, Field(ge=0)] = 3
    """How often a run is restarted from its last checkpoint after a worker or a node died."""


class InferenceConfig(_Frozen):
    """From head outputs to detections."""

    score_threshold: Fraction = 0.05
    topk_per_level: Count = 1000
    nms_threshold: Fraction = 0.5
    max_detections: Count = 100
    evaluation_backend: Literal["auto", "pycocotools", "faster-coco-eval"] = "auto"
    """What computes COCO's figures. auto: faster-coco-eval, the same figures sooner, where it is
    installed (`pip install 'retina_ray[fast-eval]'`)."""


class TrackingConfig(_Frozen):
    """Weights & Biases; the same content always goes to a local JSONL file as well."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where a key is configured, else offline."""
    project: Text = "retina_ray"
    entity: Text | None = None
    num_pictures: Annotated[Int, Field(ge=0)] = 4
    """Validation images logged with predicted and true boxes at each evaluation."""
    tensorboard: Literal["auto", "off"] = "auto"
    """auto: an event file in the run's folder where the package `tensorboard` is installed."""


class ExperimentConfig(_Frozen):
    """One experiment, complete."""

    model: ModelConfig = ModelConfig()
    matcher: MatcherConfig = MatcherConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _combinations(self) -> ExperimentConfig:
        """Refuse combinations that no run could carry out, all of them at once."""
        faults = [
            *_impossible_model(self.model),
            *_impossible_losses(self.matcher, self.loss),
            *_impossible_rotation(self),
            *_impossible_input(self.input, self.data),
            *_impossible_run(self),
        ]
        if faults:
            raise ConfigError(faults)
        return self


def _impossible_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield a (path, message) for each combination of values that cannot work."""
    levels, sizes = model.levels, model.anchors.sizes
    if len(sizes) != len(levels):
        yield (
            "model.anchors.sizes",
            f"{len(sizes)} sizes for {len(levels)} pyramid levels "
            f"(P{levels[0]} to P{levels[-1]}): give one size per level",
        )
    if model.backbone_stride_in_1x1 and model.backbone in ("resnet18", "resnet34"):
        yield (
            "model.backbone_stride_in_1x1",
            f"{model.backbone} has no bottlenecks whose stride could be moved: set it to false",
        )
    for part, channels in (
        ("fpn", model.fpn_channels),
        ("head", model.head_channels or model.fpn_channels),
    ):
        if getattr(model, f"{part}_norm") == "gn" and channels % 32:
            yield f"model.{part}_channels", f"{channels} do not divide into group norm's 32 groups"


def _impossible_rotation(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    if config.model.box_type != "rotated":
        return
    if config.data.synthetic is not None and not config.data.synthetic.rotated:
        yield (
            "data.synthetic.rotated",
            'false: model.box_type = "rotated" needs rotated boxes, set it to true',
        )
    if config.model.anchors.fit != "none":
        yield (
            "model.anchors.fit",
            f'"{config.model.anchors.fit}" is for aligned boxes: set it to "none", and the anchors '
            "yourself",
        )
    if config.matcher.method != "iou":
        yield (
            "matcher.method",
            f'"{config.matcher.method}" is for aligned boxes: rotated ones are matched by "iou"',
        )
    if config.loss.box_loss != "smooth_l1":
        yield (
            "loss.box_loss",
            f'"{config.loss.box_loss}" is for aligned boxes: rotated ones learn by "smooth_l1"',
        )
    if config.inference.evaluation_backend == "faster-coco-eval":
        yield (
            "inference.evaluation_backend",
            '"faster-coco-eval" is for aligned boxes: set it to "auto" or "pycocotools"',
        )


def _impossible_losses(matcher: MatcherConfig, loss: LossConfig) -> Iterator[tuple[str, str]]:
    if matcher.low > matcher.high:
        yield "matcher.low", f"{matcher.low} is above matcher.high = {matcher.high}"
    if loss.cls_loss == "varifocal" and loss.focal_alpha == 0:
        yield "loss.focal_alpha", "0: varifocal loss would give background no weight"
    if -1 < loss.focal_alpha < 0:
        yield (
            "loss.focal_alpha",
            f"{loss.focal_alpha} is no weight: give 0 to 1, or -1 for no weighting",
        )


def _impossible_input(inputs: InputConfig, data: DataConfig) -> Iterator[tuple[str, str]]:
    sizes = inputs.train_sizes_px
    if inputs.train_size_sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        yield "input.train_sizes_px", f"sampling 'range' needs (shortest, longest), got {sizes}"
    if max(sizes) > inputs.train_max_size_px:
        yield (
            "input.train_max_size_px",
            f"{inputs.train_max_size_px} is below the shorter side {max(sizes)}",
        )
    if inputs.eval_size_px > inputs.eval_max_size_px:
        yield (
            "input.eval_max_size_px",
            f"{inputs.eval_max_size_px} is below input.eval_size_px = {inputs.eval_size_px}",
        )
    for name in ("scale_jitter", "mosaic_scale"):
        factors = getattr(inputs.augment, name)
        if factors is not None and factors[0] > factors[1]:
            yield f"input.augment.{name}", f"needs (smallest, largest), got {factors}"
    if data.synthetic is not None and (data.train or data.val):
        yield "data.synthetic", "set together with data.train or data.val: choose one"
    if (data.train is None) != (data.val is None):
        yield "data", "data.train and data.val are needed together"


def _impossible_run(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    train, optimizer, milestones = config.train, config.optimizer, config.schedule.milestones
    if train.batch_size % train.num_workers:
        yield (
            "train.batch_size",
            f"{train.batch_size} images do not divide over train.num_workers = "
            f"{train.num_workers}: every worker must get the same number",
        )
    elif train.batch_size % (train.num_workers * train.accumulate):
        yield (
            "train.accumulate",
            f"{train.batch_size // train.num_workers} images of a worker do not divide into "
            f"{train.accumulate} micro-batches",
        )
    if train.min_workers is not None and train.min_workers > train.num_workers:
        yield (
            "train.min_workers",
            f"{train.min_workers} is more than train.num_workers = {train.num_workers}",
        )
    if train.eval_every_epochs > train.epochs:
        yield (
            "train.eval_every_epochs",
            f"{train.eval_every_epochs} is more than train.epochs = {train.epochs}: "
            "the run would end without an evaluation",
        )
    if list(milestones) != sorted(set(milestones)):
        yield "schedule.milestones", f"{milestones} must increase"
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov", "needs optimizer.momentum > 0"
