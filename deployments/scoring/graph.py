"""Sends images through the three stages.

    images ─────────────────▶ Grouper ─▶ image_loader.load ─▶ detector.detect ─▶ polygonizer.outline ─▶ answers
    URLs ─▶ image_loader.fetch ──┘         (each result goes to the next stage by reference; the Ingress never fetches it)

Images are batched, retried and failed independently; grouping (deployments.scoring.grouping) only shares the cost of a call. An image is
retried when the replica that worked on it died or fell silent (CallHung), and when it would have kept the others of its call waiting
(RetryAlone). Scoring is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from deployments.scoring.admission import Admission, Place, SlotLane
from deployments.scoring.calls import cancel, result, to_service_error
from deployments.scoring.grouping import CallHung, Grouper, ReplicaLost
from deployments.settings import IngressSettings
from deployments.stages.in_process import LocalHandle, StageHandle
from deployments.stages.retry_alone import RetryAlone
from deployments.task import ImageInput, ImageTask, RequestContext, ScoreOptions
from pipeline.errors import DeadlineExceeded, DecodersUnavailable, EngineLost, ImageFault, Overloaded, ServiceError, StageFailed
from pipeline.images.source import url_host
from pipeline.inference.engine import EngineInfo
from pipeline.types import Answer

logger = logging.getLogger("ray.serve")

RETRY_DELAYS_S = (0.05, 0.5, 2.0)
"""Delays before an image is retried, within its deadline, seconds. Several, because Ray's router still sends to a dead replica for a
moment."""


class ScoringGraph:
    """The three stages, chained.

    Args:
        image_loader, detector, polygonizer: handles of the stages' deployments.
        settings: the section `ingress`.
        url_hang_s, large_hang_s: the call of a URL, and of a large image, does not count as hung before this time, seconds.
    Attributes:
        admission: the lanes of the admitted images.
    """

    def __init__(
        self,
        image_loader: StageHandle,
        detector: StageHandle,
        polygonizer: StageHandle,
        settings: IngressSettings,
        url_hang_s: float = math.inf,
        large_hang_s: float = math.inf,
    ) -> None:
        self._image_loader = image_loader
        self._detector = detector
        self._polygonizer = polygonizer
        # Another replica's device or decoders may work; with all stages in this process there is no other replica.
        self._retried_errors: tuple[type[StageFailed], ...] = (ReplicaLost, RetryAlone)
        in_process = isinstance(detector, LocalHandle)
        if not in_process:
            self._retried_errors += (CallHung, EngineLost, DecodersUnavailable)
        self._grouper: Grouper[ImageTask[ImageInput], Answer] = Grouper(self._chain, settings.groups)
        self._fetches: Grouper[ImageTask[ImageInput], ImageTask[ImageInput]] = Grouper(self._fetch, settings.groups)
        self.admission = Admission(settings, self._grouper.expected_s)
        min_hang_s = (math.inf,) * 3 if in_process else (0.0, url_hang_s, large_hang_s)
        self._min_hang_s = dict(zip(self.admission.lanes, min_hang_s, strict=True))

    async def score(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext
    ) -> list[Answer | ImageFault]:
        """Score the images of a request concurrently.

        Returns:
            One answer for each image, in order; with `options.isolate`, an ImageFault in place of one that failed. A passed deadline, or
            no room for one image, fails the whole request.
        Raises:
            Overloaded: no room, or the deadline could not be met; refused before any work.
            ServiceError: without `isolate`, the first failure; its `faults` name the images. The other images are cancelled.
        """
        with self.admission.admitted(images, context, pictures=options.draws) as places:
            return await self._score_admitted(images, options, context, places)

    async def _score_admitted(
        self, images: Sequence[ImageInput], options: ScoreOptions, context: RequestContext, places: Sequence[Place]
    ) -> list[Answer | ImageFault]:
        tasks = [
            asyncio.create_task(self._score_one(ImageTask(image, options, context), place))
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
        """Score one image ahead of all waiting ones, to check that the stages answer.

        Raises:
            ServiceError: they do not.
        """
        async with self._within_deadline(context):
            await self._grouper.send(ImageTask(image, options, context), alone=True)

    async def model_info(self, timeout_s: float) -> EngineInfo:
        """Model, engine and device of the detector.

        Raises:
            Overloaded: the detector did not answer in time: it is busy or being replaced.
            ServiceError: the call failed.
        """
        response: Any = self._detector.info.remote()
        try:
            async with asyncio.timeout(timeout_s):
                info: EngineInfo = await result(response)
                return info
        except TimeoutError as error:
            cancel(response)
            raise self.admission.refusal(reason="the Detector does not answer") from error
        except Exception as error:
            raise to_service_error(error, self.admission.refusal) from error

    @asynccontextmanager
    async def _within_deadline(self, context: RequestContext) -> AsyncIterator[None]:
        """Raise DeadlineExceeded if the block does not end before the deadline."""
        context.check("ingress")
        try:
            async with asyncio.timeout(context.remaining_s):
                yield
        except TimeoutError as error:
            raise to_service_error(error, self.admission.refusal) from error

    async def _score_one(self, task: ImageTask[ImageInput], place: Place) -> Answer:
        async with self._within_deadline(task.context):
            return await self._send(task, place)

    async def _send(self, task: ImageTask[ImageInput], place: Place) -> Answer:
        """Send one image through the stages; retry it, in a call of its own, if its replica was lost or it must be admitted as large."""
        alone = False
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._send_once(task, place, alone=alone)
            except self._retried_errors as error:
                if isinstance(error, RetryAlone):
                    self._admit_as_large(place, task.context)
                level = logging.INFO if isinstance(error, RetryAlone) else logging.WARNING
                logger.log(level, "request %s: %s Trying again in %s s.", task.context.request_id, error, delay_s)
                alone = True
                await asyncio.sleep(delay_s)
        return await self._send_once(task, place, alone=True, last=True)

    async def _send_once(self, task: ImageTask[ImageInput], place: Place, *, alone: bool, last: bool = False) -> Answer:
        """Send one image through its lane; the last time it is waited for until its deadline.

        ordinary   in a group with others; alone, at once, after a retry
        url        fetched by a call of its own, then as an ordinary image; a long body is fetched again by the call that decodes it
        large      in calls of its own, one image at a time
        """
        lane = place.lane
        min_hang_s = math.inf if last else self._min_hang_s[lane]
        if not isinstance(lane, SlotLane):
            return await self._send_grouped(task, alone, min_hang_s)
        host = url_host(task.payload) if isinstance(task.payload, str) and lane is self.admission.urls else ""
        async with lane.slot(task.context.caller, host):
            if lane is self.admission.large:
                return await self._grouper.send(replace(task, large=True), alone=True, min_hang_s=min_hang_s)
            if not alone:
                task = await self._fetches.send(task, alone=True, min_hang_s=min_hang_s)
                lane.hosts.answered(host)
            if not task.options.draws:
                if isinstance(task.payload, bytes):  # as any other image from here on
                    return await self._send_grouped(task, False, self._min_hang_s[self.admission.ordinary])
                return await self._send_grouped(task, True, min_hang_s)
        self._admit_as_large(place, task.context)
        return await self._send_once(task, place, alone=True, last=last)

    async def _send_grouped(self, task: ImageTask[ImageInput], alone: bool, min_hang_s: float) -> Answer:
        caller = task.context.caller
        return await self._grouper.send(task, _size_bytes(task), caller=caller, alone=alone, min_hang_s=min_hang_s)

    def _admit_as_large(self, place: Place, context: RequestContext) -> None:
        """Move an image to the lane of the large ones.

        Raises:
            Overloaded: there is no room, or not enough time before the deadline.
        """
        if place.lane is not self.admission.large:
            self.admission.check(self.admission.large, 1, context)
            place.move(self.admission.large)

    async def _fetch(self, tasks: Sequence[ImageTask[ImageInput]]) -> list[ImageTask[ImageInput] | ServiceError]:
        """Fetch URLs; returns each task with what it fetched, or its error; raises only CancelledError."""
        response: Any = self._image_loader.fetch.remote(tasks)
        fetched = await self._outcomes(tasks, response)
        return [
            task.payload if isinstance(task, ImageTask) and isinstance(task.payload, ServiceError) else task for task in fetched
        ]

    async def _chain(self, tasks: Sequence[ImageTask[ImageInput]]) -> list[Answer | ServiceError]:
        """Send one group through the stages.

        Each call's response is the next call's argument, so Ray sends the pixels from replica to replica and not to this process.

        Returns:
            An answer or an error for each image; raises only CancelledError.
        """
        loaded: Any = self._image_loader.load.remote(tasks)
        instances: Any = self._detector.detect.remote(loaded)
        answers: Any = self._polygonizer.outline.remote(instances)
        return await self._outcomes(tasks, answers, instances, loaded)

    async def _outcomes(self, tasks: Sequence[ImageTask[ImageInput]], last: Any, *earlier: Any) -> list[Any]:
        """The result of a chain's last call, or its error for each image; after an error, all its calls are cancelled."""
        try:
            return list(await result(last))
        except BaseException as error:
            cancel(last, *earlier)
            if isinstance(error, asyncio.CancelledError):
                raise
            return [to_service_error(error, self.admission.refusal) for _ in tasks]


def _size_bytes(task: ImageTask[ImageInput]) -> int:
    image = task.payload
    if isinstance(image, ServiceError):
        return 0
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


def _collect(tasks: list[asyncio.Task[Answer]], isolate: bool) -> list[Answer | ImageFault]:
    """Answers in order. Raises the first failure, unless `isolate` returns it in the image's place."""
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
