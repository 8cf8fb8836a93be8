"""The pyramid: fusion by hand, any size, inputs of P6, bias and initialisation."""

import pytest
import torch
from torch import nn

from retina_ray.model.fpn import FPN


def _identity_fpn(fuse, levels=(4, 5)) -> FPN:
    """One channel, laterals and outputs that pass the map on unchanged."""
    fpn = FPN(
        dict.fromkeys(range(2, 6), 1), out_channels=1, min_level=levels[0], max_level=5, fuse=fuse
    )
    with torch.no_grad():
        for conv in fpn.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight.zero_()
                middle = conv.kernel_size[0] // 2
                conv.weight[0, 0, middle, middle] = 1
    return fpn


C5 = torch.tensor([[[[10.0, 20.0]]]])
C4 = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]])


def test_sum_and_avg_by_hand():
    up = [[10.0, 10.0, 20.0, 20.0], [10.0, 10.0, 20.0, 20.0]]
    total = (C4 + torch.tensor(up)).tolist()
    p4, p5 = _identity_fpn("sum")({4: C4, 5: C5})
    assert p4.tolist() == total
    assert torch.equal(p5, C5)
    p4, p5 = _identity_fpn("avg")({4: C4, 5: C5})
    assert p4.tolist() == (torch.tensor(total) / 2).tolist()
    assert torch.equal(p5, C5)


def test_avg_is_halved_once_for_each_merge():
    ones = torch.ones(1, 1, 1, 1)
    # P5 = 8, P4 = (0 + 8) / 2 = 4, P3 = (0 + 4) / 2 = 2
    features = {5: 8 * ones, 4: torch.zeros(1, 1, 2, 2), 3: torch.zeros(1, 1, 4, 4)}
    p3, p4, p5 = _identity_fpn("avg", (3, 5))(features)
    assert (p3[0, 0, 0, 0].item(), p4[0, 0, 0, 0].item(), p5.item()) == (2, 4, 8)


def test_odd_sizes_are_upsampled_to_the_finer_map():
    c4 = torch.zeros(1, 1, 1, 3)
    p4, _ = _identity_fpn("sum")({4: c4, 5: C5})
    assert p4.tolist() == [[[[10.0, 10.0, 20.0]]]]  # nearest: floor(i * 2 / 3)


@pytest.mark.parametrize(("low", "high"), [(2, 5), (3, 6), (3, 7), (4, 7), (5, 7)])
def test_levels_and_shapes(low, high):
    channels = {2: 4, 3: 8, 4: 16, 5: 32}
    fpn = FPN(channels, out_channels=8, min_level=low, max_level=high)
    assert fpn.levels == tuple(range(low, high + 1))
    for image in ((64, 64), (33, 65), (1, 1)):
        sizes = {n: tuple(-(-side // 2**n) for side in image) for n in range(2, 8)}
        outputs = fpn({n: torch.randn(2, c, *sizes[n]) for n, c in channels.items()})
        assert [tuple(p.shape) for p in outputs] == [(2, 8, *sizes[n]) for n in fpn.levels], image


def test_p6_from_c5_or_p5_and_p7_from_relu_of_p6():
    channels = {3: 2, 4: 2, 5: 3}
    features = {3: torch.randn(1, 2, 8, 8), 4: torch.randn(1, 2, 4, 4), 5: torch.randn(1, 3, 2, 2)}
    for top in ("c5", "p5"):
        fpn = FPN(channels, out_channels=4, top_input=top)
        assert fpn.extra["p6"].in_channels == (3 if top == "c5" else 4)
        *_, p5, p6, p7 = fpn(features)
        expected = fpn.extra["p6"](features[5] if top == "c5" else p5)
        torch.testing.assert_close(p6, expected)
        torch.testing.assert_close(p7, fpn.extra["p7"](p6.clamp(min=0)))
        assert (p6 < 0).any()  # else the ReLU would not be tested


@pytest.mark.parametrize("norm", ["none", "bn", "sync_bn", "gn"])
def test_bias_only_without_norm(norm):
    fpn = FPN({3: 2, 4: 2, 5: 2}, out_channels=32, norm=norm)
    for module in (*fpn.laterals.values(), *fpn.outputs.values()):
        assert (module.conv.bias is None) is (norm != "none")
    assert fpn.extra["p6"].bias is not None


def test_wrong_levels_are_refused():
    for channels, levels, fault in (
        ({5: 2}, {"min_level": 6}, "levels 6 to 7"),
        ({3: 2, 4: 2, 5: 2}, {"max_level": 8}, "levels 3 to 8"),
        ({4: 2, 5: 2}, {}, r"needs also \[3\]"),
    ):
        with pytest.raises(ValueError, match=fault):
            FPN(channels, **levels)
