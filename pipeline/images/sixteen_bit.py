"""Reads the lower 8 bits of colour images with 16 bits per channel; Pillow only returns the upper 8.

Decoding the file again with the other byte order returns the lower bytes. That second pass is only made when it is needed: the image holds
only 12 bits, or a white level is set.

A TIFF may also store its channels one after the other. Then Pillow takes one letter of the raw mode for each: R of `RGB;16L`, which are
8 bits, and I of `I;16`, which are 32. `correct_planar_tiff` puts that right. If such a file is compressed, Pillow returns the upper bytes
whatever the raw mode, so the lower ones cannot be read.

Source: the raw modes of Pillow 13, `src/libImaging/Unpack.c`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError

FULL_SCALES = (255.0, 4095.0, 65535.0)
"""White in 8, 12 and 16 bits."""
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{'L' if order == 'B' else 'B'}"
    for mode in ("RGB", "RGBA", "RGBX", *"RGBA")
    for order in ("B", "L", "N")
}
"""For each raw mode that reads the upper bytes, the one that reads the lower bytes; N (libtiff) is this machine's byte order."""
_FORMATS = ("PNG", "TIFF")
"""The accepted formats that can have such channels."""
_GREY_AND_ALPHA, _ITS_FOUR_BYTES = "LA;16B", "RGBA"
_TIFF_BITS, _TIFF_SAMPLES, _TIFF_PLANAR = 258, 277, 284
_ONE_AFTER_THE_OTHER = 2


def white_of(highest: float, white_level: int | None) -> float:
    """The value that becomes 255: `white_level` if set, else the smallest of FULL_SCALES that is not below the image's highest value."""
    return float(white_level or next((full for full in FULL_SCALES if highest <= full), highest))


def correct_planar_tiff(image: Image.Image) -> None:
    """Correct how Pillow reads an uncompressed TIFF, not loaded yet, whose channels are stored one after the other."""
    tiff: Any = image
    if not _is_planar_tiff(image) or tiff.use_load_libtiff:
        return
    if tiff.tag_v2.get(_TIFF_SAMPLES, 1) == 1:
        tiff.tag_v2[_TIFF_PLANAR] = 1  # one channel has no order
        tiff._setup()
    elif tiff.tag_v2.get(_TIFF_BITS, (1,))[0] == 16:
        order = "L" if tiff.tag_v2.prefix == b"II" else "B"
        tiff.tile = [tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) for tile in tiff.tile]


def _is_planar_tiff(image: Any) -> bool:
    return image.format == "TIFF" and bool(image.tag_v2.get(_TIFF_PLANAR) == _ONE_AFTER_THE_OTHER)


def is_sixteen_bit(image: Image.Image) -> bool:
    """Whether an image, not loaded yet, has colours with 16 bits per channel."""
    return _rawmode(image) in (*_OTHER_BYTE, _GREY_AND_ALPHA)


def lower_bytes(data: bytes) -> Image.Image:
    """The lower byte of each value of an image with 16 bits per channel: RGB, RGBA, or L if it is grey with alpha.

    Raises:
        ImageError: `unsupported_image_format`, a compressed TIFF with one channel after the other.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if _is_planar_tiff(image) and image.use_load_libtiff:  # type: ignore[attr-defined]
            message = "A compressed TIFF of 16-bit channels, one after the other, is only read if its white is 65535."
            raise ImageError(message, code="unsupported_image_format")
        correct_planar_tiff(image)
        rawmode = _rawmode(image)
        _read_other_byte(image)
        image.load()
        return image.getchannel(1) if rawmode == _GREY_AND_ALPHA else image


def to_rgb_array(lower: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image that `lower_bytes` returned: (H, W, 3) uint8, or (H, W, 1) if all channels are equal."""
    pixels = np.asarray(lower)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]


def _rawmode(image: Image.Image) -> str | None:
    arguments = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _read_other_byte(image: Image.Image) -> None:
    def other(arguments: Any) -> Any:
        if isinstance(arguments, tuple):
            return (other(arguments[0]), *arguments[1:])
        return _ITS_FOUR_BYTES if arguments == _GREY_AND_ALPHA else _OTHER_BYTE[arguments]

    image.tile = [tile._replace(args=other(tile.args)) for tile in image.tile]  # type: ignore[attr-defined]
