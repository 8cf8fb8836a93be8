import functools
import math

import pytest
import torch
from builders import Killed, small_config

from retina_ray.config import ConfigError, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.inference.predict import Predictor
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine import compilation
from retina_ray.train.errors import NonFiniteLossError
from retina_ray.train.tracking.metrics_file import read_metrics


def figures(harness, name="run"):
    return [r for r in read_metrics(harness.root / name / "metrics.jsonl") if r["metrics"]]


@pytest.mark.slow
def test_a_few_pictures_are_learned_by_heart(harness):
    config = small_config(
        **{
            "model.backbone_norm": "bn",
            "model.fpn_channels": 64,
            "input.flip": "none",
            "loss.box_loss": "giou",
            "train.epochs": 60,
            "train.eval_every_epochs": 60,
            "train.batch_size": 8,
        }
    )
    spec = harness.spec(config)
    harness.run(spec)
    (metrics, uri) = harness.reports[-1]
    assert metrics["val/AP50"] >= 0.9
    predictor = Predictor.from_checkpoint(uri, device="cpu")
    data = PreparedDataset.open(harness.data)
    found = predictor.over_dataset(data, num_samples=2)
    again = evaluate_coco(data.ground_truth(), found.results)
    assert again.AP50 == pytest.approx(metrics["val/AP50"])
    assert len(found.samples) == 2


def test_metrics_and_reports_follow_the_plan(harness):
    harness.run(harness.spec(small_config()))
    records = figures(harness)
    training = [r for r in records if "train/loss" in r["metrics"]]
    assert [r["step"] for r in training] == [1, 2, 3, 4]
    for record in training:
        metrics = record["metrics"]
        assert metrics["train/loss"] == pytest.approx(
            metrics["train/loss_cls"] + metrics["train/loss_box_reg"]
        )
        assert metrics["perf/images_per_s"] > 0
        assert 0 <= metrics["perf/data_wait_fraction"] <= 1
    assert [r["step"] for r in records if "val/AP" in r["metrics"]] == [2, 4]
    assert [metrics["epoch"] for metrics, _ in harness.reports] == [1, 2]
    assert harness.reports[-1][1] == harness.spec(small_config()).checkpoints.last


def test_a_killed_run_ends_where_the_uninterrupted_one_ends(harness):
    config = small_config(**{"train.epochs": 3})
    harness.run(harness.spec(config, "whole"))
    broken = harness.spec(config, "broken")
    # An epoch is 2 training rows and 2 validation rows: this one dies in the second epoch.
    with pytest.raises(Killed):
        harness.run(broken, stop_after_rows=5)
    assert broken.start_step() == 2
    harness.run(broken)
    whole = load_checkpoint(str(harness.root / "whole"))
    resumed = load_checkpoint(str(harness.root / "broken"))
    assert whole.meta.step == resumed.meta.step == 6
    for name, tensor in whole.model.items():
        assert torch.equal(tensor, resumed.model[name]), name
    assert torch.equal(
        whole.state["criterion"]["normalizer"], resumed.state["criterion"]["normalizer"]
    )
    lines = [(r["step"], r["metrics"].get("train/loss")) for r in figures(harness, "whole")]
    again = [(r["step"], r["metrics"].get("train/loss")) for r in figures(harness, "broken")]
    assert lines == again


def test_a_finished_run_stays_as_it_is(harness):
    spec = harness.spec(small_config())
    harness.run(spec)
    before = spec.checkpoints.last
    harness.run(spec)
    assert spec.checkpoints.last == before


def test_another_seed_gives_another_run(harness):
    for seed in (0, 1):
        harness.run(harness.spec(small_config(**{"train.seed": seed}), f"seed{seed}"))
    losses = [figures(harness, f"seed{s}")[0]["metrics"]["train/loss"] for s in (0, 1)]
    assert losses[0] != losses[1]


def test_a_non_finite_loss_stops_the_run_and_says_what_to_do(harness):
    config = small_config(**{"optimizer.lr": 1e12, "schedule.warmup_steps": 0, "train.epochs": 20})
    spec = harness.spec(config)
    with pytest.raises(NonFiniteLossError, match=r"step \d+ .*optimizer\.lr"):
        harness.run(spec)
    assert read_metrics(harness.root / "run" / "metrics.jsonl")[-1]["status"] == "failed"
    if spec.checkpoints.last is not None:
        weights = load_checkpoint(spec.checkpoints.last).model
        assert all(t.isfinite().all() for t in weights.values() if t.is_floating_point())


def test_a_run_starts_from_the_weights_of_another(harness):
    first = harness.spec(small_config(), "first")
    harness.run(first)
    second = harness.spec(small_config(), "second", init_from=first.checkpoints.last)
    harness.run(second)
    start = [figures(harness, n)[0]["metrics"]["train/loss"] for n in ("first", "second")]
    assert start[1] < start[0]
    other = with_overrides(small_config(), {"model.fpn_channels": 64, "model.backbone": "resnet34"})
    third = harness.spec(other, "third", init_from=first.checkpoints.last)
    harness.run(third)  # what fits is taken: the first stages are the same
    assert math.isfinite(figures(harness, "third")[0]["metrics"]["train/loss"])


def test_data_that_changed_under_a_run_is_refused(harness, tmp_path):
    from retina_ray.data.synthetic.prepare import make_shapes

    spec = harness.spec(small_config())
    harness.run(spec)
    other = str(tmp_path / "other")
    make_shapes(other, num_images=8, size_px=64, seed=4, split="train")
    with pytest.raises(ConfigError, match="other data"):
        harness.run(harness.spec(small_config(), train_uri=other))


def test_pictures_of_the_validation_are_drawn(harness):
    harness.run(harness.spec(small_config(**{"tracking.num_pictures": 2})))
    assert sorted(p.name for p in (harness.root / "run" / "pictures").iterdir())


def losses(harness, name):
    return [
        r["metrics"]["train/loss"] for r in figures(harness, name) if "train/loss" in r["metrics"]
    ]


def run_plain_and_compiled(harness):
    """The losses of both runs."""
    for choice in ("none", "all"):
        config = small_config(
            **{"train.compile": choice, "train.epochs": 1, "schedule.warmup_steps": 1}
        )
        harness.run(harness.spec(config, choice))
    return losses(harness, "none"), losses(harness, "all")


def compile_with(monkeypatch, backend):
    to_backend = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(compilation.torch, "compile", to_backend)


def test_compiled_runs_are_the_same(harness, monkeypatch):
    # The compiler's front end; tests/model has its C++, which takes a minute for a whole run.
    compile_with(monkeypatch, "aot_eager")
    plain, compiled = run_plain_and_compiled(harness)
    assert compiled == pytest.approx(plain, rel=1e-4)
    (before, _), (after, _) = harness.reports
    assert after["val/AP"] == pytest.approx(before["val/AP"], abs=1e-4)
    plain, compiled = (load_checkpoint(str(harness.root / name)) for name in ("none", "all"))
    assert plain.model.keys() == compiled.model.keys()


def test_a_run_goes_on_where_the_compiler_fails(harness, monkeypatch, caplog):
    def broken(graph, inputs):
        raise OSError("no compiler here")

    compile_with(monkeypatch, broken)
    plain, compiled = run_plain_and_compiled(harness)
    assert compiled == plain
    (message,) = [r.getMessage() for r in caplog.records if "uncompiled" in r.getMessage()]
    assert "no compiler here" in message


def test_faults_of_the_model_are_not_taken_for_the_compilers():
    model = torch.nn.Linear(2, 3)
    compilation.compile_forward(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.zeros(4, 7))
    assert set(model.state_dict()) == {"weight", "bias"}
