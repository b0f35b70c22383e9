"""Scoring one image through the three stages, and many of them as one request.

    image ─▶ image_loader.load ─▶ detector.detect ─▶ polygonizer.outline ─▶ answer
                        (each response goes to the next stage by reference; nobody in between fetches it)

Every image is an item of its own: it batches with whoever is there, fails alone, and is tried again when the
replica that worked on it died (scoring is idempotent).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.context import RequestContext
from deployments.image_loader import ImageInput
from pipeline.errors import DeadlineExceeded, ImageFault, Overloaded, ServiceError, StageFailed
from pipeline.types import Answer, DetectOptions, OutlineOptions

logger = logging.getLogger("ray.serve")

LOST_REPLICA = (
    ray_exceptions.RayActorError,
    ray_exceptions.ObjectLostError,
    ray_exceptions.WorkerCrashedError,
    ray_exceptions.LocalRayletDiedError,
    RayServeException,  # the router's word for "an earlier stage's replica died while it made this call's argument"
)
"""What a caller sees when a replica died with its work: worth another try."""

RETRY_DELAYS_S = (0.05, 0.5, 2.0)
"""Waits before an image that lost its replica is tried again, within its deadline. More than one: for a moment Ray's
router still sends to the dead replica."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """A request's wishes with the server's defaults filled in.

    Args:
        detect: which instances are kept.
        outline: how their masks are written down.
        isolate: a bad image gives its own fault instead of failing the request.
        encoded: answers as JSON bytes (EncodedImage) rather than objects (ScoredImage).
    """

    detect: DetectOptions
    outline: OutlineOptions
    isolate: bool = False
    encoded: bool = False


class ScoringGraph:
    """The three stages, chained.

    Args:
        image_loader, detector, polygonizer: handles of the stages' deployments.
        retry_after_s: seconds told to callers who are refused because a queue is full.
        overload_status: 503 or 429, the status of such a refusal.
    """

    def __init__(
        self,
        image_loader: DeploymentHandle,
        detector: DeploymentHandle,
        polygonizer: DeploymentHandle,
        retry_after_s: int = 1,
        overload_status: int = 503,
    ) -> None:
        self._image_loader = image_loader
        self._detector = detector
        self._polygonizer = polygonizer
        self._retry_after_s = retry_after_s
        self._overload_status = overload_status

    async def score(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext
    ) -> list[Answer | ImageFault]:
        """Score images, all at once; answers in the order of the images.

        Returns:
            One answer for each image, or with `options.isolate` an ImageFault in the place of one that failed.
        Raises:
            ServiceError: without `isolate`, the first failure, its `faults` naming the images; the other images are cancelled.
        """
        tasks = [asyncio.create_task(self._score_one(image, options, context)) for image in images]
        try:
            mode = asyncio.ALL_COMPLETED if options.isolate else asyncio.FIRST_EXCEPTION
            if tasks:
                await asyncio.wait(tasks, return_when=mode)
            return _collect(tasks, options.isolate)
        finally:
            for task in tasks:
                task.cancel()

    async def _score_one(self, image: ImageInput, options: ScoreOptions, context: RequestContext) -> Answer:
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._chain(image, options, context)
            except StageLost as error:
                logger.warning("request %s: %s Trying again in %s s.", context.request_id, error, delay_s)
                await asyncio.sleep(min(delay_s, max(context.remaining_s, 0)))
        return await self._chain(image, options, context)

    async def _chain(self, image: ImageInput, options: ScoreOptions, context: RequestContext) -> Answer:
        context.check("ingress")
        loaded: Any = self._image_loader.load.remote(image, context)
        instances: Any = self._detector.detect.remote(loaded, options.detect, context)
        last = self._polygonizer.outline_json if options.encoded else self._polygonizer.outline
        answer: Any = last.remote(instances, options.outline, context)
        try:
            return await asyncio.wait_for(_result(answer), timeout=context.remaining_s)
        except BaseException as error:
            _cancel(answer, instances, loaded)
            raise self._known(error) from error

    def _known(self, error: BaseException) -> BaseException:
        """The error of this project that a foreign exception stands for."""
        if isinstance(error, ServiceError | asyncio.CancelledError):
            return error
        if isinstance(error, TimeoutError | RequestCancelledError):
            return DeadlineExceeded("The request's deadline passed before its images were scored.")
        if isinstance(error, BackPressureError | DeploymentUnavailableError):
            return Overloaded(
                "The service is at its limit; try again later.", retry_after_s=self._retry_after_s, status=self._overload_status
            )
        if isinstance(error, LOST_REPLICA):
            return StageLost("A replica was lost while it worked on this image.")
        logger.error("an unforeseen error in the scoring graph", exc_info=error)
        return StageFailed("The service failed on this image.")


class StageLost(StageFailed):
    """A replica died under an image; scoring it again may well work."""


async def _result(response: DeploymentResponse) -> Any:
    """The stage's answer, or the first cause of its failure without the wrapping that each hop adds."""
    try:
        return await response
    except ray_exceptions.RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, ray_exceptions.RayTaskError) and isinstance(cause.cause, Exception):
            cause = cause.cause
        raise cause from None


def _cancel(*responses: DeploymentResponse) -> None:
    """Give up work that nobody waits for any more; a response that failed before it was sent raises its own error here."""
    for response in responses:
        with suppress(Exception):
            response.cancel()


def _collect(tasks: list[asyncio.Task[Answer]], isolate: bool) -> list[Answer | ImageFault]:
    """Answers in order; the first failure is raised unless faults stay with their images."""
    results: list[Answer | ImageFault] = []
    faults: list[ImageFault] = []
    first: ServiceError | None = None
    for index, task in enumerate(tasks):
        if not task.done():
            continue
        error = task.exception()
        if error is None:
            results.append(task.result())
            continue
        if not isinstance(error, ServiceError):
            raise error
        if isolate and not isinstance(error, DeadlineExceeded | Overloaded):
            results.append(ImageFault(index, error.code, error.message))
            continue
        faults.append(ImageFault(index, error.code, error.message))
        first = first or error
    if first is not None:
        first.faults = tuple(faults)
        raise first
    return results
