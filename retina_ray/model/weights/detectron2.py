"""Load and write the weights of detectron2's RetinaNet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from retina_ray.model.weights.state_dicts import (
    Source,
    StateDict,
    describe,
    load_named,
    read_state_dict,
    warn_of_offset,
)

if TYPE_CHECKING:
    from retina_ray.model.retinanet import RetinaNet


_STEM = "backbone.bottom_up.stem.conv1.weight"


def load_detectron2_retinanet(
    model: RetinaNet,
    source: Source,
    *,
    input_format: Literal["BGR", "RGB"] = "BGR",
    stride_in_1x1: bool | None = None,
) -> None:
    """Load a detector of detectron2's `RetinaNet` with a ResNet-FPN backbone.

    Its model zoo starts from MSRA's ResNets. For those set, before the model is built,
    `model.backbone_stride_in_1x1` true, `model.pixel_mean` (123.675, 116.28, 103.53),
    `model.pixel_std` (1, 1, 1) and `model.anchors.offset` 0.0. The weights cannot tell where the
    stride is, both fit, and only one detects: `stride_in_1x1` is MODEL.RESNETS.STRIDE_IN_1X1 of the
    detectron2 config, checked against the model (None: not checked).

    The source is a state dict, or a `.pth` or `.safetensors` file of one. The zoo's `.pkl` files
    are pickles that can run any code, and are refused; the message says how to convert. With BGR,
    the INPUT.FORMAT of detectron2, the stem's channels are turned round: our images are RGB.

    Raises:
        ConfigError: the source cannot be read or does not fit, or it states other pixel statistics
            or anchors than the model's.
    """
    state = read_state_dict(source)
    faults = list(_detectron2_faults(model, state, input_format))
    if stride_in_1x1 is not None and stride_in_1x1 != model.backbone.stride_in_1x1:
        faults.append(f"set model.backbone_stride_in_1x1 to {str(stride_in_1x1).lower()}")
    if _STEM in state and input_format == "BGR":
        state[_STEM] = state[_STEM].flip(1)
    load_named(model, state, _detectron2_names(model), what=describe(source), faults=faults)
    warn_of_offset(model)


def to_detectron2(
    model: RetinaNet, *, input_format: Literal["BGR", "RGB"] = "BGR"
) -> dict[str, Tensor]:
    """Write the weights under detectron2's names: the inverse of `load_detectron2_retinanet`.

    The detectron2 config must say the same as ours: PIXEL_MEAN and PIXEL_STD in the order of
    `input_format`, STRIDE_IN_1X1, ANCHOR_GENERATOR.OFFSET, FPN.FUSE_TYPE, RETINANET.NORM.

    Returns:
        Copies on the CPU; save them with `torch.save({"model": ...}, "model.pth")`.
    """
    state = model.state_dict()
    names = _detectron2_names(model)
    weights = {names[name]: tensor.detach().cpu().clone() for name, tensor in state.items()}
    if input_format == "BGR":
        weights[_STEM] = weights[_STEM].flip(1)
    return weights


def _detectron2_names(model: RetinaNet) -> dict[str, str]:
    state = model.state_dict()
    head_norm = any(name.startswith("head.cls_tower.norms.") for name in state)
    return {name: _detectron2_name(name, head_norm=head_norm) for name in state}


def _detectron2_faults(model: RetinaNet, state: StateDict, input_format: str) -> Iterator[str]:
    """Compare what older checkpoints state beside the weights, and take it out of the state."""
    for name in ("pixel_mean", "pixel_std"):
        if name in state:
            theirs = state.pop(name).float().flatten()
            theirs = theirs.flip(0) if input_format == "BGR" else theirs
            if not torch.allclose(theirs, getattr(model, name).flatten().cpu(), atol=1e-3):
                yield f"set model.{name} to {tuple(round(v, 3) for v in theirs.tolist())} (RGB)"
    for name in [n for n in state if n.startswith("anchor_generator.cell_anchors.")]:
        theirs, level = state.pop(name).float(), int(name.rsplit(".", 1)[1])
        ours = model.anchors.cell_anchors[level] if level < len(model.fpn.levels) else theirs[:0]
        ours = ours.cpu()
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-2):
            yield f"its anchors of level {level} differ from model.anchors: {theirs.tolist()}"


def _detectron2_name(name: str, *, head_norm: bool) -> str:
    """The name in detectron2's `RetinaNet`, where norms of the head count as layers."""
    if match := re.fullmatch(r"fpn\.(lateral|output)s\.p(\d)\.(conv|norm)\.(.+)", name):
        part = "" if match[3] == "conv" else "norm."
        return f"backbone.fpn_{match[1]}{match[2]}.{part}{match[4]}"
    if name.startswith("fpn.extra."):
        return name.replace("fpn.extra.", "backbone.top_block.", 1)
    if match := re.fullmatch(r"head\.(cls|box)_tower\.(convs|norms)\.(\d+)\.(.+)", name):
        subnet = "cls_subnet" if match[1] == "cls" else "bbox_subnet"
        # Convolution, norm if any, ReLU, and so on, in one list.
        layer = int(match[3]) * (3 if head_norm else 2) + (match[2] == "norms")
        return f"head.{subnet}.{layer}.{match[4].removeprefix('levels.')}"
    if name.startswith("head."):
        return name.replace("head.box_pred.", "head.bbox_pred.")
    name = re.sub(r"^backbone\.(conv1|bn1)\.", r"backbone.stem.\1.", name)
    name = re.sub(r"^backbone\.layer(\d)\.", lambda m: f"backbone.res{int(m[1]) + 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return name.replace("backbone.", "backbone.bottom_up.", 1)
