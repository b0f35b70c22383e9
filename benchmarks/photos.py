"""Photos of a given size for `benchmarks.bench`: JPEG with grain, so that they decode as slowly as a camera's photos.

An enlarged photo without grain compresses to a fraction of a camera's bytes, and decodes faster than any real one.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from loadtest.load.photos import JPEG_QUALITY, photos_from

SMALL_WH, LARGE_WH = (640, 480), (4000, 3000)
"""VGA, which fits the network's input, and 12 megapixels, what phones write."""
GRAIN = 4.0
"""Standard deviation of the added grain, grey levels of 255; gives some 3 MB at 12 megapixels, as phones do."""


def bench_photos(folder: Path | None, count: int, size_wh: tuple[int, int]) -> list[bytes]:
    """JPEGs of exactly one size.

    Args:
        folder: photos to make them of, cut to the ratio and scaled; None takes crops of matplotlib's Grace Hopper.
        count: how many.
        size_wh: width and height, pixels.
    """
    return [_refit(photo, size_wh, seed) for seed, photo in enumerate(photos_from(folder, count, SMALL_WH))]


def _refit(photo: bytes, size_wh: tuple[int, int], seed: int) -> bytes:
    with Image.open(io.BytesIO(photo)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    fitted = ImageOps.fit(upright, size_wh, Image.Resampling.BICUBIC)
    if size_wh[0] > upright.width:
        fitted = _with_grain(fitted, seed)
    buffer = io.BytesIO()
    fitted.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _with_grain(image: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(image)
    grain = np.random.default_rng(seed).standard_normal(pixels.shape[:2], dtype=np.float32) * GRAIN
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))
