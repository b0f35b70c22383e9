"""What every stage does around its work: check the deadline, measure, count, and turn unforeseen exceptions into known errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.metrics import StageMetrics
from deployments.retry_alone import RetryAlone
from deployments.task import ImageTask, RequestContext
from pipeline.errors import EngineFailed, ServiceError, StageFailed

Payload = TypeVar("Payload")
Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


class Clock:
    """The milliseconds that one image spends in the parts of a stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """The time within is that of `part`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def add(self, part: str, seconds: float) -> None:
        """Say how long `part` took."""
        self.timings_ms[part] = seconds * 1e3


Work = Callable[[Payload, ImageTask[Payload], Clock], Awaitable[Result]]
"""A stage's work on one image; notes the time of its parts on the clock."""


class Stage:
    """One stage's name and metrics.

    Args:
        name: `image_loader`, `detector` or `polygonizer`; metric label, log field and error text.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._metrics = StageMetrics(name)
        self._line_level = _line_level()

    async def each(self, work: Work[Payload, Result], tasks: Sequence[ImageTask[Payload]]) -> list[ImageTask[Result]]:
        """Run `work` for every image of a call, side by side: images fail independently.

        Returns:
            Each task with its result or its error. Those that came with an error are handed on.
        """
        began = time.perf_counter()
        done = await asyncio.gather(*(self._one(work, task) for task in tasks))
        if logger.isEnabledFor(self._line_level):
            ids = " ".join(dict.fromkeys(task.context.request_id for task in tasks))
            took_ms = (time.perf_counter() - began) * 1e3
            logger.log(self._line_level, "%s: %d image(s) in %.1f ms, request %s", self.name, len(tasks), took_ms, ids)
        return done

    async def _one(self, work: Work[Payload, Result], task: ImageTask[Payload]) -> ImageTask[Result]:
        clock = Clock()
        if isinstance(task.payload, ServiceError):
            return task.after(task.payload, clock.timings_ms)
        try:
            with self._guard(task.context):
                result = await work(task.payload, task, clock)
        except ServiceError as error:
            return task.after(error, clock.timings_ms)
        return task.after(result, clock.timings_ms)

    @contextmanager
    def _guard(self, context: RequestContext) -> Iterator[None]:
        """Refuse an image that is late, time its work, count it, log its failure, and let no foreign exception out.

        Raises:
            DeadlineExceeded: the deadline passed before the work began.
            RetryAlone: not counted, the image comes again.
            ServiceError: what the work raised itself; of an engine's failure its type, without what the library said.
            StageFailed: anything else the work raised; the cause is logged with the request id, not sent on.
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
    """Level of the line that each call gets: DEBUG inside the Ingress replica, whose access log has one for every request.

    Three lines more an image are 0.6 ms of CPU (measured, 36 images/s).
    """
    try:
        return logging.DEBUG if serve.get_replica_context().deployment == "Ingress" else logging.INFO
    except RayServeException:  # not in a replica
        return logging.INFO
