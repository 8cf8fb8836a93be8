"""The whole model: parameter counts, normalisation and padding, gradients, autocast."""

import logging
import math

import pytest
import torch
from torch import nn

from retina_ray.config import (
    AnchorConfig,
    ConfigError,
    ExperimentConfig,
    LossConfig,
    MatcherConfig,
    ModelConfig,
)
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.model.box_pairs import positive_rows
from retina_ray.model.fpn import FPN
from retina_ray.model.head import RetinaNetHead
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.rotated import RotatedAnchorGenerator
from retina_ray.structures import ImageBatch, Targets

TINY = {"backbone": "resnet18", "num_classes": 3, "fpn_channels": 32, "head_num_convs": 1}


def _model(**changes) -> RetinaNet:
    return RetinaNet.from_config(ModelConfig(**(TINY | changes)))


def _images(height, width, sizes) -> ImageBatch:
    pixels = torch.randint(0, 256, (len(sizes), 3, height, width), dtype=torch.uint8)
    return ImageBatch(pixels, torch.tensor(sizes))


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def test_parameter_counts_of_detectron2s_r50():
    """By hand: ResNet-50's convolutions, FPN and P6 from C5, head; frozen norms do not count."""
    with torch.device("meta"):
        model = RetinaNet.from_config(ModelConfig(num_classes=80, freeze_stages=2))
    fpn = (512 + 1024 + 2048 + 3) * 256 + 3 * (256 * 256 * 9 + 256)
    extra = 2048 * 256 * 9 + 256 + 256 * 256 * 9 + 256
    assert _count(model.backbone.parameters()) == 23_454_912
    assert _count(model.fpn.parameters()) == fpn + extra
    assert _count(model.head.parameters()) == 6_463_220
    assert _count(model.parameters()) == 37_915_572
    trained = [p for p in model.parameters() if p.requires_grad]
    assert _count(trained) == 37_693_172


def test_every_parameter_starts_as_detectron2s():
    """MSRAFill in the trunk, XavierFill in the pyramid, a narrow normal in the head; biases 0."""
    torch.manual_seed(0)
    model = _model(backbone_norm="bn", head_norm="gn", head_num_convs=2, fpn_channels=64)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name == "head.cls_score.bias":
            torch.testing.assert_close(values, torch.full_like(values, -math.log(99)))
        elif name.endswith("bias"):
            assert not values.any(), name
        elif values.ndim == 1:  # of a norm
            assert (values == 1).all(), name
        else:
            inputs, outputs = values[0].numel(), values[:, 0].numel()
            part = name.split(".")[0]
            std = {"backbone": (2 / outputs) ** 0.5, "fpn": inputs**-0.5, "head": 0.01}[part]
            spread = values.std().item() / std
            assert abs(spread - 1) < 5 / (2 * values.numel()) ** 0.5, name
            assert abs(values.mean().item()) < 5 * std / values.numel() ** 0.5, name
            widest = values.abs().max().item() / std
            assert widest <= 3**0.5 + 1e-6 if part == "fpn" else widest > 2.5, name


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (40, 72), (128, 32)])
def test_shapes_of_any_size(size):
    with torch.no_grad():
        outputs = _model()(_images(*size, [size, (1, 1)]))
    cells = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(3, 8)]
    assert [tuple(x.shape) for x in outputs.logits] == [(2, 27, h, w) for h, w in cells]
    assert [tuple(x.shape) for x in outputs.deltas] == [(2, 36, h, w) for h, w in cells]
    assert [tuple(x.shape) for x in outputs.anchors] == [(h * w * 9, 4) for h, w in cells]


def test_normalize_by_hand():
    model = _model(pixel_mean=(10.0, 20.0, 30.0), pixel_std=(1.0, 2.0, 5.0))
    pixels = torch.tensor([10, 30, 80], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 3, 4)
    x = model.normalize(ImageBatch(pixels, torch.tensor([[2, 3], [3, 1]])))
    assert x.dtype == torch.float32
    for channel, value in enumerate((0.0, 5.0, 10.0)):
        row = [value] * 3 + [0.0]
        assert x[0, channel].tolist() == [row, row, [0.0] * 4]
        assert x[1, channel].tolist() == [[value, 0.0, 0.0, 0.0]] * 3


def test_autocast_bf16():
    # Not smaller: where P6 is a single cell, torch 2.15's bf16 kernel on a CPU makes P7's gradient
    # of memory that nobody has written to.
    torch.manual_seed(0)
    model = _model(head_norm="gn")
    images = _images(128, 128, [(128, 128)])
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        assert model.normalize(images).dtype == torch.float32
    assert {x.dtype for x in outputs.logits + outputs.deltas} == {torch.bfloat16}
    assert {x.dtype for x in outputs.anchors} == {torch.float32}
    for x, y in zip(outputs.logits, exact.logits, strict=True):
        torch.testing.assert_close(x.float(), y, rtol=0.05, atol=0.05)
    sum(x.float().square().mean() for x in outputs.logits + outputs.deltas).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("freeze", "norm"), [(2, None), (0, "bn"), (2, "sync_bn"), (5, "gn"), (0, "gn")]
)
def test_gradient_reaches_every_trained_parameter(freeze, norm):
    torch.manual_seed(0)
    norms = {f"{part}_norm": norm for part in ("backbone", "fpn", "head") if norm}
    anchors = AnchorConfig(sizes=(16, 32, 64, 128, 256, 512))
    model = _model(freeze_stages=freeze, min_level=2, max_level=7, anchors=anchors, **norms)
    outputs = model.train()(_images(64, 64, [(64, 64), (50, 64)]))
    sum(x.square().sum() for x in outputs.logits + outputs.deltas).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {n for n, p in model.named_parameters() if not p.requires_grad}
    stages = ("conv1.", "layer1.", "layer2.", "layer3.", "layer4.")
    frozen = tuple(f"backbone.{s}" for s in stages[:freeze]) + ("backbone.bn1.",) * (freeze > 0)
    assert all(name.startswith(frozen) for name in without) if frozen else not without


def test_config_reaches_what_is_built():
    changes = {
        "backbone_norm": "gn",
        "freeze_stages": 1,
        "fpn_norm": "bn",
        "fpn_fuse": "avg",
        "top_input": "p5",
        "head_num_convs": 2,
        "head_channels": 64,
        "head_norm": "gn",
        "prior_prob": 0.2,
        "pixel_mean": (1.0, 2.0, 3.0),
        "pixel_std": (4.0, 5.0, 6.0),
    }
    model = _model(**changes)
    assert isinstance(model.backbone.bn1, nn.GroupNorm)
    assert model.backbone.freeze_stages == 1
    assert isinstance(model.fpn.laterals["p3"].norm, nn.BatchNorm2d)
    assert (model.fpn.fuse, model.fpn.top_input) == ("avg", "p5")
    assert len(model.head.cls_tower.convs) == 2
    assert model.head.cls_score.in_channels == 64
    assert isinstance(model.head.box_tower.norms[1], nn.GroupNorm)
    assert model.head.cls_score.bias.sigmoid().mean().item() == pytest.approx(0.2)
    assert not any("pixel" in name or "anchor" in name for name in model.state_dict())
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
    assert model.pixel_std.flatten().tolist() == [4, 5, 6]
    assert (model.num_classes, model.size_divisibility) == (3, 32)
    with torch.device("meta"):
        assert _model(backbone="resnet50", backbone_stride_in_1x1=True).backbone.stride_in_1x1


def test_what_depends_on_the_data_set_must_be_filled_in():
    with pytest.raises(ConfigError) as error:
        _model(num_classes=None)
    assert error.value.faults[0][0] == "model.num_classes"
    with pytest.raises(ConfigError) as error:
        _model(anchors=AnchorConfig(fit="scale"))
    assert error.value.faults[0][0] == "model.anchors.fit"


def test_random_frozen_backbone_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        _model(backbone_norm="gn", freeze_stages=0)
        _model(backbone_weights="some.pth")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        _model(backbone_norm="frozen_bn", freeze_stages=2)
    assert "will not learn well" in caplog.text
    assert "freeze_stages 2" in caplog.text


def test_parts_that_do_not_fit_are_refused():
    backbone = _model().backbone
    fpn = FPN(backbone.channels, out_channels=32)
    anchors = AnchorGenerator([(32.0,)] * 5, (1.0,), (8, 16, 32, 64, 128), 0.5)
    head = RetinaNetHead(32, num_levels=4, num_anchors=1, num_classes=2)
    with pytest.raises(ValueError, match="'head': 4"):
        RetinaNet(backbone=backbone, fpn=fpn, head=head, anchors=anchors)
    head = RetinaNetHead(32, num_levels=5, num_anchors=9, num_classes=2)
    with pytest.raises(ValueError, match="1 anchors a cell for a head of 9"):
        RetinaNet(backbone=backbone, fpn=fpn, head=head, anchors=anchors)


@pytest.mark.parametrize(
    ("norm", "matcher", "cls_loss", "box_loss", "normalizer"),
    [
        ("frozen_bn", "iou", "focal", "smooth_l1", "ema"),
        ("bn", "iou", "varifocal", "giou", "batch"),
        ("gn", "atss", "quality_focal", "diou", "ema"),
        ("gn", "best", "focal", "ciou", "batch"),
    ],
)
def test_a_step_never_looks_at_a_value_that_a_gpu_would_have_to_send(
    norm, matcher, cls_loss, box_loss, normalizer
):
    # Meta tensors have no values: `item`, `cpu`, `nonzero` and masks as indices all raise there.
    config = ExperimentConfig(
        model=ModelConfig(**TINY, backbone_norm=norm),
        matcher=MatcherConfig(method=matcher),
        loss=LossConfig(cls_loss=cls_loss, box_loss=box_loss, normalizer=normalizer),
    )
    with torch.device("meta"):
        model = RetinaNet.from_config(config.model)
        criterion = RetinaNetCriterion.from_config(config)
        criterion.focal_alpha, criterion.focal_gamma = torch.empty(()), torch.empty(())
        sizes = torch.zeros(2, 2, dtype=torch.int64)
        images = ImageBatch(torch.zeros(2, 3, 96, 128, dtype=torch.uint8), sizes)
        targets = Targets(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64))
    outputs = model.to("meta")(images)
    sum(criterion(outputs, targets).values()).backward()
    for conv in (model.head.cls_score, model.head.box_pred):
        assert conv.weight.grad.shape == conv.weight.shape
    with pytest.raises((RuntimeError, NotImplementedError)):  # the gathered form does look
        positive_rows(outputs, criterion.assign(outputs, targets))


def shallow_model() -> RetinaNet:
    """One block a stage and two levels: less to compile, nothing of another kind."""
    anchors = AnchorConfig(sizes=(32.0, 64.0))
    model = _model(fpn_channels=16, min_level=4, max_level=5, anchors=anchors)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model.backbone, stage, getattr(model.backbone, stage)[:1])
    return model


def test_it_compiles_without_graph_breaks():
    # What breaks a graph breaks it in the tracing already: no code is made of it here.
    torch.compiler.reset()
    model = shallow_model().to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    images = ImageBatch(
        pixels.contiguous(memory_format=torch.channels_last), torch.tensor([[64, 96], [60, 70]])
    )
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        ours, eager = compiled(images), model(images)
    for a, b in zip(ours.logits + ours.deltas, eager.logits + eager.deltas, strict=True):
        assert a.dtype == torch.bfloat16
        assert a.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a, b)
    for a, b in zip(ours.anchors, eager.anchors, strict=True):
        assert torch.equal(a, b)
    sum(level.float().sum() for level in ours.logits).backward()
    assert model.head.cls_score.weight.grad.abs().sum() > 0


def test_rotated_anchors_compile_too():
    generator = RotatedAnchorGenerator([(32.0,)], (1.0, 2.0), (-45, 45), (8,))
    (ours,) = torch.compile(generator, fullgraph=True, backend="eager")([(3, 4)])
    assert torch.equal(ours, generator([(3, 4)])[0])


def test_compiled_code_computes_what_the_model_does(compiler):
    torch.compiler.reset()
    model = shallow_model().eval()
    images = _images(64, 96, [(64, 90)])
    with torch.inference_mode():
        ours, eager = torch.compile(model, fullgraph=True)(images), model(images)
    for a, b in zip(ours.logits + ours.deltas, eager.logits + eager.deltas, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
