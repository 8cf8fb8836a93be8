"""Scenes that tests of the evaluation share: ground truth and results by hand, and random ones."""

import numpy as np

from retina_ray.evaluation.matching import Scene, scene_of


def truth(boxes, *, num_images=1, categories=((1, "cat"), (2, "dog"))):
    """Ground truth from (image, category, box) or (image, category, box, crowd) entries.

    Boxes have four numbers, or five if they are rotated. Annotations are numbered from 0, which
    pycocotools itself would take for "no match".
    """
    annotations = []
    for number, entry in enumerate(boxes):
        image, category, box, crowd = (*entry, 0)[:4]
        annotation = {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [float(v) for v in box],
            "area": float(np.prod(box[2:4])),
            "iscrowd": int(crowd),
        }
        annotations.append(annotation)
    return {
        "images": [{"id": i + 1, "height": 400, "width": 400} for i in range(num_images)],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": annotations,
    }


def found(image, category, box, score):
    """An entry of COCO's results."""
    box = [float(v) for v in box]
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def cat(image, box, score):
    """A detection of the first class."""
    return found(image, 1, box, score)


def scene(boxes, results, **options) -> Scene:
    """The scene of `truth(boxes)` and some results."""
    return scene_of(truth(boxes, **options), results)


def random_case(seed: int):
    """Ground truth and results with all that may go wrong between two implementations.

    Crowd regions, annotations whose area is not their box's, ids with gaps and out of order, a
    class without boxes and one without detections, images without either, boxes found twice,
    perfect ones, and every other seed scores of one digit, so that many are equal.
    """
    rng = np.random.default_rng(seed)
    images = rng.choice(10**6, size=rng.integers(2, 12), replace=False).tolist()
    classes = rng.choice(2000, size=rng.integers(3, 8), replace=False).tolist()
    annotations, results = [], []
    for number in range(rng.integers(1, 60)):
        corner, size = rng.uniform(0, 400, 2), rng.uniform(1, 200, 2)
        x, y, w, h = np.round([*corner, *size], int(rng.integers(0, 3))).tolist()
        annotation = {
            "id": number,
            "image_id": int(rng.choice(images[:-1])),
            "category_id": int(rng.choice(classes[:-1])),
            "bbox": [x, y, w, h],
            "area": float(w * h * rng.uniform(0.4, 1)),
            "iscrowd": int(number > 0 and rng.random() < 0.15),
        }
        annotations.append(annotation)
        for _ in range(rng.integers(0, 4)):
            moved, stretched = rng.random(2) < 0.6
            box = [x + rng.normal() * w * 0.1 * moved, y, w * rng.uniform(0.7, 1.3), h]
            box = box if stretched else [box[0], y, w, h]
            score = round(float(rng.random()), 1 if seed % 2 else 6)
            image = annotation["image_id"] if rng.random() < 0.9 else int(rng.choice(images))
            category = annotation["category_id"]
            category = category if rng.random() < 0.8 else int(rng.choice(classes[1:]))
            results.append(
                {"image_id": image, "category_id": category, "bbox": box, "score": score}
            )
    results = [r for r in results if r["category_id"] != classes[0]]
    ground_truth = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": category, "name": f"c{category}"} for category in classes],
        "annotations": annotations,
    }
    return ground_truth, results
