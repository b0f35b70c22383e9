"""Converts images of any Pillow mode to BGR bytes, in strips: at most two copies of a large image in memory.

    1 L P RGB YCbCr HSV CMYK ─────────────────▶ convert("RGB")            ─┐
    LA La PA RGBA RGBa, tRNS ─▶ RGBA ─────────▶ on a white background     ─┤
    LAB ──────────────────────────────────────▶ littleCMS, Lab D50 → sRGB ─┼─▶ BGR uint8
    I;16* I F, RGB of 16 bits ────────────────▶ scaled to 0..255, rounded ─┘

A PNG may name one colour that is transparent, in its own bits (1 to 16): such pixels become white, too. The fourth channel of a BMP is used
only if it is not zero everywhere: many programs leave it unset. A TIFF in which 0 is white is inverted.

Values of more than 8 bits are scaled so that white is 255, 4095 or 65535 (8, 12 or 16 bits): the smallest that is not below the image's
highest value. Cameras and microscopes store 12 bits in 16-bit files, which would otherwise be almost black. In a series in which only some
frames stay below 4096, the brightness jumps; `white_level` sets one white for all. For float images, 1 is also a possible white.
Embedded ICC profiles are ignored, as in cv2 and mmdet (CMYK is converted without one; Pillow undoes Adobe's inversion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.images.sixteen_bit import FULL_SCALES, to_rgb_array, white_of

STRIP_PIXELS = 2**19
"""Pixels converted at a time. Measured at 12 Mpx: 7 ms instead of 51 ms in one piece. A photo of 640x480 is one strip, not copied first."""

WIDE_STRIP_PIXELS = STRIP_PIXELS // 8
"""The same for 16 bits per channel: a strip takes up to 60 bytes per pixel."""

HIGHEST_DARK = 15
"""Upper byte of 4095, the largest value of 12 bits."""

_STEPS_OF_FEW_BITS = {"L;2": 0x55, "L;4": 0x11}
"""Raw modes of grey with 2 and 4 bits, and by what Pillow multiplies their values."""
_TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1

StripConverter = Callable[[Image.Image], NDArray[np.uint8]]


def image_to_bgr(
    image: Image.Image, white_level: int | None = None, lower_bytes: Callable[[], Image.Image] | None = None
) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode; transparent parts become white.

    Args:
        image: a Pillow image, loaded or not.
        white_level: white of integers of more than 8 bits; None: by the rule in the module's docstring.
        lower_bytes: for an image with 16 bits per channel: see `sixteen_bit.lower_bytes`.
    Returns:
        (H, W, 3) uint8 BGR.
    Raises:
        ValueError: the mode has no colours.
        Exception: any exception of Pillow, for damaged pixel data.
    """
    _scale_transparent_grey(image)
    image.load()
    if not lower_bytes:
        return _to_bgr(image, white_level)
    transparent = image.info.pop("transparency", None)  # of 16 bits; Pillow compares 8
    if white := _wide_white(image, white_level, lower_bytes):
        bgr = _wide_to_bgr(image, white, lower_bytes())
    else:
        bgr = _to_bgr(image, white_level)
    if transparent is not None:
        _whiten(bgr, image, lower_bytes(), transparent)
    return bgr


def _to_bgr(image: Image.Image, white_level: int | None) -> NDArray[np.uint8]:
    convert = _choose_converter(image, white_level)
    bgr = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        bgr[top : top + strip.height] = convert(strip)
    return bgr


def _scale_transparent_grey(image: Image.Image) -> None:
    """Scale the transparent grey of a PNG of 2 or 4 bits as Pillow scales its pixels."""
    tiles = getattr(image, "tile", None)
    if image.format == "PNG" and tiles and "transparency" in image.info and tiles[0].args in _STEPS_OF_FEW_BITS:
        image.info["transparency"] *= _STEPS_OF_FEW_BITS[tiles[0].args]


def _whiten(bgr: NDArray[np.uint8], image: Image.Image, lower: Image.Image, colour: tuple[int, int, int]) -> None:
    """Make the pixels white that have exactly this RGB colour of 16 bits."""
    wanted = np.array(colour)
    for (top, strip), (_, low) in zip(_strips(image), _strips(lower), strict=True):
        is_transparent = (np.asarray(strip)[..., :3] == wanted >> 8) & (to_rgb_array(low) == wanted & 0xFF)
        bgr[top : top + strip.height][is_transparent.all(axis=-1)] = 255


def bgra_on_white(bgra: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put pixels with transparency on white: (H, W, 4) uint8 BGRA to (H, W, 3) uint8 BGR."""
    bgr = np.empty((*bgra.shape[:2], 3), np.uint8)
    for top in range(0, len(bgra), rows := max(1, STRIP_PIXELS // bgra.shape[1])):
        part = slice(top, top + rows)
        bgr[part] = _on_white(Image.fromarray(cv2.cvtColor(bgra[part], cv2.COLOR_BGRA2RGBA)))
    return bgr


def _strips(image: Image.Image, pixels: int = STRIP_PIXELS) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, pixels // image.width)
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
    if image.has_transparency_data and not (image.format == "BMP" and image.getextrema()[-1] == (0, 0)):
        return _on_white
    return _plain_to_bgr


def _plain_to_bgr(strip: Image.Image) -> NDArray[np.uint8]:
    # RGBX is how Pillow stores RGB, so it is copied out fastest.
    pixels = (strip if strip.mode == "RGB" else strip.convert("RGB")).tobytes("raw", "RGBX")
    rgbx = np.frombuffer(pixels, np.uint8).reshape(strip.height, strip.width, 4)
    return np.asarray(cv2.cvtColor(rgbx, cv2.COLOR_RGBA2BGR), np.uint8)


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
    """Scale grey values of more than 8 bits to 0..255: from 0 to the white level, or from their own range if some are negative."""
    kind = _kind_of_values(image)
    low, high = _finite_range(image, kind)
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    transparent = image.info.get("transparency")
    if low >= 0:
        is_fraction = image.mode == "F" and high <= 1
        low, high = 0.0, 1.0 if is_fraction else white_of(high, None if image.mode == "F" else white_level)
    factor = 255.0 / (high - low) if high > low else 0.0

    def range_to_bgr(strip: Image.Image) -> NDArray[np.uint8]:
        values = np.nan_to_num(np.asarray(strip).view(kind).astype(np.float64), nan=low, posinf=high, neginf=low)
        grey = np.rint((values - low) * factor).clip(0, 255).astype(np.uint8)
        if white_is_zero:
            grey = 255 - grey
        if transparent is not None:
            grey[values == transparent] = 255
        return np.broadcast_to(grey[..., None], (*grey.shape, 3))

    return range_to_bgr


def _wide_white(image: Image.Image, white_level: int | None, lower_bytes: Callable[[], Image.Image]) -> float | None:
    """The white level of an image with 16 bits per channel; None if it is 65535, because then the upper bytes suffice."""
    highest = max(channel[1] for channel in image.getextrema()[:3])  # type: ignore[index]
    if highest > HIGHEST_DARK and white_level is None:
        return None
    white = white_of(highest * 256.0 + 255.0 if highest else _highest(lower_bytes()), white_level)
    return None if white == FULL_SCALES[-1] else white


def _highest(lower: Image.Image) -> float:
    return float(max(to_rgb_array(strip).max() for _, strip in _strips(lower)))


def _wide_to_bgr(image: Image.Image, white: float, lower: Image.Image) -> NDArray[np.uint8]:
    bgr = np.empty((image.height, image.width, 3), np.uint8)
    for (top, strip), (_, low) in zip(_strips(image, WIDE_STRIP_PIXELS), _strips(lower, WIDE_STRIP_PIXELS), strict=True):
        upper = np.asarray(strip)
        values = upper[..., 2::-1].astype(np.float32) * 256 + to_rgb_array(low)[..., ::-1]
        colours = np.minimum(values * (255 / white), 255)
        if image.mode == "RGBA":
            alpha = upper[..., 3:].astype(np.float32) / 255
            colours = colours * alpha + 255 * (1 - alpha)
        bgr[top : top + strip.height] = np.rint(colours)
    return bgr


def _kind_of_values(image: Image.Image) -> np.dtype[Any]:
    """The dtype of the values of a grey image of more than 8 bits; Pillow stores unsigned ones of 32 bits as if they were signed."""
    kind = np.asarray(image.crop((0, 0, 1, 1))).dtype
    if image.mode == "I" and image.format == "TIFF":
        (sample_format, *_) = image.tag_v2.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))  # type: ignore[attr-defined]
        return np.dtype(np.uint32) if sample_format == _UNSIGNED else kind
    return kind


def _finite_range(image: Image.Image, kind: np.dtype[Any]) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip).view(kind)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 1.0)
