"""Ingress: the deployment that callers use, over HTTP or by handle. It never touches pixels.

HTTP ─▶ ASGI app (serve_app.http) ──┐
                                    ├─▶ admission ─▶ ScoringGraph ─▶ gather
handle.score.remote(images, params) ┘
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import serve

from deployments.params import ScoreParams, check_image_count, check_images, parse_params
from deployments.probe import PROBE_IMAGE
from deployments.scoring.graph import ScoringGraph
from deployments.settings import Settings
from deployments.stages.in_process import LocalHandle, LocalStage, StageHandle, to_handle
from deployments.task import PICTURE_FORMATS, AnswerFormat, ImageInput, RequestContext, ScoreOptions
from deployments.telemetry.logs import keep_off_stderr
from deployments.telemetry.metrics import IngressMetrics
from deployments.telemetry.tracing import record_stages
from deployments.user_config import TakesUserConfig, with_live_settings
from pipeline.errors import ImageFault, InvalidRequest, Overloaded, ServiceError, quoted
from pipeline.images.decoder_options import BACKGROUND_FACTOR
from pipeline.inference.engine import EngineInfo
from pipeline.types import Answer, DetectOptions, OutlineOptions, ScoredImage

MODEL_INFO_S = 10.0
"""How long the description of the model is cached, seconds."""
PROBE_TIMEOUT_S = 5.0
"""How long the stages may take to answer a probe, or the detector to describe its model, seconds."""


@serve.deployment(max_ongoing_requests=1000, graceful_shutdown_timeout_s=35)
@serve.ingress()
class Ingress(TakesUserConfig):
    """Admits requests, scores their images through the stages, gathers the answers.

    Args:
        image_loader, detector, polygonizer: handles of the stages, or the stages to start in this process.
        settings: limits and defaults of the request parameters.
        classes: class names, in the order of the network's labels.
        make_http_app: makes the ASGI application that serves HTTP for this ingress.
    Attributes:
        settings: the settings in effect; see `apply`.
    """

    def __init__(
        self,
        image_loader: StageHandle | LocalStage,
        detector: StageHandle | LocalStage,
        polygonizer: StageHandle | LocalStage,
        settings: Settings,
        classes: tuple[str, ...],
        make_http_app: Callable[[Ingress], Any],
    ) -> None:
        self._at_start = self.settings = settings
        self._classes = classes
        self._make_http_app = make_http_app
        self._image_loader, self._detector = to_handle(image_loader), to_handle(detector)
        fetch_s, decode_s = settings.image_loader.fetch.total_timeout_s, settings.image_loader.decode_timeout_s
        self._graph = ScoringGraph(
            self._image_loader,
            self._detector,
            to_handle(polygonizer),
            settings.ingress,
            url_hang_s=fetch_s + decode_s,
            large_hang_s=fetch_s + BACKGROUND_FACTOR * decode_s,
        )
        self._metrics = IngressMetrics()
        keep_off_stderr()
        self._model: tuple[float, EngineInfo] | None = None
        self._readiness: tuple[float, ServiceError | None] | None = None
        self._probe_lock = asyncio.Lock()

    def apply(self, user_config: Any) -> None:
        """Apply limits and defaults without a restart.

        Args:
            user_config: see `with_live_settings`.
        Raises:
            ConfigurationError: a setting is wrong or cannot change in a running replica; the previous settings stay.
        """
        self.settings = with_live_settings(self._at_start, user_config)
        self._graph.admission.reconfigure(self.settings.ingress)

    def __serve_build_asgi_app__(self) -> Any:
        return self._make_http_app(self)

    async def score(
        self,
        images: Sequence[ImageInput],
        params: ScoreParams | Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[ScoredImage]:
        """Score images; for Python callers: `serve.get_app_handle(name).score.remote(images)`.

        Args:
            images: each a base64 text or URL (str), an encoded file (bytes), or pixels: (H, W, 3) uint8 RGB or (H, W) uint8 grey.
            params: as in the HTTP contract.
            timeout_s: time until the deadline, seconds; None takes the server's. The server's is also the upper bound.
            request_id: for the logs; None generates one.
        Returns:
            One ScoredImage for each image, in order. With `on_error="isolate"`, the one of a bad image has its `fault` set.
        Raises:
            ServiceError: with the same codes as over HTTP.
        """
        check_images(images)
        checked = parse_params(params)
        answers = await self.score_images(images, checked, self.context(timeout_s, request_id), answer_format="objects")
        return [answer if isinstance(answer, ScoredImage) else _faulty(answer) for answer in answers]

    async def score_images(
        self, images: Sequence[ImageInput], params: ScoreParams, context: RequestContext, *, answer_format: AnswerFormat
    ) -> list[Answer | ImageFault]:
        """Admit and score images; used over HTTP and by handle.

        Raises:
            Overloaded: too many images are in flight; refused before any work.
            ServiceError: see ScoringGraph.score.
        """
        began = time.perf_counter()
        try:
            options = self.score_options(params, answer_format)
            if not images:
                return []
            check_image_count(len(images), self.settings.ingress.max_images_per_request)
            answers = await self._graph.score(images, options, context)
            record_stages(answers)
        except ServiceError as error:
            self._metrics.request_failed(error, max(len(images), 1), (time.perf_counter() - began) * 1e3, context.caller)
            raise
        faults = [answer.code for answer in answers if isinstance(answer, ImageFault)]
        self._metrics.request_done(len(images), faults, (time.perf_counter() - began) * 1e3, context.caller)
        return answers

    @contextmanager
    def errors_counted(self, caller: str | None = None) -> Iterator[None]:
        """Within: count an error by its code and caller, as one image, because the number of images is not known yet.

        Args:
            caller: id of the request's key; None if the request has no valid key.
        """
        try:
            yield
        except ServiceError as error:
            self._metrics.refused(error.code, caller)
            raise

    def check_room(self, caller: str = "") -> None:
        """Raise Overloaded if there is no room for one more ordinary image. Called before a body is read that cannot hold only URLs."""
        self._graph.admission.check_room(self._graph.admission.ordinary, 1, caller)

    def refusal(self) -> Overloaded:
        """The error for a request whose body finds no room."""
        return self._graph.admission.refusal(reason="ingress.max_bodies_mb, or the key's share of it")

    async def check_health(self) -> None:
        """Called by Ray every `health_check_period_s`. Also sets the gauges, which must be repeated (see deployments.telemetry.metrics).

        Raises:
            ServiceError: a stage in this process cannot work any more. Stages with replicas of their own have their own health checks.
        """
        for lane in self._graph.admission.lanes:
            self._metrics.in_flight(lane.name, lane.admitted, lane.limit)
        for stage in (self._image_loader, self._detector):
            if isinstance(stage, LocalHandle):
                await stage.check_health.remote()

    def context(self, timeout_s: float | None = None, request_id: str | None = None, caller: str = "") -> RequestContext:
        """A request's context; the deadline is the shorter of the caller's and the server's.

        Args:
            timeout_s: the caller's time limit, seconds; None for the server's.
            request_id: for the logs; None generates one.
            caller: id of the request's key; empty if there are fewer than two keys.
        Raises:
            InvalidRequest: `timeout_s` is not a number.
        """
        if timeout_s is not None and math.isnan(timeout_s):
            raise InvalidRequest("timeout_s must be a number of seconds, not NaN.")
        timeout_s = self.settings.ingress.timeout_s if timeout_s is None else min(timeout_s, self.settings.ingress.timeout_s)
        return RequestContext(request_id or str(uuid.uuid4()), time.time() + timeout_s, caller)

    def score_options(self, params: ScoreParams, answer_format: AnswerFormat) -> ScoreOptions:
        """Apply the server's defaults to a request's params.

        Raises:
            InvalidRequest: a label that the model does not have.
        """
        detector, polygonizer = self.settings.detector, self.settings.polygonizer
        return ScoreOptions(
            DetectOptions(
                score_threshold=_either(params.score_threshold, detector.score_threshold),
                max_detections=min(_either(params.max_detections, detector.max_detections), detector.max_detections),
            ),
            OutlineOptions(
                tolerance_px=_either(params.polygon_tolerance_px, polygonizer.tolerance_px),
                max_points=_either(params.polygon_max_points, polygonizer.max_points),
                decimals=_either(params.decimals, polygonizer.decimals),
                holes=_either(params.holes, polygonizer.holes),
                mask_format=params.mask_format,
                closed=params.closed,
            ),
            labels=None if params.labels is None else self._checked_labels(params.labels),
            isolate=params.on_error == "isolate" and answer_format not in PICTURE_FORMATS,  # a picture has no place for an error
            answer_format=answer_format,
        )

    def _checked_labels(self, labels: Sequence[str]) -> frozenset[str]:
        unknown = set(labels) - set(self._classes)
        if unknown:
            raise InvalidRequest(
                f"'params.labels' names unknown label(s) {quoted(unknown)}; this model has: {', '.join(self._classes)}."
            )
        return frozenset(labels)

    async def check_ready(self) -> None:
        """Send a tiny image through every stage. The outcome is cached for `ready_cache_s`; one probe runs at a time.

        Raises:
            ServiceError: a stage did not answer.
        """
        async with self._probe_lock:
            if self._readiness is None or time.monotonic() > self._readiness[0]:
                error = await self._probe()
                self._readiness = (time.monotonic() + self.settings.ingress.ready_cache_s, error)
            error = self._readiness[1]
        if error is not None:
            raise error

    async def _probe(self) -> ServiceError | None:
        options = self.score_options(ScoreParams(), "json")
        try:
            await self._graph.probe(PROBE_IMAGE, options, self.context(PROBE_TIMEOUT_S, "readiness-probe"))
        except ServiceError as error:
            return error
        return None

    async def model_info(self) -> EngineInfo:
        """Model, engine and device of the detector. Asked again after `MODEL_INFO_S`: the one that answers during an update may still have
        the old model. A detector that is busy then changes nothing.

        Raises:
            ServiceError: the detector did not answer.
        """
        if self._model is None or time.monotonic() > self._model[0]:
            try:
                self._model = (time.monotonic() + MODEL_INFO_S, await self._graph.model_info(PROBE_TIMEOUT_S))
            except Overloaded:
                if self._model is None:
                    raise
        return self._model[1]


def _faulty(answer: Answer | ImageFault) -> ScoredImage:
    if isinstance(answer, ImageFault):
        return ScoredImage([], fault=answer)
    raise TypeError(f"expected a typed answer, got {type(answer).__name__}")


def _either(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
