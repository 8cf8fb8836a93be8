"""What the config says of which setting is read when, held against what is built and learnt."""

import itertools
from functools import cache
from operator import attrgetter
from typing import Literal, get_args, get_origin

import pytest
import torch
from builders import small_config
from pydantic import TypeAdapter

from retina_ray.config import (
    ConfigError,
    ExperimentConfig,
    idle_paths,
    reading_rules,
    with_overrides,
)
from retina_ray.config.base import OPERATIONAL
from retina_ray.model import RetinaNetCriterion
from retina_ray.model.coders import make_coder
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.postprocess import select_detections
from retina_ray.ops.rotated.anchors import RotatedAnchorGenerator
from retina_ray.overrides import config_fields, config_paths
from retina_ray.structures import HeadOutputs, Targets
from retina_ray.sweep.effective import effective_settings
from retina_ray.train.engine.optim import build_optimizer, clip_gradients
from retina_ray.train.engine.schedule import build_schedule, lr_factor

BASE = small_config(
    **{
        "optimizer.name": "sgd",
        "optimizer.clip": "value",
        "optimizer.clip_threshold": 0.01,
        "optimizer.weight_decay_bias": 0.1,
        "schedule.name": "multistep",
        "inference.topk_per_level": 10,
        "inference.max_detections": 20,
    }
)
FIELDS = config_fields(ExperimentConfig)
SETTINGS = [path for path, section in config_paths(ExperimentConfig).items() if section is None]
OPERATIONAL_PATHS = {path for path, rules in reading_rules().items() if OPERATIONAL in rules}
RULES = {p: rules for p, rules in reading_rules().items() if p not in OPERATIONAL_PATHS}

BUILT = ("matcher.", "loss.", "optimizer.", "schedule.", "inference.", "model.anchors.")
TRIED = [
    *(path for path in SETTINGS if path.startswith(BUILT) and path != "model.anchors.fit"),
    *("model.box_type", "model.box_weights", "model.angle_weight"),
]
"""All that is read without a network and without data."""


def candidates(path, value):
    """Other values for a setting; not all of them need be valid."""
    annotation = FIELDS[path].annotation
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple):
        return [tuple(0.9 * part for part in value)]
    if value is None:
        return [1, 64, 0.5, (0.5, 2.0)]
    return [2 * value, value + 1, value / 2, value + 0.5, 0 * value]


def variants(config, path):
    """Configs that differ from `config` in one setting."""
    now = attrgetter(path)(config)
    for value in (value for value in candidates(path, now) if value != now):
        changes = {path: value}
        if path == "model.max_level":
            changes["model.anchors.sizes"] = [12.0 * 2**i for i in range(value - 2)]
        try:
            yield with_overrides(config, changes)
        except ConfigError:
            continue


def contexts(path):
    """The base config, and for a setting that is not always read, one where it is the other way."""
    yield BASE
    switches = [*(rule.path for rule in RULES.get(path, ()))]
    tried = (config for switch in switches for config in variants(BASE, switch))
    now = path in idle_paths(BASE)
    yield from itertools.islice((c for c in tried if (path in idle_paths(c)) != now), 1)


# What stands in the config


@pytest.mark.parametrize("path", RULES)
def test_a_rule_names_a_setting_and_its_values(path):
    for rule in RULES[path]:
        assert rule.path in SETTINGS
        assert rule.path != path
        for value in rule.values:
            assert TypeAdapter(FIELDS[rule.path].annotation).validate_python(value) == value


@pytest.mark.parametrize("path", RULES)
def test_a_setting_with_a_rule_is_read_in_one_config_and_idle_in_another(path):
    assert len(list(contexts(path))) == 2


def test_what_is_operational_is_never_read():
    assert {"tracking", "train.compile"} <= idle_paths(BASE)
    assert not any(path.startswith("tracking") for path in effective_settings(BASE))


# What is built and learnt


class Net(torch.nn.Module):
    """Head outputs as parameters of their own, with a norm and a bias for their groups."""

    def __init__(self, model):
        super().__init__()
        torch.manual_seed(0)
        kind = RotatedAnchorGenerator if model.box_type == "rotated" else AnchorGenerator
        self.anchors = kind.from_config(model)
        self.strides = model.strides
        widths = (model.num_anchors * 3, model.num_anchors * model.box_dim)
        self.maps = torch.nn.ParameterList(
            0.3 * torch.randn(1, width, 64 // stride, 64 // stride)
            for width in widths
            for stride in model.strides
        )
        self.norm, self.conv = torch.nn.GroupNorm(1, 2), torch.nn.Conv2d(2, 1, 1)

    def forward(self):
        shift = self.conv(self.norm(torch.arange(2.0).reshape(1, 2, 1, 1)))
        levels, maps = len(self.strides), [one + 0.1 * shift for one in self.maps]
        anchors = self.anchors([(64 // stride, 64 // stride) for stride in self.strides])
        return HeadOutputs([one - 3 for one in maps[:levels]], maps[levels:], anchors)


@cache
def learnt(config):
    """All that a config decides about two steps and what is detected then, but for the network."""
    net = Net(config.model)
    criterion = RetinaNetCriterion.from_config(config)
    optimizer = build_optimizer(net, config.optimizer, batch_size=config.train.batch_size)
    schedule = build_schedule(optimizer, config.schedule, 30)
    boxes = [[4.0, 4.0, 44.0, 40.0], [20.0, 10.0, 50.0, 62.0], [10.0, 30.0, 14.0, 60.0]]
    if config.model.box_type == "rotated":
        boxes = [[*box, 10.0] for box in boxes]
    targets = Targets.from_lists([torch.tensor(boxes)], [torch.tensor([0, 2, 1])])
    found = []
    for _ in range(2):
        losses = criterion(net(), targets)
        sum(losses.values()).backward()
        clip_gradients(net.parameters(), config.optimizer)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found += [loss.item() for loss in losses.values()]
    options = config.inference.model_dump(exclude={"evaluation_backend"})
    size = torch.tensor([[64, 64]])
    (detections,) = select_detections(net(), size, coder=make_coder(config.model), **options)
    return (
        found,
        [parameter.abs().sum().item() for parameter in net.parameters()],
        [lr_factor(step, 30, config.schedule) for step in range(30)],
        detections.boxes.tolist(),
    )


def surroundings(path):
    """The configs in which a setting is tried: its rules' and all choices of its section."""
    yield from contexts(path)
    section = path.partition(".")[0]
    for switch in TRIED:
        is_choice = get_origin(FIELDS[switch].annotation) is Literal
        if switch.startswith(f"{section}.") and is_choice and switch != path:
            yield from variants(BASE, switch)


@pytest.mark.parametrize("path", [path for path in TRIED if path not in OPERATIONAL_PATHS])
def test_a_setting_changes_what_is_learnt_just_where_it_is_read(path):
    """If this fails for a new setting: where another one switches it off, say `ReadWhen`."""
    for context in dict.fromkeys(surroundings(path)):
        if context.model.anchors.fit != "none":
            continue  # is done before anything is built
        others = list(variants(context, path))
        changes = any(learnt(other) != learnt(context) for other in others)
        assert changes == (path not in idle_paths(context))
        assert changes == (effective_settings(others[0]) != effective_settings(context))


def test_building_is_repeatable():
    """Else the tests above would prove nothing."""
    assert learnt.__wrapped__(BASE) == learnt(BASE)


def test_settings_that_act_only_together_are_compared_together():
    doubled = {"model.anchors.scale": 2.0, "model.anchors.sizes": (6.0, 12.0, 24.0)}
    assert effective_settings(with_overrides(BASE, doubled)) == effective_settings(BASE)
