"""Fewer points for the same outline, never crossing itself, never losing a ring.

    outlines ──▶ Douglas-Peucker on all at once ──▶ valid, with every ring? ──yes──▶ done
                                                     └──no──▶ once more with less tolerance, then the slower way that keeps
                                                              topology, for these alone

The tolerance is a bound that only large objects use up: below a side (square root of the area) of 200 px it shrinks with the side.
One pixel of error costs a face in the crowd far more of its shape than a portrait. Measured on 140 masks of coco_person/val made
into logits (mean IoU with the full-size mask, points an object): 1 px for all 0.947, 22; 0.25 px for all 0.990, 43; this 0.994, 35.
Time an instance: Douglas-Peucker 0.02 ms, the check 0.004; keeping topology 0.26.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

_FULL_TOLERANCE_SIDE_PX = 200.0
_FIRST_BUDGET_SHARE = 0.005
_BUDGET_STEP = 2**0.5
_FEWEST_POINTS = 3
_SECOND_TRY = 0.25
"""Share of the tolerance for rings that the whole of it would collapse or make cross. With 100 ragged instances, 15 parts each, it
leaves few for the way that keeps topology, which took half of all the time there."""


def simplify_outlines(
    outlines: NDArray[np.object_], tolerance_px: float, max_points: int | None = None, *, count_holes: bool = True
) -> NDArray[np.object_]:
    """Drop vertices from outlines.

    Args:
        outlines: (N,) shapely MultiPolygons, valid.
        tolerance_px: largest distance of a dropped vertex from the new outline, in the outlines' units, less for small objects;
            0 keeps every vertex.
        max_points: largest number of vertices of one outline; None is no limit. The tolerance of an outline over it is raised
            step by step; where parts and holes alone are too many, the smallest go. Below 3 counts as 3.
        count_holes: holes count against `max_points`.
    Returns:
        (N,) shapely MultiPolygons or Polygons, valid.
    Source: Douglas & Peucker 1973; GEOS TopologyPreservingSimplifier.
    """
    tolerances = tolerance_px * np.minimum(1.0, np.sqrt(shapely.area(outlines)) / _FULL_TOLERANCE_SIDE_PX)
    simple = _simplify(outlines, tolerances) if tolerance_px > 0 else outlines
    return simple if max_points is None else _fit(outlines, simple, tolerances, max(max_points, _FEWEST_POINTS), count_holes)


def _simplify(outlines: NDArray[np.object_], tolerances: NDArray[np.float64]) -> NDArray[np.object_]:
    """Simplify all outlines the fast way, those that it breaks with less tolerance, and what is broken then the slow way."""
    simple = _simplify_fast(outlines, tolerances)
    broken = np.flatnonzero(~shapely.is_valid(simple))
    if len(broken):
        simple[broken] = _simplify_fast(outlines[broken], tolerances[broken] * _SECOND_TRY)
        broken = broken[~shapely.is_valid(simple[broken])]
        simple[broken] = shapely.simplify(outlines[broken], tolerances[broken] / 2, preserve_topology=True)
    return simple


def _simplify_fast(outlines: NDArray[np.object_], tolerances: NDArray[np.float64]) -> NDArray[np.object_]:
    """Douglas-Peucker on every ring by itself; none is lost, but rings may cross. (N,) MultiPolygons."""
    parts, owners = shapely.get_parts(outlines, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    tolerances = tolerances[owners[part_of_ring]]
    lines = _simplify_rings(rings, tolerances)
    collapsed = _are_collapsed(lines)
    lines[collapsed] = _simplify_rings(rings[collapsed], tolerances[collapsed] * _SECOND_TRY)
    collapsed = _are_collapsed(lines)
    lines[collapsed] = rings[collapsed]
    ring_ends = np.concatenate([[0], np.cumsum(shapely.get_num_coordinates(lines))])
    part_ends = np.concatenate([[0], np.cumsum(np.bincount(part_of_ring, minlength=len(parts)))])
    parts = shapely.from_ragged_array(shapely.GeometryType.POLYGON, shapely.get_coordinates(lines), (ring_ends, part_ends))
    simple = np.full(len(outlines), shapely.MultiPolygon(), dtype=object)
    shapely.multipolygons(parts, indices=owners, out=simple)
    return simple


def _are_collapsed(lines: NDArray[np.object_]) -> NDArray[np.bool_]:
    collapsed: NDArray[np.bool_] = shapely.get_num_coordinates(lines) < _FEWEST_POINTS + 1
    return collapsed


def _simplify_rings(rings: NDArray[np.object_], tolerances: NDArray[np.float64]) -> NDArray[np.object_]:
    """Douglas-Peucker on rings as lines that end where they begin.

    As rings, GEOS drops the first point too when it lies near its neighbours' chord, measured after the others have gone: the
    outline then strays by up to twice the tolerance. (Its way that keeps topology does the same; hence the half above.) As
    polygons, it repairs what crosses and loses rings in silence.
    """
    owners = np.repeat(np.arange(len(rings)), shapely.get_num_coordinates(rings))
    lines = shapely.linestrings(shapely.get_coordinates(rings), indices=owners) if len(rings) else rings
    return shapely.simplify(lines, tolerances, preserve_topology=False)


def _fit(
    outlines: NDArray[np.object_],
    simple: NDArray[np.object_],
    tolerances: NDArray[np.float64],
    max_points: int,
    count_holes: bool,
) -> NDArray[np.object_]:
    """Raise the tolerance of the outlines over the budget until they fit, then drop their smallest rings."""
    simple = simple.copy()
    over = np.flatnonzero(_point_counts(simple, count_holes) > max_points)
    sides = np.sqrt(shapely.area(outlines))
    tolerances = np.maximum(tolerances, _FIRST_BUDGET_SHARE * sides)
    while len(over) and (tolerances[over] < sides[over]).any():
        simple[over] = _simplify(outlines[over], tolerances[over])
        over = over[_point_counts(simple[over], count_holes) > max_points]
        tolerances = tolerances * _BUDGET_STEP
    for i in over:
        simple[i] = _largest_rings(simple[i], max_points, count_holes)
    return simple


def _largest_rings(outline: shapely.Geometry, max_points: int, count_holes: bool) -> shapely.MultiPolygon:
    """Keep the largest part, then what fits of the smaller parts and of the holes, largest first.

    A largest part that is itself over the budget shrinks to a triangle of its vertices.
    """
    parts = sorted(shapely.get_parts(outline), key=lambda part: shapely.Polygon(part.exterior).area, reverse=True)
    if len(parts[0].exterior.coords) - 1 > max_points:
        return shapely.MultiPolygon([shapely.Polygon(_widest_triangle(parts[0].exterior))])
    budget, kept = max_points, []
    for part in parts:
        size = len(part.exterior.coords) - 1
        if size <= budget:
            kept.append(part)
            budget -= size
    holes = [(shapely.Polygon(hole).area, i, hole) for i, part in enumerate(kept) for hole in part.interiors]
    chosen: list[list[shapely.LinearRing]] = [[] for _ in kept]
    for _, i, hole in sorted(holes, key=lambda item: item[0], reverse=True):
        size = len(hole.coords) - 1 if count_holes else 0
        if size <= budget:
            chosen[i].append(hole)
            budget -= size
    return shapely.MultiPolygon([shapely.Polygon(part.exterior, inner) for part, inner in zip(kept, chosen, strict=True)])


def _widest_triangle(ring: shapely.LinearRing) -> NDArray[np.float64]:
    """Three of the ring's vertices: the two farthest apart and the one farthest from their line."""
    points = np.asarray(ring.coords)[:-1]
    distances = np.square(points[:, None] - points[None]).sum(axis=2)
    i, j = np.unravel_index(distances.argmax(), distances.shape)
    (dx, dy), offsets = points[j] - points[i], points - points[i]
    return points[[i, j, np.abs(offsets[:, 0] * dy - offsets[:, 1] * dx).argmax()]]


def _ring_counts(outlines: NDArray[np.object_]) -> NDArray[np.int64]:
    """Rings of each outline, holes among them."""
    parts, owners = shapely.get_parts(outlines, return_index=True)
    rings = 1 + shapely.get_num_interior_rings(parts)
    return np.bincount(owners, rings, minlength=len(outlines)).astype(np.int64)


def _point_counts(outlines: NDArray[np.object_], count_holes: bool) -> NDArray[np.int64]:
    """Vertices of each outline, closing points apart."""
    parts, owners = shapely.get_parts(outlines, return_index=True)
    if count_holes:
        points = shapely.get_num_coordinates(parts) - 1 - shapely.get_num_interior_rings(parts)
    else:
        points = shapely.get_num_coordinates(shapely.get_exterior_ring(parts)) - 1
    return np.bincount(owners, points, minlength=len(outlines)).astype(np.int64)
