"""Anchors for the tests of the matchers, and how to read what a matcher found."""

from retina_ray.ops.anchors import AnchorGenerator

STRIDES = (8, 16, 32)


def make_grid(height_px, width_px, sizes=(1.0,), ratios=(1.0,), offset=0.5):
    """Anchors (H * W * A, 4) of three levels, sizes in units of 4 strides, and the grids."""
    generator = AnchorGenerator(
        [[4 * stride * size for size in sizes] for stride in STRIDES], ratios, STRIDES, offset
    )
    grids = [(-(-height_px // stride), -(-width_px // stride)) for stride in STRIDES]
    return generator(grids), grids


def owners(match, image=0):
    """The box of each positive anchor."""
    positive = match.positive[image].nonzero().flatten().tolist()
    return {row: int(match.index[image, row]) for row in positive}
