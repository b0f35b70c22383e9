"""Polygonizer: instances in, outlines out, as typed objects or as the JSON of the answer. CPU; scales on its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ray import serve

from deployments.context import RequestContext
from deployments.metrics import ObjectMetrics
from deployments.stage import Stage
from pipeline.errors import ServiceError
from pipeline.masks.encode import instances_to_objects, objects_to_json, split_instances
from pipeline.types import Answer, EncodedImage, Instances, OutlineOptions, ScoredImage


@dataclass(frozen=True, slots=True)
class PolygonizerOptions:
    """What a Polygonizer needs to know.

    Args:
        classes: class names, in the order of the network's labels.
        threads: worker threads; an image with many instances is spread over them.
    """

    classes: tuple[str, ...]
    threads: int


@serve.deployment(max_ongoing_requests=32, max_queued_requests=512)
class Polygonizer:
    """Traces masks and writes them down."""

    def __init__(self, options: PolygonizerOptions) -> None:
        self._classes = options.classes
        self._stage = Stage("polygonizer")
        self._metrics = ObjectMetrics()
        self._thread_count = options.threads
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="polygonize")

    async def outline(
        self,
        instances: Sequence[Instances | ServiceError],
        options: Sequence[tuple[OutlineOptions, bool]],
        contexts: Sequence[RequestContext],
    ) -> list[Answer | ServiceError]:
        """Outline the objects of a group's images.

        Args:
            options: for each image how, and whether as JSON bytes (EncodedImage, for HTTP) or typed (ScoredImage, for Python).
        Returns:
            For each image its answer, or its error.
        """
        return await self._stage.each(self._outline, instances, options, contexts)

    async def _outline(self, instances: Instances, options: tuple[OutlineOptions, bool], _: RequestContext) -> Answer:
        began = time.perf_counter()
        outline, encoded = options
        loop, parts = asyncio.get_running_loop(), split_instances(instances, self._thread_count)
        work = (loop.run_in_executor(self._threads, instances_to_objects, part, self._classes, outline) for part in parts)
        objects = list(itertools.chain.from_iterable(await asyncio.gather(*work)))
        self._metrics.image(len(objects))
        answer = EncodedImage(objects_to_json(objects)) if encoded else ScoredImage(objects)  # 1 ms for 100 ragged masks
        return replace(answer, timings_ms={**instances.timings_ms, "polygonize": (time.perf_counter() - began) * 1e3})
