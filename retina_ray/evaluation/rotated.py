"""COCO's evaluation of rotated boxes: pycocotools' own, with the overlap of rotated boxes.

As in detectron2's `RotatedCOCOEvaluator`, a `bbox` holds (x_center, y_center, width, height, angle)
and only the overlap counts: rotated by 180 degrees, or by 90 with its sides swapped, a box is the
same box.

Shapes: D detections and G true boxes of one image and class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from retina_ray.ops.rotated.boxes import paired_rotated_intersection, rotated_iou


class RotatedEvaluation(COCOeval):
    """`COCOeval` for boxes of five numbers; all but the overlap is inherited."""

    _gts: Any
    _dts: Any

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
        """(D, G) overlaps of an image's best detections of a class, by falling score.

        An empty list where there are none, which is what `COCOeval` expects.
        """
        params = self.params
        categories = [catId] if params.useCats else params.catIds
        truth = [one for category in categories for one in self._gts[imgId, category]]
        found = [one for category in categories for one in self._dts[imgId, category]]
        if not truth or not found:
            return []
        # Stable, as in COCOeval, whose matching takes the detections in this order.
        order = np.argsort([-one["score"] for one in found], kind="mergesort")
        found = [found[i] for i in order[: params.maxDets[-1]]]
        crowd = np.array([bool(one.get("iscrowd")) for one in truth])
        return overlaps(
            np.array([one["bbox"] for one in found], np.float64),
            np.array([one["bbox"] for one in truth], np.float64),
            crowd,
        )


def overlaps(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G) intersection over union; for a crowd region, intersection over the detection's area.

    Boxes are rotated, (D, 5) and (G, 5); 0 for those without an area.
    """
    found_boxes, truth_boxes = torch.from_numpy(found), torch.from_numpy(truth)
    ious = rotated_iou(found_boxes, truth_boxes).numpy()
    if crowd.any():
        regions = truth_boxes[torch.from_numpy(crowd)]
        shared = paired_rotated_intersection(
            found_boxes.repeat_interleave(len(regions), dim=0), regions.repeat(len(found), 1)
        ).numpy()
        areas = found[:, 2:3] * found[:, 3:4]
        inside = shared.reshape(len(found), -1) / np.where(areas > 0, areas, 1.0)
        ious[:, crowd] = inside
    return ious
