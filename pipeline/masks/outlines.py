"""Outlines of many masks as flat arrays, the form in which one call handles all of them.

    mask ──1:n──▶ part ──1:n──▶ ring (its outer one, then its holes) ──1:n──▶ point

These are GeoArrow's multipolygons with the repeated last point of each ring left out. Geometry objects are made of them only to ask
GEOS something: for the 1,000 parts and 60,000 points of 100 ragged masks, making and splitting objects took longer than the questions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray


class Outlines(NamedTuple):
    """Outlines of N masks.

    Args:
        points: (P, 2) float64 x y, ring after ring, none closed by a repeated point.
        ring_ends: (R + 1,) int64, ring k is points[ring_ends[k] : ring_ends[k + 1]].
        part_ends: (Q + 1,) int64, part k has the rings part_ends[k] to part_ends[k + 1], its outer one first.
        mask_ends: (N + 1,) int64, mask k has the parts mask_ends[k] to mask_ends[k + 1], maybe none.
    """

    points: NDArray[np.float64]
    ring_ends: NDArray[np.int64]
    part_ends: NDArray[np.int64]
    mask_ends: NDArray[np.int64]

    @property
    def mask_of_ring(self) -> NDArray[np.int64]:
        """(R,) which mask each ring belongs to."""
        return np.repeat(np.arange(len(self.mask_ends) - 1), np.diff(self.part_ends[self.mask_ends]))

    @property
    def outer(self) -> NDArray[np.bool_]:
        """(R,) whether each ring is the outer one of its part; the others are holes."""
        outer = np.zeros(len(self.ring_ends) - 1, dtype=bool)
        outer[self.part_ends[:-1]] = True
        return outer

    def ring_areas(self) -> NDArray[np.float64]:
        """(R,) areas inside the rings, holes or not, in squared units of the points: the shoelace formula."""
        counts = np.diff(self.ring_ends)
        if not counts.all():
            raise ValueError("a ring without points has no area; leave such rings out")
        if len(counts) == 0:
            return np.empty(0)
        first, last = self.ring_ends[:-1], self.ring_ends[1:] - 1
        x, y = self.points.T
        x, y = x - np.repeat(x[first], counts), y - np.repeat(y[first], counts)  # large coordinates cost digits
        cross = np.zeros(len(x))
        cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
        cross[last] = 0.0  # the first point is the origin: the way back to it adds nothing
        return np.asarray(np.abs(np.add.reduceat(cross, first)) / 2)

    def areas(self) -> NDArray[np.float64]:
        """(N,) areas of the masks, holes taken off."""
        signed = self.ring_areas()
        areas = np.bincount(self.mask_of_ring, np.where(self.outer, signed, -signed), minlength=len(self.mask_ends) - 1)
        return areas.astype(np.float64)

    def closed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices into `points` that go around each ring and back to its first point, (P + R,), and the rings' ends in them."""
        rings = np.arange(len(self.ring_ends))
        around = np.arange(len(self.points) + len(self.ring_ends) - 1)
        around -= np.repeat(rings[:-1], np.diff(self.ring_ends) + 1)
        around[self.ring_ends[1:] + rings[:-1]] = self.ring_ends[:-1]
        return around, self.ring_ends + rings

    def to_shapely(self) -> NDArray[np.object_]:
        """(N,) shapely MultiPolygons."""
        around, ends = self.closed()
        shapes: NDArray[np.object_] = shapely.from_ragged_array(
            shapely.GeometryType.MULTIPOLYGON, self.points[around], (ends, self.part_ends, self.mask_ends)
        )
        return shapes

    def take(self, masks: NDArray[np.int64]) -> tuple[Outlines, NDArray[np.int64]]:
        """The outlines of some masks, and the indices of their points in `points`."""
        ends: list[NDArray[np.int64]] = []
        chosen = masks
        for level in (self.mask_ends, self.part_ends, self.ring_ends):
            counts = np.diff(level)[chosen]
            ends.append(np.concatenate([[0], np.cumsum(counts)]))
            chosen = np.repeat(level[chosen] - ends[-1][:-1], counts) + np.arange(ends[-1][-1])
        mask_ends, part_ends, ring_ends = ends
        return Outlines(self.points[chosen], ring_ends, part_ends, mask_ends), chosen

    def filled(self) -> Outlines:
        """The same outlines with all holes filled: holes are gone, and so are the parts that lie in them."""
        holes = ~self.outer
        return self.keep(np.repeat(self.left_by_filling(holes), np.diff(self.ring_ends))) if holes.any() else self

    def left_by_filling(self, holes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(R,) rings that are left when some holes, (R,), are filled: not these, nor parts that lie in them, nor the holes of such parts.

        Expects valid outlines: their rings do not touch, so that one point of a part tells where all of it lies.
        """
        counts = np.diff(self.ring_ends)
        apart = self.points.copy()
        apart[:, 0] += np.repeat(self.mask_of_ring * (np.ptp(self.points[:, 0]) + 1), counts)  # a place for each mask
        of_hole = np.repeat(np.arange(np.count_nonzero(holes)), counts[holes])
        polygons = shapely.polygons(shapely.linearrings(apart[np.repeat(holes, counts)], indices=of_hole))
        parts = shapely.points(apart[self.ring_ends[self.part_ends[:-1]]])
        inside, _ = shapely.STRtree(polygons).query(parts, predicate="within")
        part_stays = np.ones(len(parts), dtype=bool)
        part_stays[inside] = False
        return np.repeat(part_stays, np.diff(self.part_ends)) & ~holes

    def keep(self, points: NDArray[np.bool_]) -> Outlines:
        """Drop all other points; rings without any are gone, and parts without their outer ring."""
        kept_before = np.concatenate([[0], np.cumsum(points)])
        ring_ends = kept_before[self.ring_ends]
        counts = np.diff(ring_ends)
        if counts.all():
            return self._replace(points=self.points[points], ring_ends=ring_ends)
        part_stays = counts[self.part_ends[:-1]] > 0
        ring_stays = (counts > 0) & np.repeat(part_stays, np.diff(self.part_ends))
        points = points & np.repeat(ring_stays, np.diff(self.ring_ends))
        return Outlines(
            self.points[points],
            np.concatenate([[0], np.cumsum(counts[ring_stays])]),
            np.concatenate([[0], np.concatenate([[0], np.cumsum(ring_stays)])[self.part_ends[1:]][part_stays]]),
            np.concatenate([[0], np.cumsum(part_stays)])[self.mask_ends],
        )
