"""Detector: runs the network. Takes pixels, returns instances. One engine and one greedy batcher per replica, on the GPU that Ray grants it
(`num_gpus`), else on the CPU.

LoadedImage ─▶ GreedyBatcher ─▶ Engine.detect, on a thread of its own ─▶ Instances
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import ray
from ray import serve

from deployments.ray_serve.unary_calls import UNARY_CALLS
from deployments.settings import DetectorSettings, ModelSettings
from deployments.stages.stage import StageRunner, Timings
from deployments.task import ImageTask, ScoreOptions
from deployments.telemetry.metrics import BatchMetrics
from deployments.user_config import TakesUserConfig
from pipeline.errors import ConfigurationError, EngineLost
from pipeline.images.letterbox import for_size
from pipeline.inference.batcher import GreedyBatcher
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineInfo, EngineOptions, SimulatedStep
from pipeline.inference.lost_device import end_process
from pipeline.model.zoo import hash_of_file
from pipeline.types import DetectOptions, Instances, LoadedImage

logger = logging.getLogger("ray.serve")

Item = tuple[LoadedImage, DetectOptions]
Detect = Callable[[Sequence[LoadedImage], Sequence[DetectOptions]], Sequence[Instances]]

HUNG_S, HUNG_S_PER_IMAGE = 120.0, 4.0
"""Until `MEASURED_BATCHES` batches were timed, a batch counts as hung after HUNG_S + HUNG_S_PER_IMAGE x max_batch. An image of RTMDet-Ins-x
takes 0.6 s on two cores, twice that while another batch runs; compiling takes less than HUNG_S."""
HUNG_FACTOR, MIN_HUNG_S = 20.0, 30.0
"""Later, a batch counts as hung after HUNG_FACTOR times the slowest of the last `MEASURED_BATCHES`, but not before MIN_HUNG_S: the network
may be compiled for a new image shape."""
MEASURED_BATCHES = 32


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512, request_router_config=UNARY_CALLS)
class Detector(TakesUserConfig):
    """Runs the network on batches that it forms across requests.

    Args:
        model: the section `model`: name or path, and the cache folder.
        settings: the section `detector`.
    """

    def __init__(self, model: ModelSettings, settings: DetectorSettings) -> None:
        replica = serve.get_replica_context()
        check_ongoing(replica.deployment, replica._deployment_config.max_ongoing_requests, settings.max_batch)
        self._stage = StageRunner("detector")
        self._lost: EngineLost | None = None
        # An Ingress holds requests too, and its health check ends it in a second.
        self._ends_when_lost = replica.deployment != "Ingress"
        self._ran_s: deque[float] = deque(maxlen=MEASURED_BATCHES)
        options = on_granted_device(engine_options(model, settings), _granted_gpus())
        self._engine = load_engine(model.name, options, self._note_capacity)
        self._weights = hash_of_file(model.name)
        self._batcher: GreedyBatcher[Item, Instances] = GreedyBatcher(
            partial(self._run, self._engine.detect),
            run_leaving_room=partial(self._run, self._engine.detect_leaving_room),
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1e3,
            fair_batch=fair_batch(self._engine.info),
            max_per_caller=max_per_caller(self._engine.info),
            observer=BatchMetrics(),
        )
        self._engine.warm_up()
        logger.info("engine: %s", json.dumps(self._engine.info.as_dict() | {"classes": len(self._engine.info.classes)}))

    def _note_capacity(self, min_images: int = 1) -> None:
        self._batcher.notify_capacity(min_images)

    def _run(self, detect: Detect, items: list[Item]) -> Sequence[Instances]:
        images, options = zip(*items, strict=True)
        began = time.perf_counter()
        try:
            found = detect(images, options)
        except EngineLost as error:
            self._lost = error
            if self._ends_when_lost:
                end_process(error, logger)
            raise
        self._ran_s.append(time.perf_counter() - began)
        return found

    async def check_health(self) -> None:
        """Called by Ray every `health_check_period_s`; Ray replaces a replica that raises.

        Raises:
            EngineLost: the device failed, or a batch hangs.
        """
        if self._lost is not None:
            raise self._lost
        limit_s = hung_after_s(self._engine.info.max_batch, tuple(self._ran_s))
        if self._batcher.running_s > limit_s:
            raise EngineLost(f"a batch has been running for more than {limit_s:g} s")

    async def detect(self, tasks: Sequence[ImageTask[LoadedImage]]) -> list[ImageTask[Instances]]:
        """Find the instances in the images of a call. Batches may mix images of several calls.

        Returns:
            Each task with its instances or its error: DeadlineExceeded if the deadline passed before the network ran, StageFailed if the
            network failed, or the error that the task already had.
        """
        return [replace(task, classes=self._engine.info.classes) for task in await self._stage.each(self._detect, tasks)]

    async def _detect(self, image: LoadedImage, task: ImageTask[LoadedImage], timings: Timings) -> Instances:
        image = for_size(image, self._engine.info.input_size)
        item = (image, detect_options(task.options, self._engine.info.classes))
        ran = await self._batcher.submit(item, deadline=task.context.deadline, caller=task.queue_key, background=task.large)
        timings.add("queue", ran.wait_s)
        timings.add("detect", ran.run_s)
        return ran.result

    async def info(self) -> EngineInfo:
        """Model, classes, input size, engine, precision and device of this replica."""
        return replace(self._engine.info, weights=self._weights)


def detect_options(options: ScoreOptions, classes: Sequence[str]) -> DetectOptions:
    """The instances to keep, with the wanted labels as indices of `classes`; a label that is none of them keeps nothing."""
    if options.labels is None:
        return options.detect
    return replace(options.detect, labels=frozenset(index for index, name in enumerate(classes) if name in options.labels))


def hung_after_s(max_batch: int, ran_s: Sequence[float]) -> float:
    """The time after which a batch counts as hung, seconds.

    Args:
        max_batch: most images in a batch.
        ran_s: times of the last batches, seconds.
    """
    at_first = HUNG_S + HUNG_S_PER_IMAGE * max_batch
    if len(ran_s) < MEASURED_BATCHES:
        return at_first
    return min(at_first, max(MIN_HUNG_S, HUNG_FACTOR * max(ran_s)))


def fair_batch(info: EngineInfo) -> int:
    """Most images in a batch if the service has several keys.

    OpenVINO runs one image on each thread, so a batch of one image a thread costs as much an image as a larger one. On a GPU it would cost
    more.
    """
    return min(info.threads, info.max_batch) if info.engine == "openvino" else info.max_batch


def max_per_caller(info: EngineInfo) -> int | None:
    """Most images of a caller that run while there are other callers; None for no limit.

    OpenVINO keeps a thread for the next image of another caller: it need not wait for a network pass. On a GPU an idle part is lost.
    """
    return max(1, fair_batch(info) - 1) if info.engine == "openvino" else None


def engine_options(model: ModelSettings, settings: DetectorSettings) -> EngineOptions:
    """The engine options for these settings."""
    return EngineOptions(
        kind=settings.engine,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        max_batch=settings.max_batch,
        fitted=settings.fitted_input,
        cuda_kernels=settings.cuda_kernels,
        cache_dir=model.cache_dir.expanduser(),
        simulated=SimulatedStep(**settings.simulated.model_dump()),
    )


def on_granted_device(options: EngineOptions, gpus: int) -> EngineOptions:
    """Resolve `device: auto`: the GPU that Ray granted to this replica, else the CPU.

    In Ray 2.60 a replica without `num_gpus` sees every GPU of its machine. It must not use them: they are not reserved for it, and all such
    replicas would share the first one. If PyTorch cannot use a granted GPU, the engine raises instead of falling back to the CPU.
    """
    if options.device != "auto" or options.kind not in ("auto", "torch"):
        return options
    return replace(options, device="cuda" if gpus else "cpu")


def _granted_gpus() -> int:
    return len(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))


def check_ongoing(deployment: str, ongoing: int, max_batch: int) -> None:
    """Refuse a max_ongoing_requests that could never fill a batch: it bounds the calls that Ray Serve sends to a replica at a time.

    Args:
        deployment: its name, for the message.
        ongoing: its max_ongoing_requests.
        max_batch: most images in a batch.
    Raises:
        ConfigurationError: it is below two batches, of which one runs while the next one gathers.
    """
    if ongoing < 2 * max_batch:
        raise ConfigurationError(
            f"deployments[{deployment}]: max_ongoing_requests {ongoing} cannot fill batches of {max_batch}; it must be at least "
            f"{2 * max_batch}: one batch runs while the next one gathers. Raise it, or lower args.detector.max_batch"
        )
