"""Which side of a photo is up: as the service sees it."""

from __future__ import annotations

from typing import Any

from PIL import Image

ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = range(5, 9)


def as_seen(image: Image.Image, turned: bool) -> Image.Image:
    """A copy of an image without metadata, turned by its EXIF orientation if `turned`."""
    image.load()  # turns a TIFF, which then says no more how
    turn = _TURNS.get(_orientation(image)) if turned else None
    copy = image.copy() if turn is None else image.transpose(turn)
    copy.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return copy


def size_as_seen(image: Image.Image, turned: bool) -> tuple[int, int]:
    """Width and height of an opened image, after it is turned if `turned`; reads only its header if it can."""
    if not turned:
        if image.format == "TIFF":
            image.load()  # turns it in any case
        return image.size
    opened: Any = image
    if image.format == "TIFF" and opened.tag_v2.get(ORIENTATION) in _SIDEWAYS:
        return image.size  # Pillow has swapped it
    return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def has_orientation(image: Image.Image) -> bool:
    """Whether an image says that it is to be turned."""
    return _orientation(image) in _TURNS


def _orientation(image: Image.Image) -> int:
    """From EXIF or XMP; 1 if it is missing or damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata of a good photo
        return 1
    if isinstance(orientation, bytes) and len(orientation) == 1:  # stored as BYTE instead of SHORT
        return orientation[0]
    return orientation if isinstance(orientation, int) else 1
