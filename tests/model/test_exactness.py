"""Labels, losses, gradients and normalizer against detectron2's rules, and torchvision's model.

The reference below is written number by number in Python's float64, with the derivatives worked out
by hand; it shares nothing with the package but the order of the head's channels.

Shapes: N images, M boxes, A anchors a cell, K classes, R anchors in all.
"""

import math
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from head_outputs import random_outputs
from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retina_ray.config import AnchorConfig, ModelConfig
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.model.weights import load_torchvision_retinanet
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.matcher import Matcher
from retina_ray.structures import ImageBatch, Targets

NUM_ANCHORS, NUM_CLASSES = 3, 4
GRIDS = [(3, 4), (2, 2)]
# Corners are whole numbers, so IoUs are fractions of whole numbers and ties are exact in any type.
ANCHORS = AnchorGenerator([(8,), (16,)], (0.25, 1, 4), (8, 16), 0.5)
WEIGHTS = (1.0, 2.0, 0.5, 4.0)

Box = list[float]
IGNORED = -1


def iou_of(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def reference_match(table: list[list[float]], low, high, low_quality) -> list[tuple[str, int]]:
    """What each anchor (column) becomes, and the row of its largest IoU, the first where equal."""
    result = []
    for column in zip(*table, strict=True):
        best = max(column)
        kind = "positive" if best >= high else "ignored" if best >= low else "background"
        result.append((kind, column.index(best)))
    for row in table if low_quality else []:
        for r, value in enumerate(row):
            if value == max(row) and value > 0:  # 0: detectron2 would claim all such anchors
                result[r] = ("positive", result[r][1])
    return result


def reference_labels(anchors, boxes, classes, low=0.4, high=0.5, low_quality=True):
    """Label of each anchor (K: background, -1: ignored) and the box that it is to learn."""
    if not boxes:
        return [(NUM_CLASSES, None)] * len(anchors)
    table = [[iou_of(box, anchor) for anchor in anchors] for box in boxes]
    made = {"background": lambda m: NUM_CLASSES, "ignored": lambda m: IGNORED}
    return [
        (made.get(kind, classes.__getitem__)(m), boxes[m])
        for kind, m in reference_match(table, low, high, low_quality)
    ]


def focal(x: float, is_target: bool, alpha: float, gamma: float) -> tuple[float, float]:
    """Focal loss of one logit and its derivative."""
    p = 1 / (1 + math.exp(-x))
    sign, p_t = (1, p) if is_target else (-1, 1 - p)
    weight = 1.0 if alpha < 0 else alpha if is_target else 1 - alpha
    loss = -weight * (1 - p_t) ** gamma * math.log(p_t)
    slope = weight * (1 - p_t) ** gamma * (gamma * p_t * math.log(p_t) - (1 - p_t))
    return loss, sign * slope


def smooth_l1(difference: float, beta: float) -> tuple[float, float]:
    size = abs(difference)
    if size < beta:
        return 0.5 * size**2 / beta, difference / beta
    return size - 0.5 * beta, math.copysign(1, difference) if difference else 0.0


def encode(anchor: Box, box: Box) -> list[float]:
    deltas = []
    for axis in (0, 1):
        side_a, side = (b[axis + 2] - b[axis] for b in (anchor, box))
        middle_a, middle = ((b[axis + 2] + b[axis]) / 2 for b in (anchor, box))
        deltas.append(((middle - middle_a) / side_a, math.log(side / side_a)))
    values = [deltas[0][0], deltas[1][0], deltas[0][1], deltas[1][1]]
    return [weight * value for weight, value in zip(WEIGHTS, values, strict=True)]


@dataclass
class Sums:
    """Loss sums over a batch, positives, and derivatives by (image, level, channel, y, x)."""

    cls: float = 0.0
    box: float = 0.0
    positives: int = 0
    logits: dict = field(default_factory=dict)
    deltas: dict = field(default_factory=dict)


def reference_sums(outputs, boxes, classes, *, alpha=0.25, gamma=2.0, beta=0.1) -> Sums:
    sums = Sums()
    anchors = torch.cat(outputs.anchors).tolist()
    logits, deltas = ([x.tolist() for x in y] for y in (outputs.logits, outputs.deltas))
    for n in range(len(boxes)):
        labels = reference_labels(anchors, boxes[n], classes[n])
        row = -1
        for level, (height, width) in enumerate(GRIDS):
            for y, x, a in product(range(height), range(width), range(NUM_ANCHORS)):
                row += 1
                label, box = labels[row]
                for k in range(NUM_CLASSES):
                    place = (n, level, a * NUM_CLASSES + k, y, x)
                    value = logits[level][n][a * NUM_CLASSES + k][y][x]
                    loss, slope = focal(value, k == label, alpha, gamma)
                    used = label != IGNORED
                    sums.cls += loss * used
                    sums.logits[place] = slope * used
                positive = 0 <= label < NUM_CLASSES
                sums.positives += positive
                target = encode(anchors[row], box) if positive else [0.0] * 4
                for i in range(4):
                    place = (n, level, a * 4 + i, y, x)
                    value = deltas[level][n][a * 4 + i][y][x]
                    loss, slope = smooth_l1(value - target[i], beta)
                    sums.box += loss * positive
                    sums.deltas[place] = slope * positive
    return sums


def make_boxes(seed: int) -> tuple[list[list[Box]], list[list[int]]]:
    """Four images: many boxes, none, equal boxes of two classes, one box that no anchor touches."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    corners = numbers(0, 24, 6, 2)
    many = torch.cat((corners, corners + numbers(2, 18, 6, 2)), 1).double().tolist()
    twice = many[0]
    boxes = [many, [], [many[3], twice, many[4], twice], [[900.0, 900, 916, 916], many[5]]]
    classes = [numbers(0, NUM_CLASSES, len(image)).tolist() for image in boxes]
    classes[2][1], classes[2][3] = 1, 3
    return boxes, classes


def assert_gradients(levels, derivatives, factor, tolerance) -> None:
    expected = [torch.zeros(level.shape, dtype=torch.float64) for level in levels]
    for (n, level, channel, y, x), value in derivatives.items():
        expected[level][n, channel, y, x] = value * factor
    for level, want in zip(levels, expected, strict=True):
        torch.testing.assert_close(level.grad.double(), want, rtol=tolerance, atol=tolerance * 1e-3)


PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize(
    ("seed", "alpha", "gamma"), [(0, 0.25, 2.0), (2, -1.0, 2.0), (3, 0.6, 0.5)]
)
def test_two_steps_of_losses_gradients_and_normalizer(seed, alpha, gamma, beta, dtype, tolerance):
    criterion = RetinaNetCriterion(
        num_classes=NUM_CLASSES,
        matcher=Matcher(0.4, 0.5, True),
        coder=BoxCoder(WEIGHTS),
        focal_alpha=alpha,
        focal_gamma=gamma,
        smooth_l1_beta=beta,
    ).to(dtype)
    normalizer = 100.0
    for step in range(2):
        boxes, classes = make_boxes(10 * seed + step)
        options = {"seed": seed + 50 * step, "num_images": len(boxes), "dtype": dtype}
        outputs = random_outputs(ANCHORS, GRIDS, NUM_CLASSES, spreads=(2.0, 0.5), **options)
        expected = reference_sums(outputs, boxes, classes, alpha=alpha, gamma=gamma, beta=beta)
        assert expected.positives > 8
        normalizer = 0.9 * normalizer + 0.1 * expected.positives
        targets = Targets.from_lists(
            [torch.tensor(b).reshape(-1, 4) for b in boxes],
            [torch.tensor(c, dtype=torch.int64) for c in classes],
        )
        losses = criterion(outputs, Targets(targets.boxes.to(dtype), targets.labels))
        assert losses["loss_cls"].item() == pytest.approx(expected.cls / normalizer, rel=tolerance)
        assert losses["loss_box_reg"].item() == pytest.approx(
            expected.box / normalizer, rel=tolerance
        )
        assert criterion.normalizer.item() == pytest.approx(normalizer, rel=tolerance)
        (losses["loss_cls"] + losses["loss_box_reg"]).backward()
        assert_gradients(outputs.logits, expected.logits, 1 / normalizer, tolerance)
        assert_gradients(outputs.deltas, expected.deltas, 1 / normalizer, tolerance)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("low", "high"), [(0.4, 0.5), (0.3, 0.7), (0.5, 0.5), (0.25, 1.0)])
def test_labels_of_random_images_with_ties(low, high, dtype, low_quality):
    anchors = torch.cat(ANCHORS(GRIDS))
    ties = 0
    for seed in range(8):
        for boxes, classes in zip(*make_boxes(seed), strict=True):
            if not boxes:
                continue
            expected = reference_labels(anchors.tolist(), boxes, classes, low, high, low_quality)
            match = Matcher(low, high, low_quality)(
                box_iou(torch.tensor(boxes, dtype=dtype), anchors.to(dtype))
            )
            found = torch.tensor(classes)[match.index]
            found[~match.positive] = NUM_CLASSES
            found[match.ignored] = IGNORED
            assert found.tolist() == [label for label, _ in expected]
            assert not (match.ignored & match.positive).any()
            table = [[iou_of(box, anchor) for anchor in anchors.tolist()] for box in boxes]
            ties += sum(row.count(max(row)) > 1 for row in table)
    assert ties > 10


# The whole model


@pytest.fixture(scope="module")
def theirs() -> TorchvisionRetinaNet:
    """torchvision's detector on ResNet-18, with anchors that are not rounded to whole pixels."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
        trainable_layers=5,
    )
    model = TorchvisionRetinaNet(backbone, NUM_CLASSES).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.02)
    sizes = AnchorConfig().sizes
    for level, size in enumerate(sizes):
        rows = []
        for ratio, octave in product((0.5, 1.0, 2.0), (0, 1, 2)):  # theirs: ratio by ratio
            width = size * 2 ** (octave / 3) / math.sqrt(ratio)
            rows.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
        model.anchor_generator.cell_anchors[level] = torch.tensor(rows)
    return model


def test_losses_and_gradients_of_the_whole_model_are_torchvisions(theirs):
    ours = RetinaNet.from_config(
        ModelConfig(
            backbone="resnet18",
            num_classes=NUM_CLASSES,
            freeze_stages=0,
            top_input="p5",
            backbone_norm="bn",
            anchors=AnchorConfig(offset=0.0),
        )
    ).eval()
    load_torchvision_retinanet(ours, theirs.state_dict())
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=generator)
    images = ImageBatch(pixels, torch.tensor([[64, 96]]))
    boxes = torch.tensor([[5.0, 7, 45, 40], [30, 10, 90, 60], [60, 30, 64, 64]])
    labels = torch.tensor([2, 0, 3])

    criterion = RetinaNetCriterion(
        num_classes=NUM_CLASSES,
        matcher=Matcher(0.4, 0.5, True),
        coder=BoxCoder(),
        smooth_l1_beta=0.0,  # torchvision's box loss is L1
        normalizer="batch",  # and it divides by the positives of the image
    )
    losses = criterion(ours(images), Targets.from_lists([boxes], [labels]))
    sum(losses.values()).backward()

    x = ours.normalize(images)
    features = list(theirs.backbone(x).values())
    anchors = theirs.anchor_generator(ImageList(x, [(64, 96)]), features)
    targets = [{"boxes": boxes, "labels": labels}]
    expected = theirs.compute_loss(targets, theirs.head(features), anchors)
    sum(expected.values()).backward()

    torch.testing.assert_close(losses["loss_cls"], expected["classification"])
    torch.testing.assert_close(losses["loss_box_reg"], expected["bbox_regression"])
    for a, b in {
        "backbone.conv1.weight": "backbone.body.conv1.weight",
        "backbone.layer4.1.conv2.weight": "backbone.body.layer4.1.conv2.weight",
        "fpn.laterals.p3.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "fpn.outputs.p5.conv.bias": "backbone.fpn.layer_blocks.2.0.bias",
        "fpn.extra.p6.weight": "backbone.fpn.extra_blocks.p6.weight",
        "fpn.extra.p7.weight": "backbone.fpn.extra_blocks.p7.weight",
        "head.cls_tower.convs.0.weight": "head.classification_head.conv.0.0.weight",
        "head.box_tower.convs.3.bias": "head.regression_head.conv.3.0.bias",
    }.items():
        found, wanted = ours.get_parameter(a).grad, theirs.get_parameter(b).grad
        scale = wanted.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * scale, msg=a)
