"""mosec: HTTP and batching in Rust, the pipeline in worker processes, batches of --max-batch within 5 ms.

    python -m benchmarks.peers.mosec --port 9005

mosec batches requests, not images: one request is one item of a batch, so only requests of a single image are answered, others with 422.
One stage: a stage of its own for decoding would send every image's pixels through a socket (docs/EXPERIMENTS.md).
Its limits of 3 s per request and 1024 requests are lifted far enough for all photos at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mosec import Server, ValidationError, Worker

from benchmarks.peers.scoring import Scorer, answer, arguments, images_in

MODEL, MAX_BATCH, THREADS = "PEER_MODEL", "PEER_MAX_BATCH", "PEER_THREADS"
"""Environment variables: workers are started as processes of their own, without arguments."""

BATCH_TIMEOUT_MS = 5
REQUEST_TIMEOUT_MS = 300_000


class Detector(Worker):
    """Decode, network and outlines of a batch of requests."""

    def __init__(self) -> None:
        super().__init__()
        self._scorer = Scorer(os.environ[MODEL], int(os.environ[MAX_BATCH]), int(os.environ[THREADS]))

    def deserialize(self, data: bytes) -> str:
        """The request's only image, base64."""
        texts = images_in(data)
        if len(texts) != 1:
            raise ValidationError("one image a request")
        return texts[0]

    def forward(self, data: Sequence[str]) -> list[bytes]:
        """JSON of each image."""
        found = self._scorer.detect([self._scorer.load(text) for text in data])
        return [self._scorer.outline(instances) for instances in found]

    def serialize(self, data: bytes) -> bytes:
        """The response body."""
        return answer([data])


if __name__ == "__main__":
    args = arguments(__doc__)
    os.environ.update({MODEL: args.model, MAX_BATCH: str(args.max_batch), THREADS: str(args.threads)})
    os.environ.update(MOSEC_ADDRESS="127.0.0.1", MOSEC_PORT=str(args.port), MOSEC_LOG_LEVEL="warning")
    os.environ.update(MOSEC_TIMEOUT=str(REQUEST_TIMEOUT_MS))
    sys.argv = sys.argv[:1]  # mosec reads it, too
    server = Server()
    server.append_worker(
        Detector, num=args.workers, max_batch_size=args.max_batch, max_wait_time=BATCH_TIMEOUT_MS, route="/score"
    )
    server.run()
