"""ImageLoader: text, bytes or array in, pixels ready for the network out. CPU; scales on its own.

"https://…" ─▶ fetch ─┐
base64 ───────────────┼─▶ decode ─▶ scale ─▶ LoadedImage
bytes, ndarray ───────┘   (a process)

Files are decoded in processes of their own (pipeline.images.decoder_pool), so that the one that kills or blocks its decoder
costs nobody else anything. Arrays from Python callers need no decoder. An image that takes long to decode goes back, to come
again on its own: those it came with do not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.context import RequestContext
from deployments.stage import RetryAlone, Stage
from pipeline.errors import LimitExceeded, ServiceError
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderLost, DecoderPool, DecoderTimeout
from pipeline.images.fetch import Fetcher, FetchPolicy
from pipeline.images.load import load_image
from pipeline.images.source import Url, parse_source
from pipeline.types import LoadedImage

logger = logging.getLogger("ray.serve")

SHARED_DECODE_S = 1.0
"""Longest time to decode an image that others wait for. Honest ones that take longer are files of many megabytes, which share no calls.
All images of a call have as much for each thread together, and then `SCARCE_S` each."""
SCARCE_S = 0.4
SHARED_MAX_PIXELS = 16_000_000
"""Larger images than phones make that are not JPEGs go back before they are decoded: 64 megapixels of one colour are 40 bytes of WebP,
and take 1.6 s."""

ImageInput = str | bytes | NDArray[np.uint8]
"""An image as callers give it: base64 text or URL, encoded bytes, or (H, W, 3) uint8 RGB / (H, W) grey pixels."""


class _DecodeBudget:
    """The images of one call, which wait for each other.

    Args:
        seconds: that decoding them may take together.
    """

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds
        self._lock = threading.Lock()

    def load(self, decoders: DecoderPool, data: bytes, max_pixels: int) -> LoadedImage:
        """Decode one of them.

        Raises:
            RetryAlone: it takes longer than the others should wait.
        """
        limit_s = spent_s = min(max(self._left_s, SCARCE_S), SHARED_DECODE_S)
        try:
            loaded = decoders.load(data, limit_s, max_pixels)
            spent_s = loaded.timings_ms["decode"] / 1e3
            return loaded
        except DecoderTimeout as error:
            message = f"The image took more than {limit_s:g} s to decode while others waited for it."
            raise RetryAlone(message) from error
        except LimitExceeded as error:
            spent_s = 0.0
            if error.code != "too_many_pixels":
                raise
            raise RetryAlone("The image is large, and others wait for it.") from error
        finally:
            with self._lock:
                self._left_s -= spent_s


@dataclass(frozen=True, slots=True)
class ImageLoaderOptions:
    """What an ImageLoader needs to know.

    Args:
        fetch: policy for URLs.
        decoder: caps on bytes, pixels and time, and the side of the network's input.
        threads: images decoded at a time, each in a process of its own.
    """

    fetch: FetchPolicy
    decoder: DecoderOptions
    threads: int


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512)
class ImageLoader:
    """Fetches, decodes and scales images."""

    def __init__(self, options: ImageLoaderOptions) -> None:
        self._options = options
        self._stage = Stage("image_loader")
        self._fetcher = Fetcher(options.fetch)
        self._decoders = DecoderPool(options.decoder, options.threads)
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="decode")

    async def load(self, images: Sequence[ImageInput], contexts: Sequence[RequestContext]) -> list[LoadedImage | ServiceError]:
        """Make a group's images ready for the network.

        Returns:
            For each its pixels, or why they cannot be had: FetchError, ImageError, LimitExceeded, DeadlineExceeded, StageFailed,
            and RetryAlone for one that should come again on its own.
        """
        alone = len(images) == 1 or self._options.decoder.timeout_s <= SHARED_DECODE_S
        company = None if alone else _DecodeBudget(SHARED_DECODE_S * self._options.threads)
        return await self._stage.each(self._load_one, images, [company] * len(images), contexts)

    async def _load_one(self, image: ImageInput, company: _DecodeBudget | None, context: RequestContext) -> LoadedImage:
        began = time.perf_counter()
        data = await self._fetch(image, context.deadline) if isinstance(image, str) else image
        fetch_ms = (time.perf_counter() - began) * 1e3
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._threads, self._load, data, company, context.request_id)
        return replace(loaded, timings_ms={"fetch": fetch_ms, **loaded.timings_ms})

    def _load(self, data: bytes | NDArray[np.uint8], company: _DecodeBudget | None, request_id: str) -> LoadedImage:
        limits = self._options.decoder.limits
        if isinstance(data, np.ndarray):
            return load_image(data, limits, self._options.decoder.size)
        try:
            if company is None:
                return self._decoders.load(data)
            return company.load(self._decoders, data, min(SHARED_MAX_PIXELS, limits.max_pixels))
        except DecoderLost as error:
            logger.warning("request %s: %s A new decoder takes its place.", request_id, error.message)
            raise

    async def _fetch(self, text: str, deadline: float) -> bytes:
        source = parse_source(text, self._options.decoder.limits.max_bytes)
        return await self._fetcher.fetch(source.url, deadline) if isinstance(source, Url) else source.data

    def __del__(self) -> None:
        if hasattr(self, "_decoders"):
            self._decoders.close()
