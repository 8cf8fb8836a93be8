import math

import pytest
import torch
from box_cases import random_boxes
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from retina_ray.ops.box_coder import BoxCoder


def boxes_of(count, seed):
    return random_boxes(count, seed, spread=300, side=100)


def test_encode_by_hand():
    reference = torch.tensor([[0.0, 0, 10, 20]])
    target = torch.tensor([[5.0, 0, 25, 10]])  # centre (15, 5), 20 wide, 10 high
    expected = torch.tensor([[1.0, -0.25, math.log(2), -math.log(2)]])
    torch.testing.assert_close(BoxCoder().encode(reference, target), expected)
    weighted = BoxCoder(weights=(10, 10, 5, 5)).encode(reference, target)
    torch.testing.assert_close(weighted, expected * torch.tensor([10.0, 10, 5, 5]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 20.0, 5.0, 2.5)])
def test_equals_torchvision_both_ways(weights):
    ours, theirs = BoxCoder(weights), TorchvisionCoder(weights)
    reference, target = boxes_of(50, 0).double(), boxes_of(50, 1).double()
    deltas = ours.encode(reference, target)
    torch.testing.assert_close(deltas, theirs.encode_single(target, reference))
    torch.testing.assert_close(ours.decode(deltas, reference), target, atol=1e-10, rtol=0)
    wild = torch.randn(50, 4).double() * 10
    expected = theirs.decode_single(wild, reference)
    torch.testing.assert_close(ours.decode(wild, reference), expected)
    a, b, d = reference.float(), target.float(), wild.float()
    torch.testing.assert_close(ours.encode(a, b).double(), deltas, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decode(d, a).double(), expected, rtol=1e-4, atol=1e-2)


def test_decode_clamps_growth_but_not_shrinking():
    reference = torch.tensor([[-8.0, -8, 8, 8]])
    boxes = BoxCoder().decode(torch.tensor([[0.0, 0, 1e4, -50]]), reference)
    assert boxes[0, 2].item() == pytest.approx(500, rel=1e-5)  # 16 px grew to 1000 px
    assert boxes[0, 3].item() == pytest.approx(0, abs=1e-20)


def test_float32_under_autocast_and_for_half_precision():
    reference, deltas = boxes_of(8, 4), (torch.randn(8, 4) * 0.1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = BoxCoder().decode(deltas, reference)
        encoded = BoxCoder((2, 2, 2, 2)).encode(reference, boxes)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, BoxCoder().decode(deltas.float(), reference))


def test_batched_and_empty():
    reference, deltas = boxes_of(6, 5), torch.randn(2, 6, 4)
    boxes = BoxCoder().decode(deltas, reference)
    assert torch.equal(boxes[1], BoxCoder().decode(deltas[1], reference))
    for coder in (BoxCoder(), BoxCoder((2, 2, 2, 2))):
        assert coder.decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
        assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_decode_of_nan_is_nan_there_only():
    deltas = torch.zeros(2, 4)
    deltas[0, 0] = float("nan")
    boxes = BoxCoder().decode(deltas, torch.tensor([[0.0, 0, 4, 4]]).expand(2, 4))
    assert boxes[0].isnan().tolist() == [True, False, True, False]
    assert boxes[1].tolist() == [0, 0, 4, 4]


def test_weights_are_checked():
    with pytest.raises(ValueError, match="four positive"):
        BoxCoder((1.0, 1.0, 0.0, 1.0))
