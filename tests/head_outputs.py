"""Random outputs of a head."""

import torch

from retina_ray.structures import HeadOutputs


def random_maps(channels, grids, generator, *, num_images=2, spread=1.0, dtype=torch.float32):
    """A pyramid of leaves (num_images, channels, H, W), normal with this spread."""
    return [
        (torch.randn(num_images, channels, *grid, generator=generator) * spread)
        .to(dtype)
        .requires_grad_()
        for grid in grids
    ]


def random_outputs(
    anchors,
    grids,
    num_classes,
    *,
    box_numbers=4,
    spreads=(2.0, 0.3),
    seed=0,
    dtype=torch.float32,
    **options,
):
    """Logits and deltas of these spreads; anchors are never of half precision."""
    generator = torch.Generator().manual_seed(seed)
    logits, deltas = (
        random_maps(
            anchors.num_anchors * n, grids, generator, spread=spread, dtype=dtype, **options
        )
        for n, spread in zip((num_classes, box_numbers), spreads, strict=True)
    )
    wide = torch.promote_types(dtype, torch.float32)
    return HeadOutputs(logits, deltas, [level.to(wide) for level in anchors(grids)])
