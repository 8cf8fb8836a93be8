"""torch.compile for a model in training, without which the run goes on where it cannot be had."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from retina_ray.ops.focal_compiled import is_compiler_fault

logger = logging.getLogger(__name__)


def compile_forward(model: nn.Module) -> None:
    """Let torch.compile make the forward pass of a model, and with it the backward pass, in place.

    The names in the state dict stay as they are. The first size of batch is compiled for itself,
    the second for all sizes to come, as long as the coarsest level of the pyramid is more than one
    cell high and wide (smaller images are compiled size by size, a few times). Where the compiler
    fails (on a CPU it needs a C++ compiler), a warning says so once, and the model computes
    uncompiled from there on. Done before a model is wrapped for several workers, each of them may
    fall back without leaving the others to wait.
    """
    plain = model.forward
    forward = torch.compile(plain)

    def forward_or_plain(*inputs: Any, **options: Any) -> Any:
        nonlocal forward
        try:
            return forward(*inputs, **options)
        except Exception as error:
            if forward is plain or not is_compiler_fault(error):
                raise
            forward = plain
            # The first line names the part of the compiler, the second what it met.
            reason = " ".join(str(error).split("\n")[:2]).strip()
            logger.warning("the model could not be compiled and trains uncompiled (%s)", reason)
            return plain(*inputs, **options)

    model.forward = forward_or_plain
