"""Polygonizer: instances in, outlines out, as typed objects or as the JSON of the answer. CPU; scales on its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ray import serve

from deployments.context import RequestContext
from deployments.stage import Stage
from pipeline.objects import instances_to_objects, objects_to_json
from pipeline.types import EncodedImage, Instances, OutlineOptions, ScoredImage, SegmentedObject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PolygonizerOptions:
    """What a Polygonizer needs to know.

    Args:
        classes: class names, in the order of the network's labels.
        threads: worker threads.
    """

    classes: tuple[str, ...]
    threads: int


@serve.deployment(max_ongoing_requests=32, max_queued_requests=512)
class Polygonizer:
    """Traces masks and writes them down."""

    def __init__(self, options: PolygonizerOptions) -> None:
        self._classes = options.classes
        self._stage = Stage("polygonizer")
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="polygonize")

    async def outline(self, instances: Instances, options: OutlineOptions, context: RequestContext) -> ScoredImage:
        """One image's objects, typed (for Python callers)."""
        objects, timings = await self._work(instances, options, context, lambda objects: objects)
        return ScoredImage(objects, timings)

    async def outline_json(self, instances: Instances, options: OutlineOptions, context: RequestContext) -> EncodedImage:
        """One image's objects, encoded (for HTTP callers)."""
        (encoded, count), timings = await self._work(
            instances, options, context, lambda objects: (objects_to_json(objects), len(objects))
        )
        return EncodedImage(encoded, count, timings)

    async def _work(
        self,
        instances: Instances,
        options: OutlineOptions,
        context: RequestContext,
        finish: Callable[[list[SegmentedObject]], T],
    ) -> tuple[T, Mapping[str, float]]:
        def run() -> T:
            return finish(instances_to_objects(instances, self._classes, options))

        with self._stage.guard(context):
            began = time.perf_counter()
            result = await asyncio.get_running_loop().run_in_executor(self._threads, run)
            return result, {**instances.timings_ms, "polygonize": (time.perf_counter() - began) * 1e3}
