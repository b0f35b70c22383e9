"""COCO average precision of boxes and masks, by pycocotools, as named numbers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Where COCOeval.summarize puts what: cocoeval.py, _summarizeDets.
STATISTICS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar100": 8}


def coco_metrics(truth: dict[str, Any], predictions: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Average precision over IoU 0.50:0.95, 100 objects per image.

    Args:
        truth: COCO annotations document.
        predictions: COCO results: image_id, category_id, score, bbox (x y width height, pixels), segmentation (RLE).
    Returns:
        `{"box": {...}, "mask": {...}}`, each with ap, ap50, ap75, ap_small, ap_medium, ap_large, ar100 in 0..1, and the
        `per_label` AP. None if the truth has no object of that kind. Masks are sorted into small (< 32² px), medium
        (< 96² px) and large by the area of the annotated mask, as boxes are.
    """
    images, categories = _numbers(truth["images"]), _numbers(truth["categories"])
    renumbered = {
        "images": [image | {"id": images[image["id"]]} for image in truth["images"]],
        "categories": [category | {"id": categories[category["id"]]} for category in truth["categories"]],
        "annotations": _renumbered(truth["annotations"], images, categories),
    }
    results = _renumbered(predictions, images, categories)
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = _indexed(renumbered)
        return {name: _evaluate(annotated, results, kind) for name, kind in (("box", "bbox"), ("mask", "segm"))}


def _numbers(entries: Sequence[dict[str, Any]]) -> dict[Any, int]:
    """Numbers from 1 for ids, in their order. pycocotools puts ids into arrays, which makes one of several above 2**53, and fails where
    some are text.
    """
    ids = sorted((entry["id"] for entry in entries), key=lambda own: (isinstance(own, str), own))
    return {own: number for number, own in enumerate(ids, start=1)}


def _renumbered(objects: list[dict[str, Any]], images: dict[Any, int], categories: dict[Any, int]) -> list[dict[str, Any]]:
    return [
        found | {"id": number, "image_id": images[found["image_id"]], "category_id": categories[found["category_id"]]}
        for number, found in enumerate(objects, start=1)
    ]


def _indexed(document: dict[str, Any]) -> COCO:
    indexed = COCO()
    indexed.dataset = document
    indexed.createIndex()
    return indexed


def _evaluate(annotated: COCO, predictions: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    results = _results_of_kind(predictions, kind)
    found = annotated.loadRes(results) if results else _indexed(annotated.dataset | {"annotations": []})
    evaluation = COCOeval(annotated, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = {name: _defined(evaluation.stats[index]) for name, index in STATISTICS.items()}
    return numbers | {"per_label": _ap_per_label(annotated, evaluation)}


def _results_of_kind(predictions: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """A copy that pycocotools may write into. It takes a result with a box for a box result, so masks go without, and
    gives each the area of its own mask.
    """
    keys = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
    return [{key: prediction[key] for key in keys} for prediction in predictions]


def _ap_per_label(annotated: COCO, evaluation: COCOeval) -> dict[str, float | None]:
    names = {category["id"]: category["name"] for category in annotated.dataset["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, most detections
    found = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        valid = precision[:, :, index][precision[:, :, index] > -1]
        found[names[category_id]] = round(float(valid.mean()), 4) if valid.size else None
    return found


def _defined(number: float) -> float | None:
    return round(float(number), 4) if number > -1 else None
