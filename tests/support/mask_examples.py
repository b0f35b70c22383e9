"""Masks to test outlines with, and the full-size mask that they are held against."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import cv2
import numpy as np
import shapely
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.field import read_logits
from pipeline.masks.outline import Outline, to_shapely
from pipeline.masks.polygons import Polygons, masks_to_polygons
from pipeline.masks.rle import mask_logits_to_runs
from pipeline.masks.simplify import NO_BUDGET, simplify
from pipeline.masks.trace import trace
from pipeline.types import MASK_STRIDE_PX, Letterbox, OutlineOptions


def letterbox_of(height: int, width: int, size: int = 640) -> Letterbox:
    """The letterbox of an image scaled to fit `size`, as mmdet rounds it."""
    scale = size / max(height, width)
    return Letterbox((height, width), (max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)), size)


def full_size_mask(logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.bool_]:
    """The mask that mmdet means, (H, W)."""
    return full_size_logits(logits, letterbox) > 0


def full_size_logits(logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.float64]:
    """What mmdet means: upsample by 8, sample bilinearly at the original's pixel centres with (w, h) scale."""
    network = cv2.resize(logits.astype(np.float32), None, fx=MASK_STRIDE_PX, fy=MASK_STRIDE_PX).astype(np.float64)
    for axis, (original, scaled) in enumerate(zip(letterbox.original_hw, letterbox.scaled_hw, strict=True)):
        at = np.clip((np.arange(original) + 0.5) * scaled / original - 0.5, 0, network.shape[axis] - 1)
        left = np.minimum(at.astype(int), network.shape[axis] - 2)
        weight = (at - left).reshape((-1, 1) if axis == 0 else (1, -1))
        network = network.take(left, axis) * (1 - weight) + network.take(left + 1, axis) * weight
    return network


def ellipse_logits(letterbox: Letterbox, *ellipses: tuple[float, float, float, float], steep: float = 1.0) -> NDArray[np.float16]:
    """Logits of a union of ellipses (centre x, y, radius x, y in cells); a negative radius x cuts a hole."""
    rows, columns = np.mgrid[tuple(slice(0, n) for n in letterbox.mask_grid_hw)]
    logits = np.full(letterbox.mask_grid_hw, -8.0)
    for x, y, radius_x, radius_y in ellipses:
        distance = 1 - np.hypot((columns - x) / abs(radius_x), (rows - y) / radius_y)
        bump = np.clip(distance * min(abs(radius_x), radius_y) * steep, -8, 8)
        logits = np.maximum(logits, bump) if radius_x > 0 else np.minimum(logits, -bump)
    return logits.astype(np.float16)


def trace_outline(mask_logits: NDArray[np.float16], letterbox: Letterbox, *, fill_holes: bool = False) -> Outline:
    """`trace` of one mask (h, w)."""
    return trace(read_logits(mask_logits[None], letterbox)[0], letterbox.scaled_hw, letterbox.original_hw, fill_holes)


def simplify_outline(outline: Outline, tolerance_px: float, max_points: int | None = None) -> Outline:
    """`simplify` to a valid outline; without `max_points` there is no limit."""
    return simplify(outline, float(tolerance_px), NO_BUDGET if max_points is None else max_points, True)


def mask_to_polygons(mask_logits: NDArray[np.float16], letterbox: Letterbox, options: OutlineOptions) -> Polygons:
    """`masks_to_polygons` of one mask (h, w)."""
    (polygons,) = masks_to_polygons(mask_logits[None], letterbox, options)
    return polygons


class Ring(NamedTuple):
    """One part of a mask: its outer ring and the holes in it, (K, 2) float64 x y each, the first point not repeated."""

    points: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]


def mask_logits_to_rings(
    mask_logits: NDArray[np.float16], letterbox: Letterbox, tolerance_px: float = 0.0, max_points: int | None = None
) -> list[Ring]:
    """One mask's parts in original pixels, largest first."""
    outline = to_shapely(simplify_outline(trace_outline(mask_logits, letterbox), tolerance_px, max_points))
    parts = sorted(outline.geoms, key=lambda part: shapely.Polygon(part.exterior).area, reverse=True)
    return [Ring(_open(part.exterior), tuple(_open(hole) for hole in part.interiors)) for part in parts]


def _open(ring: shapely.LinearRing) -> NDArray[np.float64]:
    return shapely.get_coordinates(ring)[:-1]


def mask_logits_to_mask(mask_logits: NDArray[np.float16], letterbox: Letterbox) -> NDArray[np.uint8]:
    """One instance's full mask, (H, W) uint8, written out from its run lengths."""
    height, width = letterbox.original_hw
    runs = mask_logits_to_runs(mask_logits, letterbox)
    return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(width, height).T


def all_rings(rings: list[Ring]) -> list[NDArray[np.float64]]:
    """Outer rings and holes in one list."""
    return [points for ring in rings for points in (ring.points, *ring.holes)]


def decode_rle(rle: dict[str, object]) -> NDArray[np.uint8]:
    """pycocotools' decoding, without numpy's complaint about pycocotools 2.0.11 itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(rle)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; two empty masks agree."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@st.composite
def rough_masks(draw: st.DrawFn) -> tuple[NDArray[np.float16], Letterbox]:
    """Any logits at all: noise at several scales, zeros, saddles; any aspect ratio up to 10:1."""
    height, width = draw(st.sampled_from([(480, 640), (640, 480), (97, 64), (1000, 1000), (63, 630), (700, 70), (333, 500)]))
    letterbox = letterbox_of(height, width, draw(st.sampled_from([320, 640])))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = random.normal(size=letterbox.mask_grid_hw).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), draw(st.sampled_from([0.3, 1.0, 3.0])))
    logits = smooth / max(float(smooth.std()), 1e-6) * draw(st.sampled_from([0.001, 1.0, 30.0])) + draw(
        st.sampled_from([-1.0, 0.0, 1.0])
    )
    return (np.round(logits) if draw(st.booleans()) else logits).astype(np.float16), letterbox
