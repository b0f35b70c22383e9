"""The outline of one mask: its rings as flat arrays, for compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.compiled import compiled

MIN_POINTS = 3
"""Fewest points of a ring."""


class Outline(NamedTuple):
    """The rings of one mask. A ring inside no other is an outer ring, a ring inside it is a hole, a ring inside the hole is outer again.

    Args:
        points: (P, 2) float64 x y, ring after ring, the first point of each not repeated at its end.
        ends: (R + 1,) int64, ring k is points[ends[k] : ends[k + 1]].
        parents: (R,) int64, index of the innermost ring around each ring, -1 for none; smaller than the ring's own index.
    """

    points: NDArray[np.float64]
    ends: NDArray[np.int64]
    parents: NDArray[np.int64]


@compiled
def find_holes(parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(R,) whether each ring is a hole."""
    holes = np.zeros(len(parents), np.bool_)
    for ring, parent in enumerate(parents):
        holes[ring] = parent >= 0 and not holes[parent]
    return holes


@compiled
def ring_areas(outline: Outline) -> NDArray[np.float64]:
    """(R,) areas enclosed by the rings, also by holes, in squared units of the points (shoelace formula)."""
    points, ends = outline.points, outline.ends
    areas = np.zeros(len(ends) - 1)
    for ring in range(len(areas)):
        x, y = points[ends[ring]]  # used as the origin: large coordinates cost precision
        for k in range(ends[ring] + 1, ends[ring + 1] - 1):
            areas[ring] += (points[k, 0] - x) * (points[k + 1, 1] - y) - (points[k + 1, 0] - x) * (points[k, 1] - y)
    return np.abs(areas) / 2


@compiled
def mask_area(outline: Outline) -> float:
    """Area of the mask without its holes."""
    return float((ring_areas(outline) * (1 - 2 * find_holes(outline.parents))).sum())


@compiled
def keep_rings(outline: Outline, stays: NDArray[np.bool_]) -> Outline:
    """Keep the rings marked in `stays` (R,); drop the others and everything inside them."""
    points, ends, parents = np.empty_like(outline.points), np.zeros_like(outline.ends), np.empty_like(outline.parents)
    number = np.full(len(stays), -1)
    count = 0
    for ring in range(len(stays)):
        parent = outline.parents[ring]
        if stays[ring] and (parent < 0 or number[parent] >= 0):
            parents[count] = number[parent] if parent >= 0 else -1
            number[ring] = count
            end = ends[count]
            for k in range(outline.ends[ring], outline.ends[ring + 1]):
                points[end, 0], points[end, 1] = outline.points[k, 0], outline.points[k, 1]
                end += 1
            count += 1
            ends[count] = end
    return Outline(points[: ends[count]], ends[: count + 1], parents[:count])


@compiled
def fit_rings(outline: Outline, max_points: int) -> Outline:
    """Keep the largest rings with together at most `max_points` points; a ring is kept only with the ring around it.

    If even the largest ring has too many points, it is reduced to a triangle of its points.
    """
    if len(outline.points) <= max_points:
        return outline
    order, sizes = np.argsort(-ring_areas(outline)), outline.ends[1:] - outline.ends[:-1]
    if sizes[order[0]] > max_points:
        largest = outline.points[outline.ends[order[0]] : outline.ends[order[0] + 1]]
        return Outline(_widest_triangle(largest), np.array([0, MIN_POINTS]), np.array([-1]))
    stays = np.zeros(len(sizes), np.bool_)
    for ring in order:
        parent = outline.parents[ring]
        if sizes[ring] <= max_points and (parent < 0 or stays[parent]):
            stays[ring] = True
            max_points -= sizes[ring]
    return keep_rings(outline, stays)


@compiled
def _widest_triangle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three of a ring's points: the two with the largest distance, and the one farthest from their line."""
    ends, largest = (0, 0), -1.0
    for i in range(len(points)):
        for j in range(i):
            distance = (points[i, 0] - points[j, 0]) ** 2 + (points[i, 1] - points[j, 1]) ** 2
            if distance > largest:
                ends, largest = (i, j), distance
    i, j = ends
    dx, dy = points[j] - points[i]
    third = np.abs((points[:, 0] - points[i, 0]) * dy - (points[:, 1] - points[i, 1]) * dx).argmax()
    triangle: NDArray[np.float64] = points[np.array([i, j, third])]
    return triangle


def to_shapely(outline: Outline) -> shapely.MultiPolygon:
    """The outline as a shapely geometry: each outer ring with its holes, in the order of the rings."""
    rings = np.split(outline.points, outline.ends[1:-1]) if len(outline.parents) else []
    holes = find_holes(outline.parents)
    return shapely.MultiPolygon(
        [
            (rings[outer], [rings[hole] for hole in np.flatnonzero(holes & (outline.parents == outer))])
            for outer in np.flatnonzero(~holes)
        ]
    )
