"""The moving average of the weights, with numbers by hand."""

import pytest
import torch
from torch import nn

from retina_ray.train.engine.ema import WeightAverage, decay_at


def net():
    """A weight and a bias that are learnt, a frozen one, and a buffer that moves."""
    layers = nn.ModuleDict({"learnt": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    layers["frozen"].requires_grad_(False)
    layers.register_buffer("moving", torch.tensor(5.0))
    nn.init.constant_(layers["learnt"].weight, 1.0)
    nn.init.constant_(layers["learnt"].bias, 0.0)
    nn.init.constant_(layers["frozen"].weight, 7.0)
    return layers


def set_weight(model, value):
    with torch.no_grad():
        model["learnt"].weight.fill_(value)


@pytest.mark.parametrize(
    ("num_updates", "decay", "expected"),
    [(0, 0.999, 0.1), (1, 0.999, 2 / 11), (90, 0.999, 0.91), (8990, 0.999, 0.999), (90, 0.5, 0.5)],
)
def test_the_decay_warms_up(num_updates, decay, expected):
    assert decay_at(num_updates, decay) == pytest.approx(expected)


def test_two_updates_by_hand():
    model = net()
    average = WeightAverage(model, 0.15)
    set_weight(model, 3.0)
    average.update()  # decay 0.1: 0.1 * 1 + 0.9 * 3 = 2.8
    set_weight(model, 5.0)
    average.update()  # decay 0.15 (2 / 11 is more): 0.15 * 2.8 + 0.85 * 5 = 4.67
    weights = average.weights()
    assert weights["learnt.weight"].item() == pytest.approx(4.67, rel=1e-6)
    assert weights["learnt.bias"].item() == 0.0
    assert average.num_updates == 2
    average.restart()
    assert average.weights()["learnt.weight"].item() == 5.0
    assert average.num_updates == 0


def test_buffers_and_frozen_weights_are_those_of_the_model():
    model = net()
    average = WeightAverage(model, 0.9)
    model.moving.fill_(6.0)
    average.update()
    weights = average.weights()
    assert weights.keys() == model.state_dict().keys()
    assert weights["moving"].item() == 6.0
    assert weights["frozen.weight"].item() == 7.0
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_the_weights_come_back_bit_for_bit_after_an_error_too():
    model = net()
    average = WeightAverage(model, 0.9)
    set_weight(model, 0.1)  # no power of two: a sum and a difference would not bring it back
    average.update()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameter = model["learnt"].weight
    with average.applied():
        assert model["learnt"](torch.ones(1, 1)).item() == pytest.approx(0.19)  # 0.1*1 + 0.9*0.1
    with pytest.raises(RuntimeError, match="shapes"), average.applied():
        model["learnt"](torch.ones(1, 2))
    assert model["learnt"].weight is parameter
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert average.weights()["learnt.weight"].item() == pytest.approx(0.19)
