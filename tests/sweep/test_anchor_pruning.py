import json
import logging

import numpy as np
import pytest

from retina_ray.anchors.search import fit_anchors
from retina_ray.config import (
    AnchorConfig,
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    from_json,
    with_overrides,
)
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category, Record
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.sweep.anchor_pruning import anchors_depend_on_trial, prune_anchors
from retina_ray.sweep.launch import prepare_sweep
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.space import Choice, LogUniform, Uniform, check_space
from retina_ray.sweep.trial import _config

GAMMA = {"loss.focal_gamma": Choice(1.0, 2.0)}
SQUARE, USUAL, FLAT = (1.0,), (0.5, 1.0, 2.0), (0.05,)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Squares of 30 to 100 px at random places of pictures of 256 px."""
    folder = tmp_path_factory.mktemp("squares") / "set"
    rng = np.random.default_rng(0)
    with ShardWriter(folder, name="squares", split="train", categories=[Category(1, "a")]) as out:
        for i in range(40):
            side = rng.uniform(30, 100)
            x, y = rng.uniform(0, 256 - side, 2)
            out.add(
                Record(
                    image=b"no pixels",
                    file_name=f"{i}.jpg",
                    image_id=i + 1,
                    height=256,
                    width=256,
                    boxes=np.array([[x, y, x + side, y + side]], np.float32),
                    labels=np.zeros(1, np.int32),
                    iscrowd=np.zeros(1, bool),
                    area=np.array([side * side]),
                    annotation_id=np.array([i + 1]),
                )
            )
    return PreparedDataset.open(folder)


def base_config(dataset, **overrides):
    """Anchors of 16 to 203 px."""
    model = ModelConfig(
        num_classes=1,
        backbone="resnet18",
        backbone_norm="gn",
        freeze_stages=0,
        max_level=5,
        anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0)),
    )
    return with_overrides(
        ExperimentConfig(model=model),
        {
            "input.train_sizes_px": (256,),
            "input.eval_size_px": 256,
            "schedule.warmup_steps": 1,
            "train.batch_size": 4,
            "data.train": dataset.uri,
            "data.val": dataset.uri,
            **overrides,
        },
    )


def test_hopeless_choices_are_left_out_with_a_word(dataset, caplog):
    """Anchors 16 times as large are above 250 px: 100 x 100 / 256 / 256 = 0.15 at most."""
    base = base_config(dataset)
    space = {**GAMMA, "model.anchors.scale": Choice(0.75, 1.0, 16.0)}
    left, after = prune_anchors(space, base, dataset)
    assert left == {**GAMMA, "model.anchors.scale": Choice(0.75, 1.0)}
    assert after == base
    (warning,) = caplog.messages
    assert "model.anchors.scale: hopeless anchors are left out: 16 reaches 0.0 %" in warning
    assert "best setting reaches 100.0 %" in warning


def test_a_sound_space_stays_as_it_is(dataset, caplog):
    base = base_config(dataset)
    space = {
        "model.anchors.scale": Uniform(0.75, 1.5),
        "model.anchors.aspect_ratios": Choice(SQUARE, USUAL),
    }
    assert prune_anchors(space, base, dataset) == (space, base)
    assert prune_anchors(GAMMA, base, dataset) == (GAMMA, base)
    assert caplog.messages == []


def test_a_single_value_that_is_left_is_set(dataset, caplog):
    """The base config's own value is no exception."""
    base = base_config(dataset, **{"model.anchors.aspect_ratios": FLAT})
    space = {**GAMMA, "model.anchors.aspect_ratios": Choice(SQUARE, FLAT)}
    left, after = prune_anchors(space, base, dataset)
    assert left == GAMMA
    assert after.model.anchors.aspect_ratios == SQUARE
    assert "[1.0] alone is left, and is set for all trials" in caplog.text


def test_nothing_left_to_vary_is_refused(dataset):
    space = {"model.anchors.aspect_ratios": Choice(SQUARE, FLAT)}
    with pytest.raises(ConfigError, match=r"only value that is not hopeless is \[1.0\]"):
        prune_anchors(space, base_config(dataset), dataset)


def test_hopeless_anchors_can_be_kept(dataset, caplog):
    base = base_config(dataset)
    space = {
        "model.anchors.aspect_ratios": Choice(SQUARE, FLAT),
        "model.anchors.scale": LogUniform(0.5, 64.0),
    }
    assert prune_anchors(space, base, dataset, keep_hopeless=True) == (space, base)
    assert len([m for m in caplog.messages if "are kept" in m]) == 2


def test_a_range_with_a_hopeless_end_is_refused_with_the_rest_named(dataset):
    """Evenly spaced in the logarithm, 9 points from 1/2 to 128 are the powers of two.

    At 1/2 the largest anchors have 51 px, at 8 the smallest 128 px, and the squares 30 to 100.
    """
    with pytest.raises(ConfigError) as caught:
        prune_anchors(
            {**GAMMA, "model.anchors.scale": LogUniform(0.5, 128.0)}, base_config(dataset), dataset
        )
    message = dict(caught.value.faults)["model.anchors.scale"]
    assert "reaches into hopeless anchors" in message
    assert "128 reaches 0.0 %" in message
    assert "make it 1 to 4, or keep all of it (--keep-hopeless-anchors)" in message


def test_a_value_that_another_one_redeems_is_kept(dataset):
    """Sizes of 512 px and more are hopeless at scale 1, and good at scale 1/16."""
    base = base_config(dataset)
    sizes = Choice((16.0, 32.0, 64.0), (512.0, 1024.0, 2048.0))
    with pytest.raises(ConfigError, match="only value"):
        prune_anchors({"model.anchors.sizes": sizes}, base, dataset)
    space = {"model.anchors.sizes": sizes, "model.anchors.scale": Choice(1.0, 1 / 16)}
    left, _ = prune_anchors(space, base, dataset)
    assert left["model.anchors.sizes"] == sizes


def test_the_training_size_redeems_too(dataset):
    """At 1024 px the squares have 120 to 400 px: right for a scale of 8."""
    base, scales = base_config(dataset), Choice(1.0, 8.0)
    space = {"model.anchors.scale": scales, "input.train_sizes_px": Choice((256,), (1024,))}
    assert prune_anchors(space, base, dataset)[0] == space
    assert prune_anchors({**GAMMA, "model.anchors.scale": scales}, base, dataset)[0] == GAMMA


@pytest.mark.parametrize(
    "overrides",
    [{"matcher.method": "atss"}, {"matcher.method": "best"}, {"model.box_type": "rotated"}],
)
def test_where_no_threshold_decides_nothing_is_left_out(dataset, overrides):
    base = base_config(dataset, **overrides)
    space = {"model.anchors.scale": Choice(1.0, 64.0)}
    assert prune_anchors(space, base, dataset) == (space, base)


def test_a_matcher_without_a_threshold_redeems_all(dataset):
    space = {
        "model.anchors.scale": Choice(1.0, 64.0),
        "matcher.method": Choice("iou", "atss"),
    }
    assert prune_anchors(space, base_config(dataset), dataset)[0] == space


def test_fitting_is_no_excuse_for_a_scale_that_it_ignores(dataset):
    space = {
        **GAMMA,
        "model.anchors.scale": Choice(1.0, 64.0),
        "model.anchors.fit": Choice("none", "scale"),
    }
    left, after = prune_anchors(space, base_config(dataset), dataset)
    assert left == {**GAMMA, "model.anchors.fit": space["model.anchors.fit"]}
    assert after.model.anchors.scale == 1.0


def test_a_large_space_is_sampled_and_repeatable(dataset, caplog):
    space = {
        "model.anchors.scale": Choice(*(1 + i / 10 for i in range(12)), 64.0),
        "model.anchors.aspect_ratios": Choice(*((1 + i / 10,) for i in range(12)), FLAT),
        "matcher.high": Choice(0.5, 0.55, 0.6),
    }
    left, _ = prune_anchors(space, base_config(dataset), dataset)
    assert 64.0 not in left["model.anchors.scale"].values
    assert FLAT not in left["model.anchors.aspect_ratios"].values
    assert len(left["model.anchors.scale"].values) == 12
    first = list(caplog.messages)
    caplog.clear()
    assert prune_anchors(space, base_config(dataset), dataset)[0] == left
    assert caplog.messages == first


# Fitted anchors in a space


def test_fitting_changes_what_is_built(dataset):
    base = base_config(dataset)
    check_space({"model.anchors.fit": Choice("none", "scale", "all")}, base)
    fitted = with_overrides(base, {"model.anchors.fit": "scale"})
    with pytest.raises(ConfigError, match="no effect"):
        check_space({"model.anchors.scale": Choice(0.5, 1.0)}, fitted)
    check_space({"model.anchors.aspect_ratios": Choice(SQUARE, USUAL)}, fitted)
    all_ = with_overrides(base, {"model.anchors.fit": "all"})
    check_space({"model.anchors.aspect_ratios": Choice(SQUARE, USUAL)}, all_)
    with pytest.raises(ConfigError, match="no effect"):
        check_space({"model.anchors.aspect_ratios": Choice(SQUARE, FLAT)}, all_)


def prepare(dataset, tmp_path, space, name="sweep", **overrides):
    config = base_config(dataset, **overrides)
    return prepare_sweep(config, space, name=name, storage=str(tmp_path), num_samples=2)


def test_a_sweep_prunes_before_it_is_written(dataset, tmp_path):
    space = {**GAMMA, "model.anchors.scale": Choice(0.75, 1.0, 16.0)}
    plan = prepare(dataset, tmp_path, space)
    assert plan.space["model.anchors.scale"] == Choice(0.75, 1.0)
    assert SweepPlan.load(plan.uri).space == plan.space


def test_a_refused_sweep_leaves_nothing(dataset, tmp_path):
    with pytest.raises(ConfigError, match="hopeless"):
        prepare(dataset, tmp_path, {"model.anchors.scale": Uniform(1.0, 64.0)})
    assert list(tmp_path.iterdir()) == []


def test_anchors_are_fitted_once_where_no_trial_changes_them(dataset, tmp_path):
    plan = prepare(dataset, tmp_path, GAMMA, **{"model.anchors.fit": "all"})
    assert not anchors_depend_on_trial(GAMMA)
    assert plan.config.model.anchors.fit == "none"
    expected = fit_anchors(base_config(dataset, **{"model.anchors.fit": "all"}), dataset)
    assert plan.config.model.anchors == expected.model.anchors


def test_a_trial_fits_its_own_anchors_where_they_differ(dataset, tmp_path):
    sizes = Choice((256,), (64,))
    space = {"model.anchors.fit": Choice("none", "scale"), "input.train_sizes_px": sizes}
    plan = prepare(dataset, tmp_path, space)
    assert plan.config.model.anchors.fit == "none"

    def trial(fit, size, name):
        drawn = {"model.anchors.fit": fit, "input.train_sizes_px": [size]}
        config = _config(plan, name, {path: json.dumps(value) for path, value in drawn.items()})
        assert config.model.anchors.fit == "none"
        return config

    assert trial("none", 64, "trial_00").model.anchors == plan.config.model.anchors
    large, small = trial("scale", 256, "trial_01"), trial("scale", 64, "trial_02")
    assert small.model.anchors.scale < large.model.anchors.scale

    # Started again, a trial has what it was started with.
    stored = with_overrides(small, {"model.anchors.scale": 0.123})
    plan.write_trial_file("trial_02", "config.json", stored.model_dump_json())
    assert trial("scale", 64, "trial_02") == stored
    assert from_json(ExperimentConfig, stored.model_dump_json()) == stored


def test_a_base_that_is_fitted_stays_so_for_trials_that_differ(dataset, tmp_path):
    space = {"input.train_sizes_px": Choice((256,), (64,))}
    plan = prepare(dataset, tmp_path, space, **{"model.anchors.fit": "scale"})
    assert plan.config.model.anchors.fit == "scale"
    params = {"input.train_sizes_px": json.dumps([64])}
    assert _config(plan, "trial_00", params).model.anchors.fit == "none"


def test_hopeless_is_logged_as_a_warning(dataset, caplog):
    space = {**GAMMA, "model.anchors.scale": Choice(1.0, 64.0)}
    prune_anchors(space, base_config(dataset), dataset)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
