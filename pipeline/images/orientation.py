"""Reads an image's EXIF orientation and rotates the image upright."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import BinaryIO

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import ExifTags, Image

FIRST_SIDEWAYS = 5
"""Orientations 5 to 8 swap width and height."""
_PNG_METADATA = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
"""Markers of PNG metadata that may hold an orientation; it may follow the pixels."""

_TO_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], MatLike]] = {
    1: lambda bgr: bgr,
    2: lambda bgr: cv2.flip(bgr, 1),
    3: lambda bgr: cv2.rotate(bgr, cv2.ROTATE_180),
    4: lambda bgr: cv2.flip(bgr, 0),
    5: cv2.transpose,
    6: lambda bgr: cv2.rotate(bgr, cv2.ROTATE_90_CLOCKWISE),
    7: lambda bgr: cv2.flip(cv2.transpose(bgr), -1),
    8: lambda bgr: cv2.rotate(bgr, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""For each EXIF orientation (Exif 2.32, tag 0x0112) the transform that makes the image upright."""


def read_orientation(image: Image.Image) -> int:
    """The orientation of a Pillow image, 1 to 8, from EXIF or else XMP; 1 if it is missing or invalid."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata of a good image
        return 1
    if isinstance(orientation, bytes) and len(orientation) == 1:  # stored as BYTE instead of SHORT
        orientation = orientation[0]
    return orientation if orientation in _TO_UPRIGHT else 1


def rotate_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate (H, W, 3) uint8 pixels with this EXIF orientation (1 to 8) upright."""
    return np.asarray(_TO_UPRIGHT[orientation](pixels), np.uint8)


def rotated_hw(stored_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width after rotation of an image stored with these, pixels."""
    height, width = stored_hw
    return (width, height) if orientation >= FIRST_SIDEWAYS else (height, width)


def png_has_metadata(file: BinaryIO) -> bool:
    """Whether a PNG file has metadata that may hold an orientation. `file` must have a file descriptor."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(name) >= 0 for name in _PNG_METADATA)
