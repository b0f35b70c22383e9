"""The ImageLoader's group: what each image gets, and that none waits long for another."""

import functools
import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments import image_loader
from deployments.context import RequestContext
from deployments.image_loader import ImageLoader, ImageLoaderOptions
from deployments.stage import RetryAlone
from pipeline.errors import ImageError
from pipeline.images.decode import DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderPool, DecoderTimeout
from pipeline.images.fetch import FetchPolicy
from pipeline.types import LoadedImage

BAD_PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "support" / "bad_decoder.py"))
TIMEOUT_S, SHARED_DECODE_S = 1.5, 0.5


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def loader(monkeypatch):
    """With two decoders that misbehave on request, both started."""
    monkeypatch.setattr(image_loader, "SHARED_DECODE_S", SHARED_DECODE_S)
    monkeypatch.setattr(image_loader, "DecoderPool", functools.partial(DecoderPool, program=BAD_PROGRAM))
    options = DecoderOptions(DecodeLimits(), 320, TIMEOUT_S)
    return ImageLoader.func_or_class(ImageLoaderOptions(FetchPolicy(), options, threads=2))


def load(loader, *images):
    return loader.load(images, [RequestContext("test", time.time() + 10)] * len(images))


async def test_each_image_gets_its_own_outcome(loader):
    """Bytes and arrays are loaded, what is no image is named, in their order."""
    first, second, third = await load(loader, jpeg(), b"no image", np.zeros((30, 40, 3), np.uint8))
    assert (first.letterbox.original_hw, third.letterbox.original_hw) == ((48, 64), (30, 40))
    assert isinstance(second, ImageError)


async def test_nobody_waits_for_a_slow_neighbour(loader):
    """It is sent back after SHARED_DECODE_S; on its own it has the whole time, and its decoder's end is its own fault."""
    await load(loader, jpeg(), jpeg())
    began = time.monotonic()
    slow, good = await load(loader, b"HANG!!", jpeg())
    assert isinstance(slow, RetryAlone)
    assert isinstance(good, LoadedImage)
    assert SHARED_DECODE_S <= time.monotonic() - began < TIMEOUT_S
    began = time.monotonic()
    (ended,) = await load(loader, b"HANG!!")
    assert isinstance(ended, DecoderTimeout)
    assert time.monotonic() - began >= TIMEOUT_S
    assert isinstance((await load(loader, jpeg()))[0], LoadedImage)


async def test_large_images_go_back_before_they_are_decoded(loader, monkeypatch):
    """A few bytes may be as many pixels as are allowed. JPEGs are decoded at a part of their size."""
    monkeypatch.setattr(image_loader, "SHARED_MAX_PIXELS", 48 * 64 - 1)
    image = Image.fromarray(np.full((48, 64, 3), 90, np.uint8))
    image.save(file := io.BytesIO(), "PNG")
    large, good, broken = await load(loader, file.getvalue(), jpeg(), b"no image")
    assert isinstance(large, RetryAlone)
    assert isinstance(good, LoadedImage)
    assert isinstance(broken, ImageError)
    assert isinstance((await load(loader, file.getvalue()))[0], LoadedImage)


def test_slow_images_of_one_call_share_their_time(monkeypatch):
    """Eight of them do not take eight times as long as one."""
    monkeypatch.setattr(image_loader, "SHARED_DECODE_S", 0.1)
    monkeypatch.setattr(image_loader, "SCARCE_S", 0.02)
    limits_s = []

    class Hanging:
        def load(self, _data, limit_s, _max_pixels):
            limits_s.append(limit_s)
            time.sleep(limit_s)
            raise DecoderTimeout("too slow")

    company = image_loader._DecodeBudget(0.2)
    for _ in range(8):
        with pytest.raises(RetryAlone):
            company.load(Hanging(), b"", 1)
    assert limits_s[0] == 0.1
    assert limits_s[2:] == [0.02] * 6
