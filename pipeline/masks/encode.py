"""Turns instances into objects with coordinates in fractions of the image, and objects into the contract's JSON.

    Instances ──▶ outlines, all at once ──▶ lists ──▶ SegmentedObject ... ──▶ {"boxes": [...]}
                                        └─▶ text ──▶ JSON objects, if they are only sent ──▲

With `mask_format="rle"` each object has `"rle"` and an empty `"polygon"`: the key stays, so that clients that loop over polygons do not
break.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.compiled import compile_in_child, compiled
from pipeline.masks.polygons import Rings, masks_to_polygons, outline_masks
from pipeline.masks.rle import counts_to_runs, mask_logits_to_rle
from pipeline.types import Instances, Letterbox, OutlineOptions, SegmentedObject

MIN_PER_THREAD, MAX_PER_PART = 16, 32
"""Instances: fewer do not pay for another thread, and more would keep images of other callers waiting for a thread."""

_MAX_WRITTEN_DECIMALS = 5
"""Decimals: with more, orjson writes small numbers with an exponent."""
_FARTHEST = 2.0
"""Fractions of an image further away from 0 are not: pixels, say."""
_OPEN, _CLOSE, _COMMA, _POINT, _ZERO = b"[],.0"


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
    masks = _masks_as_lists(instances, options)
    return [
        SegmentedObject(*one, **mask) for one, mask in zip(_describe(instances, classes, options), masks, strict=True) if mask
    ]


def instances_to_json_objects(instances: Instances, classes: Sequence[str], options: OutlineOptions) -> list[bytes]:
    """As `instances_to_objects`, but each object as the JSON that `objects_to_json` writes, without a Python object for each number.

    100 ragged masks take 12.7 ms instead of 16.2 (Zen 4, one thread), and the GIL is held for less of it.
    """
    masks = _masks_as_text(instances, options)
    return [
        orjson.dumps(_to_dict(*one, **mask))
        for one, mask in zip(_describe(instances, classes, options), masks, strict=True)
        if mask
    ]


def join_json_objects(objects: Sequence[bytes]) -> bytes:
    """The contract's JSON of one image: {"boxes": [...]}."""
    return b'{"boxes":[' + b",".join(objects) + b"]}"


def load_loops() -> None:
    """Load all compiled functions from Numba's cache, so that no image waits for it. If the cache lacks one, a child process compiles."""
    compile_in_child("pipeline.masks", "from pipeline.masks.encode import call_loops; call_loops()")
    call_loops()


def call_loops() -> None:
    """Call all compiled functions of this package once."""
    letterbox = Letterbox((64, 64), (64, 64), 64)
    logits = np.full((1, *letterbox.mask_grid_hw), -1, np.float16)
    logits[:, 2:6, 2:6] = 1
    one = Instances(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), logits, letterbox)
    for mask_format in ("polygon", "rle"):
        instances_to_json_objects(one, [""], OutlineOptions(mask_format=mask_format))


def split_instances(instances: Instances, threads: int) -> list[Instances]:
    """Split the instances of an image into parts, to outline them in several threads, and other images in between.

    Two threads take four fifths of the time of one for 100 ragged masks, and a fifth more CPU; with few instances they gain nothing.

    Args:
        instances: of one image.
        threads: for which there is a part each, if there are enough instances.
    Returns:
        One or more parts, together all instances in their order.
    """
    parts = max(1, min(threads, len(instances) // MIN_PER_THREAD), -(-len(instances) // MAX_PER_PART))
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
    return [_object_from_dict(item) for item in answer["boxes"]]


def _object_from_dict(item: dict[str, Any]) -> SegmentedObject:
    box, label, score, holes = item["box"], item["label"], item["score"], item.get("holes")
    xyxy = box["topX"], box["topY"], box["bottomX"], box["bottomY"]
    if not _are_numbers(xyxy, _FARTHEST):
        raise ValueError("a box is not topX, topY, bottomX, bottomY, fractions of the image")
    if not isinstance(label, str) or not _are_numbers([score]):
        raise ValueError("a label is not text, or a score is not a finite number")
    polygon, holes = _checked_rings(item["polygon"]), None if holes is None else _checked_rings(holes)
    return SegmentedObject(xyxy, label, score, polygon, holes, _checked_rle(item.get("rle")))


def _are_numbers(values: Sequence[Any], farthest: float = sys.float_info.max) -> bool:
    """Whether all are finite numbers, no further from 0 than this."""
    return all(isinstance(value, (int, float)) and abs(value) <= farthest for value in values)


def _checked_rings(rings: list[list[float]]) -> list[list[float]]:
    for ring in rings:
        if len(ring) % 2 or not _are_numbers(ring, _FARTHEST):
            raise ValueError("a ring of a polygon is not x y x y ..., fractions of the image")
    return rings


def _checked_rle(rle: dict[str, Any] | None) -> dict[str, Any] | None:
    """RLE whose runs fill its size; pycocotools reads or writes elsewhere with others."""
    if rle is None:
        return None
    (height, width), counts = rle["size"], rle["counts"]
    if not (isinstance(height, int) and isinstance(width, int) and isinstance(counts, str)):
        raise ValueError("an rle is not of two whole numbers and compressed run lengths")
    runs = counts_to_runs(counts)
    if min(height, width, runs.min()) < 0 or runs.sum() != height * width:
        raise ValueError(f"the runs of an rle do not add up to {height} x {width} pixels")
    return rle


def _object_to_dict(item: SegmentedObject) -> dict[str, Any]:
    return _to_dict(item.box, item.label, item.score, item.polygon, item.holes, item.rle)


def _to_dict(
    xyxy: tuple[float, float, float, float], label: str, score: float, polygon: object, holes: object = None, rle: object = None
) -> dict[str, Any]:
    left, top, right, bottom = xyxy
    box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
    document: dict[str, Any] = {"box": box, "label": label, "score": score, "polygon": polygon}
    if holes is not None:
        document["holes"] = holes
    if rle is not None:
        document["rle"] = rle
    return document


def _describe(
    instances: Instances, classes: Sequence[str], options: OutlineOptions
) -> Iterator[tuple[tuple[float, float, float, float], str, float]]:
    """Box in fractions of the image, label and score of each instance."""
    boxes = _to_fractions(instances.boxes, instances.letterbox, options.decimals)
    for box, label, score in zip(boxes, instances.labels.tolist(), instances.scores, strict=True):
        yield box, classes[label], float(str(score))


def _masks_as_lists(instances: Instances, options: OutlineOptions) -> list[dict[str, Any]]:
    """`polygon`, `holes` and `rle` of each mask; nothing if nothing of the mask is left."""
    if options.mask_format == "rle":
        rles = [mask_logits_to_rle(logits, instances.letterbox) for logits in instances.mask_logits]
        return [{"polygon": [], "rle": rle} if coco_mask.area(rle) else {} for rle in rles]
    return [_fields(*one, options) for one in masks_to_polygons(instances.mask_logits, instances.letterbox, options)]


def _masks_as_text(instances: Instances, options: OutlineOptions) -> list[dict[str, Any]]:
    """As `_masks_as_lists`, with the rings as JSON if the number of decimals allows it."""
    decimals = options.decimals
    if options.mask_format == "rle" or decimals is None or not 1 <= decimals <= _MAX_WRITTEN_DECIMALS:
        return _masks_as_lists(instances, options)
    rings, repaired = outline_masks(instances.mask_logits, instances.letterbox, options)
    written, ends = _write_rings(rings, decimals)
    text = written.tobytes()
    parts = iter([orjson.Fragment(text[first:end]) for first, end in itertools.pairwise(ends.tolist())])
    masks = [
        _fields(outer if count else None, holes, options)
        for outer, holes, count in zip(parts, parts, rings.counts[:, 0], strict=True)
    ]
    for mask, polygons in repaired.items():
        masks[mask] = _fields(*polygons, options)
    return masks


def _fields(outer: object, holes: object, options: OutlineOptions) -> dict[str, Any]:
    return {"polygon": outer, "holes": holes if options.holes == "rings" else None} if outer else {}


@compiled
def _write_rings(rings: Rings, decimals: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Write the outer rings of each mask and then its holes as JSON, [[x,y,x,y,...],...].

    Returns:
        The characters, and (2 n + 1,) where each of the 2 n texts ends.
    """
    points, ring_ends, counts = rings
    values, scale = points.ravel(), 10.0**decimals
    text = np.empty(len(values) * (decimals + 3) + 2 * len(ring_ends) + 4 * len(counts), np.uint8)
    ends = np.zeros(2 * len(counts) + 1, np.int64)
    end = ring = 0
    for index in range(counts.size):
        text[end], end = _OPEN, end + 1
        for number in range(counts[index // 2, index % 2]):
            if number > 0:
                text[end], end = _COMMA, end + 1
            text[end], end = _OPEN, end + 1
            for at in range(2 * ring_ends[ring], 2 * ring_ends[ring + 1]):
                end = _write_fraction(int(np.rint(values[at] * scale)), decimals, text, end)
                text[end], end = _COMMA, end + 1
            text[end - 1] = _CLOSE  # instead of the last comma
            ring += 1
        text[end], end = _CLOSE, end + 1
        ends[index + 1] = end
    return text[:end], ends


@compiled
def _write_fraction(value: int, decimals: int, text: NDArray[np.uint8], end: int) -> int:
    """Write value / 10**decimals, which is below 10, without zeros at its end but one; returns where it ends."""
    while decimals > 1 and value % 10 == 0:
        value, decimals = value // 10, decimals - 1
    for index in range(end + 1 + decimals, end + 1, -1):
        text[index], value = _ZERO + value % 10, value // 10
    text[end], text[end + 1] = _ZERO + value, _POINT
    return end + 2 + decimals


def _to_fractions(
    boxes: NDArray[np.float32], letterbox: Letterbox, decimals: int | None
) -> list[tuple[float, float, float, float]]:
    """Boxes (N, 4) x1 y1 x2 y2 from original pixels to fractions of the image, clipped to 0..1, rounded if asked for."""
    height, width = letterbox.original_hw
    fractions = np.clip(boxes.astype(np.float64) / (width, height, width, height), 0.0, 1.0) + 0.0  # no -0.0
    rounded = fractions if decimals is None else np.round(fractions, decimals)
    return [(left, top, right, bottom) for left, top, right, bottom in rounded.tolist()]
