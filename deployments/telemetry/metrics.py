"""Prometheus metrics of the stages, exported by Ray (prefix `ray_`, tags deployment, replica, application).

monitoring/grafana-dashboard.json shows all of them (checked by tests/e2e/test_monitoring.py). One call costs 3 to 4 us of CPU (Ray 2.60,
measured in a replica); an image causes about 10. Counters of rare events are exported as 0 from the start, so that `rate()` sees the first
event. Ray drops a gauge that is not set again within two export intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from ray.serve import metrics

from pipeline.errors import ServiceError, StageFailed
from pipeline.inference.batch_queue import BatchObserver, DropReason

_LATENCY_MS: list[float] = [
    1,
    2,
    5,
    10,
    20,
    35,
    50,
    75,
    100,
    150,
    200,
    250,
    350,
    500,
    750,
    1000,
    2000,
    5000,
    10000,
    30000,
    60000,
    120000,
]
_BATCH: list[float] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256]
_OBJECTS: list[float] = [
    0.5,
    1.5,
    2.5,
    3.5,
    5.5,
    10.5,
    20.5,
    50.5,
    100.5,
]  # bounds between whole numbers; the first bucket is 0 objects


class StageMetrics:
    """Latency, images and errors of one stage.

    Args:
        stage: `ingress` (its latency is that of a whole request), `fetch` (URLs, in an ImageLoader), `image_loader`, `detector` or
            `polygonizer`.
    """

    def __init__(self, stage: str) -> None:
        self._latency = metrics.Histogram(
            "rtmdet_stage_latency_ms",
            "Time an image spends in a stage, milliseconds.",
            _LATENCY_MS,
            tag_keys=("stage", "outcome"),  # type: ignore[arg-type]  # Ray says tuple[str] and means any length
        )
        self._images = metrics.Counter("rtmdet_stage_images", "Images that a stage finished.", tag_keys=("stage",))
        self._errors = metrics.Counter(
            "rtmdet_stage_errors",
            "Images that a stage refused or failed on. A request refused before its images are known counts as one image.",
            tag_keys=("stage", "code"),  # type: ignore[arg-type]
        )
        for metric in (self._latency, self._images, self._errors):
            metric.set_default_tags({"stage": stage})  # a new dict for each: Ray modifies it
        _start_at_zero(self._errors, code=StageFailed.code)

    def done(self, latency_ms: float, images: int = 1) -> None:
        """Count finished images and the time they took, milliseconds."""
        self._latency.observe(latency_ms, tags={"outcome": "done"})
        if images:
            self._images.inc(images)

    def failed(self, code: str, images: int = 1, latency_ms: float | None = None) -> None:
        """Count images (at least one) that ended with the error `code`, and the time it took, milliseconds."""
        self._errors.inc(images, tags={"code": code})
        if latency_ms is not None:
            self._latency.observe(latency_ms, tags={"outcome": "failed"})


class IngressMetrics(StageMetrics):
    """Metrics that only the ingress has."""

    def __init__(self) -> None:
        super().__init__("ingress")
        self._in_flight = metrics.Gauge(
            "rtmdet_images_in_flight", "Images admitted and not answered yet, by lane.", tag_keys=("lane",)
        )
        self._limit = metrics.Gauge("rtmdet_images_in_flight_limit", "Most images in flight, by lane.", tag_keys=("lane",))
        self._by_caller = metrics.Counter(
            "rtmdet_caller_images",
            "Images by the caller's key id and outcome: done, or the error code.",
            tag_keys=("caller", "code"),  # type: ignore[arg-type]
        )

    def in_flight(self, lane: str, images: int, limit: int) -> None:
        """Set the number of images in flight in a lane and its limit; call it repeatedly, even if they did not change."""
        self._in_flight.set(images, tags={"lane": lane})
        self._limit.set(limit, tags={"lane": lane})

    def request_done(self, images: int, faults: Sequence[str], latency_ms: float, caller: str) -> None:
        """Count an answered request: its images, and the codes of the isolated faults among them."""
        self.done(latency_ms, images - len(faults))
        self._count_caller(caller, "done", images - len(faults))
        for code in faults:
            self.failed(code)
            self._count_caller(caller, code)

    def refused(self, code: str, caller: str | None) -> None:
        """Count a request that is refused before its images are known, as one image; `caller` is None if it has no valid key."""
        self.failed(code)
        if caller is not None:
            self._count_caller(caller, code)

    def request_failed(self, error: ServiceError, images: int, latency_ms: float, caller: str) -> None:
        """Count a failed request: the images that failed, or all images if the error is not about single ones."""
        codes = [fault.code for fault in error.faults] or [error.code] * images
        for code, count in Counter(codes).items():
            self.failed(code, count)
            self._count_caller(caller, code, count)
        self._latency.observe(latency_ms, tags={"outcome": "failed"})

    def _count_caller(self, caller: str, code: str, images: int = 1) -> None:
        if images:
            self._by_caller.inc(images, tags={"caller": caller or "any", "code": code})


class ObjectMetrics:
    """Objects found. There is a counter besides the histogram because Ray only estimates a histogram's sum."""

    def __init__(self) -> None:
        self._per_image = metrics.Histogram("rtmdet_objects_per_image", "Objects in the answer of one image.", _OBJECTS)
        self._objects = metrics.Counter("rtmdet_objects", "Objects answered.")
        _start_at_zero(self._objects)

    def image(self, objects: int) -> None:
        """Record the number of objects of one image."""
        self._per_image.observe(objects)
        if objects:
            self._objects.inc(objects)


class DecoderMetrics:
    """Memory of the decoder processes; Ray does not count it as the replica's."""

    def __init__(self) -> None:
        self._memory = metrics.Gauge("rtmdet_decoder_memory_bytes", "Resident memory of a replica's decoder processes, bytes.")

    def memory(self, resident_bytes: int) -> None:
        """Set it; call it repeatedly, even if it did not change."""
        self._memory.set(resident_bytes)


class BatchMetrics(BatchObserver):
    """Sizes and times of the detector's batches."""

    def __init__(self) -> None:
        self._size = metrics.Histogram("rtmdet_batch_size", "Images in one pass of the network.", _BATCH)
        self._wait = metrics.Histogram("rtmdet_batch_wait_ms", "Time an image waited for its batch, milliseconds.", _LATENCY_MS)
        self._run = metrics.Histogram(
            "rtmdet_batch_run_ms", "Time from the start of a batch to its results, milliseconds.", _LATENCY_MS
        )
        self._splits = metrics.Counter(
            "rtmdet_batch_splits", "Batches that failed and were retried in halves.", tag_keys=("cause",)
        )
        self._dropped = metrics.Counter("rtmdet_batch_dropped", "Images dropped before the network ran.", tag_keys=("reason",))
        for cause in ("out_of_memory", "error"):
            _start_at_zero(self._splits, cause=cause)
        for reason in get_args(DropReason):
            _start_at_zero(self._dropped, reason=reason)

    def batch_ran(self, waits_s: Sequence[float], run_s: float) -> None:
        """Record one pass: each image's wait and the pass's time, seconds."""
        self._size.observe(len(waits_s))
        self._run.observe(run_s * 1e3)
        for wait_s in waits_s:
            self._wait.observe(wait_s * 1e3)

    def batch_split(self, out_of_memory: bool) -> None:
        """Record a batch that is retried in halves."""
        self._splits.inc(tags={"cause": "out_of_memory" if out_of_memory else "error"})

    def item_dropped(self, reason: DropReason) -> None:
        """Record an image dropped before the network ran (`deadline` or `cancelled`)."""
        self._dropped.inc(tags={"reason": reason})


def _start_at_zero(counter: metrics.Counter, **tags: str) -> None:
    counter._record(0, tags)  # private: inc() refuses 0
