"""Polygonizer: turns instances into polygons, as typed objects, as JSON or as a picture. Runs on CPU, scales on its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from ray import serve

from deployments.ray_serve.unary_calls import UNARY_CALLS
from deployments.settings import PolygonizerSettings
from deployments.stages.stage import StageRunner, Timings
from deployments.task import ImageTask
from deployments.telemetry.metrics import ObjectMetrics
from deployments.user_config import TakesUserConfig
from pipeline.errors import ServiceError
from pipeline.fair_queue import FairThreads
from pipeline.masks.draw import draw_overlay, picture_to_file
from pipeline.masks.encode import instances_to_json_objects, instances_to_objects, join_json_objects, load_loops, split_instances
from pipeline.types import Answer, DrawnImage, EncodedImage, Instances, OutlineOptions, ScoredImage, SegmentedObject

T = TypeVar("T")


@serve.deployment(max_ongoing_requests=32, max_queued_requests=512, request_router_config=UNARY_CALLS)
class Polygonizer(TakesUserConfig):
    """Traces masks and encodes the results.

    Args:
        classes: class names, in the order of the network's labels, for tasks without `classes`. A task's own take precedence: during an
            update its Detector may run another model.
        settings: the section `polygonizer`.
    """

    def __init__(self, classes: tuple[str, ...], settings: PolygonizerSettings) -> None:
        load_loops()
        self._classes = classes
        self._stage = StageRunner("polygonizer")
        self._metrics = ObjectMetrics()
        self._thread_count = settings.threads
        self._threads = FairThreads(settings.threads, "polygonize")

    async def outline(self, tasks: Sequence[ImageTask[Instances]]) -> list[Answer | ServiceError]:
        """Outline the objects in the images of a call.

        Returns:
            For each image its answer with the timings of all stages, or its error.
        """
        return [_answer(task) for task in await self._stage.each(self._outline, tasks)]

    async def _outline(self, instances: Instances, task: ImageTask[Instances], timings: Timings) -> Answer:
        with timings.measure("polygonize"):
            drawn = task.options.draws and task.canvas is not None
            if not drawn and task.options.answer_format != "objects":
                encoded = await self._in_parts(instances_to_json_objects, instances, task)
                return EncodedImage(join_json_objects(encoded))
            objects = await self._in_parts(instances_to_objects, instances, task)
            if drawn:
                return await self._threads.run(task.queue_key, _draw, task.canvas, objects, task.options.answer_format)
            return ScoredImage(objects)

    async def _in_parts(
        self,
        convert: Callable[[Instances, Sequence[str], OutlineOptions], list[T]],
        instances: Instances,
        task: ImageTask[Instances],
    ) -> list[T]:
        """Convert the parts of an image in the threads."""
        classes, parts = task.classes or self._classes, split_instances(instances, self._thread_count)
        work = (self._threads.run(task.queue_key, convert, part, classes, task.options.outline) for part in parts)
        found = list(itertools.chain.from_iterable(await asyncio.gather(*work)))
        self._metrics.image(len(found))
        return found


def _draw(canvas: NDArray[np.uint8], objects: Sequence[SegmentedObject], file_format: str) -> DrawnImage:
    picture = draw_overlay(Image.fromarray(canvas[..., ::-1]), objects)
    return DrawnImage(picture_to_file(picture, file_format), f"image/{file_format}")


def _answer(task: ImageTask[Answer]) -> Answer | ServiceError:
    return task.payload if isinstance(task.payload, ServiceError) else replace(task.payload, timings_ms=task.timings_ms)
