"""Scoring images through the three stages.

    images ─▶ Grouper ─▶ image_loader.load ─▶ detector.detect ─▶ polygonizer.outline ─▶ answers
                              (each response goes to the next stage by reference; nobody in between fetches it)

Images are batched, retried and failed independently; grouping (deployments.grouping) only shares the cost of a call. An image is
retried when the replica that worked on it died or fell silent (CallHangs), and when it would have kept the others of its call waiting
(RetryAlone). Scoring is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentResponse

from deployments.admission import Admission, Place
from deployments.grouping import CallHangs, Grouper
from deployments.in_process import LocalHandle, LocalResponse, StageHandle
from deployments.retry_alone import RetryAlone
from deployments.settings import IngressSettings
from deployments.task import ImageInput, ImageTask, RequestContext, ScoreOptions
from pipeline.errors import DeadlineExceeded, DecodersUnavailable, EngineLost, ImageFault, Overloaded, ServiceError, StageFailed
from pipeline.inference.engine import ModelInfo
from pipeline.types import Answer

logger = logging.getLogger("ray.serve")

LOST_REPLICA = (
    ray_exceptions.RayActorError,
    ray_exceptions.ActorUnschedulableError,
    ray_exceptions.NodeDiedError,
    ray_exceptions.OutOfMemoryError,  # Ray's memory monitor ended the replica
    ray_exceptions.ObjectLostError,
    ray_exceptions.WorkerCrashedError,
    ray_exceptions.LocalRayletDiedError,
    RayServeException,  # from the router: an earlier stage's replica died while it made this call's argument
)
"""What a call raises when a replica died with its work. The images are tried again."""

RETRY_DELAYS_S = (0.05, 0.5, 2.0)
"""Waits before an image that lost its replica is tried again, within its deadline. More than one: for a moment Ray's
router still sends to the dead replica."""


class ScoringGraph:
    """The three stages, chained.

    Args:
        image_loader, detector, polygonizer: handles of the stages' deployments.
        settings: the section `ingress`.
        slow_s: how long fetching and decoding may take; a call that may do both is given up after it.
    Attributes:
        admission: bounds and paces of the images that are here.
    """

    def __init__(
        self,
        image_loader: StageHandle,
        detector: StageHandle,
        polygonizer: StageHandle,
        settings: IngressSettings,
        slow_s: float = math.inf,
    ) -> None:
        self._slow_s = slow_s
        self._image_loader = image_loader
        self._detector = detector
        self._polygonizer = polygonizer
        # Another replica's card or decoders may work. In this process there is no other replica.
        self._worth_another_try: tuple[type[StageFailed], ...] = (StageLost, RetryAlone)
        self._patience_s = 0.0
        if isinstance(detector, LocalHandle):
            self._patience_s = self._slow_s = math.inf
        else:
            self._worth_another_try += (CallHangs, EngineLost, DecodersUnavailable)
        self._grouper: Grouper[ImageTask[ImageInput], Answer] = Grouper(self._chain, settings.groups)
        self.admission = Admission(settings, self._grouper.expected_s)

    async def score(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext
    ) -> list[Answer | ImageFault]:
        """Score images, all at once; answers in the order of the images.

        Returns:
            One answer for each image, or with `options.isolate` an ImageFault in the place of one that failed.
        Raises:
            Overloaded: no room, or what is ahead would take longer than the deadline leaves: refused before it costs anything.
            ServiceError: without `isolate`, the first failure, its `faults` naming the images; the other images are cancelled.
        """
        with self.admission.admitted(images, context) as places:
            return await self._score_admitted(images, options, context, places)

    async def _score_admitted(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext, places: Sequence[Place]
    ) -> list[Answer | ImageFault]:
        tasks = [  # where it is drawn on, the pixels of an image's photo travel with it: alone
            asyncio.create_task(self._score_one(ImageTask(image, options, context, alone=options.draws), place))
            for image, place in zip(images, places, strict=True)
        ]
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
        await self._within_deadline(self._grouper.send(ImageTask(image, options, context), alone=True), context)

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
            raise self.admission.refusal() from error
        except Exception as error:
            raise self._known(error) from error

    async def _within_deadline(self, work: Coroutine[Any, Any, Answer], context: RequestContext) -> Answer:
        try:
            context.check("ingress")
            async with asyncio.timeout(context.remaining_s):
                return await work
        except TimeoutError as error:
            raise self._known(error) from error
        finally:
            work.close()  # where it never began

    async def _score_one(self, task: ImageTask[ImageInput], place: Place) -> Answer:
        return await self._within_deadline(self._send(task, place), task.context)

    async def _send(self, task: ImageTask[ImageInput], place: Place) -> Answer:
        """Send one image through the stages, and again where that is worthwhile; then in a call of its own."""
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._send_once(task, place)
            except self._worth_another_try as error:
                if isinstance(error, RetryAlone) and place.lane is not self.admission.large:
                    self.admission.check(self.admission.large, 1, task.context)
                    place.move(self.admission.large)
                level = logging.INFO if isinstance(error, RetryAlone) else logging.WARNING
                logger.log(level, "request %s: %s Trying again in %s s.", task.context.request_id, error, delay_s)
                task = replace(task, alone=True)
                await asyncio.sleep(delay_s)
        return await self._send_once(task, place, last=True)

    async def _send_once(self, task: ImageTask[ImageInput], place: Place, *, last: bool = False) -> Answer:
        """Send it once; the last time it is waited for until its deadline."""
        ordinary = place.lane is self.admission.ordinary
        patience_s = math.inf if last else self._patience_s if ordinary and not task.options.draws else self._slow_s
        if ordinary:
            caller = task.context.caller
            return await self._grouper.send(task, _size_bytes(task), caller=caller, alone=task.alone, patience_s=patience_s)
        async with place.lane.turn():
            return await self._grouper.send(replace(task, alone=True), alone=True, patience_s=patience_s)

    async def _chain(self, tasks: Sequence[ImageTask[ImageInput]]) -> list[Answer | ServiceError]:
        """Send one group through the stages.

        Each call's response is the next call's argument: Ray hands the pixels from replica to replica, past this process.

        Returns:
            An answer or an error for each image; raises nothing but CancelledError.
        """
        loaded: Any = self._image_loader.load.remote(tasks)
        instances: Any = self._detector.detect.remote(loaded)
        answers: Any = self._polygonizer.outline.remote(instances)
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
            return self.admission.refusal()
        if isinstance(error, LOST_REPLICA):
            return StageLost("A replica was lost while it worked on this image.")
        logger.error("an unforeseen error in the scoring graph", exc_info=error)
        return StageFailed("The service failed on this image.")


class StageLost(StageFailed):
    """The replica that worked on an image died. Scoring the image again may work."""


def _size_bytes(task: ImageTask[ImageInput]) -> int:
    image = task.payload
    if isinstance(image, ServiceError):
        return 0
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


async def _result(response: DeploymentResponse[Any] | LocalResponse) -> Any:
    """The stage's answer, or the first cause of its failure without the wrapping that each hop adds."""
    try:
        return await response
    except ray_exceptions.RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, ray_exceptions.RayTaskError) and isinstance(cause.cause, Exception):
            cause = cause.cause
        raise cause from None


def _cancel(*responses: DeploymentResponse[Any] | LocalResponse) -> None:
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
