"""Back to the last checkpoint after a loss that is not finite, leaving out the step it came from.

    <run>/rollbacks.json                     the steps that are left out, and why
    <run>/non_finite/step-00000120/          the batch: a picture of each image, batch.json

The list stays with the run: whoever resumes it leaves out the same steps.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retina_ray.evaluation.drawing import AnnotatedImage, write_png
from retina_ray.storage.files import copy_up, read_text, write_text
from retina_ray.storage.uris import join_uri, open_filesystem
from retina_ray.train.errors import NonFiniteLossError
from retina_ray.train.recovery.failures import name_cause
from retina_ray.train.run_files import NON_FINITE_BATCHES, ROLLBACKS
from retina_ray.train.spec import RunInputs, RunSpec

MAX_PICTURES = 64
"""Images of a batch that are drawn; all are listed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonFiniteStep:
    """What is known of a step whose loss was not finite; None stands for what is no number."""

    step: int  # of the plan, from 0
    message: str  # of the workers
    terms: tuple[str, ...]  # what was not finite
    values: dict[str, float | None]  # every loss term by name
    image_ids: tuple[int, ...]  # all workers together
    lr: float | None
    back_to: int | None = None  # steps of the checkpoint to which the run went back, if it did

    @classmethod
    def of(cls, error: NonFiniteLossError) -> NonFiniteStep:
        """Read it out of the workers' error."""
        return cls(
            step=error.step,
            message=name_cause(error),
            terms=tuple(error.terms),
            values={name: _finite(value) for name, value in error.values.items()},
            image_ids=tuple(int(image_id) for image_id in error.image_ids),
            lr=_finite(error.lr),
        )

    def to_json(self) -> str:
        """As it is written down."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> NonFiniteStep:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, **{k: tuple(fields[k]) for k in ("terms", "image_ids")}})


class Rollbacks:
    """The list of a run's roll-backs, in its folder."""

    def __init__(self, run_uri: str) -> None:
        """Open (and do not yet create) the list of the run at `run_uri`."""
        self._uri = join_uri(run_uri, ROLLBACKS)

    def all(self) -> list[NonFiniteStep]:
        """In the order of time."""
        entries = json.loads(read_text(self._uri) or "[]")
        return [NonFiniteStep.from_json(json.dumps(entry)) for entry in entries]

    def add(self, step: NonFiniteStep) -> None:
        """Write one more down; the run has to start again to heed it."""
        write_text(self._uri, json.dumps([asdict(one) for one in [*self.all(), step]], indent=1))


def skipped_steps(run_uri: str) -> tuple[int, ...]:
    """The steps of a run's plan that are not trained, ascending."""
    return tuple(sorted({one.step for one in Rollbacks(run_uri).all()}))


def dump_batch(spec: RunSpec, found: NonFiniteStep) -> str | None:
    """Make the batch of a step again, as the workers saw it, to look at.

    Returns the folder; None where it could not be made, which is logged: it is no reason to end.
    """
    uri = join_uri(spec.run_uri, f"{NON_FINITE_BATCHES}/step-{found.step:08d}")
    try:
        with tempfile.TemporaryDirectory(prefix="retina_ray_non_finite_") as folder:
            _write_batch(RunInputs.open(spec), found, Path(folder))
            fs, path = open_filesystem(uri)
            fs.create_dir(path, recursive=True)
            copy_up(Path(folder), uri)
    except Exception as error:
        logger.warning("the batch of step %d cannot be shown: %s", found.step, name_cause(error))
        return None
    return uri


def _write_batch(inputs: RunInputs, found: NonFiniteStep, folder: Path) -> None:
    layout = inputs.layout
    first = layout.first_round(found.step) * layout.num_workers
    rows = inputs.plan.take(range(first, first + layout.rows_per_step * layout.num_workers))
    names = _file_names(inputs)
    images = []
    for batch in inputs.loader.load_table(rows).to_pylist():
        for image_id, pixels, boxes, labels in _images(batch):
            name = f"{len(images):02d}_{image_id}.png"
            if len(images) < MAX_PICTURES:
                picture = AnnotatedImage(pixels, inputs.train.class_names, boxes, labels)
                write_png(folder / name, picture.draw(legend=False))
            images.append(
                {
                    "image_id": image_id,
                    "file_name": names.get(image_id),
                    "worker": batch["worker"],
                    "picture": name if len(images) < MAX_PICTURES else None,
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                    "boxes": boxes.tolist(),
                    "labels": labels.tolist(),
                    "classes": [inputs.train.class_names[label] for label in labels],
                }
            )
    text = json.dumps({**asdict(found), "images": images}, indent=1)
    (folder / "batch.json").write_text(text)


def _images(
    batch: dict[str, Any],
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield of each image: id, (H, W, 3) pixels without the padding, (M, B) boxes, (M,) labels."""
    count = batch["num_images"]
    pixels = np.frombuffer(batch["pixels"], np.uint8)
    pixels = pixels.reshape(count, batch["height"], batch["width"], 3)
    sizes = np.array(batch["sizes"]).reshape(count, 2)
    cuts = np.cumsum(batch["box_counts"])[:-1]
    boxes = np.split(np.array(batch["boxes"], np.float32).reshape(-1, batch["box_dim"]), cuts)
    labels = np.split(np.array(batch["labels"], np.int64), cuts)
    for i in range(count):
        height, width = sizes[i].tolist()
        yield batch["image_ids"][i], pixels[i, :height, :width], boxes[i], labels[i]


def _file_names(inputs: RunInputs) -> dict[int, str]:
    columns = inputs.train.annotations().select(["image_id", "file_name"])
    return dict(zip(*(column.to_pylist() for column in columns.columns), strict=True))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
