"""The run: its length, its workers, what it keeps and tracks, and how detections are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retina_ray.config.base import (
    OPERATIONAL,
    Bool,
    Count,
    Float,
    Fraction,
    Int,
    NonNegative,
    Positive,
    ReadWhen,
    Section,
    Seed,
    Text,
)


class TrainConfig(Section):
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
    compile: Annotated[Literal["none", "loss", "all"], OPERATIONAL] = "none"
    """torch.compile for the classification loss, or for that and the model. Needs a C++ compiler on
    a CPU; worth it from some thousand steps on."""
    seed: Seed = 0
    eval_every_epochs: Count = 1
    eval_batch_size: Count = 8
    """Images a worker evaluates at once."""
    async_validation: Bool = False
    """Evaluate in a Ray task of its own while the training goes on. The metrics of a round are
    taken in when the next one is due: until then its checkpoint is kept."""
    validation_cpus: Positive = 1.0
    """CPUs of that task, on any node."""
    validation_gpus: NonNegative = 0.0
    """GPUs of that task, or a part of one; 0: it evaluates on the CPU."""
    log_every_steps: Annotated[Count, OPERATIONAL] = 20
    accumulate: Count = 1
    """Micro-batches that a worker does one after the other in a step; their gradients add up."""
    min_workers: Annotated[Count | None, OPERATIONAL] = None
    """Set: the run goes on with as few workers as this where there is no room for `num_workers`,
    and takes more again when there is. A step's images stay `batch_size`."""
    ema_decay: Annotated[Float, Field(ge=0, lt=1)] | None = None
    """Set: evaluated and exported weights are an exponential moving average of those trained."""
    checkpoint_every_steps: Annotated[Count | None, OPERATIONAL] = None
    """Steps between checkpoints within an epoch; null: only after each evaluation."""
    keep_checkpoints: Annotated[Count, OPERATIONAL] = 1
    """How many of the last checkpoints stay, beside the best one."""
    max_rollbacks: Annotated[Int, Field(ge=0)] = 1
    """How often a run goes back to its last checkpoint, and leaves out the batch whose loss was
    not finite, before it fails."""
    max_hours: Positive | None = None
    """Set: the run ends in order, with a checkpoint, after so much time of training."""
    early_stop_rounds: Count | None = None
    """Set: the run ends after so many evaluations without a better AP."""
    early_stop_min_gain: Annotated[NonNegative, ReadWhen("train.early_stop_rounds")] = 0.0
    """AP by which an evaluation must exceed the best one to count as better."""
    stall_timeout_s: Annotated[Positive, OPERATIONAL] = 1800.0
    """A worker that makes no step for so long is taken for hung, and restarted."""
    max_failures: Annotated[Int, Field(ge=0), OPERATIONAL] = 3
    """How often a run is restarted from its last checkpoint after a worker or a node died."""


class InferenceConfig(Section):
    """From head outputs to detections."""

    score_threshold: Fraction = 0.05
    topk_per_level: Count = 1000
    nms_threshold: Fraction = 0.5
    max_detections: Count = 100
    evaluation_backend: Annotated[
        Literal["auto", "pycocotools", "faster-coco-eval"], OPERATIONAL
    ] = "auto"
    """What computes COCO's metrics. auto: faster-coco-eval, the same numbers sooner, where it is
    installed (`pip install 'retina_ray[fast-eval]'`)."""


class TrackingConfig(Section):
    """Weights & Biases; the same content always goes to a local JSONL file as well."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where a key is configured, else offline."""
    project: Text = "retina_ray"
    entity: Text | None = None
    num_pictures: Annotated[Int, Field(ge=0)] = 4
    """Validation images logged with predicted and true boxes at each evaluation."""
    tensorboard: Literal["auto", "off"] = "auto"
    """auto: an event file in the run's folder where the package `tensorboard` is installed."""
