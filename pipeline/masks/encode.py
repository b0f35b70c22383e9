"""Turns instances into objects with coordinates in fractions of the image, and objects into the contract's JSON.

    Instances ──▶ outlines, all at once ──▶ simplified ──▶ / (W, H), clipped, rounded ──▶ SegmentedObject ... ──▶ {"boxes": [...]}

With `mask_format="rle"` each object has `"rle"` and an empty `"polygon"`: the key stays, so that clients that loop over polygons do not
break.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.polygons import masks_to_polygons
from pipeline.masks.rle import mask_logits_to_rle
from pipeline.types import Instances, Letterbox, OutlineOptions, SegmentedObject

MIN_A_THREAD, MOST_A_PART = 16, 32
"""Instances: fewer do not pay for another thread, and more would keep images of other callers waiting for a thread."""


def instances_to_objects(instances: Instances, classes: Sequence[str], options: OutlineOptions) -> list[SegmentedObject]:
    """Convert instances to objects.

    Instances whose mask has no ring of 3 points (for `rle`: no pixel) are dropped, as AzureML does.

    Args:
        instances: of one image, highest score first.
        classes: names by label index.
        options: tolerance, points, decimals, holes, closed rings, mask format.
    Returns:
        Objects in the same order, with boxes and rings in 0..1.
    """
    boxes = _to_fractions(instances.boxes, instances.letterbox, options.decimals)
    masks = _write_masks(instances, options)
    return [
        SegmentedObject(box=box, label=classes[label], score=float(str(score)), **mask)
        for box, label, score, mask in zip(boxes, instances.labels.tolist(), instances.scores, masks, strict=True)
        if mask
    ]


def warm_up() -> None:
    """Compile all functions, or load them from Numba's cache, so that no image waits for it."""
    letterbox = Letterbox((64, 64), (64, 64), 64)
    logits = np.full((1, *letterbox.mask_grid_hw), -1, np.float16)
    logits[:, 2:6, 2:6] = 1
    one = Instances(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), logits, letterbox)
    for mask_format in ("polygon", "rle"):
        instances_to_objects(one, [""], OutlineOptions(mask_format=mask_format))


def split_instances(instances: Instances, threads: int) -> list[Instances]:
    """Split the instances of an image into parts, to outline them in several threads, and other images in between.

    Two threads take three quarters of the time of one for 100 ragged masks, and a quarter more CPU; with few instances they gain nothing.

    Args:
        instances: of one image.
        threads: for which there is a part each, if there are enough instances.
    Returns:
        One or more parts, together all instances in their order.
    """
    parts = max(1, min(threads, len(instances) // MIN_A_THREAD), -(-len(instances) // MOST_A_PART))
    bounds = [len(instances) * part // parts for part in range(parts + 1)]
    return [
        replace(
            instances,
            boxes=instances.boxes[first:end],
            scores=instances.scores[first:end],
            labels=instances.labels[first:end],
            mask_logits=instances.mask_logits[first:end],
        )
        for first, end in itertools.pairwise(bounds)
    ]


def objects_to_dict(objects: Sequence[SegmentedObject]) -> dict[str, list[dict[str, Any]]]:
    """The contract's form of one image: {"boxes": [{"box", "label", "score", "polygon"}, ...]}, with "holes" and "rle" if set."""
    return {"boxes": [_object_to_dict(item) for item in objects]}


def objects_to_json(objects: Sequence[SegmentedObject]) -> bytes:
    """`objects_to_dict` as UTF-8 JSON, with floats in their shortest decimal form."""
    return orjson.dumps(objects_to_dict(objects))


def objects_from_dict(answer: dict[str, Any]) -> list[SegmentedObject]:
    """The inverse of `objects_to_dict`: the objects in one image's `{"boxes": [...]}`.

    Raises:
        KeyError, TypeError, ValueError: a key of the contract is missing, or has another content.
    """
    return [
        SegmentedObject(
            box=(row["box"]["topX"], row["box"]["topY"], row["box"]["bottomX"], row["box"]["bottomY"]),
            label=row["label"],
            score=row["score"],
            polygon=_checked(row["polygon"]),
            holes=row.get("holes"),
            rle=row.get("rle"),
        )
        for row in answer["boxes"]
    ]


def _checked(rings: list[list[float]]) -> list[list[float]]:
    for ring in rings:
        if len(ring) % 2 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in ring):
            raise ValueError("a ring of a polygon is not x y x y ..., finite numbers")
    return rings


def _object_to_dict(item: SegmentedObject) -> dict[str, Any]:
    left, top, right, bottom = item.box
    box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
    row: dict[str, Any] = {"box": box, "label": item.label, "score": item.score, "polygon": item.polygon}
    if item.holes is not None:
        row["holes"] = item.holes
    if item.rle is not None:
        row["rle"] = item.rle
    return row


def _write_masks(instances: Instances, options: OutlineOptions) -> list[dict[str, Any]]:
    """The fields of a SegmentedObject for each mask; none if nothing of the mask is left."""
    if options.mask_format == "rle":
        rles = [mask_logits_to_rle(logits, instances.letterbox) for logits in instances.mask_logits]
        return [{"polygon": [], "rle": rle} if coco_mask.area(rle) else {} for rle in rles]
    polygons = masks_to_polygons(instances.mask_logits, instances.letterbox, options)
    return [
        {"polygon": one.outer, "holes": one.holes if options.holes == "rings" else None} if one.outer else {} for one in polygons
    ]


def _to_fractions(
    boxes: NDArray[np.float32], letterbox: Letterbox, decimals: int | None
) -> list[tuple[float, float, float, float]]:
    """Boxes (N, 4) x1 y1 x2 y2 from original pixels to fractions of the image, clipped to 0..1, rounded where asked for."""
    height, width = letterbox.original_hw
    fractions = np.clip(boxes.astype(np.float64) / (width, height, width, height), 0.0, 1.0) + 0.0  # no -0.0
    rounded = fractions if decimals is None else np.round(fractions, decimals)
    return [(left, top, right, bottom) for left, top, right, bottom in rounded.tolist()]
