"""Reads the detector's batch metrics from Ray's Prometheus exporter, as an operator's Prometheus would."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass

import requests
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Batches:
    """Passes of the network and the images in them."""

    passes: int
    images: int

    def __sub__(self, other):
        return Batches(self.passes - other.passes, self.images - other.images)


def metrics_text(service) -> str:
    """All metrics of the service's node, in Prometheus' text format."""
    (targets_file,) = (service.folder / "ray").glob("prom_metrics_service_discovery.json")
    targets = [target for group in json.loads(targets_file.read_text()) for target in group["targets"]]
    texts = []
    for target in targets:
        with suppress(requests.ConnectionError):  # Ray also lists exporters that have ended
            texts.append(requests.get(f"http://{target}/metrics", timeout=10).text)
    assert texts, "no exporter of the node answers"
    return "\n".join(texts)


def batch_sizes(service) -> Batches:
    """The sum over all detectors since the start. (Ray's exporter only estimates a histogram's sum, so images are the counter's.)"""
    count = total = 0.0
    for family in text_string_to_metric_families(metrics_text(service)):
        for sample in family.samples:
            if sample.name == "ray_rtmdet_batch_size_count":
                count += sample.value
            elif sample.name.startswith("ray_rtmdet_stage_images") and sample.labels.get("stage") == "detector":
                total += sample.value
    return Batches(int(count), int(total))


def settled_batches(service, quiet_s: float = 3.0) -> Batches:
    """The sum once it has stood still: what earlier requests did has arrived."""
    last = batch_sizes(service)
    while True:
        time.sleep(quiet_s)
        now = batch_sizes(service)
        if now == last:
            return now
        last = now


def wait_for_batches(service, before: Batches, images: int, timeout_s: float = 20) -> Batches:
    """What was added since `before`, once `images` more have been counted (metrics come twice a second)."""
    deadline = time.monotonic() + timeout_s
    added = batch_sizes(service) - before
    while added.images < images and time.monotonic() < deadline:
        time.sleep(0.3)
        added = batch_sizes(service) - before
    return added
