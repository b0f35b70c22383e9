"""Reads a service's metrics from Ray's Prometheus exporters, as an operator's Prometheus would.

snapshot(files) before and after a run ──▶ after - before ──▶ batch sizes, waits, time by stage, as histograms
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

DISCOVERY_NAME = "prom_metrics_service_discovery.json"
"""The file in Ray's temporary folder (by default /tmp/ray) that lists the exporters of all nodes."""

SIZES, WAITS, LATENCIES, IMAGES = (
    "ray_rtmdet_batch_size",
    "ray_rtmdet_batch_wait_ms",
    "ray_rtmdet_stage_latency_ms",
    "ray_rtmdet_stage_images",
)
STAGE_TAGS = ("ingress", "image_loader", "detector", "polygonizer")
"""Values of the tag `stage`, in the order of a request."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by bucket; without a sum, because Ray's exporter only estimates it.

    Args:
        counts: (upper end of the bucket, observations in it), ascending.
    """

    counts: tuple[tuple[float, int], ...] = ()

    @property
    def total(self) -> int:
        """All observations."""
        return sum(count for _, count in self.counts)

    def __sub__(self, other: Histogram) -> Histogram:
        before = dict(other.counts)
        return Histogram(tuple((end, max(0, count - before.get(end, 0))) for end, count in self.counts))

    def quantile(self, share: float) -> float | None:
        """Value below which `share` (0..1) of the observations are, interpolated within the bucket; None without observations.

        In the last bucket, which has no end, the end of the one before it.
        """
        wanted, below, begin = share * self.total, 0, 0.0
        if self.total == 0:
            return None
        for end, count in self.counts:
            if count and below + count >= wanted:
                return begin if end == float("inf") else begin + (end - begin) * (wanted - below) / count
            below, begin = below + count, begin if end == float("inf") else end
        return begin


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Metrics at one time, summed over all replicas.

    Args:
        sizes, waits: images in a pass; milliseconds that images waited for theirs.
        latencies, images: by stage: milliseconds per image, and images finished.
    """

    sizes: Histogram = Histogram()
    waits: Histogram = Histogram()
    latencies: Mapping[str, Histogram] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)

    def __sub__(self, other: Snapshot) -> Snapshot:
        return Snapshot(
            self.sizes - other.sizes,
            self.waits - other.waits,
            {stage: mine - other.latencies.get(stage, Histogram()) for stage, mine in self.latencies.items()},
            {stage: mine - other.images.get(stage, 0) for stage, mine in self.images.items()},
        )

    @property
    def mean_batch(self) -> float | None:
        """Mean number of images in a pass; None without passes."""
        return self.images.get("detector", 0) / self.sizes.total if self.sizes.total else None


def discovery_file(ray_folder: Path) -> Path:
    """The file that names the exporters, in Ray's temporary folder."""
    return ray_folder / DISCOVERY_NAME


def metrics_text(discovery: Path) -> str:
    """All metrics of all nodes, in Prometheus' text format.

    Raises:
        RuntimeError: no exporter answers.
    """
    groups = json.loads(discovery.read_text(encoding="utf-8")) if discovery.exists() else []
    texts = []
    for target in (target for group in groups for target in group["targets"]):
        with suppress(requests.ConnectionError):  # Ray also lists exporters that have ended
            texts.append(requests.get(f"http://{target}/metrics", timeout=10).text)
    if not texts:
        raise RuntimeError(f"no metrics exporter answers; they are looked up in {discovery}")
    return "\n".join(texts)


def snapshot(discovery: Path) -> Snapshot:
    """Read everything once."""
    return parse(metrics_text(discovery))


def parse(text: str) -> Snapshot:
    """Parse this project's metrics from Prometheus' text format, summed over replicas."""
    buckets: dict[tuple[str, str], Counter[float]] = {}
    images: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name, stage = sample.name, sample.labels.get("stage", "")
            if name in (f"{SIZES}_bucket", f"{WAITS}_bucket", f"{LATENCIES}_bucket"):
                buckets.setdefault((name.removesuffix("_bucket"), stage), Counter())[float(sample.labels["le"])] += int(
                    sample.value
                )
            elif name.removesuffix("_total") == IMAGES:
                images[stage] += int(sample.value)
    return Snapshot(
        _histogram(buckets.get((SIZES, ""), {})),
        _histogram(buckets.get((WAITS, ""), {})),
        {stage: _histogram(counts) for (name, stage), counts in buckets.items() if name == LATENCIES},
        dict(images),
    )


def _histogram(cumulative: Mapping[float, int]) -> Histogram:
    """Convert Prometheus' cumulative counts."""
    ends = sorted(cumulative)
    below: Iterable[int] = (0, *(cumulative[end] for end in ends))
    return Histogram(tuple((end, cumulative[end] - before) for end, before in zip(ends, below, strict=False)))
