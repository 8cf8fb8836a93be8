"""Shapes: A anchors a cell, H and W cells."""

import pytest
import torch

from retina_ray.config import AnchorConfig, ModelConfig
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.rotated import RotatedAnchorGenerator, enclosing_boxes


def small(offset: float = 0.0, angles=(0, 45)) -> RotatedAnchorGenerator:
    return RotatedAnchorGenerator([(32, 64)], (0.25, 1, 4), angles, [4], offset)


def test_equals_detectron2s_numbers():
    """Of its test of RotatedAnchorGenerator: one row of two cells, offset 0."""
    sides = [(64, 16), (32, 32), (16, 64), (128, 32), (64, 64), (32, 128)]
    cell = [[0.0, 0, w, h, angle] for w, h in sides for angle in (0, 45)]
    assert small().cell_anchors[0].tolist() == cell
    (grid,) = small()([(1, 2)])
    assert grid.tolist() == cell + [[4.0, *row[1:]] for row in cell]


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.25])
def test_grid_rows_and_offset(offset):
    generator = small(offset)
    (grid,) = generator([(2, 3)])
    assert grid.shape == (2 * 3 * 12, 5)
    assert grid.dtype == torch.float32
    for row, anchor in enumerate(grid):
        y, x, a = row // 36, row // 12 % 3, row % 12
        move = torch.tensor([4 * (x + offset), 4 * (y + offset), 0, 0, 0])
        assert torch.equal(anchor, generator.cell_anchors[0][a] + move)


def test_at_angle_zero_they_are_the_aligned_anchors():
    sizes, ratios, strides = ((32, 48), (64, 96)), (0.5, 1.0, 2.0), (8, 16)
    rotated = RotatedAnchorGenerator(sizes, ratios, (0,), strides)
    aligned = AnchorGenerator(sizes, ratios, strides)
    grids = [(3, 5), (2, 3)]
    for a, b in zip(rotated(grids), aligned(grids), strict=True):
        torch.testing.assert_close(enclosing_boxes(a), b, atol=1e-5, rtol=0)


def test_from_config():
    anchors = AnchorConfig(
        sizes=(10, 20, 30, 40, 50),
        octave_scales=(1, 1.5),
        aspect_ratios=(1,),
        angles_deg=(-30, 15),
        scale=2,
        offset=0.25,
    )
    config = ModelConfig(box_type="rotated", anchors=anchors)
    generator = RotatedAnchorGenerator.from_config(config)
    assert isinstance(generator, RotatedAnchorGenerator)
    assert generator.strides == (8, 16, 32, 64, 128)
    assert generator.offset == 0.25
    assert generator.num_anchors == config.num_anchors == 4
    expected = [[0, 0, side, side, angle] for side in (20, 30) for angle in (-30, 15)]
    assert generator.cell_anchors[0].tolist() == expected
    assert generator.cell_anchors[4][3].tolist() == [0, 0, 150, 150, 15]


def test_cache_empty_grid_and_casting():
    generator = small()
    first = generator([(2, 3)])[0]
    assert generator([(2, 3)])[0] is first
    assert generator([(0, 3)])[0].shape == (0, 5)
    assert torch.equal(small().bfloat16().cell_anchors[0], generator.cell_anchors[0])


@pytest.mark.parametrize("angles", [(), (0, float("nan")), (float("inf"),)])
def test_angles_are_checked(angles):
    with pytest.raises(ValueError, match="angles_deg"):
        small(angles=angles)
