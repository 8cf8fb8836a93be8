"""What a run leaves behind, and what it goes on from: checkpoints between evaluations, records."""

import os

import pytest
from builders import Killed, small_config

from retina_ray.config import ConfigError
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.predictions_file import predictions_from_parquet, predictions_origin
from retina_ray.inference.predict import Predictor
from retina_ray.train.checkpoint.async_saver import CheckpointError
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.checkpoint.store import CheckpointStore, FencedError
from retina_ray.train.run.launch import result_of
from retina_ray.train.spec import RunInputs
from retina_ray.train.tracking.metrics_file import read_metrics
from retina_ray.train.tracking.run_folder import RunFolder

# An epoch is 2 training rows and 2 validation rows; row 5 is the first step of the second epoch.
IN_THE_SECOND_EPOCH = 5


def test_a_run_goes_on_from_between_two_evaluations(harness):
    """It was killed, and its last checkpoint is damaged: it goes back to the one before."""
    config = small_config(
        **{"train.checkpoint_every_steps": 1, "train.keep_checkpoints": 2, "train.ema_decay": 0.5}
    )
    spec = harness.spec(config)
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=IN_THE_SECOND_EPOCH)
    first, _ = harness.reports[0]
    assert spec.start_step() == 3
    between = load_checkpoint(spec.run_uri)
    assert between.meta.epoch == 1
    assert between.meta.metrics_step == 2, "its figures are those of the evaluation before"
    assert between.meta.metrics["val/AP"] == first["val/AP"]
    assert between.meta.wandb_run_id == "run"
    assert result_of(spec).metrics["val/AP"] == first["val/AP"]
    assert [entry.step for entry in spec.checkpoints.index.recent] == [2, 3]
    assert spec.checkpoints.best.endswith("step-00000002"), "only an evaluation makes a best one"

    os.truncate(f"{spec.checkpoints.last}/state.pt", 100)
    with pytest.raises(ConfigError, match=r"state\.pt has 100 bytes, .*step-00000002 of the same"):
        harness.run(spec)
    spec.checkpoints.go_back_to_whole()
    harness.run(spec)
    last = load_checkpoint(spec.run_uri)
    assert (last.meta.step, last.meta.epoch, last.meta.metrics_step) == (4, 2, 4)
    steps = [r["step"] for r in read_metrics(f"{spec.run_uri}/metrics.jsonl") if r["metrics"]]
    assert sorted(set(steps)) == [1, 2, 3, 4]

    # The predictions beside it are those of the best evaluation.
    reported = {uri: metrics for metrics, uri in harness.reports}
    best = reported[spec.checkpoints.best]
    assert best["val/AP"] == max(metrics["val/AP"] for metrics in reported.values())
    with open(f"{spec.run_uri}/predictions.parquet", "rb") as file:
        content = file.read()
    data = PreparedDataset.open(harness.data)
    results = predictions_from_parquet(content, where="it")
    again = evaluate_coco(data.ground_truth(), results).as_metrics()
    assert again["val/AP"] == best["val/AP"]
    origin = predictions_origin(content, where="it")
    assert (origin.step, origin.dataset_fingerprint) == (best["step"], data.info.fingerprint)

    # They are those of the averaged weights, which also predict later.
    predictor = Predictor.from_checkpoint(spec.checkpoints.best, device="cpu")
    found = predictor.over_dataset(data).results
    assert len(found) == len(results)
    scores = [sorted(one["score"] for one in some) for some in (found, results)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(harness, monkeypatch):
    spec = harness.spec(small_config(**{"train.checkpoint_every_steps": 1}))
    os.makedirs(spec.run_uri)
    # Once the run has begun, a file lies where the folder of the checkpoints was.
    acquire_lease = CheckpointStore.acquire_lease

    def acquire_and_lose(store):
        index = acquire_lease(store)
        os.rename(store.uri, f"{store.uri}.lost")
        with open(store.uri, "w"):
            pass
        return index

    monkeypatch.setattr(CheckpointStore, "acquire_lease", acquire_and_lose)
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 1 could not be written to"):
        harness.run(spec)
    assert read_metrics(f"{spec.run_uri}/metrics.jsonl")[-1]["status"] == "failed"


def test_a_run_that_another_process_resumed_ends(harness, monkeypatch):
    spec = harness.spec(small_config(**{"train.checkpoint_every_steps": 1}))
    upload = RunFolder.upload

    def upload_late(folder, **options):
        """While the checkpoint is written and does not yet count."""
        spec.checkpoints.acquire_lease()
        upload(folder, **options)

    monkeypatch.setattr(RunFolder, "upload", upload_late)
    with pytest.raises(FencedError, match="another process has taken this run over"):
        harness.run(spec)
    assert spec.checkpoints.last is None


def test_a_typical_row_is_the_larger_one_of_training_and_validation():
    def bytes_of(**overrides):
        return RunInputs(small_config(**overrides), None, None).batch_bytes

    training = 3 * 64 * 64 * 4  # the longer side is 64 px at most here
    assert bytes_of() == training
    assert bytes_of(**{"train.eval_batch_size": 1}) == training
    large = {"input.eval_size_px": 300, "input.eval_max_size_px": 1000}
    assert bytes_of(**large) == 3 * 300 * 400 * 4
