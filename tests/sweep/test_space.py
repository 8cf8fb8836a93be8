import json

import pytest
from ray import tune
from ray.tune.search.sample import Categorical, Float, Integer

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.sweep.space import (
    Choice,
    IntUniform,
    LogUniform,
    Uniform,
    baseline_point,
    check_space,
    decode_params,
    first_points,
    num_points,
    paths_outside,
    to_tune,
)

SMALL = ExperimentConfig()


GIOU = with_overrides(SMALL, {"loss.box_loss": "giou"})
GAMMA, BETA, LOSS = "loss.focal_gamma", "loss.smooth_l1_beta", "loss.box_loss"


def faults_of(space, base=SMALL):
    with pytest.raises(ConfigError) as caught:
        check_space(space, base)
    return dict(caught.value.faults)


def test_a_sound_space_passes():
    check_space(
        {
            GAMMA: Uniform(0.5, 3.0),
            LOSS: Choice("smooth_l1", "giou"),
            "optimizer.lr": LogUniform(1e-4, 1e-2),
            "train.epochs": IntUniform(2, 4),
            "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
        },
        SMALL,
    )
    # Where another parameter switches one on, it has an effect.
    check_space({BETA: Uniform(0.0, 1.0), LOSS: Choice("smooth_l1", "giou")}, GIOU)


def test_all_faults_of_a_space_are_named_at_once():
    faults = faults_of(
        {
            "loss.focal_gama": Uniform(1.0, 2.0),
            "loss.focal_alpha": Uniform(0.2, 1.5),
            "optimizer.lr": LogUniform(0.0, 1.0),
            LOSS: Choice("giou", "iou"),
            "train.epochs": Choice(3),
            "matcher.low": Uniform(0.3, 0.9),
        }
    )
    assert "did you mean loss.focal_gamma" in faults["loss.focal_gama"]
    assert "1.5" in faults["loss.focal_alpha"]
    assert "logarithmic" in faults["optimizer.lr"]
    assert "iou" in faults[LOSS]
    assert "two different values" in faults["train.epochs"]
    assert "matcher.high" in faults["matcher.low"]


@pytest.mark.parametrize(
    ("path", "domain", "said"),
    [
        (GAMMA, Uniform(2.0, 1.0), "low < high"),
        (GAMMA, Uniform(1.0, 1.0), "low < high"),
        (GAMMA, Uniform(0.0, float("inf")), "low < high"),
        (BETA, Uniform(0.0, 1.0), "no effect"),
        ("tracking.num_pictures", IntUniform(0, 4), "no effect"),
    ],
)
def test_a_parameter_is_refused(path, domain, said):
    assert said in faults_of({path: domain}, GIOU)[path]


def test_an_empty_space_is_refused():
    assert "empty" in str(faults_of({}))


def test_domains_become_those_of_tune():
    space = {
        GAMMA: Uniform(1.0, 2.0),
        "optimizer.lr": LogUniform(1e-4, 1e-2),
        "train.epochs": IntUniform(2, 4),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 2.0)),
    }
    domains = to_tune(space)
    assert isinstance(domains[GAMMA], Float)
    assert isinstance(
        domains["optimizer.lr"].get_sampler(), type(tune.loguniform(1, 2).get_sampler())
    )
    assert isinstance(domains["train.epochs"], Integer)
    assert {domains["train.epochs"].sample() for _ in range(100)} == {2, 3, 4}
    assert isinstance(domains["model.anchors.aspect_ratios"], Categorical)
    drawn = {GAMMA: 1.5, "optimizer.lr": 1e-3, "train.epochs": 3}
    drawn["model.anchors.aspect_ratios"] = json.dumps([0.5, 2.0])
    config = with_overrides(SMALL, decode_params(space, drawn))
    assert config.model.anchors.aspect_ratios == (0.5, 2.0)
    assert config.train.epochs == 3


def test_the_baseline_is_the_recipes_own_point():
    space = {
        GAMMA: Uniform(1.0, 3.0),
        LOSS: Choice("smooth_l1", "giou"),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
    }
    point = baseline_point(space, SMALL)
    assert point is not None
    assert decode_params(space, point) == {
        GAMMA: 2.0,
        LOSS: "smooth_l1",
        "model.anchors.aspect_ratios": [0.5, 1.0, 2.0],
    }
    assert baseline_point({GAMMA: Uniform(2.5, 3.0)}, SMALL) is None
    assert baseline_point({LOSS: Choice("giou", "ciou")}, SMALL) is None
    space = {GAMMA: Uniform(2.5, 3.0), LOSS: Choice("giou", "ciou"), BETA: Choice(0.0, 0.1)}
    assert paths_outside(space, SMALL) == [GAMMA, LOSS]


def test_only_choices_can_be_counted():
    assert num_points({GAMMA: Choice(1.0, 2.0, 3.0), LOSS: Choice("giou", "ciou")}) == 6
    assert num_points({GAMMA: Uniform(1.0, 2.0), LOSS: Choice("giou", "ciou")}) is None


def test_a_space_of_choices_is_drawn_without_repeats():
    space = {GAMMA: Choice(1.0, 2.0), LOSS: Choice("smooth_l1", "giou")}
    points = first_points(space, SMALL, num_samples=9, seed=0)
    values = [tuple(decode_params(space, p).values()) for p in points]
    assert values[0] == (2.0, "smooth_l1")
    assert sorted(values) == [(1.0, "giou"), (1.0, "smooth_l1"), (2.0, "giou"), (2.0, "smooth_l1")]
    assert first_points(space, SMALL, num_samples=2, seed=0) == points[:2]
    orders = {str(first_points(space, SMALL, num_samples=4, seed=s)) for s in range(10)}
    assert len(orders) > 1


def test_a_space_with_a_range_settles_only_the_baseline():
    space = {GAMMA: Uniform(1.0, 3.0), LOSS: Choice("smooth_l1", "giou")}
    points = first_points(space, SMALL, num_samples=9, seed=0)
    assert points == [baseline_point(space, SMALL)]
    space[GAMMA] = Uniform(2.5, 3.0)
    assert first_points(space, SMALL, num_samples=9, seed=0) == []
