"""Rasterises rings to a mask: a pixel is inside if its centre is (even-odd rule). For measurements only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def rings_to_mask(rings: Iterable[NDArray[np.float64]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings, holes among them, by the even-odd rule.

    Args:
        rings: each (K, 2) x y in pixels; pixel (column i, row j) has its centre at (i + 0.5, j + 0.5).
        hw: height and width of the mask.
    Returns:
        (height, width) bool.
    """
    height, width = hw
    starts = [np.asarray(ring, dtype=np.float64) for ring in rings]
    if not starts:
        return np.zeros(hw, dtype=bool)
    a, b = np.concatenate(starts), np.concatenate([np.roll(ring, -1, axis=0) for ring in starts])
    swap = a[:, 0] > b[:, 0]
    a[swap], b[swap] = b[swap], a[swap]
    first, last = (np.clip(np.ceil(p[:, 0] - 0.5), 0, width).astype(np.int64) for p in (a, b))
    edge = np.repeat(np.arange(len(a)), last - first)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    (x, y), (dx, dy) = a[edge].T, (b - a)[edge].T
    row = np.clip(np.ceil(y + (column + 0.5 - x) * dy / dx - 0.5), 0, height).astype(np.int64)
    toggles = np.bincount(column * (height + 1) + row, minlength=width * (height + 1)).reshape(width, height + 1)
    mask: NDArray[np.bool_] = (np.cumsum(toggles[:, :height], axis=1) % 2 == 1).T
    return mask
