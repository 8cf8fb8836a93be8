"""Where the numbers and pictures of a run go: a local folder always, Weights & Biases beside it.

For one process of a run (rank 0). `wandb` is imported when a run is opened, not with this module.
What W&B cannot do (no network, a wrong key, a full quota) is said once in the log and never stops
a run: the local record goes on.
"""

from __future__ import annotations

import logging
import netrc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retina_ray.config import TrackingConfig
from retina_ray.train.metrics_file import MetricsFile

if TYPE_CHECKING:
    from retina_ray.evaluation.pictures import Picture

__all__ = ["Status", "Tracker", "open_tracker"]

Mode = Literal["online", "offline", "disabled"]
Status = Literal["finished", "failed", "stopped"]

STEP_KEY = "train/step"
_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_INIT_TIMEOUT_S = 30
_FINISH_TIMEOUT_S = 120

_log = logging.getLogger(__name__)


def open_tracker(
    config: TrackingConfig,
    *,
    run_dir: str | Path,
    run_id: str,
    name: str,
    group: str | None,
    experiment: Mapping[str, Any],
    resume: bool = False,
    resume_step: int | None = None,
) -> Tracker:
    """Open the local record and the W&B run.

    The environment's WANDB_MODE goes before `config.wandb`, except that `disabled` in the config
    starts nothing. A run that cannot be opened online is recorded offline (`wandb sync` sends it
    later).

    Args:
        config: which project and entity, online or not.
        run_dir: local folder of the run: gets `metrics.jsonl`, `pictures/` and `wandb/`.
        run_id: W&B's id of the run; the same one after a restart continues the same run.
        name: what W&B shows.
        group: W&B groups runs of the same name, e.g. the trials of a sweep; null for none.
        experiment: the whole config, as W&B shows it.
        resume: this goes on with a run that was interrupted: `metrics.jsonl` is continued.
        resume_step: the step that it goes on from; local lines of later steps are dropped. (W&B
            keeps what it was sent, and shows both.)
    """
    run_dir = Path(run_dir)
    file = MetricsFile(run_dir / "metrics.jsonl", resume=resume, resume_step=resume_step)
    start = {"project": config.project, "entity": config.entity, "id": run_id, "name": name}
    start |= {"group": group, "config": dict(experiment), "dir": str(run_dir)}
    return Tracker(run_dir=run_dir, file=file, run=_open_wandb(config.wandb, start))


class Tracker:
    """Takes the metrics and pictures of one run; made by `open_tracker`.

    Attributes:
        run_dir: local folder of the run.
    """

    def __init__(self, *, run_dir: Path, file: MetricsFile, run: Any | None):
        """Take an open metrics file, and a W&B run or None."""
        self.run_dir = run_dir
        self._file = file
        self._run = run
        self._step = 0
        self._warned = False
        self._finished = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a training step.

        Args:
            metrics: numbers by key, e.g. `train/loss_cls`, `val/AP`. May be NaN.
            step: training steps done; W&B draws everything over it.
        """
        self._step = step
        values = {key: float(value) for key, value in metrics.items()}
        self._file.write(step, values)
        self._try(lambda run: run.log({**values, STEP_KEY: step}))

    def log_pictures(self, pictures: Sequence[Picture], step: int) -> None:
        """Record pictures with true and predicted boxes: a PNG sheet, and W&B's box overlays.

        Args:
            pictures: those of one evaluation; none is fine.
            step: training steps done.
        """
        if not pictures:
            return
        from retina_ray.evaluation.pictures import contact_sheet, write_png

        sheet = contact_sheet([picture.draw() for picture in pictures])
        write_png(self.run_dir / "pictures" / f"step_{step:08d}.png", sheet)
        self._try(
            lambda run: run.log(
                {"val/pictures": [_wandb_image(p) for p in pictures], STEP_KEY: step}
            )
        )

    def finish(self, status: Status) -> None:
        """Close the record and the W&B run; twice is fine, the first status counts.

        Args:
            status: `failed` marks W&B's run as failed; `stopped` (by a scheduler) does not.
        """
        if self._finished:
            return
        self._finished = True
        self._file.write(self._step, {}, status=status)
        self._file.close()
        self._try(lambda run: run.summary.update({"status": status}))
        exit_code = int(status == "failed")
        self._try(
            lambda run: _within(2 * _FINISH_TIMEOUT_S, lambda: run.finish(exit_code=exit_code))
        )

    def _try(self, action: Callable[[Any], Any]) -> None:
        """Do something with the W&B run, if there is one; the first failure is logged."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "W&B failed, and the run goes on (%s). Metrics go to %s; later failures of "
                    "W&B are not logged.",
                    _describe(error),
                    self._file.path,
                )


def _open_wandb(choice: str, start: dict[str, Any]) -> Any | None:
    """Open a W&B run; None where it is switched off or cannot be had at all."""
    try:
        mode = _resolve_mode(choice)
        if mode == "disabled":
            return None
        if mode == "online":
            try:
                return _within(2 * _INIT_TIMEOUT_S, lambda: _init("online", start))
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
        return _within(2 * _INIT_TIMEOUT_S, lambda: _init("offline", start))
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

    Raises:
        TimeoutError: it took longer.
        Exception: what the action raised.
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
    return f"{type(error).__name__}: {error}"


def _init(mode: Mode, start: dict[str, Any]) -> Any:
    """Start a run that is quiet, leaves the console alone and sends neither code nor git state."""
    import wandb

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


def _resolve_mode(choice: str) -> Mode:
    """What to do, from the config, the environment, and whether a key is configured."""
    if choice == "disabled":
        return "disabled"
    wish = os.environ.get("WANDB_MODE", "").strip().lower()
    if wish in _MODES:
        return _MODES[wish]
    if wish:
        _log.warning("WANDB_MODE=%s is unknown (expected %s): ignored", wish, ", ".join(_MODES))
    if choice in _MODES:
        return _MODES[choice]
    return "online" if _has_credentials() else "offline"


def _has_credentials() -> bool:
    """Whether W&B would find a key, without asking the network or the user."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    base_url = wandb.setup().settings.base_url
    try:
        # Knows W&B's own rules (netrc, settings files, hosts that stand for each other).
        from wandb.sdk.lib.wbauth import authenticate_session

        found = authenticate_session(
            host=base_url, source="retina_ray", prompt=False, update_session=False
        )
        return found is not None
    except (ImportError, TypeError):  # another version of wandb: that part is not public
        return _in_netrc(base_url)


def _in_netrc(base_url: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = base_url.partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb_image(picture: Picture) -> Any:
    """A picture with both kinds of boxes as overlays that W&B can switch on and off."""
    import numpy as np
    import wandb

    if picture.detections.boxes.shape[-1] == 5:  # overlays know no turned boxes: drawn in
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
