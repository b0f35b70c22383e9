"""Turns one image, encoded or as an array, into the input of the detector."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.images.decode import DecodeLimits, check_pixel_count, decode_stored
from pipeline.images.letterbox import make_letterbox, scale_to_fit
from pipeline.images.orientation import rotate_upright
from pipeline.types import LoadedImage


def load_image(data: bytes | NDArray[np.uint8], limits: DecodeLimits, size: int) -> LoadedImage:
    """Decode and scale one image for a network input of `size` x `size` pixels.

    Args:
        data: an encoded image file, or pixels: uint8 (H, W, 3) RGB or (H, W) grey.
        limits: limits and options; for arrays only `max_pixels`.
        size: side of the square network input, pixels.
    Returns:
        The scaled image, not padded.
    Raises:
        ImageError: not decodable, an unsupported format, or an array of another shape or dtype.
        LimitExceeded: too many bytes or pixels.
    """
    if isinstance(data, np.ndarray):
        bgr = pixels_to_bgr(data, limits)
        return scale_to_fit(bgr, (bgr.shape[0], bgr.shape[1]), size)
    stored = decode_stored(data, limits, size)
    # Scaled before rotating: the partial blocks of a reduced JPEG are at its right and bottom edge.
    scaled = scale_to_fit(stored.bgr, stored.full_hw, size)
    return LoadedImage(rotate_upright(scaled.pixels, stored.orientation), make_letterbox(stored.upright_hw, size))


def pixels_to_bgr(pixels: NDArray[Any], limits: DecodeLimits) -> NDArray[np.uint8]:
    """Check pixels from a caller and convert them to BGR.

    Args:
        pixels: uint8 (H, W, 3) RGB or (H, W) grey, any strides.
        limits: only `max_pixels` is used.
    Returns:
        (H, W, 3) uint8 BGR, contiguous, a copy.
    Raises:
        ImageError: another dtype or shape, or no pixels.
        LimitExceeded: too many pixels.
    """
    is_grey, is_rgb = pixels.ndim == 2, pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.dtype != np.uint8 or not (is_grey or is_rgb):
        got = f"{pixels.dtype} {pixels.shape}"
        raise ImageError(f"Expected pixels as uint8 (H, W, 3) RGB or (H, W) grey, got {got}.", code="unsupported_image_format")
    check_pixel_count((pixels.shape[1], pixels.shape[0]), limits.max_pixels)
    to_bgr = cv2.COLOR_RGB2BGR if is_rgb else cv2.COLOR_GRAY2BGR
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), to_bgr), np.uint8)
