"""Polygonizer: instances in, outlines out, as typed objects or as the JSON of the answer. CPU; scales on its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ray import serve

from deployments.metrics import ObjectMetrics
from deployments.settings import PolygonizerSettings
from deployments.stage import Clock, Stage
from deployments.task import ImageTask
from pipeline.errors import ServiceError
from pipeline.masks.encode import instances_to_objects, objects_to_json, split_instances, warm_up
from pipeline.types import Answer, EncodedImage, Instances, OutlineOptions, ScoredImage, SegmentedObject


@serve.deployment(max_ongoing_requests=32, max_queued_requests=512)
class Polygonizer:
    """Traces masks and writes them down.

    Args:
        classes: class names, in the order of the network's labels.
        settings: the section `polygonizer`.
    """

    def __init__(self, classes: tuple[str, ...], settings: PolygonizerSettings) -> None:
        warm_up()
        self._classes = classes
        self._stage = Stage("polygonizer")
        self._metrics = ObjectMetrics()
        self._thread_count = settings.threads
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="polygonize")

    async def outline(self, tasks: Sequence[ImageTask[Instances]]) -> list[Answer | ServiceError]:
        """Outline the objects of a call's images.

        Returns:
            For each image its answer (with the timings of all stages), or its error.
        """
        return [_answer(task) for task in await self._stage.each(self._outline, tasks)]

    async def _outline(self, instances: Instances, task: ImageTask[Instances], clock: Clock) -> Answer:
        with clock.measure("polygonize"):
            objects = await self._objects(instances, task.options.outline)
            self._metrics.image(len(objects))
            return EncodedImage(objects_to_json(objects)) if task.options.encoded else ScoredImage(objects)

    async def _objects(self, instances: Instances, options: OutlineOptions) -> list[SegmentedObject]:
        loop, parts = asyncio.get_running_loop(), split_instances(instances, self._thread_count)
        work = (loop.run_in_executor(self._threads, instances_to_objects, part, self._classes, options) for part in parts)
        return list(itertools.chain.from_iterable(await asyncio.gather(*work)))


def _answer(task: ImageTask[Answer]) -> Answer | ServiceError:
    return task.payload if isinstance(task.payload, ServiceError) else replace(task.payload, timings_ms=task.timings_ms)
