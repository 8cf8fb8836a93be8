"""Random boxes for the tests of `ops`."""

import torch

NAN, INF = float("nan"), float("inf")


def random_boxes(shape, seed, *, spread=100.0, side=40.0):
    """(*shape, 4) XYXY: corners up to `spread`, sides from 1 to `1 + side` pixels."""
    shape = (shape,) if isinstance(shape, int) else shape
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * spread
    return torch.cat((corners, corners + 1 + torch.rand(*shape, 2, generator=generator) * side), -1)


def random_rotated(count, seed, *, low=1.0, high=1000.0, spread=300.0):
    """(count, 5): sides even over the orders of magnitude, angles over -720 to 720 degrees."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * spread
    sides = low * (high / low) ** torch.rand(count, 2, generator=generator)
    angles = (torch.rand(count, 1, generator=generator) * 2 - 1) * 720
    return torch.cat((centers, sides, angles), 1)
