"""Scales images into the network's square input, exactly as mmdet's Resize(keep_ratio=True) + Pad.

    (H, W) ─make_letterbox▶ Letterbox      pixels ─scale_to_fit▶ LoadedImage      LoadedImages ─pad_batch▶ (B, S, S, 3)

Images are scaled after decoding and padded when the batch is assembled. An engine that takes images one by one pads less: to
`fitted_input`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError
from pipeline.types import COARSEST_STRIDE_PX, MASK_STRIDE_PX, Letterbox, LoadedImage, check_array

PAD_VALUE = 114
"""Value of the padding in all channels (RTMDet's test config, mmdet 3.3.0)."""

SHORT_SIDES = (0.6, 0.8, 1.0)
"""Short sides of fitted inputs, as shares of the long side: for 16:9, for 4:3 and 3:2, and for all others. For 640: 384, 512, 640 px."""


def make_letterbox(original_hw: tuple[int, int], size: int) -> Letterbox:
    """The letterbox of an image: (height, width) scaled to the largest size that fits a square of `size` pixels, keeping the ratio.

    Rounds as mmcv does, `int(x * scale + 0.5)`, but never to zero: mmcv fails on an image 1,300 times wider than high.
    Source: mmcv 2.1.0 `mmcv/image/geometric.py`, `rescale_size`.
    """
    height, width = original_hw
    scale = size / max(height, width)
    scaled_hw = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    return Letterbox(original_hw=(height, width), scaled_hw=scaled_hw, size=size)


def scale_to_fit(bgr: NDArray[np.uint8], original_hw: tuple[int, int], size: int) -> LoadedImage:
    """Resize decoded pixels (bilinear, no antialiasing, as mmdet) to the scaled size of the full image.

    Args:
        bgr: (h, w, 3) uint8, either the full image or the image decoded at 1/2, 1/4 or 1/8.
        original_hw: height and width of the full image, pixels, after EXIF orientation.
        size: side of the square network input, pixels.
    Returns:
        The image at `make_letterbox(original_hw, size).scaled_hw`, not padded.
    Raises:
        ShapeError: bgr is not uint8 (h, w, 3).
    """
    check_array("bgr", bgr, (None, None, 3), np.uint8)
    letterbox = make_letterbox(original_hw, size)
    if bgr.shape[:2] == letterbox.scaled_hw:
        pixels = bgr
    elif _is_whole_reduction(bgr.shape[:2], original_hw):
        pixels = np.asarray(cv2.resize(bgr, letterbox.scaled_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    else:
        pixels = _resize_partial_reduction(bgr, letterbox)
    return LoadedImage(pixels=pixels, letterbox=letterbox)


def _is_whole_reduction(decoded_hw: tuple[int, ...], original_hw: tuple[int, int]) -> bool:
    return all(original % decoded == 0 for original, decoded in zip(original_hw, decoded_hw, strict=True))


def _resize_partial_reduction(bgr: NDArray[np.uint8], letterbox: Letterbox) -> NDArray[np.uint8]:
    """Resize a JPEG that was decoded at 1/s and whose size is not a multiple of s.

    Its last row and column represent fewer than s pixels, so a plain resize would shift the right edge by up to one network pixel. Here
    each network pixel is sampled at its position in the full image.
    """
    original_h, original_w = letterbox.original_hw
    reduction = 2 ** round(math.log2(max(original_h, original_w) / max(bgr.shape[:2])))
    to_original_x, to_original_y = letterbox.to_original_xy
    scale_x, scale_y = to_original_x / reduction, to_original_y / reduction
    to_decoded = np.array([[scale_x, 0.0, (scale_x - 1) / 2], [0.0, scale_y, (scale_y - 1) / 2]])
    scaled_wh = letterbox.scaled_hw[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(bgr, to_decoded, scaled_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def for_size(image: LoadedImage, size: int) -> LoadedImage:
    """The image for a network input of `size` pixels; the same object if it was made for it.

    Another size comes up while a service changes to a model of another: its stages are replaced one after the other.
    """
    if image.letterbox.size == size:
        return image
    letterbox = make_letterbox(image.letterbox.original_hw, size)
    pixels = cv2.resize(image.pixels, letterbox.scaled_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return LoadedImage(pixels=np.asarray(pixels, np.uint8), letterbox=letterbox)


def fitted_input(scaled_hw: tuple[int, int], size: int) -> tuple[int, int]:
    """The smallest fitted input (height, width) that holds a scaled image and one mask cell of padding on its short side.

    Without that padding, mask AP drops by 0.1, because of masks at that edge (docs/RESULTS.md).

    Args:
        scaled_hw: of a letterbox made for `size`.
        size: side of the square network input, pixels, a multiple of the coarsest stride.
    """
    height, width = scaled_hw
    sides = (math.ceil(share * size / COARSEST_STRIDE_PX) * COARSEST_STRIDE_PX for share in SHORT_SIDES)
    short = next((side for side in sides if side >= min(scaled_hw) + MASK_STRIDE_PX), size)
    return (short, size) if height < width else (size, short)


def pad_batch(images: Sequence[LoadedImage], size: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Put images at the top left of network inputs filled with grey 114.

    Args:
        images: B images made for the same `size`.
        size: side S of the square network input, pixels.
        out: (B or more, H, W, 3) uint8 buffer to write into, H and W from `fitted_input` or S; None allocates (B, S, S, 3).
    Returns:
        (B, H, W, 3) uint8 BGR: the first B inputs of `out`.
    Raises:
        ShapeError: an image was made for another size, or `out` does not fit.
    """
    if out is None:
        out = np.empty((len(images), size, size, 3), np.uint8)
    check_array("out", out, (None, None, None, 3), np.uint8)
    if len(out) < len(images):
        raise ShapeError(f"out: expected room for {len(images)} images, got {len(out)}")
    for padded, image in zip(out, images, strict=False):
        if image.letterbox.size != size:
            raise ShapeError(f"images: expected letterbox size {size}, got {image.letterbox.size}")
        height, width = image.letterbox.scaled_hw
        if height > out.shape[1] or width > out.shape[2]:
            raise ShapeError(f"out: expected room for {height} x {width} pixels, got {out.shape[1]} x {out.shape[2]}")
        padded[:height, :width] = image.pixels
        padded[height:] = PAD_VALUE
        padded[:height, width:] = PAD_VALUE
    return out[: len(images)]
