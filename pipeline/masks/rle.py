"""Computes COCO RLE of masks at original size, column by column, without creating the mask.

    mask_logits ──▶ window ──▶ each pixel column: where does the field change sign on the way down? ──▶ runs

Between two network pixels the field of a column is linear, so a change of sign is found by one division. Between two cells of the same sign
there is none. An object that fills 12 Mpx needs no full-size mask (12 MB, or 48 MB as float logits).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.compiled import compiled
from pipeline.masks.field import find_window, place_in_cells, read_logits
from pipeline.types import MASK_STRIDE_PX, Letterbox


def mask_logits_to_rle(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> dict[str, object]:
    """Encode one instance's exact mask at original size.

    A pixel belongs to the mask when the logits, upsampled by 8 to network pixels and then sampled bilinearly at the pixel's
    centre, are > 0.

    Args:
        mask_logits: (h, w) float16, (h, w) = letterbox.mask_grid_hw, inside is > 0.
        letterbox: how the grid lies in the original image.
    Returns:
        {"size": [height, width], "counts": str}, as in pycocotools.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    Source: mmdet 3.3.0 `RTMDetInsHead._bbox_mask_post_process`, with the scale applied as (w, h).
    """
    height, width = letterbox.original_hw
    runs = mask_logits_to_runs(mask_logits, letterbox)
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def mask_logits_to_runs(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.int64]:
    """Run lengths of one instance's mask at original size (H, W), read column by column.

    Args:
        mask_logits: (h, w) float16, (h, w) = letterbox.mask_grid_hw, inside is > 0.
        letterbox: how the grid lies in the original image.
    Returns:
        (R,) int64: lengths of the runs of 0, 1, 0, ... in pixels, only the first may be 0; they add up to H * W.
    """
    return _find_runs(read_logits(mask_logits[None], letterbox)[0], letterbox.scaled_hw, letterbox.original_hw)


def rle_to_mask(rle: dict[str, object]) -> NDArray[np.uint8]:
    """Decode compressed RLE: (H, W) uint8, 1 is inside. For pictures and annotations. Not thread-safe: it changes warning filters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools 2.0.11's own
        return np.ascontiguousarray(coco_mask.decode(rle))


def counts_to_runs(counts: str) -> NDArray[np.int64]:
    """Compressed run lengths → runs of 0, 1, 0, ...

    Raises:
        ValueError: the counts are damaged.
    Source: the format of cocoapi's `maskApi.c`: 5 bits a character from 48 on, the sixth says that more follow; from the fourth run on,
    the difference from the run before the last.
    """
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("counts are damaged")
    last = np.flatnonzero(digits & 32 == 0)
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > 12:
        raise ValueError("counts are damaged")
    first = last - lengths + 1
    shifts = 5 * (np.arange(len(digits)) - np.repeat(first, lengths))
    values = np.add.reduceat((digits & 31) << shifts, first)
    values -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


@compiled
def _find_runs(logits: NDArray[np.float32], scaled_hw: tuple[int, int], original_hw: tuple[int, int]) -> NDArray[np.int64]:
    """`mask_logits_to_runs` for finite logits."""
    height, width = original_hw
    top, bottom, left, right = find_window(logits)
    window, scale = logits[top:bottom, left:right], width / scaled_hw[1]
    first = max(int(np.ceil(left * MASK_STRIDE_PX * scale - 0.5)), 0)
    end = min(int(np.ceil(right * MASK_STRIDE_PX * scale - 0.5)), width)
    # The window of a tiny image may lie between two pixel centres. A column changes at most once between two cells, and at its end.
    changes = np.zeros(max(end - first, 0) * (len(window) + 1) + 2, np.int64)
    count = 1
    for x in range(first, end):
        column = _sample_column(window, (x + 0.5) / scale - 0.5 - left * MASK_STRIDE_PX)
        count = _find_changes(column, top * MASK_STRIDE_PX, height / scaled_hw[0], x * height, height, changes, count)
    if changes[count - 1] < height * width:
        changes[count] = height * width
        count += 1
    return changes[1:count] - changes[: count - 1]


@compiled
def _sample_column(window: NDArray[np.float32], x: float) -> NDArray[np.float64]:
    """The cells' values down the window at network pixel `x`: interpolated to network pixels, and between these, as mmdet does."""
    pixels = window.shape[1] * MASK_STRIDE_PX
    x = min(max(x, 0.0), pixels - 1.0)
    before = min(int(x), pixels - 2)
    column = np.zeros(len(window))
    for pixel, share in ((before, before + 1 - x), (before + 1, x - before)):
        cell, weight = place_in_cells(pixel + 0.5, window.shape[1])
        for row in range(len(window)):
            left, right = window[row, cell], window[row, min(cell + 1, window.shape[1] - 1)]
            column[row] += share * (left + weight * (right - left))
    return column


@compiled
def _find_changes(
    column: NDArray[np.float64], top: int, scale: float, start: int, height: int, changes: NDArray[np.int64], count: int
) -> int:
    """Append the positions where a column of pixels changes from 0 to 1 or back; returns the new number of changes.

    Args:
        column: (h,) values of the window's cells.
        top: network pixel at which the window begins.
        scale: from network to original pixels.
        start: position of the column's first pixel in the mask.
        height: of the image, pixels.
    """
    cells = len(column)
    inside = column[0] > 0
    if inside:
        count = _change(changes, count, start)
    for cell in range(cells):
        if inside == (column[cell] > 0) == (column[min(cell + 1, cells - 1)] > 0):
            continue
        middle = cell * MASK_STRIDE_PX + MASK_STRIDE_PX // 2
        for row in range(middle, min(middle + MASK_STRIDE_PX, cells * MASK_STRIDE_PX)):
            after = _value_at(column, row)
            if (after > 0) == inside:
                continue
            before = _value_at(column, row - 1)
            y = (top + row - 0.5 + before / (before - after)) * scale - 0.5
            inside = not inside
            changed = int(np.floor(y)) + 1 if inside else int(np.ceil(y))
            count = _change(changes, count, start + min(max(changed, 0), height))
    return _change(changes, count, start + height) if inside else count


@compiled
def _value_at(column: NDArray[np.float64], row: int) -> float:
    """The field at the middle of a network pixel of the window."""
    cell, weight = place_in_cells(row + 0.5, len(column))
    return float(column[cell] + weight * (column[min(cell + 1, len(column) - 1)] - column[cell]))


@compiled
def _change(changes: NDArray[np.int64], count: int, position: int) -> int:
    """Append a change; two changes at the same position cancel out."""
    if count > 1 and changes[count - 1] >= position:
        return count - 1
    changes[count] = position
    return count + 1
