"""A run at Weights & Biases; `wandb` is imported when it is opened, not with this module.

What wandb does over the network it does in a process of its own, so a server that is gone in the
middle of a run costs the training nothing; only opening and closing a run wait for an answer, and
for so long alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from retina_ray.train.tracking.wandb_mode import Mode, resolve_mode

if TYPE_CHECKING:
    from retina_ray.evaluation.drawing import AnnotatedImage


STEP_KEY = "train/step"
_INIT_TIMEOUT_S = 30
_FINISH_TIMEOUT_S = 120

_log = logging.getLogger(__name__)


class WandbRun:
    """An open run."""

    name = "W&B"

    def __init__(self, run: Any) -> None:
        """Take what `wandb.init` returned."""
        self.run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of a step."""
        self.run.log({**metrics, STEP_KEY: step})

    def log_pictures(self, pictures: Sequence[AnnotatedImage], step: int) -> None:
        """Record pictures with box overlays."""
        self.run.log({"val/pictures": [_image(p) for p in pictures], STEP_KEY: step})

    def finish(self, status: str) -> None:
        """Close the run; whatever could not be sent stays in its folder.

        Raises:
            TimeoutError: W&B did not answer.
        """
        self.run.summary.update({"status": status})
        exit_code = int(status == "failed")
        _within(2 * _FINISH_TIMEOUT_S, lambda: self.run.finish(exit_code=exit_code))


def open_wandb(choice: str, start: dict[str, Any]) -> WandbRun | None:
    """Open a W&B run, online within `_INIT_TIMEOUT_S` or so, else offline.

    `choice` is `tracking.wandb`, `start` the arguments of `wandb.init`. None where it is switched
    off or cannot be had at all.
    """
    try:
        mode = resolve_mode(choice)
        if mode == "disabled":
            return None
        if mode == "online":
            try:
                run = _within(2 * _INIT_TIMEOUT_S, lambda: _init("online", start))
                return WandbRun(run)
            except Exception as error:
                _log.warning(
                    "W&B cannot be reached (%s): recording offline in %s/wandb, which "
                    "`wandb sync --id %s` sends later.",
                    _describe(error),
                    start["dir"],
                    start["id"],
                )
                # Another id, because wandb's service keeps that of the failed start taken.
                start = start | {"id": f"{start['id']}-offline"}
        return WandbRun(_within(2 * _INIT_TIMEOUT_S, lambda: _init("offline", start)))
    except Exception as error:
        _log.warning(
            "W&B cannot be used (%s): metrics and pictures go to %s only.",
            _describe(error),
            start["dir"],
        )
        return None


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """Do something that may never return; after `seconds` it is left to itself.

    wandb has timeouts of its own, but waits without one for its service process.

    Raises what the action raised, or a `TimeoutError`.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="wandb", daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as error:
        if outcome.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _init(mode: Mode, start: dict[str, Any]) -> Any:
    """Start a run that is quiet, leaves the console alone and sends neither code nor git state."""
    import wandb

    # wandb tells its server how wandb itself fares; that this fails too is no news.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    options: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,
    }
    known = wandb.Settings.model_fields  # `finish_timeout` is new: older versions wait for ever
    settings = wandb.Settings(**{key: value for key, value in options.items() if key in known})
    run = wandb.init(**start, mode=mode, resume="allow", reinit="create_new", settings=settings)
    run.define_metric(STEP_KEY, hidden=True)
    run.define_metric("*", step_metric=STEP_KEY)
    run.define_metric("val/AP", step_metric=STEP_KEY, summary="max,last")
    return run


def _image(picture: AnnotatedImage) -> Any:
    """A picture with both kinds of boxes as overlays that W&B can switch on and off."""
    import numpy as np
    import wandb

    if picture.detections.boxes.shape[-1] == 5:  # overlays know no rotated boxes: drawn in
        return wandb.Image(picture.draw(), caption=picture.caption or None, file_type="jpg")
    names = {i: str(name) for i, name in enumerate(picture.class_names)}

    def overlay(boxes: Any, labels: Any, scores: Any = None) -> dict[str, Any]:
        data = []
        for i, box in enumerate(np.asarray(boxes, dtype=float).reshape(-1, 4).tolist()):
            if not np.isfinite(box).all():
                continue
            label = int(labels[i])
            entry = {
                "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                "domain": "pixel",
                "class_id": label,
                "box_caption": names.get(label, f"class {label}"),
            }
            if scores is not None:
                entry["scores"] = {"score": float(scores[i])}
                entry["box_caption"] += f" {float(scores[i]):.2f}"
            data.append(entry)
        return {"box_data": data, "class_labels": names}

    found = picture.detections.to("cpu")
    return wandb.Image(
        picture.image,
        caption=picture.caption or None,
        file_type="jpg",
        boxes={
            "ground_truth": overlay(picture.truth_boxes, picture.truth_labels),
            "predictions": overlay(found.boxes, found.labels, found.scores),
        },
    )
