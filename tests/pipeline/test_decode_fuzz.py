"""Thousands of mutated files through decode_image: only our own errors, in bounded time and memory."""

import io
import random
import resource
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import DecodeLimits, decode_image
from pipeline.errors import RequestError

MUTANTS_A_SEED = 150
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0")
LIMITS = DecodeLimits(max_pixels=300_000, max_bytes=1_000_000)


def picture(mode: str) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((112, 80)).convert(mode)


def encode(mode: str, image_format: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    extra = {} if image_format in ("BMP", "GIF") else {"exif": exif}
    picture(mode).save(file, image_format, **extra, **options)
    return file.getvalue()


SEEDS = {
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


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, overwrite header bytes, cut, drop or repeat a stretch, or set a 32-bit field to an extreme."""
    mutant = bytearray(data)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.choice((1, 4, 32))):
                mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
        case 1:
            for _ in range(chance.choice((1, 2, 8))):
                mutant[chance.randrange(min(len(mutant), 200))] = chance.randrange(256)
        case 2:
            del mutant[chance.randrange(len(mutant)) :]
        case 3:
            start = chance.randrange(len(mutant))
            del mutant[start : start + chance.randrange(1, 200)]
        case 4:
            start = chance.randrange(len(mutant))
            mutant[start:start] = mutant[start : start + chance.randrange(1, 500)] * chance.randrange(1, 20)
        case _:
            start = chance.randrange(min(len(mutant) - 4, 300))
            mutant[start : start + 4] = chance.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0")
            )
    return bytes(mutant)


@pytest.mark.parametrize("kind", SEEDS)
def test_mutants(kind: str) -> None:
    """A mutant decodes or raises a RequestError (4xx), quickly, and never yields more pixels than allowed."""
    chance = random.Random(kind)
    for _ in range(MUTANTS_A_SEED):
        data = mutate(SEEDS[kind], chance)
        started = time.thread_time()
        try:
            bgr, hw = decode_image(data, LIMITS, chance.choice((None, 32)))
        except RequestError:
            pass
        else:
            assert bgr.dtype == np.uint8
            assert bgr.shape[2] == 3
            assert hw[0] * hw[1] <= LIMITS.max_pixels
        assert time.thread_time() - started < 1.0


def test_memory_stays_bounded() -> None:
    """All the mutants of this module together may not have grown the process beyond a few pictures."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance = random.Random(7)
    for _ in range(20):
        for data in SEEDS.values():
            try:
                decode_image(mutate(data, chance), LIMITS, None)
            except RequestError:
                continue
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
