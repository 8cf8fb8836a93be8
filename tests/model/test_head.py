"""The head: parameter counts, prior, norms, channel order."""

import math

import pytest
import torch

from retina_ray.model.head import RetinaNetHead


def _head(**changes) -> RetinaNetHead:
    values = {"num_levels": 2, "num_anchors": 3, "num_classes": 5} | changes
    return RetinaNetHead(values.pop("in_channels", 32), **values)


@pytest.mark.parametrize("prior", [0.01, 0.3])
@pytest.mark.parametrize("norm", ["none", "bn", "gn"])
def test_initial_score_is_the_prior(prior, norm):
    head = _head(prior_prob=prior, norm=norm)
    # Biases are 0, so a map of zeros reaches the last convolution as zeros.
    logits, deltas = head([torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 2, 2)])
    for x in logits:
        torch.testing.assert_close(x.sigmoid(), torch.full_like(x, prior))
        assert x[0, 0, 0, 0].item() == pytest.approx(-math.log((1 - prior) / prior))
    for x in deltas:
        assert not x.any()


@pytest.mark.parametrize("num_convs", [0, 1, 4])
@pytest.mark.parametrize("channels", [None, 64])
def test_shapes(num_convs, channels):
    head = _head(num_convs=num_convs, channels=channels)
    logits, deltas = head([torch.randn(2, 32, 4, 6), torch.randn(2, 32, 1, 1)])
    assert [tuple(x.shape) for x in logits] == [(2, 15, 4, 6), (2, 15, 1, 1)]
    assert [tuple(x.shape) for x in deltas] == [(2, 12, 4, 6), (2, 12, 1, 1)]


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_batch_norms_of_the_head_are_per_level(norm):
    torch.manual_seed(0)
    head = _head(norm=norm, num_convs=1).train()
    fine, coarse = torch.randn(2, 32, 4, 4), torch.randn(2, 32, 2, 2) * 50 + 10
    head([fine, coarse])
    levels = head.cls_tower.norms[0].levels
    for level, x in enumerate((fine, coarse)):
        y = head.cls_tower.convs[0](x)
        expected = 0.1 * y.mean((0, 2, 3))
        torch.testing.assert_close(levels[level].running_mean, expected)
    assert not torch.allclose(levels[0].running_mean, levels[1].running_mean)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 feature maps for a head of 2 levels"):
        _head()([torch.zeros(1, 32, 2, 2)])
    with pytest.raises(ValueError, match="prior_prob"):
        _head(prior_prob=1)
