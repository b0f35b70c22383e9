"""Any Pillow mode to BGR bytes, strip by strip, so that a big photo is held twice at most.

    1 L P RGB YCbCr HSV CMYK ─────────────────▶ convert("RGB")            ─┐
    LA La PA RGBA RGBa, tRNS ─▶ RGBA ─────────▶ laid on white             ─┤
    LAB ──────────────────────────────────────▶ littleCMS, Lab D50 → sRGB ─┼─▶ BGR uint8
    I;16* I F, RGB of 16 bits ────────────────▶ scaled to 0..255, rounded ─┘

Values of more than 8 bits, grey or coloured, are scaled by one rule: white is 255, 4095 or 65535 (8, 12 and 16 bits), the smallest that
holds the image's highest value; cameras and microscopes store 12 bits in 16-bit files, which would be all but black. Where some frames of a
series stay below 4096 and others do not, their brightness jumps: `white_level` sets one white for all. Float values have 1 as a white, too.
Embedded ICC profiles are ignored, as cv2 and mmdet do (CMYK is converted without one; Pillow undoes Adobe's inversion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.images.wide_values import FULL_SCALES, white_of

STRIP_PIXELS = 2**16
"""Converted at a time: small enough for the cache. Measured at 12 Mpx: 18 ms against 53 ms in one piece."""

HIGHEST_DARK = 15
"""Upper byte of the brightest value that fits 12 bits."""

StripConverter = Callable[[Image.Image], NDArray[np.uint8]]


def image_to_bgr(
    image: Image.Image, white_level: int | None = None, lower_bytes: Callable[[], NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode; transparent parts become white.

    Args:
        image: loaded or loadable Pillow image.
        white_level: white of integers of more than 8 bits; None: by the rule above.
        lower_bytes: of an image of 16 bits a colour, gives the lower bytes of its colours, (H, W, 3) RGB.
    Returns:
        (H, W, 3) uint8 BGR.
    Raises:
        whatever Pillow raises on damaged pixel data; ValueError for a mode that has no colours.
    """
    image.load()
    if lower_bytes and (white := _wide_white(image, white_level, lower_bytes)):
        return _wide_to_bgr(image, white, lower_bytes())
    convert = _choose_converter(image, white_level)
    bgr = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        bgr[top : top + strip.height] = convert(strip)
    return bgr


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _choose_converter(image: Image.Image, white_level: int | None) -> StripConverter:
    if image.mode.startswith(("I", "F")):
        return _range_converter(image, white_level)
    if image.mode == "LAB":
        return _lab_converter()
    if image.has_transparency_data:
        return _on_white
    return _plain_to_bgr


def _plain_to_bgr(strip: Image.Image) -> NDArray[np.uint8]:
    pixels = (strip if strip.mode == "RGB" else strip.convert("RGB")).tobytes("raw", "BGR")
    return np.frombuffer(pixels, np.uint8).reshape(strip.height, strip.width, 3)


def _on_white(strip: Image.Image) -> NDArray[np.uint8]:
    rgba = strip if strip.mode == "RGBA" else _to_rgba(strip)
    white = Image.new("RGB", strip.size, "white")
    white.paste(rgba, mask=rgba)
    return _plain_to_bgr(white)


def _to_rgba(strip: Image.Image) -> Image.Image:
    return (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")


def _lab_converter() -> StripConverter:
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

    def lab_to_bgr(strip: Image.Image) -> NDArray[np.uint8]:
        return _plain_to_bgr(cast(Image.Image, ImageCms.applyTransform(strip, to_srgb)))  # None only where it works in place

    return lab_to_bgr


def _range_converter(image: Image.Image, white_level: int | None) -> StripConverter:
    """Scale wide grey values to 0..255 from black to the white of the rule above, or from their own range where some are below 0."""
    low, high = _finite_range(image)
    if low >= 0:
        is_fraction = image.mode == "F" and high <= 1
        low, high = 0.0, 1.0 if is_fraction else white_of(high, None if image.mode == "F" else white_level)
    factor = 255.0 / (high - low) if high > low else 0.0

    def range_to_bgr(strip: Image.Image) -> NDArray[np.uint8]:
        values = np.nan_to_num(np.asarray(strip, np.float64), nan=low, posinf=high, neginf=low)
        grey = np.rint((values - low) * factor).clip(0, 255).astype(np.uint8)
        return np.broadcast_to(grey[..., None], (*grey.shape, 3))

    return range_to_bgr


def _wide_white(image: Image.Image, white_level: int | None, lower_bytes: Callable[[], NDArray[np.uint8]]) -> float | None:
    """White of an image of 16 bits a colour; None where it is 65535, so that the upper bytes alone are the picture."""
    highest = max(channel[1] for channel in image.getextrema()[:3])  # type: ignore[index]
    if highest > HIGHEST_DARK and white_level is None:
        return None
    white = white_of(highest * 256.0 + 255.0 if highest else float(lower_bytes().max()), white_level)
    return None if white == FULL_SCALES[-1] else white


def _wide_to_bgr(image: Image.Image, white: float, lower: NDArray[np.uint8]) -> NDArray[np.uint8]:
    upper, has_alpha = np.asarray(image), image.mode == "RGBA"
    bgr = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows := max(1, STRIP_PIXELS // image.width)):
        part = slice(top, top + rows)
        values = upper[part, :, 2::-1].astype(np.float32) * 256 + lower[part, :, ::-1]
        grey = np.minimum(values * (255 / white), 255)
        if has_alpha:
            alpha = upper[part, :, 3:].astype(np.float32) / 255
            grey = grey * alpha + 255 * (1 - alpha)
        bgr[part] = np.rint(grey)
    return bgr


def _finite_range(image: Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 1.0)
