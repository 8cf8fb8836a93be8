"""Load torchvision's weights: its ResNets, and its RetinaNets.

Shapes: A anchors a cell, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, get_weight
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retina_ray.config import ConfigError
from retina_ray.model.weights.state_dicts import (
    Source,
    StateDict,
    describe,
    download,
    is_file,
    load_named,
    read_state_dict,
    warn_of_offset,
)

if TYPE_CHECKING:
    from retina_ray.model.backbone import ResNetBackbone
    from retina_ray.model.retinanet import RetinaNet


_EPS = 1e-5
"""Of all our batch norms, PyTorch's default."""
_CLS = "head.classification_head.cls_logits"
_BOX = "head.regression_head.bbox_reg"
_P6 = "backbone.fpn.extra_blocks.p6.weight"


def load_backbone(backbone: ResNetBackbone, source: Source) -> None:
    """Load ImageNet weights in torchvision's layout; its classifier (`fc`) is left out.

    The source is a state dict or a file of one (`.pth`, `.safetensors`), or a name of torchvision's
    such as `IMAGENET1K_V2` or `ResNet50_Weights.IMAGENET1K_V2`, which is downloaded.

    Raises:
        ConfigError: no such file or name, no network, or weights that do not fit.
    """
    path = "model.backbone_weights"
    try:
        if isinstance(source, Mapping) or is_file(source):
            state = read_state_dict(source)
        else:
            state = download(_backbone_weights(backbone.name, str(source)))
    except ConfigError as error:
        raise ConfigError([(path, message) for _, message in error.faults]) from error
    state = {name: t for name, t in state.items() if not name.startswith("fc.")}
    faults = []
    if "bn1.running_mean" in state and not hasattr(backbone.bn1, "running_mean"):
        faults.append("they are of a network with batch norm: choose a model.backbone_norm with bn")
    names = {name: name for name in backbone.state_dict()}
    load_named(backbone, state, names, what=describe(source), path=path, faults=faults)


def load_torchvision_retinanet(
    model: RetinaNet,
    source: Source,
    *,
    class_indices: Sequence[int] | None = None,
    norm_eps: float | None = None,
) -> None:
    """Load a detector of `torchvision.models.detection.retinanet_resnet50_fpn` or its `_v2`.

    The source is a state dict, a file of one, or a name such as
    `RetinaNet_ResNet50_FPN_Weights.COCO_V1`, which is downloaded.

    What differs, and is seen to here:
    - torchvision numbers a cell's anchors ratio by ratio, we size by size: the output channels are
      put in our order.
    - The first version computes P6 from P5 (set `model.top_input` to `p5`), `_v2` from C5, with
      group norm in the head (`model.head_norm` `gn`) and no bias before it (ours becomes 0).
    - torchvision's K counts a row for the background that is never trained, and its COCO weights
      have 91 rows, numbered by COCO's category ids: `class_indices` says which row each of our K
      classes takes (None: all, in order).
    - The published COCO_V1 weights want an eps of 0 in their batch norms (torchvision sets it after
      loading); it is folded into the weights, so that it is not lost with the next checkpoint.
      `norm_eps` says with which one weights were trained; None: 0 for the published COCO_V1 (by its
      name, or its original file name), 1e-5 for all others.

    What stays: torchvision rounds its anchors to whole pixels, so ours differ by up to one pixel.

    Raises:
        ConfigError: the source cannot be read or does not fit.
    """
    published = RetinaNet_ResNet50_FPN_Weights.COCO_V1
    is_published = not isinstance(source, Mapping) and (
        str(source) == str(published) or Path(source).name == Path(published.url).name
    )
    if isinstance(source, Mapping) or is_file(source):
        state = read_state_dict(source)
    else:
        state = download(_named_weights(str(source)))
    state = _modern_names(state)
    names = {n: _torchvision_name(n, min_level=model.fpn.levels[0]) for n in model.state_dict()}
    for i in range(model.head.num_convs):
        for tower in ("cls_tower", "box_tower"):
            conv = f"head.{tower}.convs.{i}"
            if names[f"{conv}.weight"] in state and f"head.{tower}.norms.{i}.weight" in names:
                zero = torch.zeros_like(model.get_parameter(f"{conv}.bias"))
                state.setdefault(names[f"{conv}.bias"], zero)
    if norm_eps is None:
        norm_eps = 0.0 if is_published else _EPS
    _fold_eps(state, norm_eps)
    faults = [*_arrange_outputs(model, state, class_indices), *_top_input_faults(model, state)]
    load_named(model, state, names, what=describe(source), faults=faults)
    warn_of_offset(model)


def _backbone_weights(architecture: str, name: str) -> WeightsEnum:
    """Torchvision's weights of that name, with or without the class before the dot."""
    known = get_model_weights(architecture)
    full = name if "." in name else f"{known.__name__}.{name}"
    names = [str(weights) for weights in known]
    if full not in names:
        raise ConfigError(
            f"{name} is neither a file nor weights of torchvision for {architecture}: expected a "
            f"path, or one of {', '.join(names)}"
        )
    return get_weight(full)


def _named_weights(name: str) -> WeightsEnum:
    try:
        return get_weight(name)
    except ValueError as error:
        raise ConfigError(
            f"{name} is neither a file nor weights of torchvision: expected a path, or a name such "
            "as RetinaNet_ResNet50_FPN_Weights.COCO_V1"
        ) from error


def _fold_eps(state: StateDict, eps: float) -> None:
    """Scale batch norm weights so that they do with our eps what they did with theirs.

    weight / sqrt(var + eps) = weight' / sqrt(var + 1e-5).
    """
    if eps == _EPS:
        return
    for name in [n for n in state if n.endswith("running_var")]:
        weight = name.removesuffix("running_var") + "weight"
        if weight in state:
            variance = state[name].double()
            factor = ((variance + _EPS) / (variance + eps)).sqrt()
            state[weight] = (state[weight] * factor).to(state[weight].dtype)


def _arrange_outputs(
    model: RetinaNet, state: StateDict, class_indices: Sequence[int] | None
) -> list[str]:
    """Reorder torchvision's output rows to ours, in place; say what is wrong with them."""
    num_anchors, num_classes = model.head.num_anchors, model.num_classes
    outputs = [f"{_CLS}.weight", f"{_CLS}.bias", f"{_BOX}.weight", f"{_BOX}.bias"]
    if any(name not in state or len(state[name]) % num_anchors for name in outputs):
        return []  # load_named says so
    order = _anchor_order(model)
    for name in outputs:
        state[name] = state[name].unflatten(0, (num_anchors, -1))[order]
    theirs = state[f"{_CLS}.bias"].shape[1]
    faults = []
    rows = list(range(theirs)) if class_indices is None else list(class_indices)
    if len(rows) != num_classes:
        faults.append(
            f"it has {theirs} classes ({len(rows)} chosen), the model has {num_classes}: "
            f"torchvision counts a row for the background (91 for COCO); set model.num_classes to "
            f"{theirs}, or give class_indices, the {num_classes} rows to keep"
        )
    if wrong := [row for row in rows if not 0 <= row < theirs]:
        faults.append(f"class_indices {wrong} are not among its {theirs} classes")
    for name in outputs:
        rows_of_anchor = rows if name.startswith(_CLS) and not wrong else slice(None)
        state[name] = state[name][:, rows_of_anchor].flatten(0, 1)
    return faults


def _anchor_order(model: RetinaNet) -> Tensor:
    """For each of our anchors its number in torchvision: ratio by ratio, then size; (A,)."""
    x0, y0, x1, y1 = model.anchors.cell_anchors[0].double().cpu().unbind(1)
    widths, heights = x1 - x0, y1 - y0
    ratios = (heights / widths).round(decimals=3).tolist()
    areas = (widths * heights).tolist()
    theirs = sorted(range(len(areas)), key=lambda a: (ratios[a], areas[a]))
    return torch.tensor(theirs).argsort()


def _top_input_faults(model: RetinaNet, state: StateDict) -> list[str]:
    """Whether the file's P6 has the same input as the model's (torchvision's own rule)."""
    if _P6 not in state or "p6" not in model.fpn.extra:
        return []
    channels_out, channels_in = state[_P6].shape[:2]
    theirs = "p5" if channels_in == channels_out else "c5"
    if theirs == model.fpn.top_input:
        return []
    return [f"it computes P6 from {theirs.upper()}: set model.top_input to {theirs}"]


def _torchvision_name(name: str, *, min_level: int) -> str:
    """The name in `torchvision.models.detection.RetinaNet`, which counts levels from the finest."""
    if name.startswith("backbone."):
        return name.replace("backbone.", "backbone.body.", 1)
    if match := re.fullmatch(r"fpn\.(laterals|outputs)\.p(\d)\.(conv|norm)\.(.+)", name):
        block = "inner_blocks" if match[1] == "laterals" else "layer_blocks"
        part = 0 if match[3] == "conv" else 1
        return f"backbone.fpn.{block}.{int(match[2]) - min_level}.{part}.{match[4]}"
    if name.startswith("fpn.extra."):
        return name.replace("fpn.extra.", "backbone.fpn.extra_blocks.", 1)
    if match := re.fullmatch(r"head\.(cls|box)_tower\.(convs|norms)\.(\d+)\.(.+)", name):
        head = "classification_head" if match[1] == "cls" else "regression_head"
        return f"head.{head}.conv.{match[3]}.{0 if match[2] == 'convs' else 1}.{match[4]}"
    name = name.replace("head.cls_score.", "head.classification_head.cls_logits.")
    return name.replace("head.box_pred.", "head.regression_head.bbox_reg.")


def _modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names of torchvision before 0.14 (a flat list of layers) up to date.

    Its published COCO_V1 file still has them: `conv.2.weight` for what is now `conv.1.0.weight`.
    """

    def modern(name: str) -> str:
        name = re.sub(r"(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"\1_blocks.\2.0.\3", name)
        return re.sub(
            r"_head\.conv\.(\d+)\.(weight|bias)$",
            lambda m: f"_head.conv.{int(m[1]) // 2}.0.{m[2]}",
            name,
        )

    return {modern(name): tensor for name, tensor in state.items()}
