"""What the stages share: deadlines, times, counts of images and errors, unexpected exceptions mapped to ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.stages.retry_alone import RetryAlone
from deployments.task import ImageTask, RequestContext
from deployments.telemetry.logs import include_pipeline
from deployments.telemetry.metrics import StageMetrics
from pipeline.errors import EngineFailed, ServiceError, StageFailed

Payload = TypeVar("Payload")
Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


class Timings:
    """Adds up the times of one image, milliseconds.

    Args:
        timings_ms: of the stages before, by part.
    """

    def __init__(self, timings_ms: Mapping[str, float]) -> None:
        self.timings_ms = dict(timings_ms)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time spent within to that of `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def add(self, part: str, seconds: float) -> None:
        """Add `seconds` to the time of `part`."""
        self.timings_ms[part] = self.timings_ms.get(part, 0.0) + seconds * 1e3


Work = Callable[[Payload, ImageTask[Payload], Timings], Awaitable[Result]]
"""A stage's work on one image; adds its times to the Timings."""


class StageRunner:
    """Runs the work of one stage on the images of each call; measures, counts and logs it.

    Args:
        name: `fetch`, `image_loader`, `detector` or `polygonizer`; used in metrics, logs and messages.
    """

    def __init__(self, name: str) -> None:
        include_pipeline()
        self.name = name
        self._metrics = StageMetrics(name)
        self._line_level = _line_level()

    async def each(self, work: Work[Payload, Result], tasks: Sequence[ImageTask[Payload]]) -> list[ImageTask[Result]]:
        """Run `work` concurrently for every image of a call; images fail independently.

        Returns:
            Each task with its result or its error, in order. Tasks that already have an error keep it.
        """
        began = time.perf_counter()
        done = await asyncio.gather(*(self._one(work, task) for task in tasks))
        if logger.isEnabledFor(self._line_level):
            ids = " ".join(dict.fromkeys(task.context.request_id for task in tasks))
            took_ms = (time.perf_counter() - began) * 1e3
            line = "%s: %d image(s) in %.1f ms, request %s"
            logger.log(self._line_level, line, self.name, len(tasks), took_ms, ids, extra={"log_to_stderr": False})
        return done

    async def _one(self, work: Work[Payload, Result], task: ImageTask[Payload]) -> ImageTask[Result]:
        if isinstance(task.payload, ServiceError):
            return task.after(task.payload, task.timings_ms)
        timings = Timings(task.timings_ms)
        try:
            with self._guard(task.context):
                result = await work(task.payload, task, timings)
        except ServiceError as error:
            return task.after(error, timings.timings_ms)
        return task.after(result, timings.timings_ms)

    @contextmanager
    def _guard(self, context: RequestContext) -> Iterator[None]:
        """Around the work on one image: check the deadline, measure, count, log failures and map exceptions.

        Raises:
            DeadlineExceeded: the deadline passed before the work began.
            RetryAlone: raised by the work; not counted, because the image is retried.
            ServiceError: raised by the work. An EngineFailed is raised without the library's message, which is only logged.
            StageFailed: the work raised another exception, which is logged with the request id.
        """
        began = time.perf_counter()
        try:
            context.check(self.name)
            yield
        except RetryAlone:
            raise
        except EngineFailed as error:
            self._metrics.failed(error.code, latency_ms=_ms_since(began))
            logger.exception("request %s: stage %s failed: %s", context.request_id, self.name, error.message)
            raise type(error)(f"The {self.name} stage failed on this image.") from error
        except ServiceError as error:
            self._metrics.failed(error.code, latency_ms=_ms_since(began))
            logger.info("Refused by %s, request %s: %s", self.name, context.request_id, error.code)
            raise
        except Exception as error:
            self._metrics.failed(StageFailed.code, latency_ms=_ms_since(began))
            logger.exception("request %s: stage %s failed", context.request_id, self.name)
            raise StageFailed(f"The {self.name} stage failed on this image.") from error
        self._metrics.done(_ms_since(began))


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def _line_level() -> int:
    """Level of the log line for each call: DEBUG in the Ingress replica, whose access log has a line per request anyway.

    Three more lines per image cost 0.6 ms of CPU (measured at 36 images/s).
    """
    try:
        return logging.DEBUG if serve.get_replica_context().deployment == "Ingress" else logging.INFO
    except RayServeException:  # not in a replica
        return logging.INFO
