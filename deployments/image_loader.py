"""ImageLoader: text, bytes or array in, pixels ready for the network out. CPU; scales on its own.

"https://…" ─▶ fetch ─┐
base64 ───────────────┼─▶ decode ─▶ scale ─▶ LoadedImage
bytes, ndarray ───────┘   (a thread)
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.context import RequestContext
from deployments.stage import Stage
from pipeline.decode import DecodeLimits
from pipeline.fetch import Fetcher, FetchPolicy
from pipeline.load import load_image
from pipeline.source import Url, parse_source
from pipeline.types import LoadedImage

ImageInput = str | bytes | NDArray[np.uint8]
"""An image as callers give it: base64 text or URL, encoded bytes, or (H, W, 3) uint8 RGB / (H, W) grey pixels."""


@dataclass(frozen=True, slots=True)
class ImageLoaderOptions:
    """What an ImageLoader needs to know.

    Args:
        fetch: policy for URLs.
        limits: caps on bytes and pixels.
        input_size: side of the network input, pixels.
        threads: decoding threads.
    """

    fetch: FetchPolicy
    limits: DecodeLimits
    input_size: int
    threads: int


@serve.deployment(max_ongoing_requests=32, max_queued_requests=512)
class ImageLoader:
    """Fetches, decodes and scales single images."""

    def __init__(self, options: ImageLoaderOptions) -> None:
        self._options = options
        self._stage = Stage("image_loader")
        self._fetcher = Fetcher(options.fetch)
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="decode")

    async def load(self, image: ImageInput, context: RequestContext) -> LoadedImage:
        """Make one image ready for the network.

        Raises:
            FetchError, ImageError, LimitExceeded: this image cannot be had; the message says why.
            DeadlineExceeded: too late to begin.
        """
        with self._stage.guard(context):
            began = time.perf_counter()
            data = await self._fetch(image, context.deadline) if isinstance(image, str) else image
            fetch_ms = (time.perf_counter() - began) * 1e3
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._threads, load_image, data, self._options.limits, self._options.input_size
            )
            return replace(loaded, timings_ms={"fetch": fetch_ms, **loaded.timings_ms})

    async def _fetch(self, text: str, deadline: float) -> bytes:
        source = parse_source(text, self._options.limits.max_bytes)
        return await self._fetcher.fetch(source.url, deadline) if isinstance(source, Url) else source.data
