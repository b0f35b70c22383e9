"""The metrics that AzureML reports for a model: VOC-style metrics, image-level metrics and confusion matrices.

    predictions ─▶ scores above the threshold ─┬─▶ metrics_voc: mean average precision, precision, recall, by label
                                               ├─▶ image level: does the photo contain an object?
                                               └─▶ confusion: predicted label against annotated label

Source: azureml-metrics, azureml.metrics.vision.od_is_eval (behaviour, not code).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.evaluation.metrics_voc import ON_CROWD, Objects, by_image_and_label, label_metrics, match, voc_metrics

SCORE_THRESHOLD, IOU_THRESHOLD = 0.3, 0.5
"""AzureML's defaults of `box_score_threshold` and `validation_iou_threshold`."""
CONFUSION_THRESHOLDS = tuple(step / 10 for step in range(10))


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
    real, found = by_image_and_label(truth["annotations"]), by_image_and_label(predictions)
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
    real, found = _by_image(truth["annotations"]), _by_image(predictions)
    pairs: list[tuple[int, int, float]] = []
    for image in truth["images"]:
        annotated, predicted = real.get(image["id"], []), found.get(image["id"], [])
        matched = match(annotated, predicted, over, (image["height"], image["width"]), iou_threshold).tolist()
        for prediction, index in zip(predicted, matched, strict=True):
            if index != ON_CROWD:
                row = index_of[annotated[index]["category_id"]] if index >= 0 else len(index_of)
                pairs.append((row, index_of[prediction["category_id"]], prediction["score"]))
    objects = np.zeros(len(index_of), np.int64)
    for entry in truth["annotations"]:
        objects[index_of[entry["category_id"]]] += not entry.get("iscrowd")
    thresholds = sorted({score_threshold, *CONFUSION_THRESHOLDS})
    return {f"{threshold:g}": _confusion(objects, pairs, threshold).tolist() for threshold in thresholds}


def _confusion(objects: NDArray[np.int64], pairs: list[tuple[int, int, float]], threshold: float) -> NDArray[np.int64]:
    matrix = np.zeros((len(objects) + 1, len(objects) + 1), np.int64)
    for row, column, score in pairs:
        if score >= threshold:
            matrix[row, column] += 1
    matrix[:-1, -1] = objects - matrix[:-1, :-1].sum(axis=1)
    return matrix


def _by_image(objects: Objects) -> dict[int, Objects]:
    groups: dict[int, Objects] = {}
    for entry in objects:
        groups.setdefault(entry["image_id"], []).append(entry)
    return groups
