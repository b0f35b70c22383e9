"""COCO results: a list of found objects, with boxes and masks in pixels and the ids of an annotation file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CocoResults = list[dict[str, Any]]


def coco_result(image_id: Any, category_id: Any, box: Sequence[float], score: float, rle: dict[str, Any]) -> dict[str, Any]:
    """One found object; its box is left, top, right, bottom in pixels, its mask run lengths."""
    left, top, right, bottom = map(float, box)
    bbox = [left, top, right - left, bottom - top]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": float(score), "segmentation": rle}


def results_of_image(image_id: int, boxes: list[dict[str, Any]], category_ids: dict[str, int]) -> CocoResults:
    """The contract's objects (with RLE) as COCO results; labels that the annotations do not know are left out."""
    results = []
    for found in boxes:
        if found["label"] in category_ids:
            (height, width), box = found["rle"]["size"], found["box"]
            corners = box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height
            results.append(coco_result(image_id, category_ids[found["label"]], corners, found["score"], found["rle"]))
    return results
