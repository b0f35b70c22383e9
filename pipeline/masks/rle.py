"""Masks at original size as COCO run lengths, worked out column by column without making the mask.

    mask_logits ──▶ window, upsampled to network pixels ──▶ each pixel column: where does the logit change sign? ──▶ runs

Between two network pixels the logits of a column are linear, so a sign change is placed by one division. Columns are worked
out in blocks, so that an object which fills 12 Mpx needs no full-size mask (12 MB, or 48 MB as float logits).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.field import MaskWindow, mask_windows
from pipeline.types import MASK_STRIDE_PX, Letterbox

_COLUMNS_AT_ONCE = 256


def mask_logits_to_rle(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> dict[str, object]:
    """Encode one instance's exact mask at original size.

    A pixel belongs to the mask when the logits, upsampled by 8 to network pixels and then sampled bilinearly at the pixel's
    centre, are > 0.

    Args:
        mask_logits: (h, w) float16, (h, w) = letterbox.mask_grid_hw, inside is > 0.
        letterbox: how the grid lies in the original image.
    Returns:
        {"size": [height, width], "counts": str} as pycocotools reads it.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    Source: mmdet 3.3.0 `RTMDetInsHead._bbox_mask_post_process`, with the scale applied as (w, h).
    """
    height, width = letterbox.original_hw
    runs = mask_logits_to_runs(mask_logits, letterbox)
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def mask_logits_to_mask(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.uint8]:
    """Make one instance's full mask, for tests and pictures: (H, W) uint8, 1 is inside. Arguments as `mask_logits_to_rle`."""
    height, width = letterbox.original_hw
    runs = mask_logits_to_runs(mask_logits, letterbox)
    return np.repeat(np.arange(len(runs), dtype=np.int64) % 2, runs).astype(np.uint8).reshape(width, height).T


def rle_to_mask(rle: dict[str, object]) -> NDArray[np.uint8]:
    """Make the full mask of compressed run lengths: (H, W) uint8, 1 is inside. For pictures and annotations, one thread at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools 2.0.11's own
        return np.ascontiguousarray(coco_mask.decode(rle))


def mask_logits_to_runs(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.int64]:
    """Lengths of the runs of 0, 1, 0, ... of one instance's mask, read column by column; they add up to H * W."""
    (window,) = mask_windows(mask_logits[None], letterbox)
    height, width = letterbox.original_hw
    toggles = _toggles(window, letterbox) if window else np.empty(0, dtype=np.int64)
    positions, times = np.unique(toggles, return_counts=True)
    lengths: NDArray[np.int64] = np.diff(positions[times % 2 == 1], prepend=0, append=height * width)
    return lengths


def _toggles(window: MaskWindow, letterbox: Letterbox) -> NDArray[np.int64]:
    """Positions in the column-major mask at which it turns from 0 to 1 or back; one position twice is no change."""
    columns = np.ascontiguousarray(window.upsample(MASK_STRIDE_PX).T)
    scale_x, _ = letterbox.to_original_xy
    left = window.left * MASK_STRIDE_PX
    first = int(max(np.ceil(left * scale_x - 0.5), 0))
    last = int(min(np.ceil((left + len(columns)) * scale_x - 0.5), letterbox.original_hw[1]))
    blocks = [np.arange(a, min(a + _COLUMNS_AT_ONCE, last)) for a in range(first, last, _COLUMNS_AT_ONCE)]
    toggles = [_block_toggles(_sample_columns(columns, (x + 0.5) / scale_x - left - 0.5), x, window, letterbox) for x in blocks]
    return np.concatenate([np.empty(0, np.int64), *toggles])  # the window of a tiny image may lie between two pixel centres


def _sample_columns(columns: NDArray[np.float32], at: NDArray[np.floating]) -> NDArray[np.float32]:
    """Interpolate (w, h) columns linearly at positions `at` (n,), the edge columns repeated: (n, h)."""
    at = np.clip(at, 0, len(columns) - 1)
    left = np.minimum(at.astype(np.int64), len(columns) - 2)
    weight = (at - left).astype(np.float32)[:, None]
    between: NDArray[np.float32] = columns[left] * (1 - weight) + columns[left + 1] * weight
    return between


def _block_toggles(
    logits: NDArray[np.float32], x: NDArray[np.int64], window: MaskWindow, letterbox: Letterbox
) -> NDArray[np.int64]:
    """Toggles of the pixel columns `x` (n,), whose logits at network rows are (n, h)."""
    height, scale_y = letterbox.original_hw[0], letterbox.to_original_xy[1]
    inside = np.zeros((logits.shape[0], logits.shape[1] + 2), dtype=bool)
    inside[:, 1:-1] = logits > 0
    column, row = np.nonzero(inside[:, 1:] != inside[:, :-1])
    above, below = np.maximum(row - 1, 0), np.minimum(row, logits.shape[1] - 1)
    before, after = logits[column, above].astype(np.float64), logits[column, below].astype(np.float64)
    change = before - after
    crossing = above + np.divide(before, change, out=np.zeros_like(change), where=change != 0)
    pixel = (window.top * MASK_STRIDE_PX + crossing + 0.5) * scale_y - 0.5
    first_changed = np.where(inside[column, row + 1], np.floor(pixel) + 1, np.ceil(pixel))
    first_changed[row == 0], first_changed[row == logits.shape[1]] = 0, height
    positions: NDArray[np.int64] = x[column] * height + np.clip(first_changed, 0, height).astype(np.int64)
    return positions
