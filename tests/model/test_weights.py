"""Weights of torchvision and detectron2: same outputs, same names, and honest refusals."""

import copy
import pickle
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retina_ray.config import AnchorConfig, ConfigError, ModelConfig
from retina_ray.model import RetinaNet
from retina_ray.model.backbone import ResNetBackbone
from retina_ray.model.weights import (
    load_backbone,
    load_detectron2_retinanet,
    load_torchvision_retinanet,
    to_detectron2,
)
from retina_ray.structures import ImageBatch

K = 7
OFFSET = {"anchors": AnchorConfig(offset=0.0)}
NARROW = {"backbone": "resnet18", "fpn_channels": 32}
SMALL = {"num_classes": K, "top_input": "p5", **NARROW, **OFFSET}
V2 = {"num_classes": K, "head_norm": "gn", **OFFSET}


def _small(*, num_classes, **_) -> nn.Module:
    """torchvision's detector, first version, on ResNet-18, with 32 channels after it."""
    layers = {f"layer{n}": str(n - 2) for n in (2, 3, 4)}
    backbone = BackboneWithFPN(
        get_model("resnet18", weights=None),
        layers,
        [128, 256, 512],
        out_channels=32,
        extra_blocks=LastLevelP6P7(32, 32),
    )
    return TorchvisionRetinaNet(backbone, num_classes)


def _theirs(builder) -> nn.Module:
    """A detector of torchvision with weights whose every output channel differs."""
    torch.manual_seed(0)
    model = builder(weights=None, weights_backbone=None, num_classes=K)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the one pass below
    for name, parameter in model.head.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    with torch.no_grad():
        model.backbone.train()(torch.randn(2, 3, 96, 96))
    return model.eval()


@pytest.fixture(scope="module")
def theirs_small():
    return _theirs(_small)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)
    return ImageBatch(pixels, torch.tensor([[64, 96], [40, 70]]))


def _model(**changes) -> RetinaNet:
    return RetinaNet.from_config(ModelConfig(**changes)).eval()


def _size_major(x: torch.Tensor) -> torch.Tensor:
    """(..., 9 anchors ratio by ratio, C) to size by size."""
    return x.unflatten(-2, (3, 3)).transpose(-3, -2).flatten(-3, -2)


@torch.no_grad()
def _assert_same_outputs(model: RetinaNet, theirs: nn.Module, images: ImageBatch) -> None:
    features = list(theirs.backbone(model.normalize(images)).values())
    expected = theirs.head(features)
    outputs = model(images)
    num_images = len(images)
    for ours, key, channels in (
        (outputs.logits, "cls_logits", model.num_classes),
        (outputs.deltas, "bbox_regression", 4),
    ):
        found = torch.cat(
            [x.permute(0, 2, 3, 1).reshape(num_images, x[0, 0].numel(), 9, channels) for x in ours],
            1,
        )
        want = _size_major(expected[key].view(num_images, -1, 9, channels))
        assert want.std() > 0.5  # else nothing would be compared
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_torchvisions_second_detector_gives_the_same_outputs(images):
    """The first one, with an eps of its own, does below."""
    model, theirs = _model(**V2), _theirs(retinanet_resnet50_fpn_v2)
    with torch.no_grad():
        model.head.cls_tower.convs[0].bias.fill_(5)  # must be reset where theirs has none
    load_torchvision_retinanet(model, theirs.state_dict())
    _assert_same_outputs(model, theirs, images)


def test_torchvision_names_before_014(theirs_small):
    old = {}
    for name, tensor in theirs_small.state_dict().items():
        parts = name.split(".")
        if "_head.conv." in name:
            name = ".".join([*parts[:3], str(2 * int(parts[3])), parts[5]])
        elif "_blocks." in name and "extra" not in name:
            name = ".".join([*parts[:4], parts[5]])
        old[name] = tensor
    assert "head.classification_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.bias" in old
    a, b = _model(**SMALL), _model(**SMALL)
    load_torchvision_retinanet(a, theirs_small.state_dict())
    load_torchvision_retinanet(b, old)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_eps_of_the_published_weights_is_folded_in(theirs_small, images, tmp_path):
    theirs = copy.deepcopy(theirs_small)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 1e-4  # so that an eps of 1e-5 matters
            module.weight.data *= 1e-2
    state = copy.deepcopy(theirs.state_dict())
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    model = _model(**SMALL)
    load_torchvision_retinanet(model, state, norm_eps=0.0)
    _assert_same_outputs(model, theirs, images)
    # The published file is known by its name.
    path = tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.pth"
    torch.save(state, path)
    again = _model(**SMALL)
    load_torchvision_retinanet(again, path)
    weight = "backbone.layer1.0.bn1.weight"
    assert torch.equal(again.state_dict()[weight], model.state_dict()[weight])
    assert not torch.equal(again.state_dict()[weight], state["backbone.body.layer1.0.bn1.weight"])


def test_class_indices_choose_rows(theirs_small, images):
    whole, chosen = _model(**SMALL), _model(**SMALL | {"num_classes": 2})
    load_torchvision_retinanet(whole, theirs_small.state_dict())
    load_torchvision_retinanet(chosen, theirs_small.state_dict(), class_indices=[5, 1])
    with torch.no_grad():
        a, b = whole(images).logits[0], chosen(images).logits[0]
    a, b = a.unflatten(1, (9, K)), b.unflatten(1, (9, 2))
    torch.testing.assert_close(b, a[:, :, [5, 1]])


def _refusal(call) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    return str(error.value)


def test_torchvision_mismatches_are_refused_all_at_once(theirs_small):
    model = _model(num_classes=80, **NARROW, **OFFSET)
    before = copy.deepcopy(model.state_dict())
    state = dict(theirs_small.state_dict())
    state["surprise"] = torch.zeros(1)
    del state["backbone.body.conv1.weight"]
    state["backbone.fpn.extra_blocks.p7.bias"] = torch.full((32,), float("nan"))
    message = _refusal(lambda: load_torchvision_retinanet(model, state))
    for part in (
        "it has 7 classes (7 chosen), the model has 80",
        "set model.top_input to p5",
        "1 missing in the file: backbone.body.conv1.weight",
        "1 not known to the model: surprise",
        "1 with NaN or infinite values: backbone.fpn.extra_blocks.p7.bias",
        "cls_logits.weight (63, 32, 3, 3)",
    ):
        assert part in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    whole = theirs_small.state_dict()
    message = _refusal(lambda: load_torchvision_retinanet(model, whole, class_indices=[9]))
    assert "class_indices [9]" in message
    assert "COCO_V7" in _refusal(lambda: load_torchvision_retinanet(model, "COCO_V7"))


def test_anchor_offset_is_warned_of(theirs_small, caplog):
    model = _model(num_classes=K, top_input="p5", **NARROW)
    load_torchvision_retinanet(model, theirs_small.state_dict())
    assert "model.anchors.offset" in caplog.text


# The names below are written out from detectron2's modules (ResNet, FPN, LastLevelP6P7,
# RetinaNetHead, CycleBatchNormList), not from ours.
def _detectron2_names(depth: int, head_norms: list[str]) -> set[str]:
    convs_of_block = ["conv1", "conv2"] if depth == 18 else ["conv1", "conv2", "conv3"]
    blocks_of_stage = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    norm = ["weight", "bias", "running_mean", "running_var"]
    names = {"stem.conv1.weight"} | {f"stem.conv1.norm.{n}" for n in norm}
    for stage, blocks in enumerate(blocks_of_stage, start=2):
        for block in range(blocks):
            # A projection where the width changes: not in the first stage of ResNet-18.
            has_shortcut = block == 0 and (depth, stage) != (18, 2)
            convs = convs_of_block + ["shortcut"] * has_shortcut
            for conv in convs:
                prefix = f"res{stage}.{block}.{conv}"
                names |= {f"{prefix}.weight"} | {f"{prefix}.norm.{n}" for n in norm}
    names = {f"backbone.bottom_up.{n}" for n in names}
    for part in ("weight", "bias"):
        names |= {f"backbone.fpn_lateral{n}.{part}" for n in (3, 4, 5)}
        names |= {f"backbone.fpn_output{n}.{part}" for n in (3, 4, 5)}
        names |= {f"backbone.top_block.p{n}.{part}" for n in (6, 7)}
        names |= {f"head.cls_score.{part}", f"head.bbox_pred.{part}"}
        step = 3 if head_norms else 2
        for subnet in ("cls_subnet", "bbox_subnet"):
            names |= {f"head.{subnet}.{step * n}.{part}" for n in range(4)}
    for subnet in ("cls_subnet", "bbox_subnet"):
        names |= {f"head.{subnet}.{3 * n + 1}.{x}" for n in range(4) for x in head_norms}
    return names


STATISTICS = [
    f"{level}.{name}"
    for level in range(5)
    for name in ("running_mean", "running_var", "num_batches_tracked")
]


@pytest.mark.parametrize(
    ("depth", "norm", "head_norms"),
    [
        (50, "gn", ["weight", "bias"]),
        (18, "none", []),
        (18, "bn", ["weight", "bias", *STATISTICS]),
    ],
)
def test_detectron2_names_and_round_trip(depth, norm, head_norms):
    torch.manual_seed(0)
    config = {"num_classes": 3, "head_norm": norm, **NARROW, **OFFSET}
    config["backbone"] = f"resnet{depth}"
    model = _model(**config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    weights = to_detectron2(model)
    assert set(weights) == _detectron2_names(depth, head_norms)
    stem = weights["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(stem, model.backbone.conv1.weight.flip(1))  # blue first
    assert not any(t.requires_grad for t in weights.values())

    other = _model(**config)
    load_detectron2_retinanet(other, weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_detectron2_places_of_a_few_tensors():
    model = _model(num_classes=3, fpn_norm="gn", **NARROW, **OFFSET)
    for tensor in model.state_dict().values():
        tensor.uniform_()
    ours, theirs = model.state_dict(), to_detectron2(model, input_format="RGB")
    for name, same in {
        "backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
        "backbone.layer4.0.downsample.1.running_var": (
            "backbone.bottom_up.res5.0.shortcut.norm.running_var"
        ),
        "backbone.layer1.1.bn2.bias": "backbone.bottom_up.res2.1.conv2.norm.bias",
        "fpn.laterals.p3.conv.weight": "backbone.fpn_lateral3.weight",
        "fpn.outputs.p5.norm.bias": "backbone.fpn_output5.norm.bias",
        "head.box_tower.convs.3.weight": "head.bbox_subnet.6.weight",
    }.items():
        assert torch.equal(ours[name], theirs[same]), name


def test_detectron2_checkpoint_with_its_statistics_and_anchors():
    model = _model(num_classes=3, pixel_std=(1.0, 1.0, 1.0), **NARROW, **OFFSET)
    stated = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        **{
            f"anchor_generator.cell_anchors.{n}": anchors.clone()
            for n, anchors in enumerate(model.anchors.cell_anchors)
        },
    }
    weights = to_detectron2(model)
    load_detectron2_retinanet(model, {"model": weights | stated, "iteration": 3})  # type: ignore[dict-item]

    stated["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    stated["anchor_generator.cell_anchors.1"] = torch.zeros(9, 4)
    message = _refusal(
        lambda: load_detectron2_retinanet(model, weights | stated, stride_in_1x1=True)
    )
    assert "set model.pixel_std to (58.395, 57.12, 57.375) (RGB)" in message
    assert "anchors of level 1 differ" in message
    assert "set model.backbone_stride_in_1x1 to true" in message


def test_detectron2_pickles_are_refused_without_running_them(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path, model = tmp_path / "model_final.pkl", _model(**SMALL)
    path.write_bytes(pickle.dumps({"model": {"a": Bomb()}}, protocol=2))
    message = _refusal(lambda: load_detectron2_retinanet(model, path))
    assert "convert it once" in message
    assert "torch.save" in message
    path = tmp_path / "model_final.pth"
    torch.save({"model": {"a": Bomb()}}, path)
    _refusal(lambda: load_detectron2_retinanet(model, path))
    assert not (tmp_path / "ran").exists()


# ---- backbones


@pytest.fixture(scope="module")
def imagenet():
    torch.manual_seed(0)
    state = get_model("resnet18", weights=None).state_dict()
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in state.items()}


def test_backbone_from_files(imagenet, tmp_path):
    without_counters = {k: v for k, v in imagenet.items() if "num_batches_tracked" not in k}
    by_module = {f"module.{k}": v for k, v in imagenet.items()}
    frozen, plain = (
        ResNetBackbone("resnet18", norm=norm, freeze_stages=2) for norm in ("frozen_bn", "bn")
    )
    for layout, content, backbones in (
        ("model.pth", {"model": imagenet, "epoch": 3}, (frozen, plain)),
        ("module.pth", {"state_dict": by_module}, (frozen,)),
        ("weights.safetensors", without_counters, (frozen, plain)),
    ):
        path = tmp_path / layout
        (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
        for backbone in backbones:
            for tensor in backbone.state_dict().values():
                tensor.zero_()
            load_backbone(backbone, str(path))
            for name, tensor in backbone.state_dict().items():
                if name in without_counters:
                    assert torch.equal(tensor, imagenet[name]), (layout, name)
            assert not backbone.conv1.weight.requires_grad


def test_backbone_by_name(monkeypatch, imagenet):
    answers = [imagenet, imagenet, URLError("no route")]

    def download(url, *, weights_only, check_hash, **_):
        assert weights_only
        assert check_hash
        answer = answers.pop(0)
        if isinstance(answer, URLError):
            raise answer
        return dict(answer)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    backbone = ResNetBackbone("resnet18")
    for name in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"):
        backbone.conv1.weight.data.zero_()
        load_backbone(backbone, name)
        assert torch.equal(backbone.conv1.weight, imagenet["conv1.weight"])
    message = _refusal(lambda: load_backbone(backbone, "IMAGENET1K_V1"))
    assert "cannot download ResNet18_Weights.IMAGENET1K_V1" in message


def test_weights_that_are_none_of_a_backbone_are_refused(imagenet, tmp_path):
    backbone = ResNetBackbone("resnet18")
    for name, content in (("list.pth", [1, 2]), ("other.pth", {"epoch": 3})):
        torch.save(content, tmp_path / name)
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    for model, weights, fault in (
        # A long list is cut, with its count.
        (
            ResNetBackbone("resnet34"),
            imagenet,
            r"missing in the file: layer1\.2\.conv1\.weight.*more",
        ),
        (ResNetBackbone("resnet18", norm="gn"), imagenet, r"a model\.backbone_norm with bn"),
        (backbone, "IMAGENET1K_V9", r"one of ResNet18_Weights\.IMAGENET1K_V1"),
        (backbone, "ResNet50_Weights.IMAGENET1K_V2", "for resnet18"),
        (backbone, str(tmp_path / "none.pth"), "no such file"),
        (backbone, tmp_path / "list.pth", "holds list"),
        (backbone, tmp_path / "other.pth", "no tensors: epoch"),
        (backbone, tmp_path / "noise.pth", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=rf"(?s)^model\.backbone_weights: .*{fault}"):
            load_backbone(model, weights)
