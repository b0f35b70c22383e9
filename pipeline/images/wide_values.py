"""Colours of 16 bits a channel, of which Pillow gives the upper 8.

Decoding the same file again with its bytes in the other order gives the lower 8. That second pass is made only where the upper ones
are too dark to be the whole picture: where the image holds 12 bits, or a white is set.

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
"""Raw modes that read the upper byte of each value, and those that read the lower one; N, of libtiff, is this machine's order."""
_GREY_AND_ALPHA, _ITS_FOUR_BYTES = "LA;16B", "RGBA"


def white_of(highest: float, white_level: int | None) -> float:
    """The value that becomes 255: the one that is set, else the smallest usual one that holds the image's highest."""
    return float(white_level or next((full for full in FULL_SCALES if highest <= full), highest))


def is_wide(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has colours of 16 bits a channel."""
    return _rawmode(image) in (*_OTHER_BYTE, _GREY_AND_ALPHA)


def lower_bytes(data: bytes, formats: tuple[str, ...]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB: the lower byte of each colour of a wide image."""
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
