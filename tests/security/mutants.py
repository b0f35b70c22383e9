"""Damaged image files by the thousand: small pictures in every format and colour mode, mutated with a seed."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0")
HEADER_BYTES = 300


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged files, all formats in turn; the same ones for the same seed."""
    chance = random.Random(seed)
    originals = list(good_files().values())
    for number in range(count):
        yield mutate(originals[number % len(originals)], chance)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, overwrite header bytes, cut, drop or repeat a stretch, or set a 32-bit field of the header to an extreme."""
    mutant = bytearray(data)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.choice((1, 4, 32))):
                mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
        case 1:
            for _ in range(chance.choice((1, 2, 8))):
                mutant[chance.randrange(min(len(mutant), HEADER_BYTES))] = chance.randrange(256)
        case 2:
            del mutant[chance.randrange(len(mutant)) :]
        case 3:
            start = chance.randrange(len(mutant))
            del mutant[start : start + chance.randrange(1, 200)]
        case 4:
            start = chance.randrange(len(mutant))
            mutant[start:start] = mutant[start : start + chance.randrange(1, 500)] * chance.randrange(1, 20)
        case _:
            start = chance.randrange(min(len(mutant) - 4, HEADER_BYTES))
            mutant[start : start + 4] = chance.choice(EXTREMES)
    return bytes(mutant)


@functools.cache
def good_files() -> dict[str, bytes]:
    """One small picture, 112 x 80 pixels, in every format, colour mode and compression that is accepted."""
    return {
        "JPEG": encode("RGB", "JPEG"),
        "JPEG progressive": encode("RGB", "JPEG", progressive=True),
        "JPEG CMYK": encode("CMYK", "JPEG"),
        "PNG": encode("RGB", "PNG"),
        "PNG palette": encode("P", "PNG", transparency=3),
        "PNG RGBA": encode("RGBA", "PNG"),
        "WebP": encode("RGB", "WEBP"),
        "WebP lossless alpha": encode("RGBA", "WEBP", lossless=True),
        "TIFF raw": encode("RGB", "TIFF"),
        "TIFF LZW": encode("RGB", "TIFF", compression="tiff_lzw"),
        "TIFF deflate": encode("RGBA", "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encode("RGB", "TIFF", compression="jpeg"),
        "TIFF 1 bit": encode("1", "TIFF", compression="packbits"),
        "GIF": encode("P", "GIF"),
        "GIF animated": encode("P", "GIF", save_all=True, append_images=[picture("P").rotate(90)]),
        "BMP": encode("RGB", "BMP"),
        "AVIF": encode("RGB", "AVIF"),
    }


def picture(mode: str) -> Image.Image:
    """Coloured noise, a little blurred."""
    values = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((112, 80)).convert(mode)


def encode(mode: str, image_format: str, **options: object) -> bytes:
    """The picture as a file, with an EXIF orientation where the format has one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    extra = {} if image_format in ("BMP", "GIF") else {"exif": exif}
    picture(mode).save(file, image_format, **extra, **options)
    return file.getvalue()
