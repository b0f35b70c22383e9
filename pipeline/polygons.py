"""Masks to polygons without ever making a full-size mask.

    mask_logits ──▶ window, upsampled ──▶ zero level set (contourpy) ──▶ outlines (shapely) ──▶ simplify.py ──▶ rings

The outline is the curve where the interpolated logits are zero, so it is sub-pixel, knows its holes, closes at the image's
borders and costs the same at every image size. Outlines are shapely MultiPolygons, one an instance, so that simplification and
splitting run over all instances of an image at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import contourpy
import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.mask_field import MaskWindow, crop_to_image, mask_windows
from pipeline.simplify import simplify_outlines
from pipeline.types import MASK_STRIDE_PX, Letterbox

SMALLEST_PART_PX2 = 1.0
"""Parts below one original pixel are dropped: a pixel mask could not show them either."""

_STEPS_PX = ((400, 1), (900, 2), (np.inf, 4))
"""Windows up to 20 x 20 cells are contoured at every network pixel, up to 30 x 30 at every second, larger ones at every fourth: two
samples a cell, a quarter of the work of four. Measured on coco_person/val (lowest and mean IoU with the full-size mask): at every
second 0.9989 and 0.9997 of large windows, at every fourth 0.9967 and 0.9987; all windows together 0.9996."""

_BORDER_HAIR_PX = 1e-9

_JUST_OUTSIDE = -1e-6
"""In place of logits that are exactly 0 (outside): no level line then passes through a grid point, so rings never touch."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One part of a mask: its outer ring and the holes in it.

    Args:
        points: (K, 2) float64 x y, K >= 3, first point not repeated at the end.
        holes: rings of the same form inside `points`, largest first.
    """

    points: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()


def mask_logits_to_rings(
    mask_logits: NDArray[np.float16], letterbox: Letterbox, tolerance_px: float = 0.0, max_points: int | None = None
) -> list[Ring]:
    """Trace one instance's mask into rings, keeping holes.

    Args:
        mask_logits: (h, w) float16, (h, w) = letterbox.mask_grid_hw, inside is > 0.
        letterbox: how the grid lies in the original image.
        tolerance_px: largest distance of the outline from the mask edge, original-image pixels; 0 keeps every vertex.
        max_points: largest number of vertices of all rings and holes together; None is no limit.
    Returns:
        Outer rings with their holes, x y in original-image pixels within 0..W, 0..H, largest outer ring first.
        Empty where the mask is.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    Source: contouring in place of `cv2.findContours`, which traces pixel centres (a 10 x 10 mask gets area 81).
    """
    outlines = simplify_outlines(trace_outlines(mask_logits[None], letterbox), tolerance_px, max_points)
    return outlines_to_rings(outlines)[0]


def trace_outlines(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.object_]:
    """Trace the zero level set of every mask.

    Args:
        mask_logits: (N, *letterbox.mask_grid_hw) float16, inside is > 0.
        letterbox: how the grid lies in the original image.
    Returns:
        (N,) shapely MultiPolygons, valid, x y in original-image pixels; empty where a mask leaves no part of one pixel.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    """
    points, ring_ends, part_ends, owners = [np.empty((0, 2))], [0], [0], []
    for owner, window in enumerate(mask_windows(mask_logits, letterbox)):
        for part, offsets in _contour(window, letterbox) if window else ():
            points.append(part)
            ring_ends.extend((offsets[1:].astype(np.int64) + ring_ends[-1]).tolist())
            part_ends.append(len(ring_ends) - 1)
            owners.append(owner)
    ends = np.asarray(ring_ends), np.asarray(part_ends)
    parts = shapely.from_ragged_array(shapely.GeometryType.POLYGON, _onto_border(np.concatenate(points), letterbox), ends)
    large = shapely.area(parts) >= SMALLEST_PART_PX2
    outlines = np.full(len(mask_logits), shapely.MultiPolygon(), dtype=object)
    shapely.multipolygons(parts[large], indices=np.asarray(owners, dtype=np.int64)[large], out=outlines)
    return outlines


def outlines_to_rings(outlines: NDArray[np.object_]) -> list[list[Ring]]:
    """Split outlines into rings, largest outer ring first; repeated points and rings below 3 points fall away.

    Args:
        outlines: (N,) shapely MultiPolygons.
    Returns:
        N lists of rings.
    """
    parts, owners = shapely.get_parts(outlines, return_index=True)
    rings_of: list[list[Ring]] = [[] for _ in outlines]
    if len(parts) == 0:
        return rings_of
    _, points, (ring_ends, part_ends) = shapely.to_ragged_array(parts)
    rings, areas = _open_rings(points, ring_ends), _ring_areas(points, ring_ends)
    part_ends, owners = part_ends.tolist(), owners.tolist()
    for part in np.argsort(-areas[part_ends[:-1]], kind="stable").tolist():
        first, *inner = range(part_ends[part], part_ends[part + 1])
        if len(rings[first]) >= 3:
            holes = sorted((hole for hole in inner if len(rings[hole]) >= 3), key=areas.__getitem__, reverse=True)
            rings_of[owners[part]].append(Ring(rings[first], tuple(rings[hole] for hole in holes)))
    return rings_of


def _ring_areas(points: NDArray[np.float64], ring_ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Areas inside closed rings by the shoelace formula, in squared units of the points.

    Args:
        points: (P, 2) x y of all rings, each closed.
        ring_ends: (R + 1,) where the rings begin and end.
    """
    if len(ring_ends) < 2:
        return np.empty(0)
    counts = np.diff(ring_ends)
    x, y = (points - np.repeat(points[ring_ends[:-1]], counts, axis=0)).T
    cross = np.zeros(len(points))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross[ring_ends[1:] - 1] = 0.0  # from one ring's end to the next one's beginning
    return np.asarray(np.abs(np.add.reduceat(cross, ring_ends[:-1])) / 2)


def _onto_border(points: NDArray[np.float64], letterbox: Letterbox) -> NDArray[np.float64]:
    """Put points that rounding left a hair beside the right or bottom border exactly onto it."""
    for column, border in zip(points.T, reversed(letterbox.original_hw), strict=True):
        column[column > border - _BORDER_HAIR_PX] = border
    return points


def _open_rings(points: NDArray[np.float64], ring_ends: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Cut (P, 2) points into rings, each without its closing point and without repeated points."""
    fresh = np.empty(len(points), dtype=bool)
    fresh[1:] = (points[1:] != points[:-1]).any(axis=1)
    fresh[ring_ends[:-1]] = False
    ends = np.concatenate([[0], np.cumsum(fresh)])[ring_ends].tolist()
    points = points[fresh]
    return [points[first:end] for first, end in itertools.pairwise(ends)]


def _contour(window: MaskWindow, letterbox: Letterbox) -> list[tuple[NDArray[np.float64], NDArray[np.uint32]]]:
    """Parts of one mask: closed points of the outer ring and its holes, with the offsets between them."""
    step = next(step for cells, step in _STEPS_PX if window.logits.size <= cells)
    samples: NDArray = window.upsample(MASK_STRIDE_PX // step)
    samples, y = crop_to_image(samples, step, window.top * MASK_STRIDE_PX, letterbox.scaled_hw[0])
    transposed, x = crop_to_image(samples.T, step, window.left * MASK_STRIDE_PX, letterbox.scaled_hw[1])
    samples = np.array(transposed.T, dtype=np.float64, order="C")
    samples[samples == 0] = _JUST_OUTSIDE
    scale_x, scale_y = letterbox.to_original_xy
    grid_x, grid_y = np.meshgrid(x * scale_x, y * scale_y)
    # The class itself, not contour_generator(): samples are finite, and looking for masked ones costs as much as the contours.
    generator = contourpy.SerialContourGenerator(
        grid_x,
        grid_y,
        samples,
        None,  # type: ignore[arg-type]  # no mask: what contour_generator() passes too
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.OuterOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )
    return list(zip(*generator.filled(0, np.inf), strict=True))
