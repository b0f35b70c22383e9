"""AzureML's VOC-style metrics at one IoU threshold, for masks and boxes.

Per image and label, predictions are processed by descending score. Each is compared with the object it overlaps most: it is a true
positive if the IoU is high enough and the object is not matched yet, not counted if that object is a crowd, and a
false positive otherwise. A box inside a crowd's box overlaps the crowd most, so a few crowds cost boxes
much recall. Precision and recall are those of all predictions together (the lowest score), so a lower score threshold
lowers the precision. Undefined numbers are None; AzureML writes -1.

Source: azureml.automl.dnn.vision.object_detection.eval.incremental_voc_evaluator (behaviour, not code).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from jobs.annotations.outlines import outline_to_rle

IOU_THRESHOLD = 0.5
FALSE_POSITIVE, ON_CROWD = -1, -2
Objects = list[dict[str, Any]]


def voc_metrics(
    truth: dict[str, Any], predictions: Objects, over: str = "mask", iou_threshold: float = IOU_THRESHOLD
) -> dict[str, Any]:
    """Mean average precision, precision and recall at one IoU.

    Args:
        truth: COCO annotations document.
        predictions: COCO results with `bbox` (x y width height, pixels) and `segmentation` (RLE).
        over: "mask" or "box": what the IoU is computed of.
        iou_threshold: smallest IoU of a match.
    Returns:
        mean_average_precision, precision, recall (means over the labels where they are defined), and `per_label` with
        average_precision, precision and recall each.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    real, found = by_image_and_label(truth["annotations"]), by_image_and_label(predictions)
    per_label = {}
    for category in truth["categories"]:
        flags, scores, total = [np.zeros(0, bool)], [np.zeros(0)], 0
        for image_id, size_hw in sizes.items():
            key = (image_id, category["id"])
            total += sum(not truth_object.get("iscrowd", 0) for truth_object in real[key])
            matched = match(real[key], found[key], over, size_hw, iou_threshold)
            counted = matched != ON_CROWD
            flags.append(matched[counted] >= 0)
            scores.append(_scores(found[key])[counted])
        hits = np.concatenate(flags)[np.argsort(-np.concatenate(scores), kind="stable")]
        per_label[category["name"]] = label_metrics(np.cumsum(hits), np.cumsum(~hits), total)
    return {
        "mean_average_precision": _mean(per_label, "average_precision"),
        "precision": _mean(per_label, "precision"),
        "recall": _mean(per_label, "recall"),
        "per_label": per_label,
    }


def match(
    real: Objects, found: Objects, over: str, size_hw: tuple[int, int], iou_threshold: float = IOU_THRESHOLD
) -> NDArray[np.int64]:
    """Match the predictions of one image and label to annotations, by the rule in the module's docstring.

    Args:
        real, found: annotations and predictions of one image and one label.
        over, iou_threshold: as in `voc_metrics`.
        size_hw: of the image, pixels.
    Returns:
        (len(found),) indices into `real`; FALSE_POSITIVE, or ON_CROWD for predictions that are not counted.
    """
    matched = np.full(len(found), FALSE_POSITIVE)
    if not real or not found:
        return matched
    crowd = np.array([int(truth_object.get("iscrowd", 0)) for truth_object in real])
    overlaps = rle_masks.iou(_shapes(found, over, size_hw), _shapes(real, over, size_hw), crowd.tolist())
    for index in np.argsort(-_scores(found), kind="stable"):
        nearest = int(overlaps[index].argmax())
        if overlaps[index, nearest] < iou_threshold:
            continue
        if crowd[nearest]:
            matched[index] = ON_CROWD
        elif nearest not in matched:
            matched[index] = nearest
    return matched


def label_metrics(true_positives: NDArray[Any], false_positives: NDArray[Any], total: int) -> dict[str, float | None]:
    """Average precision, and precision and recall at the lowest score.

    Args:
        true_positives, false_positives: (N,) cumulative counts, from the best score to the lowest.
        total: number of annotated objects.
    """
    if total == 0 or len(true_positives) == 0:
        nothing = None if total == 0 else 0.0
        return {"average_precision": nothing, "precision": 0.0 if len(true_positives) else None, "recall": nothing}
    precision, recall = true_positives / (true_positives + false_positives), true_positives / total
    return {
        "average_precision": round(_area_under(precision, recall), 4),
        "precision": round(float(precision[-1]), 4),
        "recall": round(float(recall[-1]), 4),
    }


def _area_under(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Area under the precision envelope, VOC 2010 style: every recall step times the best precision at or after it."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _shapes(objects: Objects, over: str, size_hw: tuple[int, int]) -> Any:
    if over == "box":
        return np.array([entry["bbox"] for entry in objects], np.float64)
    return [outline_to_rle(entry["segmentation"], size_hw) for entry in objects]


def _scores(objects: Objects) -> NDArray[np.float64]:
    return np.array([entry["score"] for entry in objects], np.float64)


def _mean(per_label: dict[str, dict[str, float | None]], name: str) -> float | None:
    numbers = [number for label in per_label.values() if (number := label[name]) is not None]
    return round(float(np.mean(numbers)), 4) if numbers else None


def by_image_and_label(objects: Objects) -> dict[tuple[int, int], Objects]:
    """The objects by (image id, category id)."""
    groups: dict[tuple[int, int], Objects] = defaultdict(list)
    for entry in objects:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return groups
