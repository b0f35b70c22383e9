"""On a real Ray Serve, on the same sleeping model and load: what the greedy batcher is there for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
from ray.serve.handle import DeploymentHandle

from benchmarks.batching_race import Load, Outcome, deploy, local_serve, measure

pytestmark = pytest.mark.slow  # what the batcher does is tested in tests/pipeline/inference/test_batcher.py

LOAD = Load(step_s=0.1, max_batch=16, callers=32, rate_per_s=80.0, seconds=2.0)
"""The ceiling is 160 items per second; the Poisson arrivals ask for half of it."""


@pytest.fixture(scope="module")
def handles() -> Iterator[dict[str, DeploymentHandle]]:
    before = psutil.Process().children(recursive=True)
    with local_serve():
        yield deploy(LOAD.step_s, LOAD.max_batch, ["serve.batch", "greedy"])
        started = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert started
    assert psutil.wait_procs(started, timeout=10)[1] == [], "processes of Ray were left behind"


def measure_both(handles: dict[str, DeploymentHandle], kind: str, load: Load = LOAD) -> tuple[Outcome, Outcome]:
    async def both() -> tuple[Outcome, Outcome]:
        return await measure(handles["serve.batch"], kind, load), await measure(handles["greedy"], kind, load)

    serve_batch, greedy = asyncio.run(both())
    print(f"\n{kind}\n  serve.batch  {serve_batch}\n  greedy       {greedy}")
    assert serve_batch.errors == greedy.errors == 0
    return serve_batch, greedy


def test_closed_loop(handles: dict[str, DeploymentHandle]) -> None:
    """32 callers: full batches instead of the small ones that `serve.batch` freezes, and at least 1.5 times the items."""
    serve_batch, greedy = measure_both(handles, "closed loop")
    assert serve_batch.mean_batch is not None
    assert greedy.mean_batch is not None
    assert greedy.mean_batch >= 0.9 * LOAD.max_batch
    assert greedy.mean_batch >= 1.5 * serve_batch.mean_batch
    assert greedy.per_s >= 1.5 * serve_batch.per_s


def test_poisson(handles: dict[str, DeploymentHandle]) -> None:
    """At half the ceiling the greedy batcher keeps up; `serve.batch` queues for seconds what came in one."""
    serve_batch, greedy = measure_both(handles, "poisson", replace(LOAD, seconds=1.0))
    assert serve_batch.p50_ms is not None
    assert greedy.p50_ms is not None
    assert greedy.p50_ms < serve_batch.p50_ms / 2
