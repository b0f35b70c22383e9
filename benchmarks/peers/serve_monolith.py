"""One Ray Serve deployment that does it all, `@serve.batch` at its defaults, Ray's plain HTTP proxy.

    python -m benchmarks.peers.serve_monolith --port 9002

The defaults of `@serve.batch` in Ray 2.60: max_batch_size 10, batch_wait_timeout_s 0.01, max_concurrent_batches 1. The engine
takes a batch of that size in one pass, whatever --max-batch says. Images are decoded and outlined in threads, so that only the
network waits for a batch: what the documentation shows, done with care. Its Ray is its own and ends with it. (FastAPI reads the
annotations as types, hence no `from __future__ import annotations`.)
"""

import asyncio
import os
import signal
import tempfile
import threading
from typing import Any

import ray
from fastapi import FastAPI, Request, Response
from ray import serve

from benchmarks.peers.scoring import Scorer, answer, arguments, images_in
from pipeline.types import Instances, LoadedImage

SERVE_BATCH = 10
"""`@serve.batch`'s default max_batch_size."""

api = FastAPI()


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 1}, logging_config={"enable_access_log": False})
@serve.ingress(api)
class Monolith:
    """Decode, network, outlines and HTTP in one process."""

    def __init__(self, model: str, threads: int) -> None:
        self._scorer = Scorer(model, SERVE_BATCH, threads)

    @api.post("/score")
    async def score(self, request: Request) -> Response:
        """A request of one or more images."""
        results = await asyncio.gather(*map(self._score, images_in(await request.body())))
        return Response(answer(results), media_type="application/json")

    async def _score(self, text: str) -> bytes:
        image = await asyncio.to_thread(self._scorer.load, text)
        return await asyncio.to_thread(self._scorer.outline, await self._detect(image))

    @serve.batch
    async def _detect(self, images: list[LoadedImage]) -> list[Instances]:
        return await asyncio.to_thread(self._scorer.detect, images)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    args = arguments(__doc__, workers=1, threads=2)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_ENABLE_HA_PROXY="0")
    monolith: Any = Monolith  # Ray's decorators are typed as if they left the class as it was, without `bind`
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="rt", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": args.port})
            serve.run(monolith.bind(args.model, args.threads), route_prefix="/")
            stopped.wait()
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
