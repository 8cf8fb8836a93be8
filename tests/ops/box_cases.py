"""Random boxes for the tests of `ops`."""

import torch

NAN, INF = float("nan"), float("inf")


def random_boxes(shape, seed, *, spread=100.0, side=40.0):
    """(*shape, 4) XYXY: corners up to `spread`, sides from 1 to `1 + side` pixels."""
    shape = (shape,) if isinstance(shape, int) else shape
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * spread
    return torch.cat((corners, corners + 1 + torch.rand(*shape, 2, generator=generator) * side), -1)
