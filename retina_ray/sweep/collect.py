"""From what the trials left on disk, and Tune's word on how each ended, to the report's rows."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial

from retina_ray.config import idle_paths, with_overrides
from retina_ray.storage.uris import join_uri
from retina_ray.sweep.plan import METRIC, SweepPlan
from retina_ray.sweep.report import TrialRow
from retina_ray.sweep.space import decode_params
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.recovery.failures import FailureNote
from retina_ray.train.run_files import CHECKPOINTS, METRICS
from retina_ray.train.tracking.metrics_file import read_metrics


def collect_rows(plan: SweepPlan, trials: list[Trial]) -> list[TrialRow]:
    """Make a row for every trial that Tune drew, with all its evaluations, by name."""
    rows = [_row(plan, trial) for trial in trials]
    return sorted(rows, key=lambda row: (len(row.trial_id), row.trial_id))


def _row(plan: SweepPlan, trial: Trial) -> TrialRow:
    params = decode_params(plan.space, trial.config)
    name = str(trial)
    history = _history(plan.trial_uri(name))
    store = CheckpointStore(join_uri(plan.trial_uri(name), CHECKPOINTS))
    best = _best(history, store)
    epochs_run = max((record["epoch"] for record in history), default=0)
    status, reason = _outcome(plan, trial, epochs_run)
    idle = idle_paths(with_overrides(plan.config, params))
    return TrialRow(
        trial_id=name,
        params={path: None if path in idle else value for path, value in params.items()},
        status=status,
        reason=reason,
        metrics={k: v for k, v in best.items() if k not in ("epoch", "step") and "/" not in k},
        best_epoch=best.get("epoch", 0),
        epochs_run=epochs_run,
        time_s=float(trial.last_result.get("time_total_s", 0.0) if trial.last_result else 0.0),
        checkpoint=store.best,
        history=history,
        seed=params.get("train.seed", plan.config.train.seed),
    )


def _outcome(plan: SweepPlan, trial: Trial, epochs_run: int) -> tuple[str, str]:
    """How a trial ended, and why."""
    if trial.status == Trial.ERROR:
        reason = FailureNote(plan.trial_uri(str(trial))).read()
        if reason is not None:
            return "failed", reason
        error = trial.get_error() or RuntimeError("its process died")
        return "failed", str(error).strip().splitlines()[-1]
    if trial.status != Trial.TERMINATED:
        return "pending", f"interrupted after epoch {epochs_run}"
    if epochs_run < plan.config.train.epochs:
        return "stopped", f"{plan.scheduler} stopped it after epoch {epochs_run}"
    return "finished", ""


def _best(history: list[dict[str, Any]], store: CheckpointStore) -> dict[str, Any]:
    """The evaluation of the best checkpoint, of all where a trial ended before it kept any."""
    kept = store.index.best
    known = [record for record in history if kept is not None and record["step"] == kept.step]
    return max(known or history, key=lambda record: record["AP"], default={})


def _history(run_uri: str) -> list[dict[str, Any]]:
    """The evaluations of a trial: one record each, with the last training loss before it."""
    records, loss = [], None
    for line in read_metrics(join_uri(run_uri, METRICS)):
        metrics = line["metrics"]
        loss = metrics.get("train/loss", loss)
        if metrics.get(METRIC) is not None:
            values = {key.removeprefix("val/"): value for key, value in metrics.items()}
            epoch = round(metrics["train/epoch"])
            records.append({**values, "epoch": epoch, "step": line["step"], "loss": loss})
    return records
