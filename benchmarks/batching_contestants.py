"""The contestants of the batching race: one sleeping model behind `@serve.batch` and behind the greedy batcher."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from pipeline.inference.batcher import GreedyBatcher

NAMES = ("serve.batch", "serve.batch tuned", "greedy")

ONGOING = 1024
"""Admission is not what is raced: nothing may queue in front of a replica."""


class SleepingModel:
    """A blocking model: one step for a batch of any size. Keeps the sizes it saw."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._sizes: list[int] = []

    def __call__(self, items: list[int]) -> list[int]:
        self._sizes.append(len(items))
        time.sleep(self._step_s)
        return items

    def take_sizes(self) -> list[int]:
        """Batch sizes since the last call."""
        sizes, self._sizes = self._sizes, []
        return sizes


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 0})
class ServeBatch:
    """`@serve.batch`; `wait_s` None keeps its default wait."""

    def __init__(self, step_s: float, max_batch: int, wait_s: float | None = None) -> None:
        self._model = SleepingModel(step_s)
        score: Any = self._score  # the decorator's type hides the setters
        score.set_max_batch_size(max_batch)
        if wait_s is not None:
            score.set_batch_wait_timeout_s(wait_s)

    @serve.batch
    async def _score(self, items: list[int]) -> list[int]:
        return await asyncio.to_thread(self._model, items)

    async def __call__(self, item: int) -> int:
        return await self._score(item)

    def take_sizes(self) -> list[int]:
        return self._model.take_sizes()


@serve.deployment(max_ongoing_requests=ONGOING, ray_actor_options={"num_cpus": 0})
class Greedy:
    """The project's own batcher, with the wait that is `serve.batch`'s default."""

    def __init__(self, step_s: float, max_batch: int) -> None:
        self._model = SleepingModel(step_s)
        self._batcher: GreedyBatcher[int, int] = GreedyBatcher(self._model, max_batch=max_batch, max_wait_s=0.01)

    async def __call__(self, item: int) -> int:
        return (await self._batcher.submit(item)).result

    def take_sizes(self) -> list[int]:
        return self._model.take_sizes()


@contextmanager
def local_serve() -> Iterator[None]:
    """A Ray Serve of this process's own, without HTTP and dashboard, gone at the end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


def deploy(step_s: float, max_batch: int, names: Collection[str] = NAMES) -> dict[str, DeploymentHandle]:
    """Start the named contestants on a model of `step_s` seconds a batch and return their handles by name."""
    serve_batch: Any = ServeBatch  # Ray's decorators are typed as if they left the class as it was, without `bind`
    greedy: Any = Greedy
    apps = {
        "serve.batch": serve_batch.bind(step_s, max_batch),
        "serve.batch tuned": serve_batch.bind(step_s, max_batch, step_s),
        "greedy": greedy.bind(step_s, max_batch),
    }
    return {name: serve.run(apps[name], name=name.replace(" ", "_"), route_prefix=None) for name in names}
