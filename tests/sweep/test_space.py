import json

import pytest
import torch
from ray import tune
from ray.tune.search.sample import Categorical, Float, Integer

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.structures import HeadOutputs, Targets
from retina_ray.sweep.effective import effective_settings, idle_paths
from retina_ray.sweep.space import (
    Choice,
    IntUniform,
    LogUniform,
    Uniform,
    baseline_point,
    check_space,
    decode_params,
    first_points,
    to_tune,
)
from retina_ray.train.engine.optim import build_optimizer
from retina_ray.train.engine.schedule import build_schedule

SMALL = with_overrides(
    ExperimentConfig(),
    {
        "model.num_classes": 3,
        "model.backbone": "resnet18",
        "model.backbone_norm": "bn",
        "model.freeze_stages": 0,
        "model.fpn_channels": 32,
        "model.head_num_convs": 1,
        "schedule.warmup_steps": 2,
    },
)


def faults_of(space, base=SMALL):
    with pytest.raises(ConfigError) as caught:
        check_space(space, base)
    return dict(caught.value.faults)


def test_a_sound_space_passes():
    check_space(
        {
            "loss.focal_gamma": Uniform(0.5, 3.0),
            "loss.box_loss": Choice("smooth_l1", "giou"),
            "optimizer.lr": LogUniform(1e-4, 1e-2),
            "train.epochs": IntUniform(2, 4),
            "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
        },
        SMALL,
    )


def test_all_faults_of_a_space_are_named_at_once():
    faults = faults_of(
        {
            "loss.focal_gama": Uniform(1.0, 2.0),
            "loss.focal_alpha": Uniform(0.2, 1.5),
            "optimizer.lr": LogUniform(0.0, 1.0),
            "loss.box_loss": Choice("giou", "iou"),
            "train.epochs": Choice(3),
            "matcher.low": Uniform(0.3, 0.9),
        }
    )
    assert "did you mean loss.focal_gamma" in faults["loss.focal_gama"]
    assert "1.5" in faults["loss.focal_alpha"]
    assert "logarithmic" in faults["optimizer.lr"]
    assert "iou" in faults["loss.box_loss"]
    assert "two different values" in faults["train.epochs"]
    assert "matcher.high" in faults["matcher.low"]


@pytest.mark.parametrize(
    "domain", [Uniform(2.0, 1.0), Uniform(1.0, 1.0), Uniform(0.0, float("inf"))]
)
def test_a_range_needs_two_finite_ends(domain):
    assert "low < high" in faults_of({"loss.focal_gamma": domain})["loss.focal_gamma"]


def test_an_empty_space_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        check_space({}, SMALL)


def test_a_parameter_that_nothing_reads_is_refused():
    giou = with_overrides(SMALL, {"loss.box_loss": "giou"})
    assert (
        "no effect"
        in faults_of({"loss.smooth_l1_beta": Uniform(0.0, 1.0)}, giou)["loss.smooth_l1_beta"]
    )


def test_a_parameter_that_another_one_switches_on_passes():
    giou = with_overrides(SMALL, {"loss.box_loss": "giou"})
    check_space(
        {
            "loss.smooth_l1_beta": Uniform(0.0, 1.0),
            "loss.box_loss": Choice("smooth_l1", "giou"),
        },
        giou,
    )


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, {"matcher.atss_topk", "model.anchors.angles_deg", "model.angle_weight"}),
        (
            {"matcher.method": "atss"},
            {"matcher.low", "matcher.high", "matcher.allow_low_quality"},
        ),
        ({"matcher.method": "best"}, {"matcher.low", "matcher.allow_low_quality"}),
        ({"loss.cls_loss": "quality_focal"}, {"loss.focal_alpha"}),
        ({"train.compile": "loss"}, {"train.compile"}),
    ],
)
def test_what_a_choice_switches_off(changes, idle):
    config = with_overrides(SMALL, changes)
    about = ("matcher.", "loss.focal", "model.", "train.compile")
    found = {path for path in idle_paths(config) if path.startswith(about)}
    expected = idle | {"train.compile"}
    if "matcher.method" not in changes or changes["matcher.method"] == "best":
        expected |= {"matcher.atss_topk"}
    assert found == expected | {"model.anchors.angles_deg", "model.angle_weight"}


def test_tracking_is_no_parameter():
    assert (
        "no effect"
        in faults_of({"tracking.num_pictures": IntUniform(0, 4)})["tracking.num_pictures"]
    )


def test_domains_become_those_of_tune():
    space = {
        "loss.focal_gamma": Uniform(1.0, 2.0),
        "optimizer.lr": LogUniform(1e-4, 1e-2),
        "train.epochs": IntUniform(2, 4),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 2.0)),
    }
    domains = to_tune(space)
    assert isinstance(domains["loss.focal_gamma"], Float)
    assert isinstance(
        domains["optimizer.lr"].get_sampler(), type(tune.loguniform(1, 2).get_sampler())
    )
    assert isinstance(domains["train.epochs"], Integer)
    assert {domains["train.epochs"].sample() for _ in range(100)} == {2, 3, 4}
    assert isinstance(domains["model.anchors.aspect_ratios"], Categorical)
    drawn = {"loss.focal_gamma": 1.5, "optimizer.lr": 1e-3, "train.epochs": 3}
    drawn["model.anchors.aspect_ratios"] = json.dumps([0.5, 2.0])
    config = with_overrides(SMALL, decode_params(space, drawn))
    assert config.model.anchors.aspect_ratios == (0.5, 2.0)
    assert config.train.epochs == 3


def test_the_baseline_is_the_recipes_own_point():
    space = {
        "loss.focal_gamma": Uniform(1.0, 3.0),
        "loss.box_loss": Choice("smooth_l1", "giou"),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
    }
    point = baseline_point(space, SMALL)
    assert point is not None
    assert decode_params(space, point) == {
        "loss.focal_gamma": 2.0,
        "loss.box_loss": "smooth_l1",
        "model.anchors.aspect_ratios": [0.5, 1.0, 2.0],
    }
    assert baseline_point({"loss.focal_gamma": Uniform(2.5, 3.0)}, SMALL) is None
    assert baseline_point({"loss.box_loss": Choice("giou", "ciou")}, SMALL) is None


def test_a_space_of_choices_is_drawn_without_repeats():
    space = {"loss.focal_gamma": Choice(1.0, 2.0), "loss.box_loss": Choice("smooth_l1", "giou")}
    points = first_points(space, SMALL, num_samples=9, seed=0)
    values = [tuple(decode_params(space, p).values()) for p in points]
    assert values[0] == (2.0, "smooth_l1")
    assert sorted(values) == [(1.0, "giou"), (1.0, "smooth_l1"), (2.0, "giou"), (2.0, "smooth_l1")]
    assert first_points(space, SMALL, num_samples=2, seed=0) == points[:2]
    orders = {str(first_points(space, SMALL, num_samples=4, seed=s)) for s in range(10)}
    assert len(orders) > 1


def test_a_space_with_a_range_settles_only_the_baseline():
    space = {"loss.focal_gamma": Uniform(1.0, 3.0), "loss.box_loss": Choice("smooth_l1", "giou")}
    points = first_points(space, SMALL, num_samples=9, seed=0)
    assert points == [baseline_point(space, SMALL)]
    space["loss.focal_gamma"] = Uniform(2.5, 3.0)
    assert first_points(space, SMALL, num_samples=9, seed=0) == []


def test_settings_that_act_only_together_are_compared_together():
    doubled = with_overrides(
        SMALL,
        {"model.anchors.scale": 2.0, "model.anchors.sizes": (16.0, 32.0, 64.0, 128.0, 256.0)},
    )
    assert effective_settings(doubled) == effective_settings(SMALL)
    scaled = with_overrides(SMALL, {"model.anchors.scale": 2.0})
    assert effective_settings(scaled) != effective_settings(SMALL)
    assert "schedule.milestones" in idle_paths(with_overrides(SMALL, {"schedule.name": "cosine"}))
    assert "schedule.milestones" not in idle_paths(SMALL)


def losses(model, criterion):
    """The criterion's losses of a fixed batch under fixed head outputs."""
    generator = torch.Generator().manual_seed(1)
    anchors = model.anchors([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)])
    num, classes = model.head.num_anchors, 3
    sides = [8, 4, 2, 1, 1]
    outputs = HeadOutputs(
        [torch.randn(1, num * classes, s, s, generator=generator) for s in sides],
        [0.3 * torch.randn(1, num * 4, s, s, generator=generator) for s in sides],
        anchors,
    )
    boxes = torch.tensor([[4.0, 4.0, 44.0, 40.0], [20.0, 10.0, 50.0, 62.0]])
    return criterion(outputs, Targets.from_lists([boxes], [torch.tensor([0, 2])]))


def built(config):
    """Everything that a config builds, as comparable numbers."""
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model)
    criterion = RetinaNetCriterion.from_config(config)
    optimizer = build_optimizer(model, config.optimizer, batch_size=config.train.batch_size)
    schedule = build_schedule(optimizer, config.schedule, 30)
    rates = []
    for _ in range(30):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    hyper = [
        {k: v for k, v in g.items() if k != "params"}
        for g in optimizer.state_dict()["param_groups"]
    ]
    anchors = [a.tolist() for a in model.anchors([(2, 2)] * len(config.model.levels))]
    return {
        "rates": rates,
        "optimizer": (type(optimizer).__name__, str(hyper)),
        "anchors": anchors,
        "losses": {name: loss.item() for name, loss in losses(model, criterion).items()},
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loss.focal_alpha", 0.5),
        ("loss.focal_gamma", 1.5),
        ("loss.box_loss", "giou"),
        ("loss.smooth_l1_beta", 0.5),
        ("schedule.name", "cosine"),
        ("schedule.milestones", (0.3, 0.6)),
        ("schedule.warmup", "constant"),
        ("optimizer.lr", 0.02),
        ("optimizer.name", "adamw"),
        ("optimizer.momentum", 0.5),
        ("model.anchors.scale", 0.5),
        ("model.anchors.aspect_ratios", (1.0, 1.5, 3.0)),
        ("model.anchors.offset", 0.0),
        ("matcher.high", 0.6),
    ],
)
def test_a_searched_value_changes_what_is_built(path, value):
    before, after = built(SMALL), built(with_overrides(SMALL, {path: value}))
    assert before == built(SMALL), "building is not repeatable, so this test would prove nothing"
    assert after != before
