"""Turns masks into polygons in fractions of the image, rounded to a few decimals, and valid after rounding. Of each mask:

mask_logits ─▶ trace ─▶ simplify ─▶ / (W, H), rounded ─▶ tangled? ──no──────────────────────────────────────────▶ rings
                           ▲                                 └─yes─▶ preserving topology ─▶ still? GEOS snaps it ───▲
                           └───────────────────────────────────────────────┘
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.masks.crossings import is_tangled
from pipeline.masks.field import read_logits
from pipeline.masks.outline import Outline, find_holes, fit_rings, keep_rings, ring_areas, to_shapely
from pipeline.masks.simplify import NO_BUDGET, simplify
from pipeline.masks.trace import trace
from pipeline.types import Letterbox, OutlineOptions

_NOT_ROUNDED = -1


class Polygons(NamedTuple):
    """Outer rings and holes of one mask, largest first, each a flat list x1 y1 x2 y2 ... in 0..1."""

    outer: list[list[float]]
    holes: list[list[float]]


class Rings(NamedTuple):
    """The rings of n masks, mask after mask; of each mask the outer rings before the holes, both largest first.

    Args:
        points: (P, 2) float64 x y in 0..1, ring after ring.
        ends: (R + 1,) int64, ring k is points[ends[k] : ends[k + 1]].
        counts: (n, 2) int64, numbers of outer rings and holes of each mask.
    """

    points: NDArray[np.float64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]


class _Wanted(NamedTuple):
    """OutlineOptions for compiled code: `max_points` and `decimals` are always numbers."""

    fill_holes: bool
    tolerance: float
    max_points: int
    decimals: int
    closed: bool


def masks_to_polygons(mask_logits: NDArray[np.float16], letterbox: Letterbox, options: OutlineOptions) -> list[Polygons]:
    """`outline_masks` as lists, for each mask its valid polygons; none if no ring has an area."""
    (points, ends, counts), repaired = outline_masks(mask_logits, letterbox, options)
    rings = iter(_to_lists(points, ends))
    of_masks = [[list(itertools.islice(rings, count)) for count in both] for both in counts.tolist()]
    return [repaired.get(mask) or Polygons(*both) for mask, both in enumerate(of_masks)]


def outline_masks(
    mask_logits: NDArray[np.float16], letterbox: Letterbox, options: OutlineOptions
) -> tuple[Rings, dict[int, Polygons]]:
    """Outline the masks of one image.

    All masks are one compiled call, because a call holds the GIL before and after its loops.

    Args:
        mask_logits: (n, h, w) float16, (h, w) = letterbox.mask_grid_hw, inside is > 0.
        letterbox: how the grid lies in the original image.
        options: tolerance, points, decimals, holes, closed.
    Returns:
        The rings, and by a mask's number its valid polygons where those among the rings may be invalid.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    """
    logits, wanted = read_logits(mask_logits, letterbox), _to_wanted(options)
    rings, tangled = _outline_all(logits, letterbox.scaled_hw, letterbox.original_hw, wanted)
    return rings, {int(mask): _outline_valid(logits[mask], letterbox, wanted) for mask in np.flatnonzero(tangled)}


def _to_wanted(options: OutlineOptions) -> _Wanted:
    return _Wanted(
        options.holes == "drop",
        float(options.tolerance_px),
        NO_BUDGET if options.max_points is None else min(options.max_points, NO_BUDGET),  # a request may ask for 10**30
        _NOT_ROUNDED if options.decimals is None else options.decimals,
        options.closed,
    )


def _outline_valid(logits: NDArray[np.float32], letterbox: Letterbox, wanted: _Wanted) -> Polygons:
    """Outline a mask whose rounded outline may be invalid."""
    rounded, simple, _ = _outline(logits, letterbox.scaled_hw, letterbox.original_hw, wanted)
    if not to_shapely(rounded).is_valid:
        exact = _to_fractions(simple, letterbox.original_hw, _NOT_ROUNDED)
        rounded = fit_rings(_snap(exact, wanted.decimals, wanted.fill_holes), wanted.max_points)
    points, ends, outer = _arrange(rounded, wanted.closed)
    rings = _to_lists(points, ends)
    return Polygons(rings[:outer], rings[outer:])


@compiled
def _outline_all(
    logits: NDArray[np.float32], scaled_hw: tuple[int, int], original_hw: tuple[int, int], wanted: _Wanted
) -> tuple[Rings, NDArray[np.bool_]]:
    """The rings of n masks, and (n,) whether those of a mask may be invalid."""
    masks = len(logits)
    counts, tangled, parts = np.empty((masks, 2), np.int64), np.empty(masks, np.bool_), []
    for mask in range(masks):
        rounded, _, tangled[mask] = _outline(logits[mask], scaled_hw, original_hw, wanted)
        points, ends, outer = _arrange(rounded, wanted.closed)
        counts[mask, 0], counts[mask, 1] = outer, len(ends) - 1 - outer
        parts.append((points, ends))
    all_points, all_ends = np.empty((sum([len(points) for points, _ in parts]), 2)), np.zeros(counts.sum() + 1, np.int64)
    point = ring = 0
    for points, ends in parts:
        for k in range(len(points)):
            all_points[point + k, 0], all_points[point + k, 1] = points[k, 0], points[k, 1]
        for k in range(1, len(ends)):
            all_ends[ring + k] = point + ends[k]
        point, ring = point + len(points), ring + len(ends) - 1
    return Rings(all_points, all_ends, counts), tangled


@compiled
def _outline(
    logits: NDArray[np.float32], scaled_hw: tuple[int, int], original_hw: tuple[int, int], wanted: _Wanted
) -> tuple[Outline, Outline, bool]:
    """The outline in fractions of the image, rounded; in original pixels; and whether the rounded one may be invalid."""
    traced = trace(logits, scaled_hw, original_hw, wanted.fill_holes)
    for preserve_topology in (False, True):  # as a constant, Numba would compile all that is called for each of them
        simple = simplify(traced, wanted.tolerance, wanted.max_points, preserve_topology)
        rounded = _to_fractions(simple, original_hw, wanted.decimals)
        if not is_tangled(rounded):
            return rounded, simple, False
    return rounded, simple, True


@compiled
def _to_fractions(outline: Outline, hw: tuple[int, int], decimals: int) -> Outline:
    """Convert original pixels to fractions of the image, rounded unless decimals is _NOT_ROUNDED. Rounded rings may touch and cross.

    Repeated points are dropped, and rings without area.
    """
    height, width = hw
    scale = 10.0**decimals
    points, ends = np.empty_like(outline.points), np.zeros_like(outline.ends)
    count = 0
    for ring in range(len(ends) - 1):
        first = count
        for k in range(outline.ends[ring], outline.ends[ring + 1]):
            x, y = outline.points[k, 0] / width, outline.points[k, 1] / height
            if decimals >= 0:
                x, y = np.rint(x * scale) / scale, np.rint(y * scale) / scale
            if count == first or x != points[count - 1, 0] or y != points[count - 1, 1]:
                points[count, 0], points[count, 1] = x, y
                count += 1
        while count - first > 1 and points[count - 1, 0] == points[first, 0] and points[count - 1, 1] == points[first, 1]:
            count -= 1
        ends[ring + 1] = count
    rounded = Outline(points[:count], ends, outline.parents)
    return keep_rings(rounded, ring_areas(rounded) > (0.25 / scale / scale if decimals >= 0 else 0.0))


def _snap(outline: Outline, decimals: int, fill_holes: bool) -> Outline:
    """Round a valid outline to `decimals` so that it stays valid. Source: snap rounding, Hobby 1999, in GEOS."""
    parts = shapely.get_parts(shapely.set_precision(to_shapely(outline), 10.0**-decimals))
    if fill_holes:  # rounding may have closed a bay, with another part inside
        parts = shapely.polygons(shapely.get_exterior_ring(parts))
        covered, _ = shapely.STRtree(parts).query(parts, predicate="covered_by")
        parts = parts[np.bincount(covered, minlength=len(parts)) == 1]  # by itself only
    rings: list[NDArray[np.float64]] = [np.empty((0, 2))]
    parents: list[int] = []
    for part in parts:
        parents += [-1] + [len(parents)] * len(part.interiors)
        rings += [np.round(shapely.get_coordinates(ring)[:-1], decimals) for ring in (part.exterior, *part.interiors)]
    ends = np.cumsum([len(ring) for ring in rings])
    return Outline(np.concatenate(rings), ends, np.array(parents, np.int64))


def _to_lists(points: NDArray[np.float64], ends: NDArray[np.int64]) -> list[list[float]]:
    """Rings as flat lists x1 y1 x2 y2 ..."""
    flat = points.ravel().tolist()
    return [flat[first:end] for first, end in itertools.pairwise((2 * ends).tolist())]


@compiled
def _arrange(outline: Outline, closed: bool) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """The points with outer rings before holes, each largest first; the ends of the rings; the number of outer rings."""
    holes = find_holes(outline.parents)
    points, ends = np.empty((len(outline.points) + closed * len(holes), 2)), np.zeros(len(holes) + 1, np.int64)
    order = np.argsort(-ring_areas(outline)) if len(holes) > 1 else np.arange(len(holes))
    ring = count = 0
    for wanted in (False, True):
        for k in order:
            if holes[k] == wanted:
                for at in range(outline.ends[k], outline.ends[k + 1] + closed):
                    source = at if at < outline.ends[k + 1] else outline.ends[k]
                    points[count, 0], points[count, 1] = outline.points[source, 0], outline.points[source, 1]
                    count += 1
                ring += 1
                ends[ring] = count
    return points, ends, len(holes) - holes.sum()
