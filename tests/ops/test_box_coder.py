import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from retina_ray.ops.box_coder import BoxCoder


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 300
    return torch.cat((corners, corners + 5 + torch.rand(count, 2, generator=generator) * 100), 1)


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
    reference, target = random_boxes(50, 0), random_boxes(50, 1)
    deltas = ours.encode(reference, target)
    torch.testing.assert_close(deltas, theirs.encode_single(target, reference))
    torch.testing.assert_close(ours.decode(deltas, reference), target, atol=1e-3, rtol=1e-5)
    wild = torch.randn(50, 4) * 10
    torch.testing.assert_close(
        ours.decode(wild, reference), theirs.decode_single(wild, reference), atol=1e-2, rtol=1e-4
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 20.0, 5.0, 2.5)])
def test_equals_the_formulas_in_float64(weights):
    coder, reference, target = BoxCoder(weights), random_boxes(30, 6), random_boxes(30, 7)
    deltas = torch.randn(30, 4, generator=torch.Generator().manual_seed(8)) * 3
    encoded, decoded = coder.encode(reference, target), coder.decode(deltas, reference)
    for i, (a, b, d) in enumerate(
        zip(reference.tolist(), target.tolist(), deltas.tolist(), strict=True)
    ):
        for axis in (0, 1):
            side, middle = a[axis + 2] - a[axis], (a[axis + 2] + a[axis]) / 2
            wanted_side, wanted_middle = b[axis + 2] - b[axis], (b[axis + 2] + b[axis]) / 2
            shift, growth = weights[axis], weights[axis + 2]
            assert encoded[i, axis].item() == pytest.approx(
                shift * (wanted_middle - middle) / side, rel=1e-4, abs=1e-6
            )
            assert encoded[i, axis + 2].item() == pytest.approx(
                growth * math.log(wanted_side / side), rel=1e-4, abs=1e-6
            )
            new_middle = middle + d[axis] / shift * side
            new_side = side * math.exp(min(d[axis + 2] / growth, math.log(1000 / 16)))
            assert decoded[i, axis].item() == pytest.approx(
                new_middle - new_side / 2, rel=1e-5, abs=1e-2
            )
            assert decoded[i, axis + 2].item() == pytest.approx(
                new_middle + new_side / 2, rel=1e-5, abs=1e-2
            )


def test_round_trip_in_float64():
    reference, target = random_boxes(50, 2).double(), random_boxes(50, 3).double()
    coder = BoxCoder((3, 4, 5, 6))
    back = coder.decode(coder.encode(reference, target), reference)
    torch.testing.assert_close(back, target, atol=1e-10, rtol=0)


def test_decode_clamps_growth_but_not_shrinking():
    reference = torch.tensor([[-8.0, -8, 8, 8]])
    boxes = BoxCoder().decode(torch.tensor([[0.0, 0, 1e4, -50]]), reference)
    assert boxes[0, 2].item() == pytest.approx(500, rel=1e-5)  # 16 px grew to 1000 px
    assert boxes[0, 3].item() == pytest.approx(0, abs=1e-20)
    unclamped = BoxCoder(scale_clamp=math.log(2)).decode(torch.full((1, 4), 9.0), reference)
    assert (unclamped[0, 2] - unclamped[0, 0]).item() == pytest.approx(32)


def test_float32_under_autocast_and_for_half_precision():
    reference, deltas = random_boxes(8, 4), (torch.randn(8, 4) * 0.1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = BoxCoder().decode(deltas, reference)
        encoded = BoxCoder((2, 2, 2, 2)).encode(reference, boxes)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, BoxCoder().decode(deltas.float(), reference))


def test_batched_and_empty():
    reference, deltas = random_boxes(6, 5), torch.randn(2, 6, 4)
    boxes = BoxCoder().decode(deltas, reference)
    assert torch.equal(boxes[1], BoxCoder().decode(deltas[1], reference))
    assert BoxCoder().decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert BoxCoder((2, 2, 2, 2)).encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_decode_of_nan_is_nan_there_only():
    deltas = torch.zeros(2, 4)
    deltas[0, 0] = float("nan")
    boxes = BoxCoder().decode(deltas, torch.tensor([[0.0, 0, 4, 4]]).expand(2, 4))
    assert boxes[0].isnan().tolist() == [True, False, True, False]
    assert boxes[1].tolist() == [0, 0, 4, 4]


def test_weights_are_checked():
    with pytest.raises(ValueError, match="four positive"):
        BoxCoder((1.0, 1.0, 0.0, 1.0))
