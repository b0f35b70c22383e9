"""One instance's mask as a continuous field, looked at only where it is positive.

    mask_logits (h, w) float16 ──▶ window around the positive cells ──▶ bilinear, x8 ──▶ logits at network pixels

mmdet upsamples the logits by 8 to network pixels and samples that picture bilinearly at the pixels of the original. The same
field is used here, so that outlines and run-length masks agree with each other and with mmdet's full-size masks. Nothing of the
size of the original image is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.types import Letterbox

_LARGEST_LOGIT = float(np.finfo(np.float16).max)
_NAN_LOGIT = -1.0
_MARGIN_CELLS = 2


@dataclass(frozen=True, slots=True)
class MaskWindow:
    """The part of a mask that matters: all positive cells and two more on each side, where there are.

    One would do for the upsampled logits; sampled between network pixels, the zero line can feel the cell after it.

    Args:
        logits: (h, w) float32, finite, inside is > 0.
        top: row of `logits[0]` in the mask grid.
        left: column of `logits[:, 0]` in the mask grid.
    """

    logits: NDArray[np.float32]
    top: int
    left: int

    def upsample(self, factor: int) -> NDArray[np.float32]:
        """Interpolate bilinearly to (h * factor, w * factor), edges repeated: `F.interpolate(align_corners=False)`."""
        return np.asarray(cv2.resize(self.logits, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def mask_windows(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> list[MaskWindow | None]:
    """Cut the window of each mask out of its grid.

    NaN counts as outside, infinities as the largest finite logit.

    Args:
        mask_logits: (N, *letterbox.mask_grid_hw) float16, inside is > 0.
        letterbox: how the grid lies in the original image.
    Returns:
        N windows; None where no cell is positive.
    Raises:
        ShapeError: mask_logits does not fit the letterbox.
    """
    if mask_logits.ndim != 3 or mask_logits.shape[1:] != letterbox.mask_grid_hw or mask_logits.dtype != np.float16:
        raise ShapeError(f"mask_logits: expected float16 *x{letterbox.mask_grid_hw}, got {mask_logits.dtype} {mask_logits.shape}")
    inside = mask_logits.view(np.int16) > 0  # the same as > 0 for all but NaN, and six times as fast
    rows, columns = np.asarray(inside.any(axis=2)), np.asarray(inside.any(axis=1))
    return [_cut(*item) for item in zip(mask_logits, rows, columns, strict=True)]


def crop_to_image(samples: NDArray[Any], step: int, first: int, image_end: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Make samples along axis 0 begin and end exactly at the image's borders, where the window reaches them.

    Args:
        samples: (n, m) logits at network pixels `first + (i + 0.5) * step`.
        step: network pixels between samples.
        first: network pixel at which the window begins; 0 is the image's border.
        image_end: network pixel at which the image ends.
    Returns:
        The samples, and their (n,) float64 positions in network pixels.
    """
    positions: NDArray[np.float64] = np.asarray(first + (np.arange(len(samples)) + 0.5) * step)
    if first == 0:
        samples, positions = np.concatenate([samples[:1], samples]), np.concatenate([[0.0], positions])
    if positions[-1] + step / 2 < image_end:
        return samples, positions
    last = int(np.searchsorted(positions, image_end))
    border = samples[-1]
    if last < len(samples):
        weight = np.float32((image_end - positions[last - 1]) / (positions[last] - positions[last - 1]))
        border = samples[last - 1] + weight * (samples[last] - samples[last - 1])
    return np.concatenate([samples[:last], border[None]]), np.concatenate([positions[:last], [image_end]])


def _cut(logits: NDArray[np.float16], rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> MaskWindow | None:
    if not rows.any():
        return None
    (top, bottom), (left, right) = _extent(rows), _extent(columns)
    cut = logits[top:bottom, left:right].astype(np.float32)
    if not np.isfinite(cut).all():
        np.nan_to_num(cut, copy=False, nan=_NAN_LOGIT, posinf=_LARGEST_LOGIT, neginf=-_LARGEST_LOGIT)
    return MaskWindow(cut, top, left)


def _extent(positive: NDArray[np.bool_]) -> tuple[int, int]:
    """First and one-past-last index to cut."""
    first, last = int(positive.argmax()), len(positive) - int(positive[::-1].argmax())
    return max(first - _MARGIN_CELLS, 0), min(last + _MARGIN_CELLS, len(positive))
