import math

import pytest
import torch
from rotated_cases import random_rotated

from retina_ray.ops.rotated import RotatedBoxCoder, paired_rotated_iou


def boxes_of(count, seed):
    return random_rotated(count, seed, low=10, high=110)


def rotated_by(boxes, degrees, *, swap=False):
    """Each box rotated by so much; with its sides swapped before, if asked."""
    boxes = boxes[:, [0, 1, 3, 2, 4]] if swap else boxes
    return boxes + torch.tensor([0, 0, 0, 0, degrees])


def detectron2_deltas(reference, target, weights):
    """The formulas of its Box2BoxTransformRotated, in Python's floats."""
    rows = []
    for (xa, ya, wa, ha, aa), (x, y, w, h, a) in zip(
        reference.tolist(), target.tolist(), strict=True
    ):
        da = math.radians((a - aa + 180.0) % 360.0 - 180.0)
        delta = ((x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha), da)
        rows.append([d * weight for d, weight in zip(delta, weights, strict=True)])
    return torch.tensor(rows)


def detectron2_boxes(reference, deltas, weights):
    rows = []
    for (xa, ya, wa, ha, aa), delta in zip(reference.tolist(), deltas.tolist(), strict=True):
        dx, dy, dw, dh, da = [d / weight for d, weight in zip(delta, weights, strict=True)]
        dw, dh = (min(d, math.log(1000.0 / 16)) for d in (dw, dh))
        angle = (da * 180.0 / math.pi + aa + 180.0) % 360.0 - 180.0
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
    reference, target = boxes_of(60, 0), boxes_of(60, 1)
    expected = detectron2_deltas(reference, target, weights)
    torch.testing.assert_close(coder.encode(reference, target), expected, atol=1e-4, rtol=1e-5)
    wild = torch.randn(60, 5) * 3
    expected = detectron2_boxes(reference, wild, weights)
    torch.testing.assert_close(coder.decode(wild, reference), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("symmetry_deg", [360, 180, 90])
def test_round_trip_and_descriptions_of_the_same_rectangle(symmetry_deg):
    coder = RotatedBoxCoder((3, 4, 5, 6, 7), symmetry_deg=symmetry_deg)
    reference, target = boxes_of(100, 2).double(), boxes_of(100, 3).double()
    deltas = coder.encode(reference, target)
    limit = math.radians(symmetry_deg / 2) * 7
    assert (deltas[:, 4].abs() <= limit).all()
    assert (deltas[:, 4].abs() > limit * 0.9).any()
    back = coder.decode(deltas, reference)
    assert ((back[:, 4] >= -180) & (back[:, 4] < 180)).all()
    torch.testing.assert_close(paired_rotated_iou(back, target), torch.ones(100).double())
    if symmetry_deg == 360:
        torch.testing.assert_close(back[:, :4], target[:, :4])
        whole = (back[:, 4] - target[:, 4]) / 360
        torch.testing.assert_close(whole, whole.round(), atol=1e-9, rtol=0)
    else:
        for degrees in (180, -180, 360, 540):
            same = rotated_by(target, degrees)
            torch.testing.assert_close(coder.encode(reference, same), deltas)
    for degrees in (90, -90, 270) if symmetry_deg == 90 else ():
        same = rotated_by(target, degrees, swap=True)
        torch.testing.assert_close(coder.encode(reference, same), deltas)


@pytest.mark.parametrize(
    ("symmetry_deg", "degrees", "swapped", "expected_deg"),
    [
        (360, 180, False, -180),
        (360, -180, False, -180),
        (180, 180, False, 0),
        (180, 90, False, -90),
        (180, -90, False, -90),
        (180, 100, False, -80),
        (90, 180, False, 0),
        (90, 44, False, 44),
        (90, 45, True, -45),
        (90, -45, False, -45),
        (90, -46, True, 44),
        (90, 90, True, 0),
        (90, -90, True, 0),
        (90, 135, False, -45),
    ],
)
def test_the_nearest_description_is_encoded(symmetry_deg, degrees, swapped, expected_deg):
    reference = torch.tensor([[10.0, 10, 40, 20, 30]])  # twice as wide as high
    deltas = RotatedBoxCoder(symmetry_deg=symmetry_deg).encode(
        reference, rotated_by(reference, degrees)
    )
    sides = [-math.log(2), math.log(2)] if swapped else [0, 0]
    expected = [0, 0, *sides, math.radians(expected_deg)]
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_decode_clamps_growth_but_not_shrinking_and_wraps_the_angle():
    reference = torch.tensor([[0.0, 0, 16, 16, 170]])
    box = RotatedBoxCoder().decode(torch.tensor([[0.0, 0, 1e4, -50, math.pi / 9]]), reference)
    assert box[0].tolist() == pytest.approx([0, 0, 1000, 0, -170], rel=1e-5, abs=1e-15)


def test_float32_under_autocast_and_for_half_precision():
    reference, deltas = boxes_of(8, 8), (torch.randn(8, 5) * 0.1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = RotatedBoxCoder().decode(deltas, reference)
        encoded = RotatedBoxCoder(symmetry_deg=90).encode(reference, boxes)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, RotatedBoxCoder().decode(deltas.float(), reference))


def test_batched_empty_and_meta():
    coder, reference, deltas = RotatedBoxCoder(), boxes_of(6, 9), torch.randn(2, 6, 5)
    alone = coder.decode(deltas[1].clone(), reference)
    assert torch.equal(coder.decode(deltas, reference)[1], alone)
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
    for weights in ((1.0,) * 4, (1.0, 1.0, 1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="five positive"):
            RotatedBoxCoder(weights)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got 45"):
        RotatedBoxCoder(symmetry_deg=45)
