"""Whether a checkpoint belongs to a run, and what of its weights fits a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.prepared.info import DatasetInfo
from retina_ray.train.checkpoint.format import Checkpoint

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class WeightMatch:
    """The weights of one model, its own, beside those of another."""

    fitting: dict[str, Tensor]  # of the other one; all else of the own model starts afresh
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, own, other shape
    unused: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every weight of the own model is taken over, and none is left."""
        return not (self.missing or self.mismatched or self.unused)

    def describe(self) -> str:
        """What is not taken over, by name, with the shapes that differ."""
        shapes = [f"{name} {own}, there {other}" for name, own, other in self.mismatched]
        parts = [
            (shapes, "of another shape start afresh"),
            (self.missing, "that it lacks start afresh"),
            (self.unused, "of it have no place in this model"),
        ]
        said = [
            f"{len(names)} weights {what}: {', '.join(names)}" for names, what in parts if names
        ]
        return "; ".join(said) or "every weight fits"


def fitting_weights(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> WeightMatch:
    """Find what one model can take over from another: the same name and the same shape.

    Its own state dict may be on the meta device.

    Raises:
        ConfigError: nothing fits.
    """
    shared = own.keys() & other.keys()
    match = WeightMatch(
        fitting={n: t for n, t in other.items() if n in shared and t.shape == own[n].shape},
        missing=tuple(sorted(own.keys() - shared)),
        mismatched=tuple(
            (name, tuple(own[name].shape), tuple(other[name].shape))
            for name in sorted(shared)
            if own[name].shape != other[name].shape
        ),
        unused=tuple(sorted(other.keys() - shared)),
    )
    if not match.fitting:
        raise ConfigError(
            "--init-from: no weight of that checkpoint fits this model "
            f"(its first are {_some(other)}; the model's are {_some(own)}): take a checkpoint of "
            "the same backbone, or another model"
        )
    return match


def class_differences(own: Sequence[str], other: Sequence[str]) -> str | None:
    """Say where the classes of two models differ; None where their number tells it, or nothing."""
    differing = [
        f"{label}: {mine!r}, there {theirs!r}"
        for label, (mine, theirs) in enumerate(zip(own, other, strict=False))
        if mine != theirs
    ]
    if not differing or len(own) != len(other):
        return None
    what = "are the same in another order" if set(own) == set(other) else "are others"
    return f"the classes {what} (label {'; '.join(differing[:_NAMES_SHOWN])})"


def require_own(
    checkpoint: Checkpoint,
    *,
    uri: str,
    config: ExperimentConfig,
    train_uri: str,
    info: DatasetInfo,
) -> None:
    """Refuse a checkpoint that another run wrote: of another model, other classes, other data.

    Raises:
        ConfigError: all that differs.
    """
    meta = checkpoint.meta
    faults = _other_model(checkpoint.config, config)
    theirs, ours = meta.categories, [(c.id, c.name) for c in info.categories]
    if len(theirs) != len(ours):
        faults.append(f"it has {len(theirs)} classes, and {train_uri} has {len(ours)}")
    elif theirs != ours:
        where = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        faults.append(
            f"its classes (original id, name) are not those of {train_uri}: label {where} is "
            f"{theirs[where]} there and {ours[where]} here"
        )
    if meta.dataset_fingerprint != info.fingerprint:
        faults.append(
            f"it was trained on other data than {train_uri} holds now (fingerprint "
            f"{meta.dataset_fingerprint[:12]} against {info.fingerprint[:12]})"
        )
    if faults:
        raise ConfigError(
            f"{uri}: this checkpoint is not of this run: {'; '.join(faults)}. Start a new run, "
            "with --init-from to take over the weights that fit"
        )


def _other_model(there: ExperimentConfig, here: ExperimentConfig) -> list[str]:
    """What of two models differs, by path; where the first weights came from is past."""
    return [
        f"{path} is {theirs!r} there and {ours!r} in the run's config.json"
        for path, theirs, ours in _differences(there.model, here.model, "model")
        if path != "model.backbone_weights"
    ]


def _differences(there: Any, here: Any, path: str) -> list[tuple[str, Any, Any]]:
    found = []
    for name in type(there).model_fields:
        theirs, ours = getattr(there, name), getattr(here, name)
        if hasattr(type(theirs), "model_fields") and type(theirs) is type(ours):
            found += _differences(theirs, ours, f"{path}.{name}")
        elif theirs != ours:
            found.append((f"{path}.{name}", theirs, ours))
    return found


def _some(weights: Mapping[str, Tensor]) -> str:
    return ", ".join(list(weights)[:3]) or "none"
