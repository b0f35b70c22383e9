"""Traces mask logits to rings: the zero contour of the field, by marching squares.

The outline has sub-pixel accuracy, includes holes, and closes at the image's borders; its cost does not depend on the image's size.

    x ─▶      between four samples the contour is a straight line; if two lines are possible, the mean of the four decides
    . . . .   a ring is followed with the inside at its right hand:
    . # # .
    . # # .      outside | inside      both samples ahead are inside: turn left; both outside: turn right; else go straight on
    . . . .
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.masks.field import FINE_CELLS, find_window, place_samples, sample_field
from pipeline.masks.outline import Outline, keep_rings, ring_areas
from pipeline.types import MASK_STRIDE_PX

SMALLEST_RING_PX2 = 1.0
"""Smaller parts and holes are dropped: a pixel mask would not contain them either."""


@compiled
def trace(logits: NDArray[np.float32], scaled_hw: tuple[int, int], original_hw: tuple[int, int], fill_holes: bool) -> Outline:
    """Trace the zero level set of one instance's mask.

    Args:
        logits: (h, w) of the letterbox' mask grid, finite, inside is > 0; of `read_logits`.
        scaled_hw, original_hw: of the image, pixels.
        fill_holes: ignore holes, and parts inside them.
    Returns:
        Valid rings, x y in original pixels within 0..W, 0..H; none if no part has an area of one pixel.
    Not `cv2.findContours`, which traces pixel centres (a 10 x 10 mask gets area 81).
    """
    top, bottom, left, right = find_window(logits)
    step = 1 if (bottom - top) * (right - left) <= FINE_CELLS else MASK_STRIDE_PX
    x, y = place_samples(left, right, step, scaled_hw[1]), place_samples(top, bottom, step, scaled_hw[0])
    window = logits[top:bottom, left:right]
    if window.size == 0:
        return Outline(np.empty((0, 2)), np.zeros(1, np.int64), np.empty(0, np.int64))
    samples = sample_field(window, x - left * MASK_STRIDE_PX, y - top * MASK_STRIDE_PX)
    rings = _trace_rings(
        samples, _to_original(x, scaled_hw[1], original_hw[1]), _to_original(y, scaled_hw[0], original_hw[0]), fill_holes
    )
    return keep_rings(rings, ring_areas(rings) >= SMALLEST_RING_PX2)


@compiled
def _to_original(positions: NDArray[np.float64], scaled: int, original: int) -> NDArray[np.float64]:
    """Network to original pixels, exact at the image's end; the first and last position are repeated, so contours close at the border."""
    placed = np.empty(len(positions) + 2)
    for k, position in enumerate(positions):
        placed[k + 1] = original if position == scaled else position * (original / scaled)
    placed[0], placed[-1] = placed[1], placed[-2]
    return placed


@compiled
def _trace_rings(samples: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64], fill_holes: bool) -> Outline:
    """All rings around samples above 0.

    Along a row, each change of sign enters or leaves a ring. A change that is on no ring yet starts a new ring, which lies inside the ring
    entered last and not left.
    """
    # Room for a change between any two neighbours. Memory that is not written is not allocated.
    points = np.empty((2 * samples.size, 2))
    ends, parents = np.zeros(samples.size // 2, np.int64), np.empty(samples.size // 2, np.int64)
    ring_at = np.full(samples.shape, -1, np.int32)
    count = 0
    for row in range(1, samples.shape[0] - 1):
        inside, around = False, -1
        for column in range(samples.shape[1] - 1):
            if (samples[row, column + 1] > 0) == inside:
                continue
            inside = not inside
            ring = int(ring_at[row, column])
            if ring < 0:
                if fill_holes and around >= 0:
                    continue
                ring = count
                parents[ring] = around
                ends[ring + 1] = _follow(samples, x, y, (row, column), ring, ring_at, points, ends[ring])
                count += 1
            around = parents[ring] if ring == around else ring
    return Outline(points[: ends[count]], ends[: count + 1], parents[:count])


@compiled
def _follow(
    samples: NDArray[np.float32],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    start: tuple[int, int],
    ring: int,
    ring_at: NDArray[np.int32],
    points: NDArray[np.float64],
    first: int,
) -> int:
    """Follow one ring, starting between the sample `start` and the next one in its row.

    Writes its points from index `first`, and its number into `ring_at` where it crosses a row. Returns the end index of its points.
    """
    row, column = start
    down, right = (1, 0) if samples[start] > 0 else (-1, 0)
    # (row, column) is the sample on the left, always outside; the one on the right, inside, is (row + right, column - down).
    column += down == 1
    start, heading = (row, column), down
    end = first
    while True:
        other_row, other_column = row + right, column - down
        if right == 0:
            ring_at[row, min(column, other_column)] = ring
        outside, inside = samples[row, column], samples[other_row, other_column]
        share = np.float64(outside) / (np.float64(outside) - np.float64(inside))
        point_x, point_y = x[column] + share * (x[other_column] - x[column]), y[row] + share * (y[other_row] - y[row])
        if end == first or point_x != points[end - 1, 0] or point_y != points[end - 1, 1]:
            points[end, 0], points[end, 1] = point_x, point_y
            end += 1
        ahead_left, ahead_right = samples[row + down, column + right], samples[other_row + down, other_column + right]
        # Added up by diagonals: so both ways through the four round alike, and a ring comes back to its start.
        if ahead_left > 0 and (ahead_right > 0 or (inside + ahead_left) + (outside + ahead_right) > 0):
            down, right = -right, down
        elif ahead_right > 0:
            row, column = row + down, column + right
        else:
            row, column = other_row + down, other_column + right
            down, right = right, -down
        if right == 0 and down == heading and (row, column) == start:
            break
    repeats = end - first > 1 and points[end - 1, 0] == points[first, 0] and points[end - 1, 1] == points[first, 1]
    return end - 1 if repeats else end
