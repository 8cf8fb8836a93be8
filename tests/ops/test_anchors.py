"""Aligned and rotated anchors. Shapes: A anchors a cell, H and W cells."""

import copy
import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator

from retina_ray.config import AnchorConfig, ModelConfig
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.rotated import RotatedAnchorGenerator, enclosing_boxes


def aligned(offset=0.5):
    return AnchorGenerator([(32, 64)], (0.25, 1, 4), strides=[4], offset=offset)


def rotated(offset=0.5, angles=(0, 45)):
    return RotatedAnchorGenerator([(32, 64)], (0.25, 1, 4), angles, [4], offset)


aligned_or_rotated = pytest.mark.parametrize(("small", "numbers"), [(aligned, 4), (rotated, 5)])


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_every_anchor_of_the_default_config_by_hand(offset):
    """Bit by bit: IoUs that are equal must stay equal."""
    config = ModelConfig(anchors=AnchorConfig(offset=offset))
    grids = [(7, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    for level, found in enumerate(AnchorGenerator.from_config(config)(grids)):
        height, width = grids[level]
        stride, rows = 8 * 2**level, []
        for octave in range(3):
            size = 32 * 2**level * 2 ** (octave / 3)
            for ratio in (0.5, 1.0, 2.0):  # height / width
                w = math.sqrt(size**2 / ratio)
                rows.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
        around_origin = torch.tensor(rows)
        expected = [
            around_origin + torch.tensor([(x + offset) * stride, (y + offset) * stride] * 2)
            for y in range(height)
            for x in range(width)
        ]
        assert torch.equal(found, torch.cat(expected))


def test_equals_torchvision_up_to_its_order_and_rounding_of_cell_anchors():
    sizes, ratios, strides = ((32, 48), (64, 96)), (0.5, 1.0, 2.0), (8, 16)
    ours = AnchorGenerator(sizes, ratios, strides, 0.0)
    theirs = TorchvisionGenerator(sizes, (ratios,) * 2)
    for a, b in zip(ours.cell_anchors, theirs.cell_anchors, strict=True):
        by_size = b.view(3, 2, 4).transpose(0, 1).reshape(6, 4)  # theirs: ratio, then size
        assert torch.equal(a.round(), by_size)
    theirs.cell_anchors = ours.cell_anchors
    theirs_exact = theirs.grid_anchors([[3, 5], [2, 3]], [[8, 8], [16, 16]])
    for a, b in zip(ours([(3, 5), (2, 3)]), theirs_exact, strict=True):
        assert torch.equal(a, b)


def test_rotated_ones_equal_detectron2s_numbers():
    """Of its test of RotatedAnchorGenerator: one row of two cells, offset 0."""
    sides = [(64, 16), (32, 32), (16, 64), (128, 32), (64, 64), (32, 128)]
    cell = [[0.0, 0, w, h, angle] for w, h in sides for angle in (0, 45)]
    assert rotated(0.0).cell_anchors[0].tolist() == cell
    (grid,) = rotated(0.0)([(1, 2)])
    assert grid.tolist() == cell + [[4.0, *row[1:]] for row in cell]


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.25])
def test_rotated_ones_are_the_aligned_ones_at_every_angle(offset):
    (grid,) = rotated(offset)([(2, 3)])
    assert grid.dtype == torch.float32
    at_0, at_45 = grid.view(-1, 2, 5).unbind(1)
    torch.testing.assert_close(enclosing_boxes(at_0), aligned(offset)([(2, 3)])[0])
    assert torch.equal(at_45, at_0 + torch.tensor([0.0, 0, 0, 0, 45]))


@pytest.mark.parametrize("angles_deg", [(), (-30, 15)])
def test_from_config_multiplies_sizes_scale_and_octaves(angles_deg):
    anchors = AnchorConfig(
        sizes=(10, 20, 30, 40, 50),
        octave_scales=(1, 1.5),
        aspect_ratios=(1,),
        scale=2,
        offset=0.25,
        **({"angles_deg": angles_deg} if angles_deg else {}),
    )
    config = ModelConfig(anchors=anchors, box_type="rotated" if angles_deg else "aligned")
    generator = (RotatedAnchorGenerator if angles_deg else AnchorGenerator).from_config(config)
    assert generator.strides == (8, 16, 32, 64, 128)
    assert generator.offset == 0.25
    assert generator.num_anchors == config.num_anchors == 2 * max(1, len(angles_deg))
    sides = [[20, 30], [40, 60], [60, 90], [80, 120], [100, 150]]
    expected = [
        [[0, 0, side, side, angle] for side in level for angle in angles_deg]
        or [[-side / 2, -side / 2, side / 2, side / 2] for side in level]
        for level in sides
    ]
    assert [cells.tolist() for cells in generator.cell_anchors] == expected


@aligned_or_rotated
def test_grids_are_cached_by_size_and_bounded(small, numbers):
    generator = small()
    first = generator([(2, 3)])[0]
    assert generator([(0, 3)])[0].shape == (0, numbers)
    assert not torch.equal(generator([(3, 2)])[0], first)
    for width in range(1, 200):
        generator([(1, width)])
        if width < 100 and width % 50 == 0:  # recently used ones stay
            assert generator([(2, 3)])[0] is first
    assert len(generator._grids) <= 64
    assert torch.equal(generator([(2, 3)])[0], first)


@aligned_or_rotated
def test_grids_made_in_inference_mode_can_be_trained_with(small, numbers):
    generator = small()
    with torch.inference_mode():
        generator([(2, 3)])
    (grid,) = generator([(2, 3)])
    deltas = torch.zeros(len(grid), numbers, requires_grad=True)
    (deltas * grid).sum().backward()
    assert deltas.grad is not None


@aligned_or_rotated
def test_casting_and_moving(small, numbers):
    (exact,) = small().cell_anchors
    (grid,) = small()([(1, 1)])
    generator = small().bfloat16()
    assert torch.equal(generator.cell_anchors[0], exact)
    assert generator([(1, 1)])[0].dtype == torch.float32
    generator.to("meta")
    assert generator([(1, 1)])[0].device.type == "meta"
    generator.to_empty(device="cpu")
    assert torch.equal(generator.cell_anchors[0], exact)
    assert torch.equal(copy.deepcopy(generator)([(1, 1)])[0], grid)
    assert generator.state_dict() == {}


def test_errors_name_everything_that_is_wrong():
    with pytest.raises(ValueError, match=r"sizes.*one per level.*ratios.*positive.*offset"):
        AnchorGenerator(sizes=[(32,), (64, 0)], aspect_ratios=(), strides=[8], offset=1.0)
    with pytest.raises(ValueError, match="2 feature maps for 1 levels"):
        aligned()([(1, 1), (2, 2)])
    for angles in ((), (0, math.nan), (math.inf,)):
        with pytest.raises(ValueError, match="angles_deg"):
            rotated(angles=angles)
