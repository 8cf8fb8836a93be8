"""Shapes: M, R numbers of boxes, P pairs."""

import math

import pytest
import torch
from box_cases import INF, NAN, random_rotated

from retina_ray.ops import rotated_boxes
from retina_ray.ops.rotated import boxes as boxes_module
from retina_ray.ops.rotated import (
    cos_sin_deg,
    enclosing_boxes,
    is_proper_rotated,
    paired_rotated_intersection,
    paired_rotated_iou,
    rotated_corners,
    rotated_from_aligned,
    rotated_iou,
    scale_rotated,
    wrap_angle,
)

# The reference: clipping one polygon by the other's edges (Sutherland and Hodgman), in float64.


def corners_of(box):
    x, y, width, height, angle = (float(value) for value in box)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    around = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    halves = [(i * width / 2, j * height / 2) for i, j in around]
    return [(x + u * cos + v * sin, y - u * sin + v * cos) for u, v in halves]


def clipped(polygon, start, end):
    """The part of a polygon on the inner side of the line from start to end."""

    def side(p):
        return (end[0] - start[0]) * (p[1] - start[1]) - (end[1] - start[1]) * (p[0] - start[0])

    result = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        side_p, side_q = side(p), side(q)
        if side_p >= 0:
            result.append(p)
        if side_p * side_q < 0:
            t = side_p / (side_p - side_q)
            result.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
    return result


def reference_intersection(a, b):
    polygon, other = corners_of(a), corners_of(b)
    for start, end in zip(other, other[1:] + other[:1], strict=True):
        polygon = clipped(polygon, start, end)
    ring = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return 0.5 * sum(p[0] * q[1] - p[1] * q[0] for p, q in ring)


def reference_iou(a, b):
    shared = reference_intersection(a, b)
    return shared / (float(a[2] * a[3]) + float(b[2] * b[3]) - shared)


def reference_rows(a, b, function=reference_iou):
    pairs = zip(a.double(), b.double(), strict=True)
    return torch.tensor([function(p, q) for p, q in pairs], dtype=torch.float64)


# Angles and corners


def test_cosine_and_sine_are_exact_at_multiples_of_90_degrees():
    cos, sin = cos_sin_deg(torch.tensor([-720.0, -270, -180, -90, 0, 90, 180, 270, 360, 450]))
    assert cos.tolist() == [1, 0, -1, 0, 1, 0, -1, 0, 1, 0]
    assert sin.tolist() == [0, 1, 0, -1, 0, 1, 0, -1, 0, 1]
    angles = torch.linspace(-1000, 1000, 4001)
    cos, sin = cos_sin_deg(angles)
    exact = torch.deg2rad(angles.double())
    torch.testing.assert_close(cos.double(), exact.cos(), atol=2e-7, rtol=0)
    torch.testing.assert_close(sin.double(), exact.sin(), atol=2e-7, rtol=0)


def test_wrapped_angles():
    angles = torch.tensor([0.0, 179.5, 180, -180, 190, 540, -190, -1e-6, 720.5])
    assert wrap_angle(angles).tolist() == pytest.approx(
        [0, 179.5, -180, -180, -170, -180, 170, -1e-6, 0.5]
    )
    assert wrap_angle(angles, 180).tolist() == pytest.approx(
        [0, -0.5, 0, 0, 10, 0, -10, -1e-6, 0.5]
    )
    seam = torch.tensor([180.0, -180, 540, -540, 900])
    near = torch.cat([seam, seam.nextafter(torch.tensor(1e3)), seam.nextafter(torch.tensor(-1e3))])
    assert ((wrap_angle(near) >= -180) & (wrap_angle(near) < 180)).all()
    assert wrap_angle(torch.tensor([NAN])).isnan().all()


def test_the_angle_is_counter_clockwise_as_seen_on_the_image():
    """The box of detectron2's documentation: centre (5, 3), 4 wide, 2 high."""
    corners = rotated_corners(torch.tensor([[5.0, 3, 4, 2, 0], [5, 3, 4, 2, 90]]))
    assert corners[0].tolist() == [[3, 2], [7, 2], [7, 4], [3, 4]]
    assert corners[1].tolist() == [[4, 5], [4, 1], [6, 1], [6, 5]]
    (thirty,) = rotated_corners(torch.tensor([[0.0, 0, 20, 1e-6, 30]]))
    # The right end goes up, that is towards smaller y.
    assert thirty[1].tolist() == pytest.approx([10 * 3**0.5 / 2, -5], abs=1e-5)


def test_corners_and_enclosing_boxes_equal_the_reference():
    boxes = random_rotated(100, 0)
    corners = torch.tensor([corners_of(box) for box in boxes], dtype=torch.float64)
    torch.testing.assert_close(rotated_corners(boxes).double(), corners, atol=1e-3, rtol=0)
    around = torch.cat((corners.amin(1), corners.amax(1)), 1)
    torch.testing.assert_close(enclosing_boxes(boxes).double(), around, atol=1e-3, rtol=0)
    torch.testing.assert_close(rotated_corners(boxes.double()), corners, atol=1e-9, rtol=0)
    assert rotated_corners(boxes.view(4, 25, 5)).shape == (4, 25, 4, 2)
    assert rotated_corners(boxes[:0]).shape == (0, 4, 2)
    assert enclosing_boxes(boxes[:0]).shape == (0, 4)


def test_aligned_boxes_and_back():
    boxes = torch.tensor([[1.0, 2, 4, 10], [0, 0, 3, 1]])
    rotated = rotated_from_aligned(boxes)
    assert rotated.tolist() == [[2.5, 6, 3, 8, 0], [1.5, 0.5, 3, 1, 0]]
    assert torch.equal(enclosing_boxes(rotated), boxes)
    assert rotated_from_aligned(torch.zeros(2, 0, 4)).shape == (2, 0, 5)


BAD = [
    *([5.0, 5, 0, 5, 0], [5, 5, 5, 0, 30], [5, 5, -4, 5, 0], [5, 5, -4, -4, 0]),
    *([NAN, 5, 5, 5, 0], [5, 5, 5, 5, NAN], [5, 5, 5, 5, INF], [5, 5, INF, 5, 0]),
    *([INF, 5, 5, 5, 0], [NAN] * 5),
    # Proper, but of an area that vanishes or overflows.
    *([5, 5, 1e-30, 1e-30, 10], [5, 5, 1e30, 1e30, 10]),
]


def test_proper_boxes():
    boxes = torch.tensor([[0.0, 0, 1, 1, 720], *BAD])
    assert is_proper_rotated(boxes).tolist() == [True] + [False] * 10 + [True] * 2


# Scaling


def test_scaling_as_detectron2():
    boxes = random_rotated(50, 2)
    scaled = rotated_corners(scale_rotated(boxes, 0.5, 0.5))
    torch.testing.assert_close(scaled, rotated_corners(boxes) * 0.5, atol=1e-3, rtol=0)
    boxes = torch.tensor([[10.0, 20, 4, 6, 0], [10, 20, 4, 6, 90], [10, 20, 4, 6, 45]])
    scaled = scale_rotated(boxes, 2, 3)
    assert scaled[0].tolist() == [20, 60, 8, 18, 0]
    assert scaled[1].tolist() == pytest.approx([20, 60, 12, 12, 90])
    factor = ((2**2 + 3**2) / 2) ** 0.5
    angle = math.degrees(math.atan2(2, 3))
    assert scaled[2].tolist() == pytest.approx([20, 60, 4 * factor, 6 * factor, angle])


# Overlaps


def test_iou_by_hand():
    square = [0.0, 0, 2, 2, 0]
    others = [
        square,
        [0, 0, 2, 2, 45],  # octagon
        [0, 0, 1, 1, 30],  # contained
        [0, 0, 8, 8, -77],  # contains
        [1, 0, 2, 2, 90],  # half
        [2, 0, 2, 2, 0],  # touches with an edge
        [1 + 2**0.5, 0, 2, 2, 45],  # touches with a corner
        [5, 5, 2, 2, 10],  # apart
        [2.1, 2.1, 2, 2, 45],  # enclosing boxes meet, boxes do not
        [0, 0, 40, 0.5, 0],  # a band through it
    ]
    octagon = 4 - 2 * (2 - 2**0.5) ** 2
    expected = [1, octagon / (8 - octagon), 0.25, 4 / 64, 1 / 3, 0, 0, 0, 0, 1 / 23]
    iou = rotated_iou(torch.tensor([square]), torch.tensor(others))
    torch.testing.assert_close(iou, torch.tensor([expected]), atol=1e-6, rtol=0)
    assert iou[0, 5] == 0


@pytest.mark.parametrize(
    ("low", "high", "spread"), [(1, 1000, 300), (1, 10, 10), (20, 300, 400), (300, 1000, 500)]
)
def test_iou_equals_the_reference_at_all_scales(low, high, spread):
    a = random_rotated(40, 3, low=low, high=high, spread=spread)
    b = random_rotated(40, 4, low=low, high=high, spread=spread)
    expected = reference_rows(a.repeat_interleave(40, 0), b.repeat(40, 1)).view(40, 40)
    assert (expected > 0).double().mean() > 0.1
    torch.testing.assert_close(rotated_iou(a, b).double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(rotated_iou(a.double(), b.double()), expected, atol=1e-9, rtol=0)


def test_iou_of_similar_boxes_equals_the_reference():
    """As an anchor and its box: nearly parallel edges that nearly coincide."""
    generator = torch.Generator().manual_seed(5)
    a = random_rotated(300, 5, low=8, high=800, spread=1000)
    for noise in (1e-6, 1e-4, 1e-2, 1.0):
        b = a + torch.randn(300, 5, generator=generator) * noise
        iou = paired_rotated_iou(a, b).double()
        torch.testing.assert_close(iou, reference_rows(a, b), atol=2e-5, rtol=0)


def test_boxes_whose_edges_and_corners_coincide():
    generator = torch.Generator().manual_seed(19)

    def draw(low, high):
        return torch.randint(low, high, (400, 1), generator=generator)

    # Few numbers, so that edges often lie on one line and corners on edges.
    a, b = (
        torch.cat((draw(0, 4), draw(0, 4), draw(1, 5), draw(1, 5), 45 * draw(-8, 8)), 1).float()
        for _ in range(2)
    )
    iou = paired_rotated_iou(a, b).double()
    torch.testing.assert_close(iou, reference_rows(a, b), atol=1e-6, rtol=0)


def test_thin_boxes():
    a = random_rotated(200, 6, low=300, high=1000, spread=20)
    a[:, 3] = 10 ** torch.linspace(-1, 0.5, 200)
    b = a + torch.tensor([0.3, -0.2, 0, 0, 0.1]) * torch.linspace(-1, 1, 200)[:, None]
    for other in (b, b.flip(0)):
        expected = reference_rows(a, other)
        iou = paired_rotated_iou(a, other).double()
        # Float32 knows a corner 500 px away to 3e-5 px: 3e-4 of a width of 0.1 px.
        torch.testing.assert_close(iou, expected, atol=1e-3, rtol=0)
        wide = a[:, 3] >= 1
        torch.testing.assert_close(iou[wide], expected[wide], atol=1e-4, rtol=0)


def test_intersection_is_the_reference_and_fits_the_iou():
    a = random_rotated(200, 9, low=5, high=200, spread=100)
    b = random_rotated(200, 10, low=5, high=200, spread=100)
    area = paired_rotated_intersection(a, b)
    expected = reference_rows(a, b, reference_intersection).float()
    smaller = torch.minimum(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3])
    torch.testing.assert_close(area / smaller, expected / smaller, atol=2e-5, rtol=0)
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - area
    torch.testing.assert_close(area / union, paired_rotated_iou(a, b))


def test_descriptions_of_one_rectangle_are_duplicates():
    boxes = random_rotated(200, 12)
    boxes[:, 4] = boxes[:, 4].round()  # so that adding 90 does not round
    swapped = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0.0, 0, 0, 0, 90])
    for degrees in (0.0, 180, -180, 360):
        for same in (boxes, swapped):
            same = same + torch.tensor([0.0, 0, 0, 0, degrees])
            iou = paired_rotated_iou(boxes, same)
            torch.testing.assert_close(iou, torch.ones(200), atol=2e-6, rtol=0)
    torch.testing.assert_close(rotated_iou(boxes, boxes).diagonal(), torch.ones(200))


def test_iou_lies_between_0_and_1_and_does_not_depend_on_the_other_boxes():
    a, b = random_rotated(60, 13, low=5, high=300), random_rotated(70, 14, low=5, high=300)
    iou = rotated_iou(a, b)
    assert ((iou >= 0) & (iou <= 1)).all()
    order_a, order_b = torch.randperm(60), torch.randperm(70)
    assert torch.equal(rotated_iou(a[order_a], b[order_b]), iou[order_a][:, order_b])


def test_a_small_box_far_from_the_origin():
    """Digits that large coordinates cost are lost by the input, not by the computation."""
    a = torch.tensor([[4096.0, 4096, 1, 2, 30]])
    b = torch.tensor([[4096.25, 4096.5, 2, 1, 75]])
    shifted = [box - torch.tensor([4096.0, 4096, 0, 0, 0]) for box in (a, b)]
    assert torch.equal(rotated_iou(a, b), rotated_iou(*shifted))


def test_overlap_with_bad_boxes_is_zero():
    bad, good = torch.tensor(BAD), torch.tensor([[5.0, 5, 10, 10, 20]])
    goods = good.expand(len(bad), 5)
    assert not rotated_iou(bad, torch.cat((bad, good))).any()
    assert not paired_rotated_iou(bad, goods).any()
    assert not paired_rotated_iou(goods, bad).any()
    torch.testing.assert_close(rotated_iou(good, torch.cat((bad, good)))[0, -1], torch.tensor(1.0))
    shared = paired_rotated_intersection(bad, goods)
    assert not shared[:-1].any()
    assert shared.isfinite().all()


def test_iou_of_nothing():
    for m, r in ((0, 3), (3, 0), (0, 0)):
        assert rotated_iou(torch.zeros(m, 5), torch.zeros(r, 5)).shape == (m, r)
    assert paired_rotated_iou(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)
    assert paired_rotated_intersection(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_blocks_do_not_show(monkeypatch):
    a, b = random_rotated(30, 15), random_rotated(40, 16)
    whole = rotated_iou(a, b)
    monkeypatch.setattr(boxes_module, "_BLOCK_CPU", 7)
    torch.testing.assert_close(rotated_iou(a, b), whole, atol=1e-6, rtol=0)


def test_arguments_stay_and_half_precision_is_widened():
    a, b = random_rotated(20, 17, high=100).half(), random_rotated(20, 18, high=100).half()
    kept = a.clone(), b.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        iou = rotated_iou(a, b)
    assert iou.dtype == paired_rotated_iou(a, b).dtype == torch.float32
    assert torch.equal(iou, rotated_iou(a.float(), b.float()))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])
    assert rotated_iou(a.double(), b.double()).dtype == torch.float64


def test_all_but_the_table_run_without_data():
    boxes = torch.zeros(6, 5, device="meta")
    assert paired_rotated_iou(boxes, boxes).shape == (6,)
    assert rotated_corners(boxes).shape == (6, 4, 2)
    assert enclosing_boxes(scale_rotated(boxes, 2, 3)).device.type == "meta"


def test_the_path_of_earlier_versions():
    assert rotated_boxes.rotated_iou is rotated_iou
    assert rotated_boxes.RotatedBoxCoder
