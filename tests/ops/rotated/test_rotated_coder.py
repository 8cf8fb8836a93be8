import math

import pytest
import torch

from retina_ray.ops.rotated.boxes import paired_rotated_iou
from retina_ray.ops.rotated.coder import RotatedBoxCoder

ONE = [10.0, 10, 40, 20, 30]


def random_rotated(count, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * 300
    sides = 10 + torch.rand(count, 2, generator=generator) * 100
    angles = torch.rand(count, 1, generator=generator) * 720 - 360
    return torch.cat((centers, sides, angles), 1)


def detectron2_deltas(reference, target, weights):
    """The formulas of its Box2BoxTransformRotated, in Python's floats."""
    rows = []
    for (xa, ya, wa, ha, aa), (x, y, w, h, a) in zip(
        reference.tolist(), target.tolist(), strict=True
    ):
        turn = math.radians((a - aa + 180.0) % 360.0 - 180.0)
        delta = ((x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha), turn)
        rows.append([d * weight for d, weight in zip(delta, weights, strict=True)])
    return torch.tensor(rows)


def detectron2_boxes(reference, deltas, weights):
    rows = []
    for (xa, ya, wa, ha, aa), delta in zip(reference.tolist(), deltas.tolist(), strict=True):
        dx, dy, dw, dh, turn = [d / weight for d, weight in zip(delta, weights, strict=True)]
        dw, dh = (min(d, math.log(1000.0 / 16)) for d in (dw, dh))
        angle = (turn * 180.0 / math.pi + aa + 180.0) % 360.0 - 180.0
        rows.append([dx * wa + xa, dy * ha + ya, math.exp(dw) * wa, math.exp(dh) * ha, angle])
    return torch.tensor(rows)


def test_encode_by_hand():
    reference = torch.tensor([[10.0, 20, 10, 20, 350]])
    target = torch.tensor([[20.0, 15, 20, 10, 20]])
    expected = torch.tensor([[1.0, -0.25, math.log(2), -math.log(2), math.pi / 6]])
    torch.testing.assert_close(RotatedBoxCoder().encode(reference, target), expected)
    weighted = RotatedBoxCoder((10, 10, 5, 5, 2)).encode(reference, target)
    torch.testing.assert_close(weighted, expected * torch.tensor([10.0, 10, 5, 5, 2]))


@pytest.mark.parametrize("weights", [(1.0, 1, 1, 1, 1), (10.0, 20, 5, 2.5, 3)])
def test_equals_detectron2_both_ways(weights):
    coder = RotatedBoxCoder(weights)
    reference, target = random_rotated(60, 0), random_rotated(60, 1)
    deltas = coder.encode(reference, target)
    expected = detectron2_deltas(reference, target, weights)
    torch.testing.assert_close(deltas, expected, atol=1e-4, rtol=1e-5)
    wild = torch.randn(60, 5) * 3
    expected = detectron2_boxes(reference, wild, weights)
    torch.testing.assert_close(coder.decode(wild, reference), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("symmetry_deg", [360, 180, 90])
def test_round_trip_is_the_same_rectangle(symmetry_deg):
    coder = RotatedBoxCoder((3, 4, 5, 6, 7), symmetry_deg=symmetry_deg)
    reference, target = random_rotated(100, 2).double(), random_rotated(100, 3).double()
    deltas = coder.encode(reference, target)
    limit = {360: math.pi, 180: math.pi / 2, 90: math.pi / 4}[symmetry_deg] * 7
    turns = deltas[:, 4]
    assert ((turns >= -limit) & (turns <= limit)).all()
    assert (turns.abs() > limit * 0.9).any()
    back = coder.decode(deltas, reference)
    assert ((back[:, 4] >= -180) & (back[:, 4] < 180)).all()
    torch.testing.assert_close(paired_rotated_iou(back, target), torch.ones(100).double())
    if symmetry_deg == 360:
        torch.testing.assert_close(back[:, :4], target[:, :4])
        full_turns = (back[:, 4] - target[:, 4]) / 360
        torch.testing.assert_close(full_turns, full_turns.round(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("symmetry_deg", [180, 90])
def test_a_half_turn_changes_nothing(symmetry_deg):
    coder = RotatedBoxCoder(symmetry_deg=symmetry_deg)
    reference, target = random_rotated(100, 4).double(), random_rotated(100, 5).double()
    deltas = coder.encode(reference, target)
    for turn in (180, -180, 360, 540):
        turned = target + torch.tensor([0, 0, 0, 0, turn])
        torch.testing.assert_close(coder.encode(reference, turned), deltas)


def test_a_quarter_turn_with_swapped_sides_changes_nothing():
    coder = RotatedBoxCoder(symmetry_deg=90)
    reference, target = random_rotated(100, 6).double(), random_rotated(100, 7).double()
    deltas = coder.encode(reference, target)
    for turn in (90, -90, 270):
        turned = target[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, turn])
        torch.testing.assert_close(coder.encode(reference, turned), deltas)


@pytest.mark.parametrize(
    ("symmetry_deg", "turn", "expected"),
    [
        (360, 180, [0, 0, -math.pi]),
        (360, -180, [0, 0, -math.pi]),
        (180, 180, [0, 0, 0]),
        (180, 90, [0, 0, -math.pi / 2]),
        (180, -90, [0, 0, -math.pi / 2]),
        (180, 100, [0, 0, math.radians(-80)]),
        (90, 180, [0, 0, 0]),
        (90, 44, [0, 0, math.radians(44)]),
        (90, 45, [-math.log(2), math.log(2), math.radians(-45)]),
        (90, -45, [0, 0, math.radians(-45)]),
        (90, -46, [-math.log(2), math.log(2), math.radians(44)]),
        (90, 90, [-math.log(2), math.log(2), 0]),
        (90, -90, [-math.log(2), math.log(2), 0]),
        (90, 135, [0, 0, math.radians(-45)]),
    ],
)
def test_the_nearest_description_is_encoded(symmetry_deg, turn, expected):
    reference = torch.tensor([ONE])  # twice as wide as high
    target = reference + torch.tensor([0, 0, 0, 0, turn])
    deltas = RotatedBoxCoder(symmetry_deg=symmetry_deg).encode(reference, target)
    assert deltas[0].tolist() == pytest.approx([0, 0, *expected], abs=1e-6)


def test_decode_clamps_growth_but_not_shrinking_and_wraps_the_angle():
    reference = torch.tensor([[0.0, 0, 16, 16, 170]])
    box = RotatedBoxCoder().decode(torch.tensor([[0.0, 0, 1e4, -50, math.pi / 9]]), reference)
    assert box[0].tolist() == pytest.approx([0, 0, 1000, 0, -170], rel=1e-5, abs=1e-15)
    small = RotatedBoxCoder(scale_clamp=math.log(2)).decode(torch.full((1, 5), 9.0), reference)
    assert small[0, 2].item() == pytest.approx(32)


def test_float32_under_autocast_and_for_half_precision():
    reference, deltas = random_rotated(8, 8), (torch.randn(8, 5) * 0.1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = RotatedBoxCoder().decode(deltas, reference)
        encoded = RotatedBoxCoder(symmetry_deg=90).encode(reference, boxes)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, RotatedBoxCoder().decode(deltas.float(), reference))


def test_batched_empty_and_meta():
    coder, reference, deltas = RotatedBoxCoder(), random_rotated(6, 9), torch.randn(2, 6, 5)
    assert torch.equal(
        coder.decode(deltas, reference)[1], coder.decode(deltas[1].clone(), reference)
    )
    assert coder.decode(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0, 5)
    assert coder.encode(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0, 5)
    meta = reference.to("meta")
    assert RotatedBoxCoder(symmetry_deg=90).encode(meta, meta).device.type == "meta"


def test_decode_of_nan_is_nan_there_only():
    deltas = torch.zeros(2, 5)
    deltas[0, 0] = deltas[0, 4] = float("nan")
    boxes = RotatedBoxCoder().decode(deltas, torch.tensor([[0.0, 0, 4, 4, 5]]).expand(2, 5))
    assert boxes[0].isnan().tolist() == [True, False, False, False, True]
    assert boxes[1].tolist() == [0, 0, 4, 4, 5]


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="five positive"):
        RotatedBoxCoder((1.0, 1.0, 1.0, 1.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="five positive"):
        RotatedBoxCoder((1.0, 1.0, 1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="360, 180 or 90, got 45"):
        RotatedBoxCoder(symmetry_deg=45)
