"""Scoring images through the three stages.

    images ─▶ Grouper ─▶ image_loader.load ─▶ detector.detect ─▶ polygonizer.outline ─▶ answers
                              (each response goes to the next stage by reference; nobody in between fetches it)

Every image is an item of its own: it batches with whoever is there, fails alone, and is tried again when the replica that
worked on it died, or when those it travelled with would have waited for it (scoring is idempotent). Images only share the
calls between the stages, see deployments.grouping.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentResponse

from deployments.context import RequestContext
from deployments.grouping import Grouper, GroupLimits
from deployments.image_loader import ImageInput
from deployments.in_process import LocalHandle, LocalResponse, StageHandle
from deployments.stage import RetryAlone
from pipeline.errors import DeadlineExceeded, EngineLost, ImageFault, Overloaded, ServiceError, StageFailed
from pipeline.images.source import looks_like_url
from pipeline.inference.engine import ModelInfo
from pipeline.types import Answer, DetectOptions, OutlineOptions

logger = logging.getLogger("ray.serve")

LOST_REPLICA = (
    ray_exceptions.RayActorError,
    ray_exceptions.ActorUnschedulableError,
    ray_exceptions.NodeDiedError,
    ray_exceptions.OutOfMemoryError,  # Ray's memory monitor ended the replica
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


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image on its way, and what it is asked for."""

    image: ImageInput
    options: ScoreOptions
    context: RequestContext


class ScoringGraph:
    """The three stages, chained.

    Args:
        image_loader, detector, polygonizer: handles of the stages' deployments.
        refusal: makes the error of an image that finds no room.
        groups: how images share calls.
        max_urls: most URLs on their way at a time; more wait. Each holds a call at an image loader while it is fetched.
    """

    def __init__(
        self,
        image_loader: StageHandle,
        detector: StageHandle,
        polygonizer: StageHandle,
        refusal: Callable[[], Overloaded],
        groups: GroupLimits | None = None,
        max_urls: int = 32,
    ) -> None:
        self._image_loader = image_loader
        self._detector = detector
        self._polygonizer = polygonizer
        self._refusal = refusal
        self._urls = asyncio.Semaphore(max_urls)
        # Another replica may have a card that works; in this process there is no other.
        self._worth_another_try: tuple[type[StageFailed], ...] = (StageLost, RetryAlone)
        if not isinstance(detector, LocalHandle):
            self._worth_another_try += (EngineLost,)
        self._slow = asyncio.Semaphore(1)  # images that take long to decode never take all decoders
        self._grouper: Grouper[ImageTask, Answer] = Grouper(self._chain, groups or GroupLimits())

    async def score(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext
    ) -> list[Answer | ImageFault]:
        """Score images, all at once; answers in the order of the images.

        Returns:
            One answer for each image, or with `options.isolate` an ImageFault in the place of one that failed.
        Raises:
            Overloaded: what is ahead would take longer than the deadline leaves: refused now, before it costs anything.
            ServiceError: without `isolate`, the first failure, its `faults` naming the images; the other images are cancelled.
        """
        if self._grouper.expected_s(len(images)) > context.remaining_s > 0:
            raise self._refusal()
        tasks = [asyncio.create_task(self._score_one(image, options, context)) for image in images]
        try:
            mode = asyncio.ALL_COMPLETED if options.isolate else asyncio.FIRST_EXCEPTION
            if tasks:
                await asyncio.wait(tasks, return_when=mode)
            return _collect(tasks, options.isolate)
        finally:
            for task in tasks:
                task.cancel()

    async def probe(self, image: ImageInput, options: ScoreOptions, context: RequestContext) -> None:
        """Score one image past all that waits here, to see that the stages answer.

        Raises:
            ServiceError: they did not.
        """
        await self._score_one(image, options, context, alone=True)

    async def model_info(self, timeout_s: float) -> ModelInfo:
        """What the detector runs.

        Raises:
            Overloaded: it did not answer in time, because it is busy or about to be replaced.
            ServiceError: it cannot be asked.
        """
        response: Any = self._detector.info.remote()
        try:
            async with asyncio.timeout(timeout_s):
                info: ModelInfo = await _result(response)
                return info
        except TimeoutError as error:
            _cancel(response)
            raise self._refusal() from error
        except Exception as error:
            raise self._known(error) from error

    async def _score_one(
        self, image: ImageInput, options: ScoreOptions, context: RequestContext, *, alone: bool = False
    ) -> Answer:
        context.check("ingress")
        task = ImageTask(image, options, context)
        try:
            async with asyncio.timeout(context.remaining_s):
                if isinstance(image, str) and looks_like_url(image):
                    async with self._urls:
                        return await self._send(task, alone=True)
                return await self._send(task, alone=alone)
        except TimeoutError as error:
            raise self._known(error) from error

    async def _send(self, task: ImageTask, *, alone: bool) -> Answer:
        """Carry one image through the stages; one that may take long to fetch, or came back from a group, travels alone."""
        image = task.image
        size_bytes = image.nbytes if isinstance(image, np.ndarray) else len(image)
        turn: AbstractAsyncContextManager[Any] = nullcontext()
        for delay_s in RETRY_DELAYS_S:
            try:
                async with turn:
                    return await self._grouper.send(task, size_bytes, alone=alone)
            except self._worth_another_try as error:
                sent_back = isinstance(error, RetryAlone)
                level = logging.INFO if sent_back else logging.WARNING
                logger.log(level, "request %s: %s Trying again in %s s.", task.context.request_id, error, delay_s)
                alone, turn = True, self._slow if sent_back else turn
                await asyncio.sleep(delay_s)
        async with turn:
            return await self._grouper.send(task, size_bytes, alone=alone)

    async def _chain(self, tasks: Sequence[ImageTask]) -> list[Answer | ServiceError]:
        """One group through the stages: an answer or an error for each image, never raises but for cancelling."""
        contexts = [task.context for task in tasks]
        options = [task.options for task in tasks]
        loaded: Any = self._image_loader.load.remote([task.image for task in tasks], contexts)
        instances: Any = self._detector.detect.remote(loaded, [option.detect for option in options], contexts)
        outlines = [(option.outline, option.encoded) for option in options]
        answers: Any = self._polygonizer.outline.remote(instances, outlines, contexts)
        try:
            return list(await _result(answers))
        except BaseException as error:
            _cancel(answers, instances, loaded)
            if isinstance(error, asyncio.CancelledError):
                raise
            return [self._known(error) for _ in tasks]

    def _known(self, error: BaseException) -> ServiceError:
        """The error of this project that a foreign exception stands for; a new one for each image, as they are raised apart."""
        if isinstance(error, ServiceError):
            return copy(error)
        if isinstance(error, TimeoutError | RequestCancelledError):
            return DeadlineExceeded("The request's deadline passed before its images were scored.")
        if isinstance(error, BackPressureError | DeploymentUnavailableError):
            return self._refusal()
        if isinstance(error, LOST_REPLICA):
            return StageLost("A replica was lost while it worked on this image.")
        logger.error("an unforeseen error in the scoring graph", exc_info=error)
        return StageFailed("The service failed on this image.")


class StageLost(StageFailed):
    """A replica died under an image; scoring it again may well work."""


async def _result(response: DeploymentResponse | LocalResponse) -> Any:
    """The stage's answer, or the first cause of its failure without the wrapping that each hop adds."""
    try:
        return await response
    except ray_exceptions.RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, ray_exceptions.RayTaskError) and isinstance(cause.cause, Exception):
            cause = cause.cause
        raise cause from None


def _cancel(*responses: DeploymentResponse | LocalResponse) -> None:
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
