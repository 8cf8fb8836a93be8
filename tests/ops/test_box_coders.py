"""The coders of aligned and of rotated boxes."""

import math

import pytest
import torch
from box_cases import NAN, random_boxes, random_rotated
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.rotated import RotatedBoxCoder, paired_rotated_iou

ALIGNED, ROTATED = "aligned", "rotated"
KINDS = {ALIGNED: (BoxCoder, 4), ROTATED: (RotatedBoxCoder, 5)}
WEIGHTS = (10.0, 20.0, 5.0, 2.5, 3.0)

every_kind = pytest.mark.parametrize("kind", KINDS)


def make_coder(kind, *, weighted=False):
    coder, numbers = KINDS[kind]
    return coder(WEIGHTS[:numbers]) if weighted else coder()


def boxes_of(kind, count, seed):
    if kind == ALIGNED:
        return random_boxes(count, seed, spread=300, side=100)
    return random_rotated(count, seed, low=10, high=110)


def rotated_by(boxes, degrees, *, swap=False):
    """Each box rotated by so much; with its sides swapped before, if asked."""
    boxes = boxes[:, [0, 1, 3, 2, 4]] if swap else boxes
    return boxes + torch.tensor([0, 0, 0, 0, degrees])


def corners_of(boxes):
    """XYXY of boxes, of rotated ones as if their angle was 0."""
    if boxes.shape[1] == 4:
        return boxes
    return torch.cat((boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2), 1)


def deltas_by_definition(reference, target, weights):
    """torchvision's; and the angle by detectron2's Box2BoxTransformRotated."""
    coder = TorchvisionCoder(weights[:4])
    deltas = coder.encode_single(corners_of(target), corners_of(reference))
    if len(weights) == 4:
        return deltas
    turn = (target[:, 4] - reference[:, 4] + 180) % 360 - 180
    return torch.cat((deltas, turn.deg2rad()[:, None] * weights[4]), 1)


def boxes_by_definition(deltas, reference, weights):
    boxes = TorchvisionCoder(weights[:4]).decode_single(deltas[:, :4], corners_of(reference))
    if len(weights) == 4:
        return boxes
    turned = (deltas[:, 4] / weights[4]).rad2deg() + reference[:, 4]
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat((centers, sides, ((turned + 180) % 360 - 180)[:, None]), 1)


@pytest.mark.parametrize("weighted", [False, True])
@every_kind
def test_equals_torchvision_and_detectron2_both_ways(kind, weighted):
    coder = make_coder(kind, weighted=weighted)
    reference, target = boxes_of(kind, 60, 0).double(), boxes_of(kind, 60, 1).double()
    deltas = deltas_by_definition(reference, target, coder.weights)
    torch.testing.assert_close(coder.encode(reference, target), deltas)
    back = boxes_by_definition(deltas, reference, coder.weights)
    torch.testing.assert_close(coder.decode(deltas, reference), back, atol=1e-10, rtol=0)
    torch.testing.assert_close(corners_of(back), corners_of(target))
    generator = torch.Generator().manual_seed(2)
    wild = torch.randn(deltas.shape, dtype=torch.float64, generator=generator) * 10
    boxes = boxes_by_definition(wild, reference, coder.weights)
    torch.testing.assert_close(coder.decode(wild, reference), boxes)
    a, b, d = reference.float(), target.float(), wild.float()
    torch.testing.assert_close(coder.encode(a, b).double(), deltas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coder.decode(d, a).double(), boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("symmetry_deg", [360, 180, 90])
def test_round_trip_and_descriptions_of_the_same_rectangle(symmetry_deg):
    coder = RotatedBoxCoder((3, 4, 5, 6, 7), symmetry_deg=symmetry_deg)
    reference, target = boxes_of(ROTATED, 100, 2).double(), boxes_of(ROTATED, 100, 3).double()
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
        return
    same = [rotated_by(target, degrees) for degrees in (180, -180, 360, 540)]
    if symmetry_deg == 90:
        same += [rotated_by(target, degrees, swap=True) for degrees in (90, -90, 270)]
    for other in same:
        torch.testing.assert_close(coder.encode(reference, other), deltas)


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


@pytest.mark.parametrize(
    ("kind", "reference", "expected"),
    [  # 16 px grow to 1000 px
        (ALIGNED, [-8.0, -8, 8, 8], [-500, 0, 500, 0]),
        (ROTATED, [0.0, 0, 16, 16, 170], [0, 0, 1000, 0, -170]),
    ],
)
def test_decode_clamps_growth_but_not_shrinking_and_wraps_the_angle(kind, reference, expected):
    deltas = torch.tensor([[0.0, 0, 1e4, -50, math.pi / 9]])[:, : len(reference)]
    box = make_coder(kind).decode(deltas, torch.tensor([reference]))
    assert box[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-15)


@every_kind
def test_float32_under_autocast_and_for_half_precision(kind):
    numbers = KINDS[kind][1]
    reference, deltas = boxes_of(kind, 8, 4), (torch.randn(8, numbers) * 0.1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = make_coder(kind).decode(deltas, reference)
        encoded = make_coder(kind, weighted=True).encode(reference, boxes)
    assert boxes.dtype == encoded.dtype == torch.float32
    assert torch.equal(boxes, make_coder(kind).decode(deltas.float(), reference))


@every_kind
def test_batched_empty_and_meta(kind):
    numbers = KINDS[kind][1]
    reference, deltas = boxes_of(kind, 6, 5), torch.randn(2, 6, numbers)
    nothing = torch.zeros(0, numbers)
    for coder in (make_coder(kind), make_coder(kind, weighted=True)):
        alone = coder.decode(deltas[1].clone(), reference)
        assert torch.equal(coder.decode(deltas, reference)[1], alone)
        assert coder.decode(nothing, nothing).shape == (0, numbers)
        assert coder.encode(nothing, nothing).shape == (0, numbers)
        meta = reference.to("meta")
        assert coder.decode(coder.encode(meta, meta), meta).device.type == "meta"


@pytest.mark.parametrize(
    ("reference", "bad", "lost"),
    [([0.0, 0, 4, 4], [0], [0, 2]), ([0.0, 0, 4, 4, 5], [0, 4], [0, 4])],
)
def test_decode_of_nan_is_nan_there_only(reference, bad, lost):
    numbers = len(reference)
    deltas = torch.zeros(2, numbers)
    deltas[0, bad] = NAN
    kind = ALIGNED if numbers == 4 else ROTATED
    boxes = make_coder(kind).decode(deltas, torch.tensor([reference]).expand(2, numbers))
    assert boxes[0].isnan().nonzero().flatten().tolist() == lost
    assert boxes[1].tolist() == reference


@every_kind
def test_arguments_are_checked(kind):
    coder, numbers = KINDS[kind]
    for weights in ((1.0,) * (numbers - 1), (1.0,) * (numbers - 1) + (0.0,)):
        with pytest.raises(ValueError, match=r"weights: .* positive"):
            coder(weights)
    with pytest.raises(ValueError, match="got 45"):
        RotatedBoxCoder(symmetry_deg=45)
