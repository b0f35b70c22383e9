"""The last step of one image: instances to objects in fractions of the image, and objects to the contract's JSON.

    Instances ──▶ outlines, all at once ──▶ simplified ──▶ / (W, H), clipped, rounded ──▶ SegmentedObject ... ──▶ {"boxes": [...]}

With `mask_format="rle"` each object has `"rle"` beside an empty `"polygon"`: the key stays, so that a client that loops over
polygons draws nothing rather than breaks, and no outline is paid for that nobody asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.polygons import mask_to_polygons
from pipeline.masks.rle import mask_logits_to_rle
from pipeline.types import Instances, Letterbox, OutlineOptions, SegmentedObject

MIN_A_THREAD = 16
"""Instances that are worth a thread of their own."""


def instances_to_objects(instances: Instances, classes: Sequence[str], options: OutlineOptions) -> list[SegmentedObject]:
    """Write instances down as the contract's objects.

    Objects whose mask leaves no ring of 3 points (for `rle`: no pixel) are dropped, as Azure does; the order stays.

    Args:
        instances: what the detector found, highest score first.
        classes: names by label index.
        options: tolerance, budget, decimals, holes, closed or open rings, mask format.
    Returns:
        Objects with boxes and rings in 0..1.
    """
    boxes = _to_fractions(instances.boxes, instances.letterbox, options.decimals)
    objects = []
    for box, label, score, logits in zip(boxes, instances.labels.tolist(), instances.scores, instances.mask_logits, strict=True):
        mask = _write_mask(logits, instances.letterbox, options)
        if mask:
            objects.append(SegmentedObject(box=box, label=classes[label], score=float(str(score)), **mask))
    return objects


def warm_up() -> None:
    """Compile what the other functions need, or load what was compiled before, so that no image waits for it."""
    letterbox = Letterbox((64, 64), (64, 64), 64)
    logits = np.full((1, *letterbox.mask_grid_hw), -1, np.float16)
    logits[:, 2:6, 2:6] = 1
    one = Instances(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), logits, letterbox)
    for mask_format in ("polygon", "rle"):
        instances_to_objects(one, [""], OutlineOptions(mask_format=mask_format))


def split_instances(instances: Instances, threads: int) -> list[Instances]:
    """Cut an image with many instances into parts, for as many threads to outline side by side.

    Two threads do 100 ragged masks in three quarters of the time of one, for a quarter more CPU; of few there is nothing to gain.

    Args:
        instances: of one image.
        threads: most parts.
    Returns:
        At least one part, together all instances in their order.
    """
    parts = max(1, min(threads, len(instances) // MIN_A_THREAD))
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
    """Give the contract's form of one image: {"boxes": [{"box", "label", "score", "polygon"}, ...]}.

    "holes" and "rle" stand beside "polygon" where they were asked for.
    """
    return {"boxes": [_object_to_dict(item) for item in objects]}


def objects_to_json(objects: Sequence[SegmentedObject]) -> bytes:
    """Encode `objects_to_dict` as UTF-8 JSON, floats by their shortest decimal form."""
    return orjson.dumps(objects_to_dict(objects))


def objects_from_dict(answer: dict[str, Any]) -> list[SegmentedObject]:
    """The other way round, for clients and pictures: the objects of one image's `{"boxes": [...]}`.

    Raises:
        KeyError: a key of the contract is missing.
    """
    return [
        SegmentedObject(
            box=(row["box"]["topX"], row["box"]["topY"], row["box"]["bottomX"], row["box"]["bottomY"]),
            label=row["label"],
            score=row["score"],
            polygon=row["polygon"],
            holes=row.get("holes"),
            rle=row.get("rle"),
        )
        for row in answer["boxes"]
    ]


def _object_to_dict(item: SegmentedObject) -> dict[str, Any]:
    left, top, right, bottom = item.box
    box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
    row: dict[str, Any] = {"box": box, "label": item.label, "score": item.score, "polygon": item.polygon}
    if item.holes is not None:
        row["holes"] = item.holes
    if item.rle is not None:
        row["rle"] = item.rle
    return row


def _write_mask(mask_logits: NDArray[np.float16], letterbox: Letterbox, options: OutlineOptions) -> dict[str, Any] | None:
    """The fields of a SegmentedObject that hold its mask; None where there is nothing to see of it."""
    if options.mask_format == "rle":
        rle = mask_logits_to_rle(mask_logits, letterbox)
        return {"polygon": [], "rle": rle} if coco_mask.area(rle) else None
    polygons = mask_to_polygons(mask_logits, letterbox, options)
    return {"polygon": polygons.outer, "holes": polygons.holes if options.holes == "rings" else None} if polygons.outer else None


def _to_fractions(
    boxes: NDArray[np.float32], letterbox: Letterbox, decimals: int | None
) -> list[tuple[float, float, float, float]]:
    """Boxes (N, 4) x1 y1 x2 y2 from original pixels to fractions of the image, clipped to 0..1, rounded where asked for."""
    height, width = letterbox.original_hw
    fractions = np.clip(boxes.astype(np.float64) / (width, height, width, height), 0.0, 1.0) + 0.0  # no -0.0
    rounded = fractions if decimals is None else np.round(fractions, decimals)
    return [(left, top, right, bottom) for left, top, right, bottom in rounded.tolist()]
