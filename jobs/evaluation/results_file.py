"""Reads a COCO results file, checks it against the annotations, and converts its masks to RLE.

Polygons, uncompressed RLE, ids as text and results without a box are accepted; anything else is refused with its place in the file.
Results with a label that is not annotated are ignored and reported.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jobs.annotations.coco_objects import ELSEWHERE_IOU
from jobs.annotations.datasets import AnnotationsError
from jobs.annotations.fields import known_id, number, parse_json, read_text
from jobs.annotations.outlines import outline_to_rle, read_outline
from jobs.annotations.whole_file import refuse_shifted_ids
from jobs.evaluation.coco_results import CocoResults
from jobs.evaluation.predictions import MAX_NAMED

KEYS = ("image_id", "category_id", "score", "segmentation")
CORNER_PX = 2
"""Masks that reach no further than this from the top left corner are empty, or of outlines in fractions of the photo."""


def read_results(path: Path, truth: dict[str, Any]) -> CocoResults:
    """Read a COCO results file, as written by pycocotools, mmdet or Detectron2.

    Args:
        truth: COCO annotations document that they will be measured against.
    Returns:
        The results of its categories, `segmentation` as compressed run lengths; `bbox` is the mask's where a result has none, as in
        COCO's format for masks.
    Raises:
        AnnotationsError: not a list of results; or one is of no photo of the annotations, has no outline, or is not numbers.
    """
    results = parse_json(read_text(path), str(path))
    if not isinstance(results, list) or any(not isinstance(result, dict) or set(KEYS) - set(result) for result in results):
        raise AnnotationsError(f"{path}: not COCO results, a list of objects with {', '.join(KEYS)}.")
    for kind, key in (("images", "image_id"), ("categories", "category_id")):
        refuse_shifted_ids(path, kind, key, truth[kind], results, "results")
    images = {image["id"]: image for image in truth["images"]}
    known = {category["id"] for category in truth["categories"]}
    unknown: Counter[str] = Counter()
    kept: CocoResults = []
    if boxless := sum(not result.get("bbox") for result in results):
        print(f"{boxless:,} of {len(results):,} results have no bbox; the box of their mask is taken", file=sys.stderr)
    for index, result in enumerate(results):
        try:
            checked = _checked(result, images)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise AnnotationsError(f"{path}: result {index} (from 0): {error}.") from error
        category = known_id(result["category_id"], known)
        if category is None:
            unknown[str(result["category_id"])] += 1
        else:
            kept.append(checked | {"category_id": category})
    named = ", ".join(sorted(unknown)[:MAX_NAMED])
    if kept:
        _check_boxes(path, kept)
    elif unknown:
        raise AnnotationsError(
            f"{path}: its results are of the categories {named}, the annotations have {', '.join(map(str, sorted(known, key=str)))}: none "
            "in common."
        )
    for remark in _remarks(kept, truth):
        print(remark, file=sys.stderr)
    if unknown:
        print(
            f"{unknown.total():,} of {len(results):,} results are of categories that the annotations do not know, so they are not "
            f"counted: {named}",
            file=sys.stderr,
        )
    return kept


def _remarks(results: CocoResults, truth: dict[str, Any]) -> Iterator[str]:
    """What would make metrics wrong, though each result is valid."""
    if beyond := sum(not 0 <= result["score"] <= 1 for result in results):
        yield f"{beyond:,} of {len(results):,} scores are not between 0 and 1: metrics at a score threshold are meaningless"
    different = {(result["image_id"], result["category_id"], result["score"], *result["bbox"]) for result in results}
    if twice := len(results) - len(different):
        yield f"{twice:,} of {len(results):,} results are there twice, and count as false positives"
    annotated = {found["image_id"] for found in truth["annotations"] if not found["iscrowd"]}
    if without := len(annotated - {result["image_id"] for result in results}):
        yield f"{without:,} of {len(annotated):,} photos with objects have no results: their objects count as missed"


def _check_boxes(path: Path, results: CocoResults) -> None:
    """Raise AnnotationsError if most boxes are two corners; print a remark if most lie elsewhere than their masks."""
    boxes = np.array([result["bbox"] for result in results], np.float64)
    masks = np.asarray(coco_mask.toBbox([result["segmentation"] for result in results]))
    as_corners = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    fit, fit_as_corners = _ious(boxes, masks), _ious(as_corners, masks)
    if 2 * (better := int((fit_as_corners > fit).sum())) > len(results):
        raise AnnotationsError(
            f"{path}: the bbox of {better:,} of {len(results):,} results is two corners, where COCO has x, y, width, height."
        )
    in_corner = (masks[:, :2] + masks[:, 2:]).max(1) <= CORNER_PX
    apart = int(((fit < ELSEWHERE_IOU) | in_corner).sum())
    if 2 * apart > len(results):
        print(
            f"the bbox of {apart:,} of {len(results):,} results lies elsewhere than the mask, or the mask in the photo's corner: is one of "
            "them not in pixels of the upright photo, or are run lengths along the rows, where COCO's go down the columns?",
            file=sys.stderr,
        )


def _ious(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes, (N, 4) x y width height, pair by pair; 0 where both are empty."""
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared, area, other = (np.maximum(sides, 0).prod(axis=1) for sides in (high - low, boxes[:, 2:], others[:, 2:]))
    ious: NDArray[np.float64] = shared / np.maximum(area + other - shared, 1e-9)
    return ious


def _checked(result: dict[str, Any], images: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    image = images.get(known_id(result["image_id"], images))
    if image is None:
        raise ValueError(f"image_id {result['image_id']!r} is of no photo of the annotations")
    outline, _ = read_outline(result["segmentation"], (image["height"], image["width"]))
    if not outline:
        raise ValueError("there is no outline in `segmentation`; results of masks are wanted")
    whole = outline_to_rle(outline, (image["height"], image["width"]))
    box = result.get("bbox") or coco_mask.toBbox(whole).tolist()
    numbers = [result["score"], *box] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(type(value) in (int, float) and number(value) is not None for value in numbers):
        raise ValueError(f"score {result['score']!r} and bbox {box!r} must be finite numbers, the bbox four of them")
    return result | {"image_id": image["id"], "bbox": box, "segmentation": whole}
