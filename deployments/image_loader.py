"""ImageLoader: fetches, decodes and scales images. Takes text, bytes or arrays, returns pixels for the network. Runs on CPU, scales on
its own.

"https://…" ─▶ fetch ─┐
base64 ───────────────┼─▶ decode ─▶ scale ─▶ LoadedImage
bytes, ndarray ───────┘   (a process)

URLs are fetched by separate calls (`fetch`), so that no image waits for a slow host; a fetched body is then loaded like one that came
with the request. A body of more than `MAX_PASSED_BYTES` is not passed on: the call that decodes it fetches it again.

Files are decoded in separate processes (pipeline.images.decoder_pool): an image that crashes or blocks its decoder does not affect
others. Arrays from Python callers need no decoder.

A replica decodes `threads` images of up to `MAX_ORDINARY_PIXELS` at a time, and one larger one, in the background: it gets the cores when
nothing else needs them, with pauses if ordinary images come, and all replicas of a machine share `NodeSlots` for it. Decoding takes up to
12 bytes of memory per pixel: by default 2 x 0.11 GB per replica, and 0.48 GB per machine of up to seven cores.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.ray_serve.scaling import DECODING
from deployments.ray_serve.unary_calls import UNARY_CALLS
from deployments.settings import ImageLoaderSettings
from deployments.stages.retry_alone import SHARED_DECODE_S, RetryAlone, SharedDecoding
from deployments.stages.stage import StageRunner, Timings
from deployments.task import ImageInput, ImageTask
from deployments.telemetry.metrics import DecoderMetrics
from deployments.user_config import TakesUserConfig
from pipeline.errors import DecodersUnavailable, LargeImage
from pipeline.fair_queue import FairThreads
from pipeline.images.decode import DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderLost, DecoderPool
from pipeline.images.fetch import Fetcher, FetchPolicy, LongBody
from pipeline.images.load import load_image
from pipeline.images.node_slots import NodeSlots
from pipeline.images.source import parse_source
from pipeline.types import LoadedImage

logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")
ImageData = bytes | NDArray[np.uint8]
"""An image that is not text: an encoded file, or pixels of a Python caller."""

MAX_ORDINARY_PIXELS = 9_000_000
"""Larger images that must be decoded at full size are decoded one at a time. A 4K picture (8.3 megapixels) is not; as a PNG it takes 0.2 s.
A WebP of 40 megapixels of one colour can have 40 bytes."""
ORDINARY_S, PAUSE_FACTOR, MAX_PAUSE_S = 2.0, 3.0, 2.0
"""If an ordinary image came in the last ORDINARY_S, a pause of PAUSE_FACTOR times its decoding time, at most MAX_PAUSE_S, follows each
large image: while one was decoded, even by a process that only runs on idle cores, the network took 34 ms for a photo instead of 17."""
MAX_PASSED_BYTES = 1_000_000
"""Longest body that is passed on, bytes; bounds the Ingress' memory (times `max_urls_in_flight`)."""
MAX_FAILED_STARTS = 2
"""A single failed start may be temporary, for example a lack of memory."""
DRAWN_PX = 2048
"""Longest side of a picture in an answer; larger photos are scaled down."""


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512, request_router_config=UNARY_CALLS)
class ImageLoader(TakesUserConfig):
    """Fetches, decodes and scales images.

    Args:
        settings: the section `image_loader`.
        input_size: side of the network's square input, pixels.
    """

    def __init__(self, settings: ImageLoaderSettings, input_size: int) -> None:
        max_bytes = int(settings.max_image_mb * 1e6)
        self._limits = DecodeLimits(
            int(settings.max_megapixels * 1e6),
            int(settings.max_megapixels_unscaled * 1e6),
            max_bytes,
            exif_orientation=settings.exif_orientation,
            white_level=settings.white_level,
        )
        self._input_size, self._decoder_count = input_size, settings.threads
        self._shares_decoding = settings.decode_timeout_s > SHARED_DECODE_S
        self._stage, self._fetching, self._metrics = StageRunner("image_loader"), StageRunner("fetch"), DecoderMetrics()
        self._fetcher = Fetcher(FetchPolicy(**settings.fetch.model_dump(), max_bytes=max_bytes))
        options = DecoderOptions(self._limits, input_size, settings.decode_timeout_s)
        self._decoders = DecoderPool(options, settings.threads)
        self._large_options = replace(options, background=True)
        self._large_decoders, self._large_slots = DecoderPool(self._large_options, 1), NodeSlots("large-images")
        self._threads, self._large_thread = FairThreads(settings.threads, "decode"), FairThreads(1, "decode-large")
        self._decoding, self._last_ordinary_at = 0.0, -ORDINARY_S

    async def check_health(self) -> None:
        """Called by Ray every `health_check_period_s`; Ray replaces a replica that raises.

        Raises:
            DecodersUnavailable: a decoder process failed to start `MAX_FAILED_STARTS` times in a row.
        """
        pools = self._decoders, self._large_decoders
        self._metrics.memory(sum(pool.memory_bytes for pool in pools))
        if max(pool.failed_starts for pool in pools) >= MAX_FAILED_STARTS:
            raise DecodersUnavailable("decoder processes do not start; see their standard error")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray: the metric for `deployments.ray_serve.scaling`."""
        return {DECODING: self._decoding}

    async def fetch(self, tasks: Sequence[ImageTask[str]]) -> list[ImageTask[str | bytes]]:
        """Fetch the bodies of URLs.

        Returns:
            Each task with the body, with its error (FetchError, LimitExceeded, DeadlineExceeded), or unchanged if the body is longer than
            MAX_PASSED_BYTES.
        """

        async def fetch_one(url: str, task: ImageTask[str], timings: Timings) -> str | bytes:
            with timings.measure("fetch"):
                try:
                    return await self._read_source(url, task.context.deadline, MAX_PASSED_BYTES)
                except LongBody:
                    return url

        return await self._fetching.each(fetch_one, tasks)

    async def load(self, tasks: Sequence[ImageTask[ImageInput]]) -> list[ImageTask[LoadedImage]]:
        """Prepare the images of a call for the network.

        Returns:
            Each task with its pixels or its error: FetchError, ImageError, LimitExceeded, DeadlineExceeded, StageFailed, or RetryAlone for
            an image that must be admitted as a large one first.
        """
        canvases: dict[int, NDArray[np.uint8]] = {}
        shared = SharedDecoding(self._decoder_count) if len(tasks) > 1 and self._shares_decoding else None

        async def load_one(image: ImageInput, task: ImageTask[ImageInput], timings: Timings) -> LoadedImage:
            with timings.measure("fetch"):
                data = await self._read_source(image, task.context.deadline) if isinstance(image, str) else image
            with self._counted(1 / len(tasks)):
                measured = partial(self._measured, timings, task.context.request_id)
                loaded = await self._decode(data, task, measured, shared)
                if task.options.draws:  # one at a time: it is decoded at full size
                    canvases[id(task)] = await self._large_thread.run(task.queue_key, measured, self._make_canvas, data, loaded)
            return loaded

        done = await self._stage.each(load_one, tasks)
        return [replace(after, canvas=canvases.get(id(before))) for before, after in zip(tasks, done, strict=True)]

    @contextmanager
    def _counted(self, share: float) -> Iterator[None]:
        """Within: this share of a call is being decoded or waits for a decoder."""
        self._decoding += share
        try:
            yield
        finally:
            self._decoding -= share

    async def _decode(
        self, data: ImageData, task: ImageTask[ImageInput], measured: Callable[..., LoadedImage], shared: SharedDecoding | None
    ) -> LoadedImage:
        """Decode one image on a thread: an ordinary one, or in the background a large one that was admitted as such.

        Raises:
            RetryAlone: it must be admitted as a large image first, or from `shared`.
        """
        try:
            loaded = await self._threads.run(task.queue_key, measured, self._decode_ordinary, data, shared)
        except LargeImage as error:
            if not task.large:
                raise RetryAlone(f"{error.message} It is decoded in a call of its own.") from error
            return await self._large_thread.run(task.queue_key, measured, self._decode_large, data)
        self._last_ordinary_at = time.monotonic()
        return loaded

    def _measured(self, timings: Timings, request_id: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call `work(*arguments)`; its time counts as decoding. There is one thread per decoder, so no wait for a decoder is counted."""
        with timings.measure("decode"):
            try:
                return work(*arguments)
            except DecoderLost as error:
                logger.warning("request %s: %s A new decoder takes its place.", request_id, error.message)
                raise

    def _decode_ordinary(self, data: ImageData, shared: SharedDecoding | None) -> LoadedImage:
        """Raises LargeImage for an image of more than MAX_ORDINARY_PIXELS."""
        if isinstance(data, np.ndarray):
            return load_image(data, self._limits, self._input_size)
        decode = partial(self._decoders.load, data, max_ordinary_pixels=MAX_ORDINARY_PIXELS)
        return decode() if shared is None else shared.load(lambda limit_s: decode(timeout_s=limit_s))

    def _decode_large(self, data: bytes, size: int | None = None) -> LoadedImage:
        with self._large_slots.held(self._large_options.wall_timeout_s, self._pause_s):
            return self._large_decoders.load(data, size=size)

    def _pause_s(self, took_s: float) -> float:
        """How long no large image is decoded after one that took `took_s`."""
        ordinary_come = time.monotonic() - self._last_ordinary_at < ORDINARY_S
        return min(PAUSE_FACTOR * took_s, MAX_PAUSE_S) if ordinary_come else 0.0

    def _make_canvas(self, data: ImageData, loaded: LoadedImage) -> NDArray[np.uint8]:
        """The image to draw on: (H, W, 3) uint8 BGR, scaled down to DRAWN_PX if larger."""
        size = min(max(loaded.letterbox.original_hw), DRAWN_PX)
        if isinstance(data, np.ndarray):
            return load_image(data, self._limits, size).pixels
        try:
            return self._decoders.load(data, max_ordinary_pixels=MAX_ORDINARY_PIXELS, size=size).pixels
        except LargeImage:
            return self._decode_large(data, size).pixels

    async def _read_source(self, text: str, deadline: float, at_most: int | None = None) -> bytes:
        source = parse_source(text, self._limits.max_bytes)
        return await self._fetcher.fetch(source, deadline, at_most) if isinstance(source, str) else source

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder processes."""
        for name in ("_decoders", "_large_decoders"):
            if hasattr(self, name):
                getattr(self, name).close()
