import functools
import math

import pytest
import torch
from builders import (
    BY_HEART,
    ONE_EPOCH,
    Harness,
    Killed,
    assert_same_weights,
    logged,
    small_config,
)

from retina_ray.config import ConfigError
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.inference.predict import Predictor
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine import compilation
from retina_ray.train.tracking.metrics_file import read_metrics


@pytest.mark.parametrize(("box_type", "box_loss"), [("aligned", "giou"), ("rotated", "smooth_l1")])
def test_two_images_are_learned_by_heart(tmp_path, box_type, box_loss):
    data, rotated = str(tmp_path / "train"), box_type == "rotated"
    make_shapes(data, num_images=2, size_px=64, seed=3, split="train", rotated=rotated)
    harness = Harness(tmp_path, data)
    config = small_config(**BY_HEART, **{"model.box_type": box_type, "loss.box_loss": box_loss})
    harness.run(harness.spec(config))
    (metrics, uri) = harness.reports[-1]
    assert metrics["val/AP50"] >= 0.9
    dataset = PreparedDataset.open(data)
    found = Predictor.from_checkpoint(uri, device="cpu").over_dataset(dataset).results
    truth = dataset.ground_truth(box_type=box_type)
    assert evaluate_coco(truth, found).AP == pytest.approx(metrics["val/AP"])
    # Boxes along the axes, or rotated the other way, would not do: the angles are learned.
    for change in (0, -1) if rotated else ():
        wrong = [one | {"bbox": [*one["bbox"][:4], change * one["bbox"][4]]} for one in found]
        assert evaluate_coco(truth, wrong).AP < 0.7 * metrics["val/AP"]


def test_metrics_reports_and_pictures_follow_the_plan(harness):
    spec = harness.spec(small_config(**{"tracking.num_pictures": 2}))
    harness.run(spec)
    lines = [r for r in read_metrics(f"{spec.run_uri}/metrics.jsonl") if r["metrics"]]
    training = [r["metrics"] for r in lines if "train/loss" in r["metrics"]]
    assert [step for step, _ in logged(spec, "train/loss")] == [1, 2, 3, 4]
    for metrics in training:
        assert metrics["train/loss"] == pytest.approx(
            metrics["train/loss_cls"] + metrics["train/loss_box_reg"]
        )
        assert metrics["perf/images_per_s"] > 0
        assert 0 <= metrics["perf/data_wait_fraction"] <= 1
    assert [step for step, _ in logged(spec, "val/AP")] == [2, 4]
    assert [metrics["epoch"] for metrics, _ in harness.reports] == [1, 2]
    assert harness.reports[-1][1] == spec.checkpoints.last
    names = sorted(path.name for path in (harness.root / "run" / "pictures").iterdir())
    assert names == ["step_00000002.png", "step_00000004.png"]


def test_a_killed_run_ends_where_the_uninterrupted_one_ends_and_stays_there(harness, whole):
    spec = harness.spec(small_config())
    # An epoch is 2 training rows and 2 validation rows: this one dies in the second epoch.
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=5)
    assert spec.start_step() == 2
    harness.run(spec)
    assert_same_weights(spec, whole)
    states = [load_checkpoint(one.run_uri).state for one in (spec, whole)]
    assert torch.equal(*(state["criterion"]["normalizer"] for state in states))
    for key in ("train/loss", "val/AP"):
        assert logged(spec, key) == logged(whole, key)
    before = spec.checkpoints.last
    harness.run(spec)
    assert spec.checkpoints.last == before


def test_another_seed_gives_another_run(harness, whole):
    spec = harness.spec(small_config(**{"train.seed": 1}))
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=1)
    assert logged(spec, "train/loss")[0] != logged(whole, "train/loss")[0]


def test_a_run_starts_from_the_weights_of_another(harness, whole):
    second = harness.spec(small_config(), "second", init_from=whole.checkpoints.last)
    other = small_config(**{"model.fpn_channels": 64, "model.backbone": "resnet34"})
    third = harness.spec(other, "third", init_from=whole.checkpoints.last)
    for spec in (second, third):  # for the third, what fits is taken: the first stages
        with pytest.raises(Killed):
            harness.run(spec, stop_after_rows=1)
    assert logged(second, "train/loss")[0][1] < logged(whole, "train/loss")[0][1]
    assert math.isfinite(logged(third, "train/loss")[0][1])


def test_data_that_changed_under_a_run_is_refused(harness, whole, tmp_path):
    other = str(tmp_path / "other")
    make_shapes(other, num_images=8, size_px=64, seed=4, split="train")
    spec = harness.spec(small_config(), train_uri=other, run_uri=whole.run_uri)
    with pytest.raises(ConfigError, match="other data"):
        harness.run(spec)


# Compilation


def compile_with(monkeypatch, backend):
    to_backend = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(compilation.torch, "compile", to_backend)


@pytest.mark.slow
def test_compiled_runs_are_the_same(harness, monkeypatch):
    # The compiler's graphs; tests/model has its C++, which takes a minute for a whole run.
    compile_with(monkeypatch, "eager")
    plain, compiled = (
        harness.spec(small_config(**{"train.compile": choice, **ONE_EPOCH}), choice)
        for choice in ("none", "all")
    )
    harness.run(plain)
    harness.run(compiled)
    losses = [[loss for _, loss in logged(spec, "train/loss")] for spec in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    (before, _), (after, _) = harness.reports
    assert after["val/AP"] == pytest.approx(before["val/AP"], abs=1e-4)
    names = [load_checkpoint(spec.run_uri).model.keys() for spec in (plain, compiled)]
    assert names[0] == names[1]


def test_a_model_computes_uncompiled_where_the_compiler_fails(monkeypatch, caplog):
    def broken(graph, inputs):
        raise OSError("no compiler here")

    compile_with(monkeypatch, broken)
    model = torch.nn.Linear(2, 3)
    expected = model(torch.ones(4, 2))
    compilation.compile_forward(model)
    for _ in range(2):
        assert torch.equal(model(torch.ones(4, 2)), expected)
    (message,) = [r.getMessage() for r in caplog.records if "uncompiled" in r.getMessage()]
    assert "no compiler here" in message


def test_faults_of_the_model_are_not_taken_for_the_compilers():
    model = torch.nn.Linear(2, 3)
    compilation.compile_forward(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.zeros(4, 7))
    assert set(model.state_dict()) == {"weight", "bias"}
