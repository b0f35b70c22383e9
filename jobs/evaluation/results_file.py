"""Reads a COCO results file, checks it against the annotations, and converts its masks to RLE.

Polygons and uncompressed RLE are accepted; anything else is refused with its place in the file. Results with a
label that is not annotated are ignored and reported.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.annotations.datasets import AnnotationsError
from jobs.annotations.outlines import outline_to_rle
from jobs.evaluation.coco_results import CocoResults
from jobs.evaluation.predictions import MAX_NAMED

KEYS = ("image_id", "category_id", "bbox", "score", "segmentation")


def read_results(path: Path, truth: dict[str, Any]) -> CocoResults:
    """Read a COCO results file, as written by pycocotools, mmdet or Detectron2.

    Args:
        truth: COCO annotations document that they will be measured against.
    Returns:
        The results of its categories, `segmentation` as compressed run lengths.
    Raises:
        AnnotationsError: not a list of results; or one is of no photo of the annotations, has no outline, or is not numbers.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise AnnotationsError(f"{path}: not COCO results: {error}.") from error
    if not isinstance(results, list) or any(not isinstance(result, dict) or set(KEYS) - set(result) for result in results):
        raise AnnotationsError(f"{path}: not COCO results, a list of objects with {', '.join(KEYS)}.")
    images = {image["id"]: image for image in truth["images"]}
    known = {category["id"] for category in truth["categories"]}
    unknown: Counter[Any] = Counter()
    kept: CocoResults = []
    for place, result in enumerate(results):
        try:
            checked = _checked(result, images)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise AnnotationsError(f"{path}: result {place} (from 0): {error}.") from error
        if result["category_id"] in known:
            kept.append(checked)
        else:
            unknown[result["category_id"]] += 1
    if unknown:
        named = ", ".join(map(str, sorted(unknown, key=str)[:MAX_NAMED]))
        print(
            f"{unknown.total():,} of {len(results):,} results are of categories that the annotations do not know, so they are not "
            f"counted: {named}",
            file=sys.stderr,
        )
    return kept


def _checked(result: dict[str, Any], images: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    image = images.get(result["image_id"])
    if image is None:
        raise ValueError(f"image_id {result['image_id']!r} is of no photo of the annotations")
    numbers = [result["score"], *result["bbox"]]
    if len(numbers) != 5 or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ValueError(f"score {result['score']!r} and bbox {result['bbox']!r} must be finite numbers, the bbox four of them")
    if not result["segmentation"]:
        raise ValueError("there is no outline, `segmentation` is empty; results of masks are wanted")
    try:
        rle = outline_to_rle(result["segmentation"], (image["height"], image["width"]))
        whole = {"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])}
    except Exception as error:  # pycocotools', of every type
        raise ValueError(f"its segmentation is neither polygons nor run lengths ({error})") from error
    return result | {"segmentation": whole}


def _text(counts: Any) -> str:
    text = counts.decode() if isinstance(counts, bytes) else counts
    if not isinstance(text, str) or not text:
        raise TypeError("`counts` is no text")
    return text
