"""Anchor boxes of every cell of a pyramid (Focal Loss paper, arXiv:1708.02002, section 4).

Shapes: A anchors a cell, H and W cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from retina_ray.config import ModelConfig


# Grids kept: 64 are a dozen image sizes of five levels, some tens of MB at 800 x 1333 pixels.
_MAX_CACHED_GRIDS = 64


class AnchorGenerator(nn.Module):
    """Makes the anchors of a feature pyramid and keeps those of recent image sizes.

    The anchor of cell (y, x) with size s and ratio r has the area s * s, the width s / sqrt(r), the
    height s * sqrt(r) and the centre ((x + offset) * stride, (y + offset) * stride).

    The anchors are float32 whatever the module is cast to, and are not part of the state dict.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """Make a generator.

        Args:
            sizes: per level, the square roots of the anchors' areas in pixels.
            aspect_ratios: height / width, the same for all sizes and levels.
            strides: per level, the distance between neighbouring cells in pixels.
            offset: centre of the first anchor in strides; 0.5 is symmetric under flips, 0 is what
                detectron2's and torchvision's published weights were trained with.

        Raises:
            ValueError: levels disagree in number or in anchors a cell, or a value is out of range.
        """
        super().__init__()
        _check(sizes, aspect_ratios, strides, offset)
        self.strides = tuple(strides)
        self.offset = float(offset)
        self._grids: dict[tuple[int, int, int, torch.device], Tensor] = {}
        self._set_cells([_cell_anchors(of_level, aspect_ratios) for of_level in sizes])

    @classmethod
    def from_config(cls, config: ModelConfig) -> AnchorGenerator:
        """The anchors that `config.anchors` describes on the levels of `config`."""
        return cls(
            sizes=level_sizes(config),
            aspect_ratios=config.anchors.aspect_ratios,
            strides=config.strides,
            offset=config.anchors.offset,
        )

    @property
    def cell_anchors(self) -> list[Tensor]:
        """Per level, the anchors (A, 4) around the origin; row size_index * num_ratios + ratio."""
        return [self.get_buffer(f"cell_anchors_{level}") for level in range(len(self.strides))]

    def forward(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Anchors of all cells, given the (H, W) of each level's feature map.

        Returns:
            Per level, (H * W * A, 4) float32 XYXY in pixels on the module's device; the row of
            anchor a of cell (y, x) is (y * W + x) * A + a. Shared between calls: do not write to
            them.

        Raises:
            ValueError: the number of grid sizes is not the number of levels.
        """
        if len(grid_sizes) != len(self.strides):
            raise ValueError(
                f"grid_sizes: {len(grid_sizes)} feature maps for {len(self.strides)} levels with "
                f"strides {self.strides}; give one (H, W) per level"
            )
        if torch.compiler.is_compiling():  # a traced tensor must not outlive its trace
            return [self._grid(i, h, w) for i, (h, w) in enumerate(grid_sizes)]
        return [self._cached_grid(i, int(h), int(w)) for i, (h, w) in enumerate(grid_sizes)]

    def _cached_grid(self, level: int, height: int, width: int) -> Tensor:
        """The grid, from the cache where it is; the least recently used one makes room."""
        key = (level, height, width, self.get_buffer(f"cell_anchors_{level}").device)
        grid = self._grids.pop(key, None)
        if grid is None:
            # An inference-mode tensor in the cache would break the next training step.
            with torch.inference_mode(False), torch.no_grad():
                grid = self._grid(level, height, width)
            if len(self._grids) >= _MAX_CACHED_GRIDS:
                del self._grids[next(iter(self._grids))]
        self._grids[key] = grid
        return grid

    def _grid(self, level: int, height: int, width: int) -> Tensor:
        cells = self.get_buffer(f"cell_anchors_{level}")
        stride = self.strides[level]

        def centers(count: int) -> Tensor:
            steps = torch.arange(count, dtype=torch.float32, device=cells.device)
            return (steps + self.offset) * stride

        y, x = torch.meshgrid(centers(height), centers(width), indexing="ij")
        return (self._shifts(x, y)[:, :, None] + cells).reshape(-1, cells.shape[1])

    @staticmethod
    def _shifts(x: Tensor, y: Tensor) -> Tensor:
        """What moves a cell's anchors from the origin to the centres x, y (H, W)."""
        return torch.stack((x, y, x, y), -1)

    def _set_cells(self, cells: Sequence[Sequence[tuple[float, ...]]]) -> None:
        self._cells = cells
        self.num_anchors = len(cells[0])
        self._make_buffers()

    def _make_buffers(self) -> None:
        for level, cells in enumerate(self._cells):
            name = f"cell_anchors_{level}"
            device = self.get_buffer(name).device if name in self._buffers else None
            tensor = torch.tensor(cells, dtype=torch.float32, device=device)
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        """Follow `.to()` to a device; stay exact float32 through `.half()` and `.to_empty()`."""
        super()._apply(fn, recurse)
        self._grids.clear()
        self._make_buffers()
        return self


def level_sizes(config: ModelConfig) -> list[tuple[float, ...]]:
    """Per level, the square roots of the areas in pixels that `config.anchors` describes."""
    anchors = config.anchors
    return [
        tuple(size * anchors.scale * octave for octave in anchors.octave_scales)
        for size in anchors.sizes
    ]


def _cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> list[tuple[float, float, float, float]]:
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            half_width = 0.5 * size / math.sqrt(ratio)
            half_height = 0.5 * size * math.sqrt(ratio)
            anchors.append((-half_width, -half_height, half_width, half_height))
    return anchors


def _check(
    sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    strides: Sequence[int],
    offset: float,
) -> None:
    faults = []
    if len(sizes) != len(strides) or not sizes:
        faults.append(f"sizes: {len(sizes)} tuples for {len(strides)} strides; give one per level")
    if len({len(of_level) for of_level in sizes}) > 1 or not all(len(s) for s in sizes):
        faults.append(f"sizes: every level needs the same number of sizes, at least one: {sizes}")
    if not len(aspect_ratios):
        faults.append("aspect_ratios: give at least one height / width")
    for name, values in (
        ("sizes", [size for of_level in sizes for size in of_level]),
        ("aspect_ratios", aspect_ratios),
        ("strides", strides),
    ):
        if not all(value > 0 and math.isfinite(value) for value in values):
            faults.append(f"{name}: expected positive numbers, got {values}")
    if not 0 <= offset < 1:
        faults.append(f"offset: expected a share of a stride in [0, 1), got {offset}")
    if faults:
        raise ValueError("anchors: " + "; ".join(faults))
