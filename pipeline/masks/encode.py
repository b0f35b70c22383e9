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

from pipeline.masks.contours import split_outlines, trace_outlines
from pipeline.masks.rle import mask_logits_to_rle
from pipeline.masks.simplify import simplify_outlines
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
    masks, kept = _run_lengths(instances) if options.mask_format == "rle" else _polygons(instances, options)
    boxes = _to_fractions(instances.boxes.reshape(-1, 2), instances.letterbox, options.decimals).reshape(-1, 4).tolist()
    labels, scores = instances.labels.tolist(), [float(str(score)) for score in instances.scores]
    return [
        SegmentedObject(
            box=(boxes[i][0], boxes[i][1], boxes[i][2], boxes[i][3]), label=classes[labels[i]], score=scores[i], **mask
        )
        for i, mask in zip(kept, masks, strict=True)
    ]


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


def _polygons(instances: Instances, options: OutlineOptions) -> tuple[list[dict[str, Any]], list[int]]:
    """Polygons (and holes) of the instances that have one, and their indices."""
    with_holes, letterbox = options.holes == "rings", instances.letterbox
    traced = trace_outlines(instances.mask_logits, letterbox, fill_holes=not with_holes)
    outlines = simplify_outlines(traced, options.tolerance_px, options.max_points)
    points, ends, outer, holes = split_outlines(outlines, lambda points: _to_fractions(points, letterbox, options.decimals))
    flat: list[float] = points.ravel().tolist()  # once for all rings: slices of a list cost less than lists of slices

    def ring(k: int) -> list[float]:
        first, end = 2 * ends[k], 2 * ends[k + 1]
        return [*flat[first:end], *flat[first : first + 2]] if options.closed else flat[first:end]

    kept = [i for i, own in enumerate(outer) if own]
    masks = [
        {
            "polygon": [ring(k) for k in outer[i]],
            "holes": [ring(hole) for k in outer[i] for hole in holes.get(k, ())] if with_holes else None,
        }
        for i in kept
    ]
    return masks, kept


def _run_lengths(instances: Instances) -> tuple[list[dict[str, Any]], list[int]]:
    """Run lengths of the instances whose mask has a pixel, and their indices."""
    encoded = [mask_logits_to_rle(logits, instances.letterbox) for logits in instances.mask_logits]
    kept = [i for i, rle in enumerate(encoded) if coco_mask.area(rle) > 0]
    return [{"polygon": [], "rle": encoded[i]} for i in kept], kept


def _to_fractions(points: NDArray[np.floating], letterbox: Letterbox, decimals: int | None) -> NDArray[np.float64]:
    """Original pixels (K, 2) x y to fractions of the image, clipped to 0..1, rounded where asked for."""
    height, width = letterbox.original_hw
    fractions = np.clip(np.asarray(points, dtype=np.float64) / (width, height), 0.0, 1.0) + 0.0
    return fractions if decimals is None else np.round(fractions, decimals)
