"""A photo in any of the accepted forms, as the bytes of an image file."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path

from PIL import Image

Buffer = bytes | bytearray | memoryview
Photo = str | Path | Buffer | Image.Image
"""A path, a URL that the service reads (http, https, data), the bytes of an image file, or an image."""

LONGEST_PATH_CHARS = 4096
"""No path is longer (Linux's PATH_MAX), but the base64 of a photo is."""
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
CONVERTED_MODES = {"HSV": "RGB", "La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}
"""Pillow's modes that neither PNG nor TIFF can store, and the mode that is stored instead."""


def is_url(text: str) -> bool:
    """Whether a text is an http or https URL."""
    return text.lower().startswith(("http://", "https://"))


def bytes_of(photo: str | Path | Buffer) -> bytes:
    """The bytes of a photo that is neither a URL nor an image.

    Raises:
        OSError: there is no such file.
        TypeError, ValueError: it is not a photo; the message says what to give instead.
    """
    if isinstance(photo, Buffer):
        return bytes(photo)
    if not isinstance(photo, str | PathLike):
        raise TypeError(
            "a photo is a path, a URL, the bytes of an image file or a PIL image (of an array: PIL.Image.fromarray), "
            f"not {type(photo).__name__}"
        )
    if len(str(photo)) > LONGEST_PATH_CHARS:
        raise ValueError(
            f"a text of {len(str(photo))} characters is not a path; for base64 give the bytes: base64.b64decode(text)"
        )
    return Path(photo).read_bytes()


def file_of(image: Image.Image) -> bytes:
    """An image as a PNG file, or as TIFF if PNG does not know its mode."""
    file = io.BytesIO()
    if image.mode in CONVERTED_MODES:
        image = image.convert(CONVERTED_MODES[image.mode])
    image.save(file, "PNG" if image.mode in PNG_MODES else "TIFF")
    return file.getvalue()
