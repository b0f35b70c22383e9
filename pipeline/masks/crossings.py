"""Finds segments of rings that cross or touch, and rings that lie inside the wrong ring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.masks.outline import Outline

_ROUNDING = 4e-16
"""Relative error bound of the orientation test, below which its sign may be wrong. Source: Shewchuk 1997, `ccwerrboundA`."""


@compiled
def is_tangled(outline: Outline) -> bool:
    """Whether segments cross or touch, or a ring is not inside the rings that `outline.parents` says."""
    return bool(find_crossings(outline).any()) or len(find_misplaced(outline)) > 0


@compiled
def find_crossings(outline: Outline) -> NDArray[np.bool_]:
    """(P,) bool: whether the segment from each point to the next of its ring crosses or touches another; a sweep from left to right."""
    xy, ends = outline.points, outline.ends
    following = np.arange(1, len(xy) + 1)
    for ring in range(len(ends) - 1):
        following[ends[ring + 1] - 1] = ends[ring]
    left = np.empty(len(xy))
    for k, after in enumerate(following):
        left[k] = min(xy[k, 0], xy[after, 0])
    order = np.argsort(left)
    boxes = np.empty((len(xy), 4))  # left, top, right, bottom of each segment, in this order
    for index, k in enumerate(order):
        after = following[k]
        boxes[index, 0], boxes[index, 1] = left[k], min(xy[k, 1], xy[after, 1])
        boxes[index, 2], boxes[index, 3] = max(xy[k, 0], xy[after, 0]), max(xy[k, 1], xy[after, 1])
    crossings = np.zeros(len(xy), np.bool_)
    for i in range(len(xy)):
        for j in range(i + 1, len(xy)):
            if boxes[j, 0] > boxes[i, 2]:
                break
            if boxes[j, 1] <= boxes[i, 3] and boxes[i, 1] <= boxes[j, 3] and _meet(xy, following, order[i], order[j]):
                crossings[order[i]] = crossings[order[j]] = True
    return crossings


@compiled
def find_misplaced(outline: Outline) -> list[tuple[int, int]]:
    """Pairs of rings (a, b) for which "a is inside b" contradicts `outline.parents`. Expects no crossings."""
    xy, ends, parents = outline
    boxes = np.empty((len(parents), 4))  # left, top, right, bottom of each ring
    for ring in range(len(parents)):
        left, top, right, bottom = np.inf, np.inf, -np.inf, -np.inf
        for k in range(ends[ring], ends[ring + 1]):
            left, top, right, bottom = min(left, xy[k, 0]), min(top, xy[k, 1]), max(right, xy[k, 0]), max(bottom, xy[k, 1])
        boxes[ring, 0], boxes[ring, 1], boxes[ring, 2], boxes[ring, 3] = left, top, right, bottom
    misplaced = [(0, 0) for _ in range(0)]  # an empty list whose element type Numba can infer
    for ring in range(len(parents)):
        for other in range(len(parents)):
            inside = boxes[other, 0] < boxes[ring, 0] and boxes[ring, 2] < boxes[other, 2]
            inside = inside and boxes[other, 1] < boxes[ring, 1] and boxes[ring, 3] < boxes[other, 3]
            inside = inside and encloses(xy[ends[other] : ends[other + 1]], xy[ends[ring], 0], xy[ends[ring], 1])
            if other != ring and inside != _belongs_in(ring, other, parents):
                misplaced.append((ring, other))
    return misplaced


@compiled
def encloses(ring: NDArray[np.float64], x: float, y: float) -> bool:
    """Whether a ring (n, 2) x y, closed or not, encloses a point: counts the edges that a ray to the right crosses."""
    inside = False
    before = len(ring) - 1
    for k in range(len(ring)):
        if (ring[k, 1] > y) != (ring[before, 1] > y):
            share = (y - ring[k, 1]) / (ring[before, 1] - ring[k, 1])
            if x < ring[k, 0] + share * (ring[before, 0] - ring[k, 0]):
                inside = not inside
        before = k
    return inside


@compiled
def _meet(xy: NDArray[np.float64], following: NDArray[np.int64], i: int, j: int) -> bool:
    """Whether two segments with overlapping boxes meet, other than at the shared point of consecutive segments."""
    if following[j] == i:
        i, j = j, i
    ax, ay, bx, by = xy[i, 0], xy[i, 1], xy[following[i], 0], xy[following[i], 1]
    cx, cy, dx, dy = xy[j, 0], xy[j, 1], xy[following[j], 0], xy[following[j], 1]
    if following[i] == j:
        return _side(ax, ay, bx, by, dx, dy) == 0 and (bx - ax) * (dx - cx) + (by - ay) * (dy - cy) <= 0
    if _side(ax, ay, bx, by, cx, cy) * _side(ax, ay, bx, by, dx, dy) > 0:
        return False
    return not _side(cx, cy, dx, dy, ax, ay) * _side(cx, cy, dx, dy, bx, by) > 0


@compiled
def _side(ax: float, ay: float, bx: float, by: float, cx: float, cy: float) -> int:
    """On which side of the line from a to b the point c is: -1 or 1; 0 if it is on the line within rounding errors."""
    first, second = (bx - ax) * (cy - ay), (by - ay) * (cx - ax)
    if abs(first - second) <= _ROUNDING * (abs(first) + abs(second)):
        return 0
    return 1 if first > second else -1


@compiled
def _belongs_in(ring: int, other: int, parents: NDArray[np.int64]) -> bool:
    """Whether `other` is one of the rings around `ring`."""
    around = parents[ring]
    while around >= 0 and around != other:
        around = parents[around]
    return bool(around == other)
