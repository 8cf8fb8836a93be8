"""The trunks: shapes, frozen stages, strides; test_weights compares them with torchvision."""

import pytest
import torch
from torch import nn

from retina_ray.model.backbone import ResNetBackbone

CHANNELS = {
    "resnet18": [64, 128, 256, 512],
    "resnet34": [64, 128, 256, 512],
    "resnet50": [256, 512, 1024, 2048],
    "resnet101": [256, 512, 1024, 2048],
    "resnext50_32x4d": [256, 512, 1024, 2048],
}


@pytest.mark.parametrize("name", CHANNELS)
def test_shapes_of_every_backbone(name):
    with torch.device("meta"):
        backbone = ResNetBackbone(name)
        features = backbone(torch.randn(1, 3, 33, 65))
    assert {n: tuple(x.shape) for n, x in features.items()} == {
        level: (1, channels, -(-33 // 2**level), -(-65 // 2**level))
        for level, channels in zip((2, 3, 4, 5), CHANNELS[name], strict=True)
    }
    assert list(backbone.channels.values()) == CHANNELS[name]


@pytest.mark.parametrize(
    ("freeze", "norm"),
    [*((n, "bn") for n in range(6)), (0, "sync_bn"), (2, "sync_bn"), (2, "gn"), (2, "frozen_bn")],
)
def test_frozen_stages_have_no_gradient_and_fixed_statistics(freeze, norm):
    backbone = ResNetBackbone("resnet18", norm=norm, freeze_stages=freeze).train()
    layers = [[getattr(backbone, f"layer{n}")] for n in (1, 2, 3, 4)]
    stages = [[backbone.conv1, backbone.bn1], *layers]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    loss = sum(x.square().mean() for x in backbone(torch.randn(2, 3, 32, 32)).values())
    assert loss.requires_grad is (freeze < 5)
    if freeze < 5:
        loss.backward()
    for number, modules in enumerate(stages):
        frozen = number < freeze
        for module in modules:
            for parameter in module.parameters():
                assert parameter.requires_grad is not frozen
                assert (parameter.grad is None) is frozen
            for child in module.modules():
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    assert child.training is not frozen
    changed = {k.split(".")[0] for k, v in backbone.state_dict().items() if (v != before[k]).any()}
    names = [{"bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    moves = norm in ("bn", "sync_bn")
    assert changed == (set().union(*names[freeze:]) if moves else set())


def test_mode_comes_back_after_evaluation():
    backbone = ResNetBackbone("resnet18", norm="bn", freeze_stages=2)
    backbone.eval()
    assert not any(m.training for m in backbone.modules())
    backbone.train()
    assert backbone.layer2.training
    assert not backbone.layer1.training
    assert not backbone.bn1.training


def test_stride_in_1x1_moves_the_stride_only():
    moved = ResNetBackbone("resnet50", stride_in_1x1=True)
    plain = ResNetBackbone("resnet50")
    assert (moved.layer2[0].conv1.stride, moved.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    assert (plain.layer2[0].conv1.stride, plain.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    assert moved.layer1[0].conv1.stride == (1, 1)
    assert moved.layer2[1].conv1.stride == (1, 1)
    plain.load_state_dict(moved.state_dict())
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        a, b = moved.eval()(x), plain.eval()(x)
    assert [y.shape for y in a.values()] == [y.shape for y in b.values()]
    torch.testing.assert_close(a[2], b[2])
    assert not torch.allclose(a[3], b[3])


def test_wrong_arguments_say_what_was_expected():
    with torch.device("meta"):
        with pytest.raises(ValueError, match="freeze_stages is 6"):
            ResNetBackbone("resnet18", freeze_stages=6)
        with pytest.raises(ValueError, match=r"stride_in_1x1 .* resnet18"):
            ResNetBackbone("resnet18", stride_in_1x1=True)
        with pytest.raises(ValueError, match="alexnet is not"):
            ResNetBackbone("alexnet")
