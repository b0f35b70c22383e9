"""The data between the stages. All classes are frozen; shapes and dtypes are checked on construction.

    file or pixels ─▶ ImageLoader ─▶ LoadedImage ─▶ Detector ─▶ Instances ─▶ Polygonizer ─▶ ScoredImage, EncodedImage or DrawnImage

Pixel coordinates are continuous: the pixel in column i and row j covers [i, i+1) x [j, j+1); its centre is (i + 0.5, j + 0.5).
`_hw` is (height, width); `_xy` and `_xyxy` are x before y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageFault, ShapeError

MASK_STRIDE_PX = 8
"""Network pixels between neighbouring mask logits (RTMDet-Ins predicts masks at stride 8)."""

COARSEST_STRIDE_PX = 32
"""Network pixels between neighbouring positions of the coarsest level; the sides of a network input are multiples of it."""


def check_array(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: type | str) -> None:
    """Raise ShapeError unless `array` has this dtype and shape; None in `shape` accepts any length."""
    fits = len(array.shape) == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=False))
    if not fits or array.dtype != np.dtype(dtype):
        wanted = "x".join("*" if n is None else str(n) for n in shape)
        got = "x".join(map(str, array.shape))
        raise ShapeError(f"{name}: expected {np.dtype(dtype)} {wanted}, got {array.dtype} {got}")


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image lies in the network's square input: scaled keeping its ratio, at the top left.

    Args:
        original_hw: image height and width in pixels, after EXIF orientation.
        scaled_hw: height and width of the scaled image inside the input, network pixels.
        size: side of the square network input, pixels.
    """

    original_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size: int

    def __post_init__(self) -> None:
        if min(*self.original_hw, *self.scaled_hw, self.size) < 1 or max(self.scaled_hw) > self.size:
            raise ShapeError(f"letterbox: scaled {self.scaled_hw} of original {self.original_hw} does not fit {self.size}")

    @property
    def to_original_xy(self) -> tuple[float, float]:
        """Factors (x, y) from network pixels to original pixels."""
        return self.original_hw[1] / self.scaled_hw[1], self.original_hw[0] / self.scaled_hw[0]

    @property
    def mask_grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the mask grid that cover the image, plus one cell for interpolation at its edge."""
        full = -(-self.size // MASK_STRIDE_PX)
        height, width = (min(-(-n // MASK_STRIDE_PX) + 1, full) for n in self.scaled_hw)
        return height, width


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """One decoded image, scaled for the network, not yet padded (padding happens when a batch is assembled).

    Args:
        pixels: (h, w, 3) uint8 BGR, scaled to fit `letterbox.size`; h, w = `letterbox.scaled_hw`.
        letterbox: position of these pixels in the network input.
    """

    pixels: NDArray[np.uint8]
    letterbox: Letterbox

    def __post_init__(self) -> None:
        check_array("pixels", self.pixels, (*self.letterbox.scaled_hw, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """Which instances of one image are kept.

    Args:
        score_threshold: keep scores above this, 0..1.
        max_detections: keep at most this many, the highest scores first.
        labels: class indices to keep; None keeps all.
    """

    score_threshold: float = 0.3
    max_detections: int = 100
    labels: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances in one image, highest score first.

    Args:
        boxes: (N, 4) float32 x1 y1 x2 y2, original pixels, clipped to the image.
        scores: (N,) float32, 0..1.
        labels: (N,) int64 class indices.
        mask_logits: (N, *letterbox.mask_grid_hw) float16, inside is > 0; cell (r, c) has its centre at network pixel
            ((c + 0.5) * MASK_STRIDE_PX, (r + 0.5) * MASK_STRIDE_PX). The rest of the network's grid, which is padding, is cut off.
        letterbox: relation of the grid to the original image.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    mask_logits: NDArray[np.float16]
    letterbox: Letterbox

    def __post_init__(self) -> None:
        count = len(self.scores)
        check_array("boxes", self.boxes, (count, 4), np.float32)
        check_array("scores", self.scores, (count,), np.float32)
        check_array("labels", self.labels, (count,), np.int64)
        check_array("mask_logits", self.mask_logits, (count, *self.letterbox.mask_grid_hw), np.float16)

    def __len__(self) -> int:
        return len(self.scores)


Holes = Literal["drop", "rings"]


@dataclass(frozen=True, slots=True)
class OutlineOptions:
    """How an instance's mask is encoded.

    Args:
        tolerance_px: largest distance of the outline from the mask's edge, pixels of the original image; 0 keeps every point.
        max_points: most points of one object's rings together, not counting repeated first points; None means no limit.
        decimals: decimal places of the normalised coordinates; None keeps float64.
        holes: `drop` fills holes, including any parts of the mask inside them; `rings` returns them in `holes`.
        mask_format: `polygon`, or `rle` for COCO RLE of the exact mask at original size and an empty polygon.
        closed: repeat the first point of each ring at its end, as AzureML does.
    """

    tolerance_px: float = 1.0
    max_points: int | None = None
    decimals: int | None = 5
    holes: Holes = "drop"
    mask_format: str = "polygon"
    closed: bool = True


@dataclass(frozen=True, slots=True)
class SegmentedObject:
    """One object in one image; coordinates are fractions of the image's width and height.

    Args:
        box: (x1, y1, x2, y2), 0..1.
        label: class name.
        score: 0..1.
        polygon: outer rings, largest first; each a flat list x1 y1 x2 y2 ..., 0..1, with the first point repeated at its end if
            `OutlineOptions.closed`.
        holes: holes in the same form, if `OutlineOptions.holes` is `rings`; else None.
        rle: COCO run-length encoding {"size": [h, w], "counts": str} at original size, if `OutlineOptions.mask_format` is `rle`.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float
    polygon: list[list[float]]
    holes: list[list[float]] | None = None
    rle: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """The answer for one image.

    Args:
        objects: highest score first.
        timings_ms: milliseconds by stage (`fetch`, `decode`, `queue`, `detect`, `polygonize`).
        fault: the image's error, only with `on_error="isolate"`; then `objects` is empty.
    """

    objects: list[SegmentedObject]
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    fault: ImageFault | None = None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The answer for one image as JSON, encoded in the Polygonizer so that the Ingress only joins bytes.

    Args:
        json: UTF-8 `{"boxes": [...]}`.
        timings_ms: as in ScoredImage.
    """

    json: bytes
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """The answer for one image as a picture: the image with its objects drawn on it.

    Args:
        data: bytes of an image file.
        media_type: such as image/png.
        timings_ms: as in ScoredImage.
    """

    data: bytes
    media_type: str
    timings_ms: Mapping[str, float] = field(default_factory=dict)


Answer = ScoredImage | EncodedImage | DrawnImage
"""The answer for one image: objects for Python callers, encoded bytes for HTTP."""
