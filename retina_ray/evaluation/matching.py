"""Which detection finds which true box, by COCO's rules, and what else each detection lies on.

What the metrics of `COCOeval` are counted from, with the boxes themselves at hand: the error
analysis, the curves and the page of a run start here. A test holds the AP that follows from it to
pycocotools'.

Shapes: n images, K classes, D detections, G true boxes, B numbers that make a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retina_ray.evaluation.coco_checks import coco_faults

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """True boxes and detections of a data set as columns, image after image.

    Detections of an image stand by falling score, and those that COCO does not count (beyond the
    best `max_detections` of an image and class) are left out. Boxes are XYWH, or rotated; an image
    and a label are positions in `image_ids` and `category_ids`.
    """

    image_ids: Ints  # (n,) ascending
    category_ids: Ints  # (K,) ascending
    names: tuple[str, ...]
    found_image: Ints  # (D,) ascending
    found_label: Ints  # (D,)
    found_box: Floats  # (D, B)
    found_score: Floats  # (D,)
    true_image: Ints  # (G,) ascending
    true_label: Ints  # (G,)
    true_box: Floats  # (G, B)
    crowd: Bools  # (G,) regions whose boxes are neither found nor missed

    @property
    def num_true(self) -> Ints:
        """(K,) boxes of each class, without crowd regions."""
        return np.bincount(self.true_label[~self.crowd], minlength=len(self.category_ids))

    def found_in(self, image: int) -> slice:
        """Where the detections of an image stand."""
        return slice(*np.searchsorted(self.found_image, [image, image + 1]).tolist())

    def true_in(self, image: int) -> slice:
        """Where the true boxes of an image stand."""
        return slice(*np.searchsorted(self.true_image, [image, image + 1]).tolist())


@dataclass(frozen=True, eq=False)
class Matching:
    """What became of each detection and each true box at one IoU threshold; -1 stands for none."""

    scene: Scene
    iou: float
    matched: Ints  # (D,) the true box that a detection found
    ignored: Bools  # (D,) lies in a crowd region of its class, so it counts neither way
    found_by: Ints  # (G,) the detection that found a box
    same_iou: Floats  # (D,) largest overlap with a true box of the detection's class, or 0
    same_at: Ints  # (D,) that box
    other_iou: Floats  # (D,) largest overlap with a true box of another class
    other_at: Ints  # (D,) that box


def scene_of(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    max_detections: int = 100,
) -> Scene:
    """Put COCO ground truth and results (entries of `to_results`) into columns.

    Raises:
        ValueError: what `evaluate_coco` refuses too; all faults at once.
    """
    if faults := list(coco_faults(ground_truth, results)):
        raise ValueError("cannot match these predictions:\n" + "\n".join(faults))
    image_ids = np.array(sorted(image["id"] for image in ground_truth["images"]), np.int64)
    names = {c["id"]: str(c.get("name") or f"class {c['id']}") for c in ground_truth["categories"]}
    category_ids = np.array(sorted(names), np.int64)
    annotations = ground_truth["annotations"]
    true_image, true_label, true_box = _columns(annotations, image_ids, category_ids)
    found_image, found_label, found_box = _columns(results, image_ids, category_ids)
    score = np.array([result["score"] for result in results], np.float64)
    # Stable, as in COCOeval: equal scores keep the order of the results.
    order = np.lexsort((-score, found_image))
    order = order[_rank(found_image[order], found_label[order]) < max_detections]
    crowd = np.array([bool(a.get("iscrowd")) for a in annotations], bool)
    true_order = np.argsort(true_image, kind="stable")
    return Scene(
        image_ids=image_ids,
        category_ids=category_ids,
        names=tuple(names[category] for category in category_ids.tolist()),
        found_image=found_image[order],
        found_label=found_label[order],
        found_box=found_box[order],
        found_score=score[order],
        true_image=true_image[true_order],
        true_label=true_label[true_order],
        true_box=true_box[true_order],
        crowd=crowd[true_order],
    )


def match(scene: Scene, *, iou: float = 0.5) -> Matching:
    """Match detections with true boxes as `COCOeval` does.

    In each image the detections take, best score first, the box of their class that they overlap
    most, of those that are still free and overlap by `iou` at least. One without such a box, in a
    crowd region of its class, is ignored.
    """
    num_found, num_true = len(scene.found_score), len(scene.true_label)
    result = Matching(
        scene=scene,
        iou=iou,
        matched=np.full(num_found, -1),
        ignored=np.zeros(num_found, bool),
        found_by=np.full(num_true, -1),
        same_iou=np.zeros(num_found),
        same_at=np.full(num_found, -1),
        other_iou=np.zeros(num_found),
        other_at=np.full(num_found, -1),
    )
    for image in np.unique(scene.found_image).tolist():
        _match_image(result, scene.found_in(image), scene.true_in(image))
    return result


def _match_image(result: Matching, found: slice, true: slice) -> None:
    scene = result.scene
    if true.start == true.stop:
        return
    crowd = scene.crowd[true]
    overlap = box_overlaps(scene.found_box[found], scene.true_box[true], crowd)
    same = scene.found_label[found][:, None] == scene.true_label[true][None]
    for kind, overlap_of, at in (
        (same & ~crowd, result.same_iou, result.same_at),
        (~same & ~crowd, result.other_iou, result.other_at),
    ):
        values = np.where(kind, overlap, 0.0)
        best = values.argmax(axis=1)
        overlap_of[found] = values.max(axis=1)
        at[found] = np.where(overlap_of[found] > 0, best + true.start, -1)
    threshold = min(result.iou, 1 - 1e-10)  # as in COCOeval: an overlap of 1 may be a bit less
    reach = same & (overlap >= threshold)
    free = ~crowd
    last = overlap.shape[1] - 1
    for row in np.flatnonzero(reach.any(axis=1)).tolist():
        open_ = reach[row] & free
        if open_.any():
            # COCOeval takes the last of equal overlaps.
            best = last - int(np.where(open_, overlap[row], -1.0)[::-1].argmax())
            free[best] = False
            result.matched[found.start + row] = true.start + best
            result.found_by[true.start + best] = found.start + row
        elif (reach[row] & crowd).any():
            result.ignored[found.start + row] = True


def box_overlaps(found: Floats, true: Floats, crowd: Bools) -> Floats:
    """(D, G) intersection over union; for a crowd region, intersection over the detection's area.

    Boxes are (D, 4) and (G, 4) XYWH, or (D, 5) and (G, 5) rotated ones.
    """
    if true.shape[1] == 5 and len(found) and len(true):
        from retina_ray.evaluation.rotated import overlaps

        return overlaps(found, true, crowd)
    # The same operations in the same order as pycocotools' C code, so that the last bit agrees.
    first, second = found[:, None], true[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:4], second[..., :2] + second[..., 2:4])
    side = high - low
    shared = np.where((side > 0).all(axis=2), side[..., 0] * side[..., 1], 0.0)
    area = first[..., 2] * first[..., 3]
    union = np.where(crowd, area, area + second[..., 2] * second[..., 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _columns(
    entries: Sequence[Mapping[str, Any]], image_ids: Ints, category_ids: Ints
) -> tuple[Ints, Ints, Floats]:
    """Image positions (M,), labels (M,) and boxes (M, B) of annotations or results."""
    images = np.array([entry["image_id"] for entry in entries], np.int64)
    categories = np.array([entry["category_id"] for entry in entries], np.int64)
    size = len(entries[0]["bbox"]) if entries else 4
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, size)
    return np.searchsorted(image_ids, images), np.searchsorted(category_ids, categories), boxes


def _rank(image: Ints, label: Ints) -> Ints:
    """Number of earlier entries of the same image and class, for each entry."""
    order = np.lexsort((label, image))
    key = np.stack([image[order], label[order]])
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(key, axis=1) != 0).any(axis=0)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first
    return rank
