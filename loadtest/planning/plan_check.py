"""Compares the planner's prediction with a run of the service with simulated detectors: `python -m loadtest plan --check`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from loadtest.load.openloop import Client, run_single_stream
from loadtest.load.photos import photos_from
from loadtest.load.scenarios import Setup, run_offline
from loadtest.load.traffic import request_bodies
from loadtest.service.local_service import local_service
from loadtest.service.parts import DETECTOR
from serve_app.config.capacity import Step

CHECK_STEP = Step(150.0, 30.0)
"""Step of the simulated detector: 21 images/s at batch 8, so that two of them do not saturate two CPUs."""
BATCH = 8

Predict = Callable[[Step, int, int, float], tuple[float, str]]
"""(step, detectors, batch, CPU milliseconds per image of the client) → images/s, and what limits them."""


def check(detectors: int, predict: Predict) -> dict[str, Any]:
    """Run the service with so many simulated detectors and measure offline images/s beside the prediction.

    The client runs on the same machine, so its CPU time is measured and passed to the prediction.
    """

    def simulate(document: dict[str, Any]) -> None:
        """Change the configuration: `detectors` replicas with the simulated engine."""
        (application,) = document["applications"]
        simulated = {"base_ms": CHECK_STEP.base_ms, "per_image_ms": CHECK_STEP.per_image_ms, "instances": 2}
        application["args"]["detector"] |= {"engine": "simulated", "simulated": simulated}
        application["args"]["ingress"]["groups"] |= {"max_in_flight": max(2, 2 * detectors)}
        for deployment in application["deployments"]:
            if deployment["name"] == DETECTOR:
                deployment |= {"num_replicas": detectors, "ray_actor_options": {"num_cpus": 0.1}}

    async def measure(url: str) -> tuple[float, float]:
        async with Client(url, request_bodies(photos_from(None), 1)) as client:
            await run_single_stream(client, 3.0)
            images, before_s = 100 * detectors, time.process_time()
            result = await run_offline(client, Setup(offline_images=images))
            return float(result["summary"]["images_per_s"]), (time.process_time() - before_s) / images * 1e3

    with local_service(change=simulate) as service:
        measured, client_ms = asyncio.run(measure(service.url))
    predicted, limit = predict(CHECK_STEP, detectors, BATCH, client_ms)
    return {
        "detectors": detectors,
        "predicted_per_s": predicted,
        "limit": limit,
        "measured_per_s": measured,
        "client_cpu_ms": client_ms,
    }
