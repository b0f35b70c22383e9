"""What the detectors' batch metrics say."""

import time
from dataclasses import dataclass

from loadtest.service.scrape import discovery_file, snapshot


@dataclass(frozen=True)
class Batches:
    """Passes of the network and the images in them."""

    passes: int
    images: int

    def __sub__(self, other):
        return Batches(self.passes - other.passes, self.images - other.images)


def batch_sizes(service) -> Batches:
    """The sum over all detectors since the start."""
    seen = snapshot(discovery_file(service.folder / "ray"))
    return Batches(seen.sizes.total, seen.images.get("detector", 0))


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
