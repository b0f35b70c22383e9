"""Outlines of annotated objects: checks the forms found in files; converts them to COCO's forms or to rings.

    x y x y ... │ points │ rings of either ─▶ read_outline ─▶ polygons: rings that combine by union ─┬─▶ outline_to_rle   metrics
    RLE, compressed or not ────────────────▶                  RLE: a dict with `size` and `counts`  ─┴─▶ outline_to_rings training

Rings for training combine by the even-odd rule, so that a ring inside another is a hole. They are valid and clipped to the photo,
because mmdet clips and moves each ring separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.rle import counts_to_runs

MIN_NUMBERS = 6
"""Fewest numbers of a ring: three points."""
MAX_SIDES_BEYOND = 10
"""Coordinates further away from the photo than this multiple of its side are refused; drawing them would take unbounded memory."""

Ring = list[float]
Outline = list[Ring] | dict[str, Any]
"""Rings x y x y ..., pixels, that combine by union; or compressed RLE."""


class OutlineError(ValueError):
    """An invalid or ambiguous outline; the message completes "annotation 7: ..."."""


def read_outline(segmentation: Any, size_hw: tuple[int, int]) -> tuple[Outline, int]:
    """Parse the `segmentation` of an annotation.

    Args:
        segmentation: one or several polygons, as flat lists or lists of points; or RLE. Each may be alone in further lists.
        size_hw: of the upright photo, pixels.
    Returns:
        The outline, possibly without rings; and the number of rings left out because they have fewer than three points.
    Raises:
        OutlineError: it has none of these forms, or is for a photo of another size.
    """
    segmentation = _unwrapped(segmentation)
    if segmentation and isinstance(segmentation, dict):
        return _checked_rle(segmentation, size_hw), 0
    rings = [_flat(ring) for ring in _split(segmentation)]
    for ring in rings:
        if not np.isfinite(ring).all():
            raise OutlineError("a coordinate of its segmentation is not a finite number")
        if len(ring) % 2:
            raise OutlineError(f"its segmentation has a polygon of {len(ring)} numbers, an odd number of coordinates")
    kept = [ring for ring in rings if len(ring) >= MIN_NUMBERS]
    farthest = MAX_SIDES_BEYOND * max(size_hw)
    if any(np.abs(ring).max() > farthest for ring in kept):
        raise OutlineError(f"a coordinate of its segmentation is more than {farthest} pixels from its photo")
    return kept, len(rings) - len(kept)


def _split(segmentation: Any) -> list[Any]:
    """The rings of a segmentation, each a list of numbers or of points."""
    if not segmentation:
        return []
    if not isinstance(segmentation, list):
        raise OutlineError(f"its segmentation is neither polygons nor RLE, but {type(segmentation).__name__}")
    if not any(isinstance(part, (list, dict)) for part in segmentation):
        return [segmentation]
    parts = [_unwrapped(part) for part in segmentation]
    one_ring = len(parts) >= MIN_NUMBERS / 2 and all(_is_point(part) for part in parts)
    return [parts] if one_ring else parts


def _unwrapped(part: Any) -> Any:
    """What lists of one item hold, as around each point of OpenCV's contours, or around RLE."""
    while (
        isinstance(part, list)
        and len(part) == 1
        and (isinstance(part[0], list) or (isinstance(part[0], dict) and not _is_point(part[0])))
    ):
        (part,) = part
    return part


def _is_point(part: Any) -> bool:
    if isinstance(part, dict):
        return {"x", "y"} <= set(part)
    return isinstance(part, list) and len(part) == 2 and not any(isinstance(value, (list, dict)) for value in part)


def _flat(ring: Any) -> Ring:
    """x y x y ... of a ring of numbers or of points, numbers as text too; null becomes NaN."""
    try:
        if isinstance(ring, list) and any(isinstance(point, (list, dict)) for point in ring):
            ring = [_unwrapped(point) for point in ring]
            if not all(_is_point(point) for point in ring):
                raise OutlineError("its segmentation mixes points with something else")
            ring = [point[axis] for point in ring for axis in (("x", "y") if isinstance(point, dict) else (0, 1))]
        flat = np.asarray(ring, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, OutlineError):
            raise
        raise OutlineError(f"its segmentation is neither polygons nor RLE ({error})") from error
    if flat.ndim != 1:
        raise OutlineError("its segmentation is neither polygons nor RLE")
    numbers: list[float] = flat.tolist()
    return numbers


def _checked_rle(rle: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    """The RLE, checked and compressed."""
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = counts_to_runs(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OutlineError(f"its segmentation is not RLE: {error!r}") from error
    if (height, width) != size_hw:
        swapped = ": it is [width, height]" if (width, height) == size_hw else ""
        raise OutlineError(
            f"the size of its RLE is [{height}, {width}], where its photo has [height, width] [{size_hw[0]}, {size_hw[1]}]{swapped}"
        )
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise OutlineError(f"the runs of its RLE do not add up to {height} x {width} pixels")
    return _compressed(runs, size_hw)


def outline_to_rle(outline: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Convert COCO polygons, uncompressed or compressed RLE to compressed RLE.

    Args:
        outline: of an annotation or a result, pixels.
        size_hw: of the photo, pixels.
    """
    if isinstance(outline, list):
        outline = coco_mask.merge(coco_mask.frPyObjects(outline, *size_hw))
    elif isinstance(outline["counts"], list):
        outline = coco_mask.frPyObjects(outline, *size_hw)
    counts = outline["counts"]
    return {"size": list(outline["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def combine_by_xor(rings: list[Ring], size_hw: tuple[int, int]) -> Outline:
    """Convert rings that combine by XOR, as in AzureML, to one of COCO's forms: polygons if they share no pixel, else RLE."""
    if len(rings) < 2:
        return rings
    drawn = coco_mask.frPyObjects(rings, *size_hw)
    if coco_mask.area(coco_mask.merge(drawn)) == coco_mask.area(drawn).sum():
        return rings
    changes, times = np.unique(np.concatenate([_changes(rle) for rle in drawn]), return_counts=True)
    return _rle_of(changes[times % 2 == 1], size_hw)


@dataclass(frozen=True, slots=True)
class BoxMask:
    """The part of a mask inside its box; outside of it, the mask is empty.

    Attributes:
        left, top: of the box in the photo, pixels.
        mask: (height, width) of the box, uint8, 1 is inside.
    """

    left: int
    top: int
    mask: NDArray[np.uint8]


def rle_to_box_mask(rle: dict[str, Any]) -> BoxMask:
    """Decode compressed RLE inside its box only: large photos may have thousands of small objects."""
    left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
    photo_height = rle["size"][0]
    changes = np.clip(_changes(rle) - left * photo_height, 0, width * photo_height)
    lengths = np.diff(changes, prepend=0, append=width * photo_height)
    columns = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(np.uint8).reshape(width, photo_height)
    return BoxMask(left, top, np.ascontiguousarray(columns[:, top : top + height].T))


def box_mask_to_rle(box: BoxMask, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Encode a mask of this size, (height, width) pixels, as compressed RLE."""
    columns = np.zeros((box.mask.shape[1], size_hw[0]), np.uint8)
    columns[:, box.top : box.top + box.mask.shape[0]] = box.mask.T
    return _rle_of(np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + box.left * size_hw[0], size_hw)


def _changes(rle: dict[str, Any]) -> NDArray[np.int64]:
    """Where a mask, read column by column, changes between outside and inside; outside at first. Two at one place are none."""
    counts = rle["counts"]
    ends: NDArray[np.int64] = np.cumsum(counts_to_runs(counts if isinstance(counts, str) else counts.decode("ascii")))
    return ends[:-1]


def _rle_of(changes: NDArray[np.int64], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Compressed RLE of a mask with these changes."""
    pixels = size_hw[0] * size_hw[1]
    return _compressed(np.diff(changes[changes < pixels], prepend=0, append=pixels), size_hw)


def _compressed(runs: NDArray[np.int64], size_hw: tuple[int, int]) -> dict[str, Any]:
    return outline_to_rle({"size": list(size_hw), "counts": runs.tolist()}, size_hw)


def outline_box_xywh(outline: Outline, size_hw: tuple[int, int]) -> list[float]:
    """Box of the outline's part inside the photo: x, y, width, height in pixels; 0 if it is empty."""
    if isinstance(outline, dict):
        return [float(value) for value in coco_mask.toBbox(outline)]
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in outline])
    ends = np.clip([points.min(0), points.max(0)], 0, size_hw[::-1])
    return [*ends[0].tolist(), *(ends[1] - ends[0]).tolist()]


def mask_area(outline: Outline, size_hw: tuple[int, int]) -> float:
    """Area of an outline's mask, pixels."""
    return float(coco_mask.area(outline_to_rle(outline, size_hw)))


def has_ring_in_ring(outline: Outline) -> bool:
    """Whether a ring lies within another. COCO unites rings; many converters write holes so."""
    if isinstance(outline, dict) or len(outline) < 2:
        return False
    parts = [shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in outline]
    pairs = ((outer, inner) for outer in parts for inner in parts if outer is not inner and inner.area < outer.area)
    return any(
        shapely.box(*outer.bounds).covers(inner) and shapely.make_valid(outer).covers(shapely.make_valid(inner))
        for outer, inner in pairs
    )


def reach_beyond(outline: Outline, size_hw: tuple[int, int]) -> float:
    """How far an outline reaches beyond its photo, as a share of the photo's longer side."""
    if isinstance(outline, dict):
        return 0.0
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in outline])
    return float(max(-points.min(), (points - size_hw[::-1]).max(), 0.0) / max(size_hw))


def outline_to_rings(outline: Outline, size_hw: tuple[int, int]) -> list[Ring]:
    """Rings for training (see the module's docstring), x y x y ..., pixels. Polygons that already are such rings stay unchanged."""
    if isinstance(outline, dict):
        return _traced(outline)
    height, width = size_hw
    photo, parts = shapely.box(0, 0, width, height), [shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in outline]
    if all(part.is_valid and photo.covers(part) for part in parts) and (
        len(parts) == 1 or shapely.union_all(parts).area >= sum(part.area for part in parts) * (1 - 1e-9)
    ):
        return outline
    whole = shapely.union_all([shapely.make_valid(part) for part in parts]).intersection(photo)
    return _rings_of(whole) or _traced(outline_to_rle(outline, size_hw))


def _rings_of(shape: shapely.Geometry) -> list[Ring]:
    parts: Sequence[shapely.Geometry] = [part for part in shapely.get_parts(shape).tolist() if not part.is_empty]
    if len(parts) == 1 and isinstance(parts[0], shapely.Polygon):
        return [shapely.get_coordinates(ring)[:-1].ravel().tolist() for ring in (parts[0].exterior, *parts[0].interiors)]
    several = [part for part in parts if isinstance(part, (shapely.Polygon, shapely.MultiPolygon))]
    return [ring for part in several for ring in _rings_of(part)]


def _traced(rle: dict[str, Any]) -> list[Ring]:
    """Contours of an RLE mask and of its holes, a quarter pixel inside its pixels."""
    box = rle_to_box_mask(rle)
    if not box.mask.size:
        return []
    enlarged = cv2.resize(box.mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [((contour.reshape(-1, 2) + 0.5) / 2 + (box.left, box.top)).ravel().tolist() for contour in contours]
    return [ring for ring in rings if len(ring) >= MIN_NUMBERS]
