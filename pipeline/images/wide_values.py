"""Reads the lower 8 bits of colour images with 16 bits per channel; Pillow only returns the upper 8.

Decoding the file again with the other byte order returns the lower bytes. That second pass is only made when it is needed: the image holds
only 12 bits, or a white level is set.

Source: the raw modes of Pillow 13, `src/libImaging/Unpack.c`.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL_SCALES = (255.0, 4095.0, 65535.0)
"""White in 8, 12 and 16 bits."""
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{'L' if order == 'B' else 'B'}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order in ("B", "L", "N")
}
"""For each raw mode that reads the upper bytes, the one that reads the lower bytes; N (libtiff) is this machine's byte order."""
_GREY_AND_ALPHA, _ITS_FOUR_BYTES = "LA;16B", "RGBA"


def white_of(highest: float, white_level: int | None) -> float:
    """The value that becomes 255: `white_level` if set, else the smallest of FULL_SCALES that is not below the image's highest value."""
    return float(white_level or next((full for full in FULL_SCALES if highest <= full), highest))


def is_wide(image: Image.Image) -> bool:
    """Whether an image, not loaded yet, has colours with 16 bits per channel."""
    return _rawmode(image) in (*_OTHER_BYTE, _GREY_AND_ALPHA)


def lower_bytes(data: bytes, formats: tuple[str, ...]) -> NDArray[np.uint8]:
    """The lower byte of each value of an image with 16 bits per channel: (H, W, 3) uint8 RGB."""
    with Image.open(io.BytesIO(data), formats=formats) as image:
        rawmode = _rawmode(image)
        _set_rawmode(image, _ITS_FOUR_BYTES if rawmode == _GREY_AND_ALPHA else _OTHER_BYTE[str(rawmode)])
        image.load()
        low = np.asarray(image)
    return np.broadcast_to(low[..., 1:2], (*low.shape[:2], 3)) if rawmode == _GREY_AND_ALPHA else low[..., :3]


def _rawmode(image: Image.Image) -> str | None:
    arguments = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _set_rawmode(image: Image.Image, rawmode: str) -> None:
    def changed(arguments: object) -> object:
        return (rawmode, *arguments[1:]) if isinstance(arguments, tuple) else rawmode

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]  # type: ignore[attr-defined]
