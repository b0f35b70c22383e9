"""The contract's objects as COCO results: pixels instead of fractions, ids instead of names."""

from __future__ import annotations

from typing import Any

CocoResults = list[dict[str, Any]]


def results_of_image(image_id: int, boxes: list[dict[str, Any]], category_ids: dict[str, int]) -> CocoResults:
    """The contract's objects (with RLE) as COCO results; labels that the annotations do not know are left out."""
    results = []
    for found in boxes:
        if found["label"] not in category_ids:
            continue
        height, width = found["rle"]["size"]
        box = found["box"]
        x1, y1, x2, y2 = box["topX"] * width, box["topY"] * height, box["bottomX"] * width, box["bottomY"] * height
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[found["label"]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": found["score"],
                "segmentation": found["rle"],
            }
        )
    return results
