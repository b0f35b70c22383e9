"""Finds and reads photos as the service does: same formats, colours and orientation; larger ones too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.command_line import CommandFault
from pipeline.errors import RequestError
from pipeline.images import decode
from pipeline.images.decode import FORMAT_MAGIC, WHITE_LEVEL, DecodeLimits, StoredImage, decode_stored

LIMITS = DecodeLimits(max_pixels=178_000_000, max_pixels_unscaled=178_000_000, max_bytes=1_000_000_000)
"""Larger than the service's defaults, as the photos are the user's own. Pillow refuses 179 megapixels and more."""
OF_MACOS = "._"
"""Beginning of the names of the files that macOS writes beside others in archives and on foreign disks, with any suffix."""
WHITE_LEVEL_HELP = f"{WHITE_LEVEL.replace('null', 'Not given')} Set the service's image_loader.white_level to the same."


class PhotoError(CommandFault):
    """A photo cannot be read; the message names the file and the reason."""


def photo_suffixes() -> frozenset[str]:
    """Suffixes of the formats that the service reads, in lower case."""
    formats = {
        *FORMAT_MAGIC,
        "MPO",
    }  # several JPEGs in one file, as stereo cameras write; Pillow knows no suffix of theirs but .mpo
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats) | {".jps"}


def read_photo(photo: Path, target_size: int | None = None, white_level: int | None = None) -> NDArray[np.uint8]:
    """Decode a photo and turn it upright; arguments and errors as `read_stored`.

    Returns:
        (H, W, 3) uint8 BGR, upright.
    """
    return read_stored(photo, target_size, white_level).upright_bgr


def read_stored(photo: Path, target_size: int | None = None, white_level: int | None = None) -> StoredImage:
    """Decode a photo as its file stores it.

    Args:
        photo: the file.
        target_size: None decodes at full size; else as `decode_image`, which reduces JPEGs.
        white_level: as in DecodeLimits.
    Raises:
        PhotoError: it cannot be read.
    """
    try:
        with photo.open("rb") as file:
            data = file.read(LIMITS.max_bytes + 1)
        return decode_stored(data, replace(LIMITS, white_level=white_level), target_size)
    except (RequestError, OSError) as error:
        raise PhotoError(f"{photo}: not a readable photo ({_reason(error)})") from error


def upright_size(photo: Path) -> tuple[int, int]:
    """Width and height that `read_photo` returns at full size, pixels; reads only the file's header.

    Raises:
        PhotoError: it cannot be read.
    """
    try:
        height, width = decode.upright_size(photo, LIMITS)
    except (RequestError, OSError) as error:
        raise PhotoError(f"{photo}: not a readable photo ({_reason(error)})") from error
    return width, height


def read_photo_within(photo: Path, longest_side_px: int, white_level: int | None = None) -> Image.Image:
    """A photo for drawing: RGB, upright, scaled down to this longest side where it is larger.

    Raises:
        PhotoError: it cannot be read.
    """
    picture = Image.fromarray(np.ascontiguousarray(read_photo(photo, longest_side_px, white_level)[..., ::-1]))
    picture.thumbnail((longest_side_px, longest_side_px))
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition(" (image_loader.")[0]  # a setting of the service, not of jobs
