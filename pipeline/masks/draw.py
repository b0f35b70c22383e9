"""Draws the result onto the image: translucent fills, outlines, and a tag with label and score for each object."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.masks.rle import rle_to_mask
from pipeline.types import SegmentedObject

_GOLDEN_SHARE = 0.618034
_FIRST_HUE = 0.57
_FILL_OPACITY = 0.38
_FEW_TAGS = 20
"""With more objects, tags are smaller, and omitted if wider than their object."""
_SUBPIXEL_BITS = 4
_Colour = tuple[int, int, int]


def draw_overlay(image: Image.Image, objects: Sequence[SegmentedObject], tags: Sequence[str] | None = None) -> Image.Image:
    """Draw objects onto a copy of their image.

    Args:
        image: the image in the orientation that was scored; any mode and scale.
        objects: highest score first; one without polygon is drawn by its RLE, or else its box.
        tags: text for each object instead of label and score.
    Returns:
        RGB image of the same size. Lines and text grow with the image; the n-th object has the same colour in every picture.
    """
    canvas = np.array(image.convert("RGB"))
    size_px = max(min(canvas.shape[:2]) / 480, 0.5)
    colours = [_colour(i) for i in range(len(objects))]
    for item, colour in reversed(list(zip(objects, colours, strict=True))):
        _draw_object(canvas, item, colour, size_px)
    picture = Image.fromarray(canvas)
    texts = tags or [f"{item.label} {item.score:.0%}" for item in objects]
    _draw_tags(picture, objects, texts, colours, size_px)
    return picture


def picture_to_file(picture: Image.Image, file_format: str) -> bytes:
    """A picture as PNG or JPEG bytes.

    Args:
        picture: RGB.
        file_format: `png` or `jpeg`.
    """
    data = io.BytesIO()
    picture.save(data, file_format, **({"quality": 90} if file_format == "jpeg" else {"compress_level": 1}))
    return data.getvalue()


def text_font(texts: Sequence[str], size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font for texts. Pillow's has ASCII alone, matplotlib's DejaVu Latin, Greek, Cyrillic and Arabic; neither Chinese nor Japanese."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size=size_px)
    return ImageFont.truetype(str(resources.files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size_px)


def _colour(index: int) -> _Colour:
    """Colours with well separated hues and slightly alternating lightness."""
    hue = (_FIRST_HUE + index * _GOLDEN_SHARE) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.55, 0.62, 0.48)[index % 3], 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_object(canvas: NDArray[np.uint8], item: SegmentedObject, colour: _Colour, size_px: float) -> None:
    """Fill and outline one object in place."""
    height, width = canvas.shape[:2]
    rings = [*item.polygon, *(item.holes or [])] or _run_length_rings(item)
    points = [_fixed_point(np.reshape(ring, (-1, 2)) * (width, height)) for ring in rings or [_box_ring(item)]]
    if rings:
        left, top = np.floor(np.min([p.min(axis=0) for p in points], axis=0) / 2**_SUBPIXEL_BITS).astype(int).clip(0)
        right, bottom = np.max([p.max(axis=0) for p in points], axis=0) // 2**_SUBPIXEL_BITS + 2
        part = canvas[top:bottom, left:right]
        coverage = np.zeros(part.shape[:2], np.uint8)
        shifted = [p - np.array([left, top], np.int32) * 2**_SUBPIXEL_BITS for p in points]
        cv2.fillPoly(coverage, shifted, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        opacity = coverage[..., None].astype(np.float32) * (_FILL_OPACITY / 255)
        part[:] = np.asarray(np.round(part + (np.array(colour, np.float32) - part) * opacity), dtype=np.uint8)
    for line_colour, line_width in (((255, 255, 255), 3.2), (colour, 1.8)):
        thickness = max(round(line_width * size_px), 1)
        cv2.polylines(canvas, points, True, line_colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed_point(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Convert continuous pixel coordinates to cv2's fixed-point ones, whose integers are pixel centres."""
    fixed: NDArray[np.int32] = np.round((points - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
    return fixed


def _run_length_rings(item: SegmentedObject) -> list[NDArray[np.float64]]:
    """Outer rings and holes of an object's RLE, (K, 2) x y through the centres of edge pixels, 0..1; empty without RLE."""
    if item.rle is None:
        return []
    mask = rle_to_mask(item.rle)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [(contour[:, 0] + 0.5) / mask.shape[::-1] for contour in contours]


def _box_ring(item: SegmentedObject) -> list[float]:
    left, top, right, bottom = item.box
    return [left, top, right, top, right, bottom, left, bottom]


def _draw_tags(
    picture: Image.Image, objects: Sequence[SegmentedObject], texts: Sequence[str], colours: Sequence[_Colour], size_px: float
) -> None:
    """Write a tag above each object; moved down if it would overlap the tag of an object with a higher score."""
    draw = ImageDraw.Draw(picture)
    size_px *= min(1.0, max((_FEW_TAGS / max(len(objects), 1)) ** 0.5, 0.6))
    font = text_font(texts, max(round(12 * size_px), 9))
    taken: list[tuple[float, float, float, float]] = []
    for item, text, colour in zip(objects, texts, colours, strict=True):
        pad = round(3 * size_px)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 3 * pad, bottom - top + 2 * pad
        if len(objects) > _FEW_TAGS and width > (item.box[2] - item.box[0]) * picture.width:
            continue
        tag = _tag_position((width, height), (item.box[0] * picture.width, item.box[1] * picture.height), picture.size, taken)
        taken.append(tag)
        draw.rounded_rectangle(tag, radius=1.2 * pad, fill=colour, outline=(255, 255, 255), width=max(round(size_px), 1))
        draw.text((tag[0] + 1.5 * pad - left, tag[1] + pad - top), text, font=font, fill=_readable_on(colour))


def _tag_position(
    size: tuple[float, float],
    corner: tuple[float, float],
    picture_size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Find a place for a tag at an object's top left corner: inside the picture, below the tags already placed."""
    width, height = size
    left = min(max(corner[0], 0), max(picture_size[0] - width, 0))
    top = min(max(corner[1] - height, 0), max(picture_size[1] - height, 0))
    for _ in taken:
        tag = (left, top, left + width, top + height)
        hit = next((other for other in taken if _overlap(tag, other)), None)
        if hit is None or hit[3] + 1 + height > picture_size[1]:
            break
        top = hit[3] + 1
    return left, top, left + width, top + height


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _readable_on(colour: _Colour) -> _Colour:
    """Black or white, whichever has more contrast. Source: contrast ratio and relative luminance of WCAG 2."""
    luminance = np.dot(np.divide(colour, 255) ** 2.2, (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
