"""Photos for load tests: from a folder, or variants of the photo that comes with matplotlib."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageOps

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
JPEG_QUALITY = 90


def photos_from(folder: Path | None, count: int = 16, size_wh: tuple[int, int] = (640, 480)) -> list[bytes]:
    """Encoded photos: the first `count` files of a folder, or JPEGs made of matplotlib's Grace Hopper.

    Args:
        folder: photos to use unchanged; None makes `count` different crops of one photo.
        count: how many.
        size_wh: width and height of the made ones, pixels.
    Raises:
        FileNotFoundError: the folder holds no photo.
    """
    if folder is None:
        return [_variant(step, size_wh) for step in range(count)]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)[:count]
    if not files:
        raise FileNotFoundError(f"{folder} holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return [file.read_bytes() for file in files]


def as_size(text: str) -> tuple[int, int]:
    """argparse type `WxH`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH, width and height in pixels such as 640x480")
    return int(width), int(height)


def _variant(step: int, size_wh: tuple[int, int]) -> bytes:
    from matplotlib import cbook

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        photo = opened.convert("RGB")
    left, top = step * 3 % 60, step * 5 % 70
    photo = photo.crop((left, top, photo.width - left // 2, photo.height - top // 2))
    photo = ImageOps.mirror(photo) if step % 2 else photo
    buffer = io.BytesIO()
    ImageOps.pad(photo, size_wh, color=(90, 110, 120)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
