"""BentoML: a service for the network with a batchable API, and one before it for HTTP.

    .venv-peers/bin/python -m benchmarks.peers.bentoml --port 9004

BentoML's adaptive batching chooses how long to wait; batches are of at most --max-batch. The network has --workers processes,
HTTP has one. It pins an OpenTelemetry that Ray's metrics refuse, so it lives in a virtual environment of its own: see docs/LOADTEST.md.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml
from fastapi import FastAPI, Request, Response

from benchmarks.peers.scoring import Scorer, answer, arguments, images_in

MODEL, MAX_BATCH, THREADS, WORKERS = "PEER_MODEL", "PEER_MAX_BATCH", "PEER_THREADS", "PEER_WORKERS"
"""Environment variables: BentoML imports this file in every process that it starts, and passes no arguments."""

MAX_LATENCY_MS = 600_000
"""Beyond it BentoML drops what waits, by an estimate that begins with 2 s for each image, before it has learned the real pace."""

SETTINGS: Any = {
    "workers": 1,
    "traffic": {"timeout": 300},
    "logging": {"access": {"enabled": False}},
    "runner_connection": {"max_age": 1e9, "max_requests": 10**9},
}
"""`runner_connection`: the client between the two services. At BentoML 1.4's defaults it is closed after 100 requests, or 300 s, and every
request in flight then becomes a 500: 99 of 160 photos sent at once."""


@bentoml.service(**SETTINGS | {"workers": int(os.environ.get(WORKERS, "1"))})
class Detector:
    """The network, behind BentoML's adaptive batching."""

    def __init__(self) -> None:
        self._scorer = Scorer(os.environ[MODEL], int(os.environ[MAX_BATCH]), int(os.environ[THREADS]))

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get(MAX_BATCH, "8")), max_latency_ms=MAX_LATENCY_MS)
    def score(self, texts: list[str]) -> list[str]:
        """JSON of each base64 image."""
        images = [self._scorer.load(text) for text in texts]
        return [self._scorer.outline(found).decode() for found in self._scorer.detect(images)]


http = FastAPI()


@bentoml.service(**SETTINGS)
@bentoml.asgi_app(http)
class Scoring:
    """The HTTP side."""

    detector = bentoml.depends(Detector)

    @http.post("/score")
    async def score(self, request: Request) -> Response:
        """A request of one or more images."""
        results = await self.detector.to_async.score(texts=images_in(await request.body()))
        return Response(answer([text.encode() for text in results]), media_type="application/json")


if __name__ == "__main__":
    args = arguments(__doc__)
    os.environ.update({MODEL: args.model, MAX_BATCH: str(args.max_batch), THREADS: str(args.threads), WORKERS: str(args.workers)})
    os.environ.update(BENTOML_DO_NOT_TRACK="True")
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.peers.bentoml:Scoring"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(args.port)])
