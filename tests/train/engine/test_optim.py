"""Parameter groups, the two optimizers and clipping, with numbers by hand."""

import math

import pytest
import torch
from torch import nn

from retina_ray.config import ConfigError, OptimizerConfig
from retina_ray.model.norms import FrozenBatchNorm2d, PerLevelBatchNorm2d, SyncBatchNorm2d
from retina_ray.train.engine.optim import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    update_if_finite,
)


def _net() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 2, 1),
            "bn": nn.BatchNorm2d(2),
            "sync": SyncBatchNorm2d(2),
            "gn": nn.GroupNorm(1, 2),
            "level": PerLevelBatchNorm2d(2, num_levels=3),
            "fixed": FrozenBatchNorm2d(2),
            "free": nn.Conv2d(2, 2, 1, bias=False),
            "instance": nn.InstanceNorm2d(2, affine=True),
            "layer": nn.LayerNorm(2),
        }
    )


def _hyperparameters(net, config):
    groups = parameter_groups(net, config, lr=config.lr)
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in net.named_parameters() if id(p) in by_id}, groups


NORMS = ("bn", "sync", "gn", "level", "instance", "layer")


@pytest.mark.parametrize(
    ("decay_bias", "bias_factor"), [(None, 1.0), (0.125, 1.0), (None, 2.0), (0.125, 2.0)]
)
def test_groups_of_norms_and_biases(decay_bias, bias_factor):
    config = OptimizerConfig(
        lr=0.1,
        weight_decay=0.5,
        weight_decay_norm=0.25,
        weight_decay_bias=decay_bias,
        bias_lr_factor=bias_factor,
    )
    found, groups = _hyperparameters(_net(), config)

    def bias_of(decay):  # the bias rule wins over the norm's
        return 0.1 * bias_factor, decay if decay_bias is None else decay_bias

    assert found == {
        "conv.weight": (0.1, 0.5),
        "free.weight": (0.1, 0.5),
        "conv.bias": bias_of(0.5),
        **{f"{name}.weight": (0.1, 0.25) for name in NORMS},
        **{f"{name}.bias": bias_of(0.25) for name in NORMS},
    }
    assert len(groups) == len(set(found.values()))


def test_frozen_and_shared_parameters():
    net = _net()
    net["conv"].requires_grad_(False)
    net["again"] = net["free"]
    found, groups = _hyperparameters(net, OptimizerConfig())
    assert "conv.weight" not in found
    assert "conv.bias" not in found
    assert sum(p is net["free"].weight for g in groups for p in g["params"]) == 1


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing can be trained"):
        build_optimizer(_net().requires_grad_(False), OptimizerConfig(), batch_size=2)


@pytest.mark.parametrize(
    ("lr_batch_size", "batch_size", "expected"), [(None, 4, 0.01), (16, 4, 0.0025), (16, 32, 0.02)]
)
def test_linear_rule(lr_batch_size, batch_size, expected):
    config = OptimizerConfig(lr=0.01, lr_batch_size=lr_batch_size, bias_lr_factor=3.0)
    optimizer = build_optimizer(nn.Conv2d(1, 1, 1), config, batch_size=batch_size)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([expected, 3 * expected])


def _steps(config, gradients):
    """A weight of 2 after updates with these gradients, and its optimizer."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(layer, config, batch_size=1)
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient)
        update_if_finite(optimizer, layer.weight.grad.isfinite().all())
    return layer.weight, optimizer


@pytest.mark.parametrize("nesterov", [False, True])
def test_two_steps_of_sgd_by_hand(nesterov):
    config = OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.25, nesterov=nesterov)
    weight, velocity, gradients = 2.0, 0.0, (1.0, -3.0)
    for gradient in gradients:
        d = gradient + 0.25 * weight
        velocity = 0.5 * velocity + d
        weight -= 0.1 * (d + 0.5 * velocity if nesterov else velocity)
    assert _steps(config, gradients)[0].item() == pytest.approx(weight)


def test_adamw_takes_its_betas_and_decouples_the_decay():
    config = OptimizerConfig(name="adamw", lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    weight, optimizer = _steps(config, [1.0])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    # 2 * (1 - lr * decay), then a step of lr: the first bias-corrected update is g / |g|.
    assert weight.item() == pytest.approx(2 * (1 - 0.05) - 0.1, rel=1e-5)


def _with_gradients(*gradients) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return [*parameters, nn.Parameter(torch.zeros(2))]  # the last has no gradient


@pytest.mark.parametrize(
    ("options", "norm", "expected"),
    [
        ({"clip": "value"}, math.sqrt(9 + 0.25 + 16), [[1.0, -0.5], [-1.0]]),
        ({"clip": "norm"}, math.sqrt(9 + 0.25 + 16), None),
        ({"clip": "norm", "clip_norm_type": 1.0}, 7.5, None),
    ],
)
def test_clipping(options, norm, expected):
    gradients = [3.0, -0.5], [-4.0]
    parameters = _with_gradients(*gradients)
    result = clip_gradients(iter(parameters), OptimizerConfig(clip_threshold=1.0, **options))
    assert result.item() == pytest.approx(norm)
    scaled = [[one / norm for one in some] for some in gradients]
    clipped = [p.grad.tolist() for p in parameters[:2]]
    assert clipped == [pytest.approx(some, rel=1e-4) for some in expected or scaled]


def test_small_gradients_are_left_alone():
    for clip in ("none", "value", "norm"):
        parameters = _with_gradients([0.3], [-0.4])
        clip_gradients(parameters, OptimizerConfig(clip=clip, clip_threshold=1.0))
        assert parameters[0].grad.item() == pytest.approx(0.3)
    parameters = _with_gradients([300.0])
    assert clip_gradients(parameters, OptimizerConfig(clip="none")).item() == 300
    assert parameters[0].grad.item() == 300


@pytest.mark.parametrize("clip", ["none", "value", "norm"])
@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden_by_clipping(clip, fault):
    parameters = _with_gradients([fault, 1.0], [1.0])
    assert not clip_gradients(parameters, OptimizerConfig(clip=clip)).isfinite()


# Updates that are passed over


@pytest.fixture
def _memory_of_nan():
    """New memory that nobody wrote to holds NaN, not what happens to be there."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_memory_of_nan")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_update_that_is_not_finite_leaves_no_trace(optimizer, place):
    config = OptimizerConfig(name=optimizer, lr=0.1, momentum=0.5, weight_decay=0.25)
    gradients = [1.0, -3.0]
    expected, without = _steps(config, gradients)
    gradients.insert(place, math.nan)
    weight, updated = _steps(config, gradients)
    assert torch.equal(weight, expected)
    for name, value in without.state[expected].items():
        assert torch.equal(updated.state[weight][name], value), name
    assert not hasattr(updated, "found_inf")
