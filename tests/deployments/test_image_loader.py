"""The ImageLoader's calls: the outcome of each image, and that no image delays the others for long."""

import asyncio
import functools
import io
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments import image_loader
from deployments.image_loader import ImageLoader
from deployments.settings import ImageLoaderSettings
from deployments.stages import retry_alone
from deployments.stages.retry_alone import RetryAlone, SharedDecoding
from deployments.task import ImageTask, RequestContext, ScoreOptions
from pipeline.errors import DecodersUnavailable, FetchError, ImageError, LargeImage, LimitExceeded
from pipeline.images.decoder_pool import DecoderPool, DecoderTimeout
from pipeline.images.fetch import LongBody
from pipeline.images.node_slots import NodeSlots
from pipeline.types import DetectOptions, Letterbox, LoadedImage, OutlineOptions

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
    monkeypatch.setattr(retry_alone, "SHARED_DECODE_S", SHARED_DECODE_S)
    monkeypatch.setattr(image_loader, "DecoderPool", functools.partial(DecoderPool, program=BAD_PROGRAM))
    loader = ImageLoader.func_or_class(ImageLoaderSettings(decode_timeout_s=TIMEOUT_S, threads=2), 320)
    yield loader
    loader.close()


async def load(loader, *images, large=False):
    options, context = ScoreOptions(DetectOptions(), OutlineOptions()), RequestContext("test", time.time() + 10)
    tasks = await loader.load([ImageTask(image, options, context, large=large) for image in images])
    for task in tasks:
        if isinstance(task.payload, LoadedImage):
            assert set(task.timings_ms) == {"fetch", "decode"}
            assert 0 < task.timings_ms["decode"] < 10_000
    return [task.payload for task in tasks]


async def test_an_image_does_not_wait_for_all_those_of_another_caller(monkeypatch):
    """There is one decoder. While it works, a call with four images of one caller comes, then one of another, which is next but one."""
    gate, done = threading.Event(), []

    def decode(data, *_):
        assert gate.wait(5)
        done.append(data)
        return "pixels"

    loader = ImageLoader.func_or_class(ImageLoaderSettings(threads=1), 320)
    monkeypatch.setattr(loader, "_decode_ordinary", decode)

    def task(caller):
        return ImageTask(
            caller.encode(),
            ScoreOptions(DetectOptions(), OutlineOptions()),
            RequestContext("test", time.time() + 10, caller),
        )

    with closing(loader):
        calls = [asyncio.create_task(loader.load([task("loud")] * 4))]
        await asyncio.sleep(0.01)
        calls.append(asyncio.create_task(loader.load([task("polite")])))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*calls)
    assert done == [b"loud", b"polite", b"loud", b"loud", b"loud"]


async def test_each_image_gets_its_own_outcome(loader):
    """Bytes and arrays are loaded, what is no image is named, in their order."""
    first, second, third = await load(loader, jpeg(), b"no image", np.zeros((30, 40, 3), np.uint8))
    assert (first.letterbox.original_hw, third.letterbox.original_hw) == ((48, 64), (30, 40))
    assert isinstance(second, ImageError)


@pytest.mark.parametrize(("size_hw", "drawn_hw"), [((48, 64), (48, 64)), ((800, 3000), (546, 2048))])
async def test_a_picture_has_the_photo_to_draw_on(loader, size_hw, drawn_hw):
    """At its own size, large ones scaled down; for bytes and arrays; only if a picture is asked for."""
    pixels = np.full((*size_hw, 3), (200, 90, 10), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for image in (file.getvalue(), pixels):
        for file_format in ("png", "json"):
            options = ScoreOptions(DetectOptions(), OutlineOptions(), answer_format=file_format)
            (task,) = await loader.load([ImageTask(image, options, RequestContext("test", time.time() + 10))])
            if file_format == "json":
                assert task.canvas is None
            else:
                assert task.canvas.shape == (*drawn_hw, 3)
                assert tuple(task.canvas[5, 5]) == (10, 90, 200)


async def test_a_slow_image_does_not_delay_others_in_its_call(loader):
    """It is returned after SHARED_DECODE_S. In a call of its own it gets the whole time, and then DecoderTimeout."""
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


async def test_large_images_are_returned_before_decoding(loader, monkeypatch):
    """A few bytes may be as many pixels as are allowed. JPEGs are decoded at a part of their size."""
    monkeypatch.setattr(image_loader, "MAX_ORDINARY_PIXELS", 48 * 64 - 1)
    image = Image.fromarray(np.full((48, 64, 3), 90, np.uint8))
    image.save(file := io.BytesIO(), "PNG")
    large, good, broken = await load(loader, file.getvalue(), jpeg(), b"no image")
    assert isinstance(large, RetryAlone)
    assert isinstance(good, LoadedImage)
    assert isinstance(broken, ImageError)
    assert isinstance((await load(loader, file.getvalue()))[0], RetryAlone)
    assert isinstance((await load(loader, file.getvalue(), large=True))[0], LoadedImage)


def test_slow_images_of_one_call_share_their_time(monkeypatch):
    """Eight of them do not take eight times as long as one."""
    monkeypatch.setattr(retry_alone, "SHARED_DECODE_S", 0.1)
    monkeypatch.setattr(retry_alone, "MIN_SHARED_DECODE_S", 0.02)
    limits_s = []

    def hang(limit_s):
        limits_s.append(limit_s)
        time.sleep(limit_s)
        raise DecoderTimeout("too slow")

    shared = SharedDecoding(2)
    for _ in range(8):
        with pytest.raises(RetryAlone):
            shared.load(hang)
    assert limits_s[0] == 0.1
    assert limits_s[2:] == [0.02] * 6


async def test_a_loader_whose_decoders_do_not_start_says_so(monkeypatch):
    """It fails fast and would attract all traffic: its replica is replaced, and its images are retried elsewhere."""
    monkeypatch.setattr(image_loader, "DecoderPool", functools.partial(DecoderPool, program=(sys.executable, "-c", "exit(3)")))
    loader = ImageLoader.func_or_class(ImageLoaderSettings(threads=1), 320)
    with closing(loader):
        for _ in range(2):
            await loader.check_health()
            (error,) = await load(loader, jpeg())
            assert isinstance(error, DecodersUnavailable)
        with pytest.raises(DecodersUnavailable):
            await loader.check_health()
        assert isinstance((await load(loader, np.zeros((30, 40, 3), np.uint8)))[0], LoadedImage)


async def test_large_images_are_decoded_one_at_a_time(loader, monkeypatch, tmp_path):
    """Each in a call of its own, three at each of two loaders: one takes memory at a time, and an ordinary image goes past them."""
    now, most, done = 0, 0, []

    def decode(data, *, max_ordinary_pixels=None, **_):
        nonlocal now, most
        if data == b"large" and max_ordinary_pixels is not None:
            raise LargeImage("large")
        now += data == b"large"
        most = max(most, now)
        time.sleep(0.05 if data == b"large" else 0)
        now -= data == b"large"
        done.append(data)
        return LoadedImage(np.zeros((320, 320, 3), np.uint8), Letterbox((320, 320), (320, 320), 320))

    with closing(ImageLoader.func_or_class(ImageLoaderSettings(threads=1), 320)) as second:
        for one in (loader, second):
            monkeypatch.setattr(one._decoders, "load", decode)
            monkeypatch.setattr(one._large_decoders, "load", decode)
            one._large_slots = NodeSlots("test", tmp_path, 1)
        large = [asyncio.create_task(load(one, b"large", large=True)) for one in (loader, second) for _ in range(3)]
        await asyncio.sleep(0.01)
        await load(loader, b"ordinary")
        await asyncio.gather(*large)
    assert most == 1
    assert done.index(b"ordinary") <= 3


async def test_large_images_leave_time_to_ordinary_ones(loader):
    """Three quarters of it, while those come; a large image that arrives alone finds no pause."""
    assert loader._pause_s(0.1) == 0
    assert isinstance((await load(loader, jpeg()))[0], LoadedImage)
    assert loader._pause_s(0.1) == pytest.approx(0.3)
    assert loader._pause_s(5.0) == image_loader.MAX_PAUSE_S
    loader._last_ordinary_at -= image_loader.ORDINARY_S
    assert loader._pause_s(0.1) == 0


async def test_images_over_the_limit_are_refused_and_not_retried(loader, monkeypatch):
    """Also in a call with other images; it is not retried."""
    monkeypatch.setattr(image_loader, "MAX_ORDINARY_PIXELS", 48 * 64 - 1)
    Image.new("1", (8_000, 8_000)).save(file := io.BytesIO(), "PNG")
    refused, good = await load(loader, file.getvalue(), jpeg())
    assert (type(refused), refused.code) == (LimitExceeded, "too_many_pixels")
    assert "40 megapixels (image_loader.max_megapixels_unscaled)" in refused.message
    assert isinstance(good, LoadedImage)


async def test_fetching_for_a_later_call(loader, monkeypatch):
    """Bodies and errors come back, each with its time; a long body leaves the URL as it is. The later call keeps the time."""

    async def fetch(url, _deadline, at_most):
        assert at_most == image_loader.MAX_PASSED_BYTES
        if url.endswith("large"):
            raise LongBody("long")
        if url.endswith("gone"):
            raise FetchError("gone")
        await asyncio.sleep(0.01)
        return jpeg()

    monkeypatch.setattr(loader._fetcher, "fetch", fetch)
    options, context = ScoreOptions(DetectOptions(), OutlineOptions()), RequestContext("test", time.time() + 10)
    urls = [f"https://example.com/{name}" for name in ("photo", "large", "gone")]
    photo, large, gone = await loader.fetch([ImageTask(url, options, context) for url in urls])
    assert photo.payload == jpeg()
    assert large.payload == urls[1]
    assert gone.payload.message == "gone"
    (loaded,) = await loader.load([photo])
    assert isinstance(loaded.payload, LoadedImage)
    assert loaded.timings_ms["fetch"] >= photo.timings_ms["fetch"] >= 10


async def test_waiting_for_urls_does_not_count_as_decoding(loader, monkeypatch):
    """The autoscaling metric is 0 while hosts do not answer, and counts calls whose images have arrived."""
    silent, release = asyncio.Event(), threading.Event()

    async def fetch(*_):
        await silent.wait()
        return b"fetched"

    def decode(*_, **__):
        release.wait(5)
        return LoadedImage(np.zeros((320, 320, 3), np.uint8), Letterbox((320, 320), (320, 320), 320))

    monkeypatch.setattr(loader._fetcher, "fetch", fetch)
    monkeypatch.setattr(loader._decoders, "load", decode)
    urls = [asyncio.create_task(load(loader, "https://example.com/1.jpg")) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert loader.record_autoscaling_stats() == {"decoding": 0}
    photos = asyncio.create_task(load(loader, b"photo", b"photo"))
    await asyncio.sleep(0.01)
    assert loader.record_autoscaling_stats() == {"decoding": 1}
    silent.set()
    await asyncio.sleep(0.01)
    assert loader.record_autoscaling_stats()["decoding"] == pytest.approx(21)
    release.set()
    await asyncio.gather(photos, *urls)
    assert loader.record_autoscaling_stats()["decoding"] == pytest.approx(0)
