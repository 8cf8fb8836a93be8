"""Shapes: A anchors a cell, H and W cells."""

import copy
import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator

from retina_ray.config import AnchorConfig, ModelConfig
from retina_ray.ops.anchors import AnchorGenerator


def small(offset: float = 0.5) -> AnchorGenerator:
    return AnchorGenerator(sizes=[(32, 64)], aspect_ratios=(0.25, 1, 4), strides=[4], offset=offset)


def test_cell_anchors_by_hand():
    expected = [  # ratio is height / width: 0.25 is wide
        [-32.0, -8, 32, 8],
        [-16, -16, 16, 16],
        [-8, -32, 8, 32],
        [-64, -16, 64, 16],
        [-32, -32, 32, 32],
        [-16, -64, 16, 64],
    ]
    assert small().cell_anchors[0].tolist() == expected


@pytest.mark.parametrize(("offset", "shift"), [(0.0, 0.0), (0.5, 2.0), (0.25, 1.0)])
def test_grid_rows_and_offset(offset, shift):
    generator = small(offset)
    (grid,) = generator([(2, 3)])
    assert grid.shape == (2 * 3 * 6, 4)
    assert grid.dtype == torch.float32
    for row, anchor in enumerate(grid):
        y, x, a = row // 18, row // 6 % 3, row % 6
        move = torch.tensor([4 * x, 4 * y] * 2) + shift
        assert torch.equal(anchor, generator.cell_anchors[0][a] + move)


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


def test_from_config_multiplies_sizes_scale_and_octaves():
    config = ModelConfig(
        anchors=AnchorConfig(
            sizes=(10, 20, 30, 40, 50),
            octave_scales=(1, 1.5),
            aspect_ratios=(1,),
            scale=2,
            offset=0.25,
        )
    )
    generator = AnchorGenerator.from_config(config)
    assert generator.strides == (8, 16, 32, 64, 128)
    assert generator.offset == 0.25
    assert generator.num_anchors == config.num_anchors == 2
    sides = [(cells[:, 2] - cells[:, 0]).tolist() for cells in generator.cell_anchors]
    assert sides == [[20, 30], [40, 60], [60, 90], [80, 120], [100, 150]]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_every_anchor_of_the_default_config_by_hand(offset):
    """Bit by bit: IoUs that are equal must stay equal."""
    config = ModelConfig(anchors=AnchorConfig(offset=offset))
    grids = [(7, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    for level, found in enumerate(AnchorGenerator.from_config(config)(grids)):
        height, width = grids[level]
        stride, rows = 8 * 2**level, []
        for octave in range(3):
            size = 32 * 2**level * 2 ** (octave / 3)
            for ratio in (0.5, 1.0, 2.0):
                w = math.sqrt(size**2 / ratio)
                rows.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
        around_origin = torch.tensor(rows)
        expected = [
            around_origin + torch.tensor([(x + offset) * stride, (y + offset) * stride] * 2)
            for y in range(height)
            for x in range(width)
        ]
        assert torch.equal(found, torch.cat(expected))


def test_grids_are_cached_by_size_and_bounded():
    generator = small()
    first = generator([(2, 3)])[0]
    assert generator([(0, 3)])[0].shape == (0, 4)
    assert not torch.equal(generator([(3, 2)])[0], first)
    for width in range(1, 200):
        generator([(1, width)])
        if width < 100 and width % 50 == 0:  # recently used ones stay
            assert generator([(2, 3)])[0] is first
    assert len(generator._grids) <= 64
    assert torch.equal(generator([(2, 3)])[0], first)


def test_grids_made_in_inference_mode_can_be_trained_with():
    generator = small()
    with torch.inference_mode():
        generator([(2, 3)])
    deltas = torch.zeros(36, 4, requires_grad=True)
    (deltas * generator([(2, 3)])[0]).sum().backward()
    assert deltas.grad is not None


def test_casting_and_moving():
    exact = [cells.clone() for cells in AnchorGenerator.from_config(ModelConfig()).cell_anchors]
    generator = AnchorGenerator.from_config(ModelConfig()).bfloat16()
    for cells, expected in zip(generator.cell_anchors, exact, strict=True):
        assert torch.equal(cells, expected)
    assert generator([(1, 1)] * 5)[0].dtype == torch.float32
    generator.to("meta")
    assert generator([(1, 1)] * 5)[0].device.type == "meta"
    generator.to_empty(device="cpu")
    assert torch.equal(generator.cell_anchors[0], exact[0])
    assert torch.equal(copy.deepcopy(generator)([(1, 1)] * 5)[0], exact[0] + 4)
    assert generator.state_dict() == {}


def test_errors_name_everything_that_is_wrong():
    with pytest.raises(ValueError, match=r"sizes.*aspect_ratios.*offset") as error:
        AnchorGenerator(sizes=[(32,), (64, 0)], aspect_ratios=(), strides=[8], offset=1.0)
    assert "one per level" in str(error.value)
    assert "positive" in str(error.value)
    with pytest.raises(ValueError, match="2 feature maps for 1 levels"):
        small()([(1, 1), (2, 2)])
