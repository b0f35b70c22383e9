"""The metrics that AzureML reports for a model: VOC-style metrics, image-level metrics and confusion matrices.

    predictions ─▶ scores above the threshold ─┬─▶ VOC-style: mean average precision, precision, recall, by label
                                               ├─▶ image level: does the photo contain an object?
                                               └─▶ confusion: predicted label against annotated label

Per image and label, predictions are processed by descending score. Each is compared with the object it overlaps most: it is a true
positive if the IoU is high enough and the object is not matched yet, not counted if that object is a crowd, and a
false positive otherwise. A box inside a crowd's box overlaps the crowd most, so a few crowds cost boxes
much recall. Precision and recall are those of all predictions together (the lowest score), so a lower score threshold
lowers the precision. Undefined numbers are None; AzureML writes -1.

Source: azureml-metrics, azureml.metrics.vision.od_is_eval; azureml.automl.dnn.vision.object_detection.eval.incremental_voc_evaluator
(behaviour, not code).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from jobs.annotations.outlines import outline_to_rle

SCORE_THRESHOLD, IOU_THRESHOLD = 0.3, 0.5
"""AzureML's defaults of `box_score_threshold` and `validation_iou_threshold`."""
CONFUSION_THRESHOLDS = tuple(step / 10 for step in range(10))
FALSE_POSITIVE, ON_CROWD = -1, -2
Objects = list[dict[str, Any]]


def azureml_metrics(
    truth: dict[str, Any], predictions: Objects, score_threshold: float = SCORE_THRESHOLD, iou_threshold: float = IOU_THRESHOLD
) -> dict[str, Any]:
    """Compute AzureML's metrics, for boxes and for masks.

    Args:
        truth: COCO annotations document.
        predictions: COCO results with `bbox` and `segmentation`.
        score_threshold: use predictions with a score above this.
        iou_threshold: smallest IoU of a match.
    Returns:
        `{"score_threshold", "iou_threshold", "predictions", "labels", "box": {...}, "mask": {...}}`, each of the last two what
        `voc_metrics` gives, `image_level`, and `confusion_matrices` by score threshold, see `confusion_matrices`.
    """
    kept = [prediction for prediction in predictions if prediction["score"] > score_threshold]
    metrics: dict[str, Any] = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "predictions": len(kept),
        "labels": [category["name"] for category in truth["categories"]],
    }
    for over in ("box", "mask"):
        metrics[over] = voc_metrics(truth, kept, over, iou_threshold) | {
            "image_level": image_level_metrics(truth, kept, over, iou_threshold),
            "confusion_matrices": confusion_matrices(truth, kept, over, iou_threshold, score_threshold),
        }
    return metrics


def image_level_metrics(truth: dict[str, Any], predictions: Objects, over: str, iou_threshold: float) -> dict[str, float | None]:
    """How well photos with objects are told from photos without: a photo is a true positive with one correct object, a false positive with
    only wrong objects.

    Returns:
        average_precision, precision, recall over photos; None where undefined.
    """
    real, found = (grouped(objects, "image_id", "category_id") for objects in (truth["annotations"], predictions))
    outcomes: list[tuple[float, bool, int]] = []
    for image in truth["images"]:
        for category in truth["categories"]:
            key = image["id"], category["id"]
            matched = match(real[key], found[key], over, (image["height"], image["width"]), iou_threshold)
            outcomes += [
                (prediction["score"], index >= 0, image["id"])
                for prediction, index in zip(found[key], matched.tolist(), strict=True)
                if index != ON_CROWD
            ]
    total = len({entry["image_id"] for entry in truth["annotations"] if not entry.get("iscrowd")})
    outcomes.sort(key=lambda outcome: -outcome[0])
    right, wrong = set[int](), set[int]()
    counts = np.zeros((len(outcomes), 2))
    for index, (_, is_hit, image_id) in enumerate(outcomes):
        if is_hit:
            right.add(image_id)
            wrong.discard(image_id)
        elif image_id not in right:
            wrong.add(image_id)
        counts[index] = len(right), len(wrong)
    return label_metrics(counts[:, 0], counts[:, 1], total)


def confusion_matrices(
    truth: dict[str, Any], predictions: Objects, over: str, iou_threshold: float, score_threshold: float
) -> dict[str, list[list[int]]]:
    """Confusion matrices: objects are matched regardless of their labels, best score first.

    Returns:
        For each score threshold, AzureML's ten and the given one, one row for each label as annotated and a last one for what is not
        annotated; one column for each label as found and a last one for what was missed. AzureML has all but the last row.
    """
    index_of = {category["id"]: index for index, category in enumerate(truth["categories"])}
    real, found = grouped(truth["annotations"], "image_id"), grouped(predictions, "image_id")
    pairs: list[tuple[int, int, float]] = []
    for image in truth["images"]:
        annotated, predicted = real[(image["id"],)], found[(image["id"],)]
        matched = match(annotated, predicted, over, (image["height"], image["width"]), iou_threshold).tolist()
        for prediction, index in zip(predicted, matched, strict=True):
            if index != ON_CROWD:
                row = index_of[annotated[index]["category_id"]] if index >= 0 else len(index_of)
                pairs.append((row, index_of[prediction["category_id"]], prediction["score"]))
    objects = np.zeros(len(index_of), np.int64)
    for entry in truth["annotations"]:
        objects[index_of[entry["category_id"]]] += not entry.get("iscrowd")
    matrices = {}
    for threshold in sorted({score_threshold, *CONFUSION_THRESHOLDS}):
        matrix = np.zeros((len(objects) + 1, len(objects) + 1), np.int64)
        for row, column, score in pairs:
            matrix[row, column] += score >= threshold
        matrix[:-1, -1] = objects - matrix[:-1, :-1].sum(axis=1)
        matrices[f"{threshold:g}"] = matrix.tolist()
    return matrices


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
    real, found = (grouped(objects, "image_id", "category_id") for objects in (truth["annotations"], predictions))
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
    envelope = np.maximum.accumulate(precision[::-1])[
        ::-1
    ]  # VOC 2010: each step of recall counts with the best precision at or after it
    return {
        "average_precision": round(float(np.sum(np.diff(recall, prepend=0.0) * envelope)), 4),
        "precision": round(float(precision[-1]), 4),
        "recall": round(float(recall[-1]), 4),
    }


def _shapes(objects: Objects, over: str, size_hw: tuple[int, int]) -> Any:
    if over == "box":
        return np.array([entry["bbox"] for entry in objects], np.float64)
    return [outline_to_rle(entry["segmentation"], size_hw) for entry in objects]


def _scores(objects: Objects) -> NDArray[np.float64]:
    return np.array([entry["score"] for entry in objects], np.float64)


def _mean(per_label: dict[str, dict[str, float | None]], name: str) -> float | None:
    numbers = [number for label in per_label.values() if (number := label[name]) is not None]
    return round(float(np.mean(numbers)), 4) if numbers else None


def grouped(objects: Objects, *keys: str) -> dict[tuple[Any, ...], Objects]:
    """The objects by their values of these keys; nothing for other values."""
    groups: dict[tuple[Any, ...], Objects] = defaultdict(list)
    for entry in objects:
        groups[tuple(entry[key] for key in keys)].append(entry)
    return groups
