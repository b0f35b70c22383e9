"""Masks to polygons without ever making a full-size mask.

    mask_logits ──▶ windows, upsampled ──▶ sheets of many windows ──▶ zero level set (contourpy) ──▶ outlines.py
                                                                                   rings ◀── simplify.py ◀──┘

The outline is the curve where the interpolated logits are zero, so it is sub-pixel, knows its holes, closes at the image's
borders and costs the same at every image size. Everything but the windows' interpolation runs over all instances of an image at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import contourpy
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masks.field import MaskWindow, crop_to_image, mask_windows
from pipeline.masks.outlines import Outlines
from pipeline.masks.simplify import simplify_outlines
from pipeline.types import MASK_STRIDE_PX, Letterbox

SMALLEST_PART_PX2 = 1.0
"""Parts below one original pixel are dropped: a pixel mask could not show them either."""

_FINE_CELLS = 400
"""Windows up to 20 x 20 cells are contoured at every network pixel, larger ones on the logits' own grid, 64 times fewer samples. In
between is worse than either: chords between points that lie off the grid. Measured on 392 instances of the embedded model on
coco_person/val, IoU of larger windows with the full-size mask (mean, lowest): at every network pixel 1.0000, at every fourth 0.9933 and
0.981, on the grid 0.9952 and 0.985; with the default tolerance 0.9931, 0.9886 and 0.9916."""

_SHEET_SAMPLES = 200_000
"""Most samples of several windows traced together; 25 bytes each for the time."""

_BORDER_HAIR_PX = 1e-9

_INSIDE = 1.0
"""In place of the logits of holes that are filled: anything above 0."""

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


def trace_outlines(mask_logits: NDArray[np.float16], letterbox: Letterbox, *, fill_holes: bool = False) -> Outlines:
    """Trace the zero level set of every mask.

    Args:
        mask_logits: (N, *letterbox.mask_grid_hw) float16, inside is > 0.
        letterbox: how the grid lies in the original image.
        fill_holes: leave holes out, and the parts that lie in them. Two thirds of the rings of ragged masks are holes.
    Returns:
        Outlines of the N masks, valid, x y in original-image pixels; without parts where a mask leaves none of one pixel.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    """
    windows = [_sample(owner, window, letterbox) for owner, window in enumerate(mask_windows(mask_logits, letterbox)) if window]
    parts, owners = _joined([_contour(sheet, fill_holes) for sheet in _sheets(windows)])
    order = np.argsort(owners, kind="stable")
    order = order[parts.areas()[order] >= SMALLEST_PART_PX2 - _BORDER_HAIR_PX]
    parts, _ = parts.take(order)
    mask_ends = np.concatenate([[0], np.cumsum(np.bincount(owners[order], minlength=len(mask_logits)))])
    outlines = parts._replace(points=_onto_border(parts.points, letterbox), mask_ends=mask_ends)
    return outlines.filled() if fill_holes else outlines


class RingTable(NamedTuple):
    """The rings of many outlines, those of fewer than 3 points left out.

    Args:
        points: (P, 2) x y of all rings, one after the other, none closed, no point repeated.
        ends: ring k is points[ends[k] : ends[k + 1]].
        outer: for each outline the numbers of its outer rings, largest first.
        holes: for an outer ring that has holes their numbers, largest first.
    """

    points: NDArray[np.float64]
    ends: list[int]
    outer: list[list[int]]
    holes: dict[int, list[int]]


def split_outlines(outlines: Outlines, to_units: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None) -> RingTable:
    """Split outlines into their rings.

    Args:
        outlines: of N masks.
        to_units: takes all points, (P, 2) x y, to what they are wanted in, before repeated ones are looked for.
    """
    if to_units:
        outlines = outlines._replace(points=to_units(outlines.points))
    areas = outlines.ring_areas()
    points, ends = _without_repeats(outlines)
    drawn = np.diff(ends) >= 3
    part_ends, mask_of_part = outlines.part_ends, np.repeat(np.arange(len(outlines.mask_ends) - 1), np.diff(outlines.mask_ends))
    firsts = part_ends[:-1]
    order = np.lexsort((-areas[firsts], mask_of_part))
    order = order[drawn[firsts[order]]]
    ends_of_masks = np.cumsum(np.bincount(mask_of_part[order], minlength=len(outlines.mask_ends) - 1)).tolist()
    outer = firsts[order].tolist()
    holes = {}
    for part in np.flatnonzero(np.diff(part_ends) > 1).tolist():
        inner = np.arange(part_ends[part] + 1, part_ends[part + 1])
        inner = inner[drawn[inner]]
        holes[int(part_ends[part])] = inner[np.argsort(-areas[inner], kind="stable")].tolist()
    return RingTable(points, ends.tolist(), [outer[i:j] for i, j in itertools.pairwise([0, *ends_of_masks])], holes)


def outlines_to_rings(outlines: Outlines) -> list[list[Ring]]:
    """The rings of N masks as N lists, largest outer ring first."""
    points, ends, outer, holes = split_outlines(outlines)
    rings = [points[first:end] for first, end in itertools.pairwise(ends)]
    return [[Ring(rings[k], tuple(rings[hole] for hole in holes.get(k, ()))) for k in own] for own in outer]


def _onto_border(points: NDArray[np.float64], letterbox: Letterbox) -> NDArray[np.float64]:
    """Put points that rounding left a hair beside the right or bottom border exactly onto it."""
    for column, border in zip(points.T, reversed(letterbox.original_hw), strict=True):
        column[column > border - _BORDER_HAIR_PX] = border
    return points


def _without_repeats(outlines: Outlines) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points without those that repeat the one before them in their ring, and the (R + 1,) ends of the rings."""
    points, ring_ends = outlines.points, outlines.ring_ends
    before = np.arange(-1, len(points) - 1)
    before[ring_ends[:-1]] = ring_ends[1:] - 1
    fresh = (points != points[before]).any(axis=1)
    return points[fresh], np.concatenate([[0], np.cumsum(fresh)])[ring_ends]


class _Samples(NamedTuple):
    """One window's logits, and where they lie: x (w,) and y (h,) in original pixels."""

    owner: int
    logits: NDArray[np.float32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


class _Traced(NamedTuple):
    """Parts of many masks, each as if it were a mask of its own; the mask that each belongs to."""

    parts: Outlines
    owners: NDArray[np.int64]


def _sample(owner: int, window: MaskWindow, letterbox: Letterbox) -> _Samples:
    fine = window.logits.size <= _FINE_CELLS
    step, samples = (1, window.upsample(MASK_STRIDE_PX)) if fine else (MASK_STRIDE_PX, window.logits)
    samples, y = crop_to_image(samples, step, window.top * MASK_STRIDE_PX, letterbox.scaled_hw[0])
    transposed, x = crop_to_image(samples.T, step, window.left * MASK_STRIDE_PX, letterbox.scaled_hw[1])
    scale_x, scale_y = letterbox.to_original_xy
    return _Samples(owner, transposed.T, x * scale_x, y * scale_y)


def _sheets(windows: list[_Samples]) -> Iterator[list[_Samples]]:
    """Group windows of like widths, so that little of a sheet is empty and none is large."""
    sheet: list[_Samples] = []
    height = 0
    for window in sorted(windows, key=lambda window: len(window.x)):
        if sheet and (height + len(window.y)) * len(window.x) > _SHEET_SAMPLES:
            yield sheet
            sheet, height = [], 0
        sheet.append(window)
        height += len(window.y) + 1
    if sheet:
        yield sheet


def _contour(windows: list[_Samples], fill_holes: bool) -> _Traced:
    """Trace windows that lie below each other, a masked row between any two.

    Rows keep their number as y until the contours are there: it tells whose they are.

    Args:
        windows: of one sheet.
        fill_holes: leave out nearly all holes; those that touch the outside across a corner may stay.
    """
    tops = np.cumsum([0, *(len(window.y) + 1 for window in windows)])
    shape = int(tops[-1]), max(len(window.x) for window in windows)
    logits, x, y, masked = np.zeros(shape), np.zeros(shape), np.empty(shape), np.ones(shape, dtype=bool)
    y[:], y_of_row = np.arange(shape[0])[:, None], np.zeros(shape[0])
    for top, window in zip(tops.tolist(), windows, strict=False):
        place = slice(top, top + len(window.y)), slice(len(window.x))
        logits[place], x[place], masked[place], y_of_row[place[0]] = window.logits, window.x, False, window.y
    logits[logits == 0] = _JUST_OUTSIDE
    if fill_holes:
        logits[_holes(logits)] = _INSIDE
    generator = contourpy.SerialContourGenerator(
        x,
        y,
        logits,
        masked,
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.ChunkCombinedOffsetOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )
    (points,), (rings,), (parts,) = cast(Any, generator.filled(0, np.inf))
    if points is None:
        return _joined([])
    ring_ends, part_ends = rings.astype(np.int64), parts.astype(np.int64)
    owner_of = np.array([window.owner for window in windows])
    # Half a row of margin, the masked row's: interpolated along a window's first row, y may come out a hair above it.
    owners = owner_of[np.searchsorted(tops - 0.5, points[ring_ends[part_ends[:-1]], 1]) - 1]
    points[:, 1] = np.interp(points[:, 1], np.arange(shape[0]), y_of_row)
    repeated = np.zeros(len(points), dtype=bool)
    repeated[ring_ends[1:] - 1] = True
    ring_ends -= np.arange(len(ring_ends))
    return _Traced(Outlines(points[~repeated], ring_ends, part_ends, np.arange(len(part_ends))), owners)


def _holes(logits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Samples that are not inside, nor connected to the edge of the sheet by such, corners counting as connections.

    All their neighbours are inside or holes, so that no line between inside and outside comes near them.
    """
    outside = cv2.copyMakeBorder((logits <= 0).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    cv2.floodFill(outside, None, (0, 0), 0, flags=8)
    return np.asarray(outside[1:-1, 1:-1], np.uint8).view(np.bool_)


def _joined(traced: list[_Traced]) -> _Traced:
    """Many sheets as one."""
    sheets = [sheet.parts for sheet in traced]
    ends = [np.concatenate([[0], *(np.diff(sheet[level]) for sheet in sheets)]).cumsum() for level in (1, 2, 3)]
    points = np.concatenate([np.empty((0, 2)), *(sheet.points for sheet in sheets)])
    owners = np.concatenate([np.empty(0, np.int64), *(sheet.owners for sheet in traced)])
    return _Traced(Outlines(points, *ends), owners)
