"""Random rotated boxes for the tests of `ops.rotated`."""

import torch

NAN, INF = float("nan"), float("inf")


def random_rotated(count, seed, *, low=1.0, high=1000.0, spread=300.0):
    """(count, 5): sides even over the orders of magnitude, angles over -720 to 720 degrees."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * spread
    sides = low * (high / low) ** torch.rand(count, 2, generator=generator)
    angles = (torch.rand(count, 1, generator=generator) * 2 - 1) * 720
    return torch.cat((centers, sides, angles), 1)
